"""Average precision as PASCAL VOC's development kit computes it.

Source: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from ._annotated import AnnotatedPicture

Detections = Mapping[str, NDArray]
"""Of one picture: ``boxes`` (n, 4), ``labels`` (n,) and ``scores`` (n,), as a detector gives them."""

IOU = 0.5


@dataclass(frozen=True)
class VocResult:
    """Average precision of every kind of objects, in [0, 1]; NaN where the pictures show none.

    Args:
        labels: their names.
        eleven_point: mean of the highest precision at recalls 0, 0.1, ..., 1: VOC2007's figure.
        area: area under the curve of the highest precision at each recall and above: VOC2010's and later.
    """

    labels: tuple[str, ...]
    eleven_point: tuple[float, ...]
    area: tuple[float, ...]

    @property
    def map_percent(self) -> float:
        """Mean of ``eleven_point`` over the kinds that the pictures show, in percent."""
        return _mean_percent(self.eleven_point)

    @property
    def area_map_percent(self) -> float:
        """Mean of ``area`` over the kinds that the pictures show, in percent."""
        return _mean_percent(self.area)


def voc_evaluate(
    detections: Sequence[Detections], pictures: Sequence[AnnotatedPicture], labels: Sequence[str]
) -> VocResult:
    """Compare detections with annotations at an intersection over union of 0.5.

    Detections of all pictures are taken by descending score. One is right if the object with which it overlaps most,
    by at least 0.5, was not found before; if that object is ignored (difficult), the detection does not count.

    Args:
        detections: of each picture.
        pictures: their annotations, in the same order.
        labels: names of the kinds of objects; label 1 is the first.
    """
    eleven, area = [], []
    for label in range(1, len(labels) + 1):
        right, wanted = _judge(detections, pictures, label)
        eleven.append(eleven_point(right, wanted))
        area.append(area_under_curve(right, wanted))
    return VocResult(tuple(labels), tuple(eleven), tuple(area))


def eleven_point(right: NDArray[np.bool_], wanted: int) -> float:
    """Return VOC2007's average precision.

    Args:
        right: whether each detection is right, by descending score.
        wanted: number of objects to be found.
    """
    if not wanted:
        return float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    # In whole numbers: 3 of 10 objects are a recall of 0.3, which 0.1 * 3 is not.
    return float(np.mean([precision[10 * found >= tenths * wanted].max(initial=0) for tenths in range(11)]))


def area_under_curve(right: NDArray[np.bool_], wanted: int) -> float:
    """Return the average precision of VOC2010 and later; arguments as of :func:`eleven_point`."""
    if not wanted:
        return float("nan")
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall and above
    return float(highest[right].sum() / wanted)  # recall grows by 1 / wanted at each right detection


def _judge(
    detections: Sequence[Detections], pictures: Sequence[AnnotatedPicture], label: int
) -> tuple[NDArray[np.bool_], int]:
    """Return whether each detection that counts is right, by descending score, and how many objects there are."""
    scores, verdicts, wanted = [], [], 0
    for found, picture in zip(detections, pictures, strict=True):
        chosen = np.asarray(found["labels"]) == label
        there = picture.labels == label
        ignored = picture.ignored[there]
        wanted += int((~ignored).sum())
        ours = np.asarray(found["scores"])[chosen]
        order = np.argsort(-ours, kind="stable")
        overlaps = iou(np.asarray(found["boxes"])[chosen][order], picture.boxes[there])
        scores.append(ours[order])
        verdicts.append(_match(overlaps, ignored))
    score, verdict = np.concatenate(scores), np.concatenate(verdicts)
    verdict = verdict[np.argsort(-score, kind="stable")]
    return verdict[verdict >= 0] == 1, wanted


def _match(overlaps: NDArray[np.float64], ignored: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return 1 (right), 0 (wrong) or -1 (does not count) for each row of ``overlaps``, taken in order."""
    taken = np.zeros(len(ignored), dtype=bool)
    verdict = np.zeros(len(overlaps), dtype=np.int8)
    for number, row in enumerate(overlaps):
        best = int(row.argmax()) if len(row) else -1
        if best < 0 or row[best] < IOU:
            continue
        if ignored[best]:
            verdict[number] = -1
        elif not taken[best]:
            taken[best] = True
            verdict[number] = 1
    return verdict


def iou(one: NDArray, other: NDArray) -> NDArray[np.float64]:
    """Return intersections over unions of boxes (n, 4) and (m, 4) as (n, m)."""
    return box_iou(*(torch.as_tensor(np.asarray(boxes, np.float64)).reshape(-1, 4) for boxes in (one, other))).numpy()


def _mean_percent(values: tuple[float, ...]) -> float:
    shown = [value for value in values if not np.isnan(value)]
    return 100 * float(np.mean(shown)) if shown else float("nan")
