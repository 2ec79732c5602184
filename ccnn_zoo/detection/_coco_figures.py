"""COCO's figures, by pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from ._annotated import AnnotatedPicture
from ._voc_protocol import Detections

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def coco_evaluate(
    detections: Sequence[Detections], pictures: Sequence[AnnotatedPicture], labels: Sequence[str]
) -> dict[str, float]:
    """Return COCO's average precisions in percent: ``AP`` (over IoU 0.5 to 0.95), ``AP50``, ``AP75`` and by size.

    Ignored objects count as crowds. NaN stands where there is nothing to find, 0 everywhere if nothing was detected.

    Args:
        detections: of each picture.
        pictures: their annotations, in the same order.
        labels: names of the kinds of objects; label 1 is the first.

    Raises:
        MissingPackageError: the package pycocotools is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = [each for number, boxes in enumerate(detections) for each in _found(number, boxes)]
    with redirect_stdout(StringIO()):  # it reports every step
        truth = COCO()
        truth.dataset = _truth(pictures, labels)
        truth.createIndex()
        if not found:
            return dict.fromkeys(NAMES, 0.0)
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    values = [float("nan") if value < 0 else 100 * float(value) for value in judge.stats[: len(NAMES)]]
    return dict(zip(NAMES, values, strict=True))


def _truth(pictures: Sequence[AnnotatedPicture], labels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        sides = (picture.boxes[:, 2:] - picture.boxes[:, :2]).astype(np.float64)
        areas = sides.prod(1) if picture.areas is None else picture.areas
        for box, side, area, label, ignored in zip(
            picture.boxes, sides, areas, picture.labels, picture.ignored, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would count as not found
                    "image_id": number,
                    "category_id": int(label),
                    "bbox": [*map(float, box[:2]), *map(float, side)],
                    "area": float(area),
                    "iscrowd": int(ignored),
                }
            )
    images = [{"id": number, "width": each.width, "height": each.height} for number, each in enumerate(pictures)]
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(labels)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _found(number: int, found: Detections) -> list[dict[str, Any]]:
    boxes = np.asarray(found["boxes"], dtype=np.float64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
    labels, scores = np.asarray(found["labels"]).tolist(), np.asarray(found["scores"]).tolist()
    return [
        {"image_id": number, "category_id": label, "bbox": box, "score": score}
        for box, label, score in zip(sides, labels, scores, strict=True)
    ]
