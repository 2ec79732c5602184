"""Labelled images: in memory, or as files that are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from ccnn_zoo.errors import ImageError
from ccnn_zoo.pictures import LeftOut, look, read


class ArrayImages(Dataset[tuple[Image.Image, int]]):
    """Images of one size, decoded and held in memory as uint8.

    Args:
        pixels: uint8 (N, H, W, C), C 1 (grey) or 3 (RGB).
        targets: class of each image, int64 (N,).
    """

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        self.pixels = pixels
        self.targets = targets

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.pixels[index].numpy()
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), int(self.targets[index])

    def subset(self, indices: NDArray[np.int64]) -> ArrayImages:
        """Return the images at ``indices``, in that order."""
        return ArrayImages(self.pixels[indices], self.targets[indices])


class FileImages(Dataset[tuple[Image.Image, int]]):
    """Image files, decoded as upright RGB one by one.

    Args:
        paths: the files.
        targets: class of each image, int64 (N,).
    """

    def __init__(self, paths: Sequence[str | Path], targets: Tensor) -> None:
        self.paths = paths
        self.targets = targets

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read(self.paths[index]), int(self.targets[index])

    def look(self, index: int) -> None:
        """Refuse a picture of no use by its header, without decoding it.

        Raises:
            ImageError: as of :func:`ccnn_zoo.pictures.look`; names the file.
        """
        look(self.paths[index])

    def subset(self, indices: NDArray[np.int64]) -> FileImages:
        """Return the images at ``indices``, in that order."""
        return FileImages([self.paths[i] for i in indices], self.targets[indices])

    def in_memory(self) -> ArrayImages:
        """Decode all files, which must have one size.

        Raises:
            ImageError: a file cannot be read, or differs in size from the first; names it.
        """
        return stacked([read(path) for path in self.paths], self.paths, self.targets)


Images: TypeAlias = ArrayImages | FileImages
"""Pictures with their classes: in memory, or in files."""


def photographs(
    name: str, train: Dataset, test: Dataset, labels: tuple[str, ...], left_out: LeftOut | None = None
) -> dict[str, Any]:
    """Return the fields of ``Data`` for images of any size, with preprocessing as for ImageNet."""
    return {
        "name": name,
        "train": train,
        "test": test,
        "labels": labels,
        "input_size": (3, 224, 224),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "crop_pct": 0.875,
        "left_out": left_out or LeftOut(),
    }


def stacked(pictures: Sequence[Image.Image], names: Sequence[str | Path], targets: Tensor) -> ArrayImages:
    """Join pictures of one size.

    Raises:
        ImageError: one differs in size from the first; names it.
    """
    size = pictures[0].size
    for picture, name in zip(pictures, names, strict=True):
        if picture.size != size:
            raise ImageError(
                f"{name} has {picture.width} x {picture.height} pixels, {names[0]} has {size[0]} x {size[1]}; "
                "bring all images to one size, or train on `folder:PATH`, which resizes them"
            )
    return ArrayImages(torch.from_numpy(np.stack([np.asarray(p) for p in pictures])), targets)
