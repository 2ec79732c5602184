"""Data sets of the Hugging Face Hub, or in a folder, through timm's reader of the library ``datasets``."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.readers import create_reader
from torch import Tensor
from torch.utils.data import Dataset

from ccnn_zoo._base.missing import missing_package
from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.pictures import look, read

from ._images import photographs
from .layouts import TEST_SPLITS


class ReaderImages(Dataset[tuple[Image.Image, int]]):
    """Images behind a reader of timm, decoded as upright RGB one by one.

    Args:
        reader: whose items are (file, class).
        targets: class of each image, int64 (N,).
        indices: of the reader's items, in the order of ``targets``.
        name: of the data set and its part, to name a picture by.
    """

    def __init__(self, reader: Any, targets: Tensor, indices: NDArray[np.int64], name: str) -> None:
        self._reader, self._indices, self._name = reader, indices, name
        self.targets = targets

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with self._opened(index) as file:
            return read(file, name=self._name_of(index)), int(self.targets[index])

    def look(self, index: int) -> None:
        """Refuse a picture of no use by its header, without decoding it.

        Raises:
            ImageError: as of :func:`ccnn_zoo.pictures.look`; names the data set and the row.
        """
        with self._opened(index) as file:
            look(file, self._name_of(index))

    def _opened(self, index: int) -> BinaryIO:
        try:
            return self._reader[int(self._indices[index])][0]
        except Exception as error:  # the library finds damage of many kinds
            raise ImageError(f"{self._name_of(index)} cannot be had: {error or type(error).__name__}") from error

    def _name_of(self, index: int) -> str:
        return f"{self._name}: the picture of row {self._indices[index]}"

    def subset(self, indices: NDArray[np.int64]) -> ReaderImages:
        """Return the images at ``indices``, in that order."""
        return ReaderImages(self._reader, self.targets[indices], self._indices[indices], self._name)


def hfds(name: str) -> dict[str, Any]:
    """A data set with columns ``image`` and ``label``; preprocessing as for ImageNet.

    Args:
        name: ``"hfds/"`` and what ``datasets.load_dataset`` takes: a name on the Hub, or a folder.
    """
    train, labels = _split(name, "train")
    for number, split in enumerate(TEST_SPLITS, 1):
        try:
            test, _ = _split(name, split)
            break
        except ConfigurationError:
            if number == len(TEST_SPLITS):
                raise
    return photographs(name.removeprefix("hfds/"), train, test, labels)


def _split(name: str, split: str) -> tuple[ReaderImages, tuple[str, ...]]:
    try:
        reader = create_reader(name, split=split)
        targets = torch.tensor(list(reader.iter_targets()))
    except ImportError as error:
        raise missing_package("datasets") from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{name} has no split {split!r} with columns image and label that can be read: {error}"
        ) from error
    labels = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    return ReaderImages(reader, targets, np.arange(len(targets)), f"{name} ({split})"), tuple(map(str, labels))
