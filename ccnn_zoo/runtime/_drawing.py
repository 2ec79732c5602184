"""Boxes, labels and scores drawn onto a picture."""

from __future__ import annotations

import zlib

from PIL import Image, ImageDraw, ImageFont

from ccnn_zoo import pictures
from ccnn_zoo.pictures import ImageInput

from ._detection import Detection

# Okabe and Ito's colours, which people tell apart whose eyes differ; the darkest is left out.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_MARGIN = 2


def draw(image: ImageInput, detection: Detection, labels: tuple[str, ...] = ()) -> Image.Image:
    """Return the upright picture with a box around every object, its label and score above it.

    Args:
        image: what was looked through.
        detection: what was found in it.
        labels: of the network, in their order: their colours are those of the first seven; others are by name.

    Raises:
        ImageError: the image cannot be read.
    """
    picture = pictures.read(image, 3, detection.source).copy()
    canvas = ImageDraw.Draw(picture)
    side = min(picture.size)
    line, font = max(1, side // 200), ImageFont.load_default(max(10, side // 35))
    for found in reversed(detection.objects):  # the surest on top
        colour = _colour(found.label, labels)
        x1, y1, x2, y2 = found.box
        canvas.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=line)
        text = f"{found.label} {found.score:.2f}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font)
        wide, tall = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
        # Above the box, or in it where there is no room above; never outside of the picture.
        x = min(max(0, x1), max(0, picture.width - wide))
        y = y1 - tall if y1 >= tall else y1
        canvas.rectangle((x, y, x + wide, y + tall), fill=colour)
        canvas.text((x + _MARGIN - left, y + _MARGIN - top), text, "black", font)
    return picture


def _colour(label: str, labels: tuple[str, ...]) -> str:
    number = labels.index(label) if label in labels else zlib.crc32(label.encode())
    return _COLOURS[number % len(_COLOURS)]
