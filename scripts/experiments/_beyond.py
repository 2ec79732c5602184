"""Pictures of what a network of CIFAR-10 was never shown: digits, photographs, blood cells and noise."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ccnn_zoo.train import Data, load_data

FOLDERS = {"photographs": "imagenet-sample/*.JPEG", "blood cells": "bccd/VOCdevkit/VOC2007/JPEGImages/*.jpg"}
NAMES = ("digits", *FOLDERS, "noise")
_AT_MOST = 2000
_SEED = 0


def beyond(folder: str, data: Data) -> dict[str, Tensor]:
    """Return images of each kind as a network of ``data`` sees them, float32 (N, C, H, W).

    Args:
        folder: holds ``MNIST``, ``imagenet-sample`` and ``bccd``.
        data: gives size, mean and standard deviation.
    """
    _, height, width = data.input_size
    digits = load_data(f"mnist:{folder}").test.pixels[:_AT_MOST, ..., 0].numpy()
    kinds = {"digits": _fitted(map(Image.fromarray, digits), height, width)}
    for name, pattern in FOLDERS.items():
        kinds[name] = _fitted(map(Image.open, sorted(Path(folder).glob(pattern))), height, width)
    shape = (_AT_MOST, height, width, 3)
    kinds["noise"] = np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    return {
        name: ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
        for name, pixels in kinds.items()
    }


def _fitted(pictures: Iterable[Image.Image], height: int, width: int) -> np.ndarray:
    resample = Image.Resampling.BILINEAR
    return np.stack([np.asarray(ImageOps.fit(p.convert("RGB"), (width, height), resample)) for p in pictures])
