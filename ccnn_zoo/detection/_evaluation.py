"""Running a detector over pictures, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from ccnn_zoo.pictures import read

from ._annotated import AnnotatedPicture
from ._coco_figures import coco_evaluate
from ._data import as_numpy
from ._voc_protocol import Detections, VocResult, voc_evaluate


@dataclass(frozen=True)
class DetectorFigures:
    """What a detector is worth on annotated pictures.

    Args:
        voc: by VOC's protocol.
        coco: COCO's figures in percent, by name.
    """

    voc: VocResult
    coco: dict[str, float]


@torch.no_grad()
def detect(
    detector: nn.Module, pictures: Sequence[AnnotatedPicture], device: torch.device | str = "cpu"
) -> list[Detections]:
    """Return boxes, labels and scores of each picture as numpy arrays, one picture at a time.

    Raises:
        ImageError: a picture cannot be read.
    """
    detector = detector.to(device).eval()
    found = []
    for picture in pictures:
        image = pil_to_tensor(read(picture.path)).to(device).float().div_(255)
        found.append(as_numpy(detector([image])[0]))
    return found


def evaluate_detector(
    detector: nn.Module,
    pictures: Sequence[AnnotatedPicture],
    labels: Sequence[str],
    device: torch.device | str = "cpu",
) -> DetectorFigures:
    """Return the figures of a detector.

    Args:
        detector: gives labels from 1, as :func:`create_detector`'s do.
        pictures: with annotations, such as ``load_detection_data(...).test``.
        labels: names of the kinds of objects.
        device: to run on.

    Raises:
        ConfigurationError: the package pycocotools is missing.
        ImageError: a picture cannot be read.
    """
    found = detect(detector, pictures, device)
    return DetectorFigures(voc_evaluate(found, pictures, labels), coco_evaluate(found, pictures, labels))
