"""Detection data by name, and as batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import read
from ccnn_zoo.train.tasks import Draw, derived_seed

from ._annotated import AnnotatedPicture, DetectionData
from ._coco import coco
from ._voc import voc

SOURCES = {"voc": voc, "coco": coco}

DetectionBatch = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Images float32 (3, H, W) in [0, 1], and of each ``boxes`` (n, 4), ``labels`` (n,) and ``ignored`` (n,)."""


def load_detection_data(name: str, *, skip_bad_annotations: bool = False) -> DetectionData:
    """Load pictures with boxes by name: ``"voc:FOLDER"`` or ``"coco:FOLDER"``.

    Args:
        name: one of these.
        skip_bad_annotations: leave out what cannot be used instead of refusing it.

    Raises:
        ConfigurationError: the name is unknown, the folder has another layout, or annotations are bad; lists all.
    """
    kind, _, place = name.partition(":")
    if kind not in SOURCES or not place:
        raise ConfigurationError(f"data of a detector must be voc:FOLDER or coco:FOLDER, got {name!r}")
    return SOURCES[kind](place, skip=skip_bad_annotations)


class DetectionView(Dataset[DetectionBatch]):
    """Batches of pictures with their boxes; whether one is flipped depends on seed, epoch and index alone.

    Args:
        pictures: with their annotations.
        flip: probability of a horizontal flip.
        seed: of the flips.
        training: leave out ignored objects, which are not to be learned.
    """

    def __init__(
        self, pictures: Sequence[AnnotatedPicture], *, flip: float = 0.0, seed: int = 0, training: bool = False
    ) -> None:
        self._pictures, self._flip, self._seed, self._training = pictures, flip, seed, training
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the flips of all pictures for ``epoch``."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, Draw.AUGMENTATION, epoch))
        self._flipped = torch.rand(len(self), generator=generator) < self._flip

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitems__(self, indices: Sequence[int]) -> DetectionBatch:
        images, targets = zip(*(self._item(index) for index in indices), strict=True)
        return list(images), list(targets)

    def _item(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture = self._pictures[index]
        image = pil_to_tensor(read(picture.path)).float().div_(255)
        kept = ~picture.ignored if self._training else np.ones(len(picture.labels), dtype=bool)
        boxes = torch.from_numpy(picture.boxes[kept])
        if self._flipped[index]:
            image = image.flip(-1)
            boxes = torch.stack((picture.width - boxes[:, 2], boxes[:, 1], picture.width - boxes[:, 0], boxes[:, 3]), 1)
        labels, ignored = torch.from_numpy(picture.labels[kept]), torch.from_numpy(picture.ignored[kept])
        return image, {"boxes": boxes, "labels": labels, "ignored": ignored}


def as_numpy(tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays on the CPU; half precision, which numpy does not have in all forms, as float32."""
    return {name: (each.float() if each.is_floating_point() else each).cpu().numpy() for name, each in tensors.items()}
