"""Pictures with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOC_LABELS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""VOC's classes, in the order of the paper's Table 4."""


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture file and the objects on it.

    Args:
        path: the file.
        width, height: of the upright picture, in pixels.
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels from the upper left corner of the picture; x2 and y2 are the
            far edges, so that a box is x2 - x1 pixels wide.
        labels: int64 (n,), from 1.
        ignored: bool (n,); objects that are not trained on and not asked for (VOC's difficult, COCO's crowds).
        areas: float64 (n,), square pixels, by which COCO's figures tell small objects from large ones; COCO annotates
            that of the mask. None: those of the boxes.
    """

    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    areas: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class DetectionData:
    """Training and test pictures of one detection task.

    Args:
        name: as a reader would cite it.
        train: training pictures.
        test: test pictures.
        labels: names of the kinds of objects; label 1 is the first.
        skipped: what was wrong with annotations that were left out, one line each.
        notes: what was odd but could be read, and how it was, one line each.
    """

    name: str
    train: Sequence[AnnotatedPicture]
    test: Sequence[AnnotatedPicture]
    labels: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
