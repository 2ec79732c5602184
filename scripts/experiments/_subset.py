"""A part of MNIST small enough to overfit on a CPU, in MNIST's own file format: few images, of half the size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch.nn import functional

from ccnn_zoo._files import replacing
from ccnn_zoo.train import ArrayImages, load_data

SEED = 0


def mnist_subset(source: Path, place: Path, images: int) -> Path:
    """Write ``images`` of MNIST's training images, of all classes alike, and all its test images, at 14x14 pixels.

    Each pixel is the mean of four.

    Args:
        source: MNIST's folder.
        place: folder to write it in.
        images: number of training images.

    Returns:
        The folder, ``mnist14-<images>``; one that is there is taken as it is.
    """
    folder = place / f"mnist14-{images}"
    last = folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    if last.is_file():
        return folder
    data = load_data(f"mnist:{source}")
    targets = data.train.targets.numpy()
    kept, _ = train_test_split(np.arange(len(targets)), train_size=images, random_state=SEED, stratify=targets)
    _write(data.train.subset(np.sort(kept)), last.parent, "train")
    _write(data.test, last.parent, "t10k")
    return folder


def _write(images: ArrayImages, folder: Path, part: str) -> None:
    halved = functional.avg_pool2d(images.pixels[..., 0].float()[:, None], 2)[:, 0].round().to(torch.uint8)
    _write_idx(folder / f"{part}-images-idx3-ubyte", halved.numpy())
    _write_idx(folder / f"{part}-labels-idx1-ubyte", images.targets.to(torch.uint8).numpy())


def _write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write MNIST's format: two zeros, 8 for bytes, number of dimensions, their sizes as big-endian 32-bit, values."""
    with replacing(path) as temporary:
        header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
        temporary.write_bytes(header + np.ascontiguousarray(values).tobytes())
