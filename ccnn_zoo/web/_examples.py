"""Pictures that a visitor can try, and how a digit that is drawn becomes a picture: for networks that read digits."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ccnn_zoo.metadata import ModelMetadata

_DIGITS = tuple("0123456789")
_SCANNED_FROM = 20
"""Pixels of a side from which a network reads digits as MNIST has them: with a margin, ink of one brightness."""

SCANNED = 20 / 28
"""Share of a square that the ink of such a digit takes."""

_SIDE, _GROUND, _INK = 112, 0.3, 0.7


def share_of_ink(metadata: ModelMetadata) -> float | None:
    """Return how much of a square the ink of a digit takes that this network reads, None where it reads none."""
    if metadata.labels != _DIGITS:
        return None
    return SCANNED if min(metadata.input_size[1:]) >= _SCANNED_FROM else 1.0


def digits() -> dict[float, list[bytes]]:
    """Return scikit-learn's first zero to nine as PNG files, by the share of ink: as they are, and as scans."""
    from sklearn.datasets import load_digits

    images, targets = (load_digits()[name] for name in ("images", "target"))
    chosen = [images[int(np.flatnonzero(targets == digit)[0])] / 16 for digit in range(10)]
    return {1.0: [_encoded(_plain(one)) for one in chosen], SCANNED: [_encoded(_scanned(one)) for one in chosen]}


def _plain(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values).round().astype(np.uint8))


def _scanned(values: np.ndarray) -> Image.Image:
    """Enlarge 8 x 8 pixels smoothly, sharpen the ink's border, and put the ink in the middle of a larger square."""
    large = _plain(np.pad(values, 1)).resize((320, 320), Image.Resampling.BICUBIC)
    ink = ((np.asarray(large) / 255 - _GROUND) / (_INK - _GROUND)).clip(0, 1)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    cut = _plain(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = _SIDE * SCANNED / max(cut.size)
    cut = cut.resize([max(1, round(side * scale)) for side in cut.size], Image.Resampling.BICUBIC)
    square = Image.new("L", (_SIDE, _SIDE))
    square.paste(cut, tuple((_SIDE - side) // 2 for side in cut.size))
    return square


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
