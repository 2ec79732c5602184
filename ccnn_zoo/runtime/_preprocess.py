"""timm's evaluation transform in Pillow and numpy, bit for bit.

Source: ``timm.data.transforms_factory.transforms_imagenet_eval`` with torchvision's ``Resize``,
``CenterCrop``, ``ToTensor`` and ``Normalize``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccnn_zoo.metadata import ModelMetadata

# No resized picture of more pixels is ever made whole: 20000 x 1 would become 4480000 x 224.
_MAX_RESIZED_PIXELS = 2**24


def preprocess(image: Image.Image, metadata: ModelMetadata) -> NDArray[np.float32]:
    """Resize, crop and normalise one image.

    Every value is that of timm's transform. Only of very thin pictures (20000 x 60), which timm resizes to
    more than 16 million pixels, just the middle is resized, and values may differ by one grey level.

    Args:
        image: mode ``"L"`` for one channel, ``"RGB"`` for three.
        metadata: the network's.

    Returns:
        float32 (C, H, W).
    """
    pixels = np.asarray(_resized_crop(image, metadata))
    values = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).astype(np.float32)
    values /= np.float32(255)
    values -= np.array(metadata.mean, np.float32)[:, None, None]
    values /= np.array(metadata.std, np.float32)[:, None, None]
    return values


def whole_picture(image: Image.Image, metadata: ModelMetadata) -> NDArray[np.uint8]:
    """Return a picture for a network that preprocesses by itself: as it is, but for very thin ones.

    Of those only the middle goes in, which is what the central crop keeps: the graph makes the whole resized picture.

    Args:
        image: mode ``"L"`` for one channel, ``"RGB"`` for three.
        metadata: the network's.

    Returns:
        uint8 (H, W, C).
    """
    height, width = resized_size((image.height, image.width), metadata)
    if height * width > _MAX_RESIZED_PIXELS:
        longest = 64 * min(image.size)
        left, top = (max(side - longest, 0) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    return np.asarray(image).reshape(image.height, image.width, -1)


def resized_size(image_size: tuple[int, int], metadata: ModelMetadata) -> tuple[int, int]:
    """Return the (height, width) to which a picture is resized before the central crop.

    With s = floor(input size / crop_pct): squash resizes to s; border fits the picture into s; center makes
    the picture just cover s (square: torchvision rounds the longer side down; else timm rounds to nearest).

    Args:
        image_size: (height, width) of the picture.
        metadata: the network's.
    """
    height, width = image_size
    scaled = tuple(math.floor(side / metadata.crop_pct) for side in metadata.input_size[1:])
    if metadata.crop_mode == "squash":
        return scaled
    if metadata.crop_mode == "center" and scaled[0] == scaled[1]:
        longer = int(scaled[0] * max(image_size) / min(image_size))
        return (longer, scaled[0]) if width <= height else (scaled[0], longer)
    choose = max if metadata.crop_mode == "border" else min
    ratio = choose(height / scaled[0], width / scaled[1])
    # timm lets a thin picture's short side round to 0, and fails.
    return max(round(height / ratio), 1), max(round(width / ratio), 1)


def _resized_crop(image: Image.Image, metadata: ModelMetadata) -> Image.Image:
    crop = metadata.input_size[1:]
    height, width = resized_size((image.height, image.width), metadata)
    resample = Image.Resampling[metadata.interpolation.upper()]
    if height * width <= _MAX_RESIZED_PIXELS:
        resized = image.resize((width, height), resample)
    else:
        resized = _resized_middle(image, (height, width), crop, resample)
        height, width = resized.height, resized.width
    fill = [round(255 * m) if metadata.crop_mode == "border" else 0 for m in metadata.mean]
    canvas = Image.new(image.mode, crop[::-1], tuple(fill))
    canvas.paste(resized, (_offset(width, crop[1]), _offset(height, crop[0])))
    return canvas


def _offset(side: int, crop: int) -> int:
    """Return where a picture's side starts in the crop: negative if it is cut, positive if padded."""
    return (crop - side) // 2 if side < crop else -round((side - crop) / 2)


def _resized_middle(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Resize only the part of the picture that the central crop of the resized one would keep."""
    height, width = (min(side, kept) for side, kept in zip(size, crop, strict=True))
    left, right, x0, x1 = _middle(image.width, size[1], width)
    top, bottom, y0, y1 = _middle(image.height, size[0], height)
    part = image.crop((left, top, right, bottom))
    # Pillow keeps boxes in single precision: this one counts from the part's corner, where numbers are small.
    return part.resize((width, height), resample, box=(x0 - left, y0 - top, x1 - left, y1 - top))


def _middle(source: int, resized: int, kept: int) -> tuple[int, int, float, float]:
    """Return the needed pixels (first, last + 1) of a side, and the span that becomes its kept middle."""
    scale = source / resized
    start = -_offset(resized, kept)
    begin, end = start * scale, min((start + kept) * scale, source)
    reach = math.ceil(3 * max(scale, 1)) + 1  # of Lanczos, the widest filter
    return max(math.floor(begin) - reach, 0), min(math.ceil(end) + reach, source), begin, end
