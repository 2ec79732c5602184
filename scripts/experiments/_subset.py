"""Data brought to a size that a CPU can train on: a part of MNIST, and CIFAR-10 at half its resolution."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from documents import replacing
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.nn import functional

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
    _write_idx(folder / f"{part}-images-idx3-ubyte", _halved(images).numpy()[..., 0])
    _write_idx(folder / f"{part}-labels-idx1-ubyte", images.targets.to(torch.uint8).numpy())


def _halved(images: ArrayImages) -> torch.Tensor:
    """Return uint8 (N, H / 2, W / 2, C), each pixel the mean of four."""
    means = functional.avg_pool2d(images.pixels.permute(0, 3, 1, 2).float(), 2)
    return means.round().to(torch.uint8).permute(0, 2, 3, 1)


def cifar10_halved(source: Path, place: Path) -> Path:
    """Write CIFAR-10 at 16x16 pixels as an archive of PNG files, which ``cifar10:`` reads.

    Args:
        source: CIFAR-10's folder or archive.
        place: folder to write it in.

    Returns:
        The archive, ``cifar10-16.tar``; one that is there is taken as it is.
    """
    path = place / "cifar10-16.tar"
    if path.is_file():
        return path
    data = load_data(f"cifar10:{source}")
    place.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, tarfile.open(temporary, "w") as archive:
        for part, images in (("train", data.train), ("test", data.test)):
            for number, (pixels, target) in enumerate(zip(_halved(images).numpy(), images.targets, strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{part}/{data.labels[target]}/{number:05d}.png")
                member.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(member, buffer)
    return path


def _write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write MNIST's format: two zeros, 8 for bytes, number of dimensions, their sizes as big-endian 32-bit, values."""
    with replacing(path) as temporary:
        header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
        temporary.write_bytes(header + np.ascontiguousarray(values).tobytes())
