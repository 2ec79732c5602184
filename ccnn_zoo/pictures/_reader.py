"""Opening images of any kind as upright 8-bit grey or RGB pictures: the one reader of all that reads pictures.

Training, evaluation, detection, export, the runtime and the service come here, so that a network sees the same pixels
everywhere.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccnn_zoo.errors import ImageError

Encoded: TypeAlias = bytes | bytearray | memoryview | BinaryIO
ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Encoded
"""A path, a PIL image, pixels (H, W, 3) or (H, W) in uint8, or an encoded picture: bytes or an open binary file."""

_COMMON_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_OTHER_FORMATS = {
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "ICO": (".ico",),
    "QOI": (".qoi",),
}
FORMATS = {**_COMMON_FORMATS, **_OTHER_FORMATS}
"""Formats that are read, in Pillow's names, with the suffixes by which files in folders are taken for pictures.

They have a signature, and Pillow decodes them itself. Of the others EPS runs Ghostscript, and TGA takes any bytes.
Left out is .pfm, whose pixels are always floating-point.
Phones write MPO, several JPEG pictures in one file, of which the first is read.
"""
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The suffixes of all formats, in lower case."""


def format_table() -> list[str]:
    """Return the formats as a table for the documents."""
    rows = [(name, " ".join(f"`{suffix}`" for suffix in suffixes)) for name, suffixes in FORMATS.items()]
    return [f"| {' | '.join(row)} |" for row in (("format", "suffixes in folders"), ("---", "---"), *rows)]


_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = range(5, 9)
"""Orientations of pictures that lie on their side."""
_XMP_ORIENTATION = re.compile(r'tiff:Orientation(?:="|>)([0-9])')  # as Pillow looks for it


def iterate(images: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Iterate over one image or many; those of a list or tuple are checked before the first is yielded.

    Raises:
        ImageError: an input is no image; names it and the remedy.
    """
    one = isinstance(images, (str, os.PathLike, Image.Image, np.ndarray)) or _is_encoded(images)
    if one or not isinstance(images, Iterable):
        images = [images]
    if isinstance(images, (list, tuple)):
        for position, image in enumerate(images):
            check(image, position)
    return iter(images)


def check(image: ImageInput, position: int) -> None:
    """Refuse what is neither a path nor a picture, without opening any file.

    Args:
        image: the input.
        position: its place among the inputs, counted from 0.

    Raises:
        ImageError: the type, the array's dtype or its shape is not supported.
    """
    if isinstance(image, io.TextIOBase):
        raise ImageError(f"image {position} is a file that was opened as text. Open it with open(path, 'rb').")
    if isinstance(image, (str, os.PathLike, Image.Image)) or _is_encoded(image):
        return
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"image {position} is a {type(image).__name__}. Pass a path, a PIL image, bytes, a binary file or a "
            "uint8 numpy array."
        )
    if image.dtype != np.uint8:
        raise ImageError(
            f"image {position} is an array of {image.dtype}. Pass uint8 values from 0 to 255; "
            "for values in [0, 1]: (255 * image).round().astype(numpy.uint8)."
        )
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)) or 0 in image.shape:
        raise ImageError(
            f"image {position} is an array of shape {image.shape}. Pass (H, W), (H, W, 1), (H, W, 3) or "
            "(H, W, 4) with at least one pixel, and a batch as list(batch)."
        )


def _is_encoded(image: object) -> bool:
    return isinstance(image, (bytes, bytearray, memoryview)) or hasattr(image, "read")


def name_of(image: ImageInput, position: int) -> str:
    """Return the path of an image or of an open file, or ``"image <position>"`` if it is held in memory."""
    path = getattr(image, "name", None) if hasattr(image, "read") else image
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else f"image {position}"


def read(image: ImageInput, channels: int = 3, name: str | None = None) -> Image.Image:
    """Decode an image and return it upright, as mode ``"L"`` (one channel) or ``"RGB"`` (three).

    It is turned as its EXIF orientation says (timm's own folders ignore that); what else EXIF holds, and colour
    profiles, count for nothing. Transparency is dropped as timm drops it: the colour stored under it counts. Integers
    of 16 bits and more are read as 0..65535 and scaled to 0..255, where Pillow would clip them at 255. Of an animation
    the first frame is taken.

    Args:
        image: a path, bytes, a binary stream, a PIL image, or a uint8 array that passed :func:`check`. A stream is read
            from its beginning if it can seek, and is left open.
        channels: 1 or 3.
        name: what the error message calls the image; None for its path.

    Raises:
        ImageError: the image is missing, damaged, too large or of an unsupported format or mode; names it.
    """
    name = name_of(image, 0) if name is None else name
    with _named(name):
        if isinstance(image, np.ndarray):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
        elif isinstance(image, Image.Image):
            picture = _upright(_decoded(image, name))
        else:
            with _opened(image, name) as file:  # open until its orientation is known, which TIFF holds anywhere
                picture = _upright(_decoded(file, name))
        return _converted(picture, "L" if channels == 1 else "RGB", name)


def look(image: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> None:
    """Refuse a picture that :func:`read` would refuse, as far as its header tells; only that is read.

    A file that is cut off is found by decoding alone. So is the range of 32-bit integers: these are decoded.

    Raises:
        ImageError: as of :func:`read`.
    """
    name = name_of(image, 0) if name is None else name
    with _named(name), _opened(image, name) as file:
        _looked_at(file, name)


def upright_size(image: str | os.PathLike[str] | BinaryIO, name: str | None = None) -> tuple[int, int]:
    """Return width and height in pixels as :func:`read` gives them, after a :func:`look`.

    Raises:
        ImageError: as of :func:`look`.
    """
    name = name_of(image, 0) if name is None else name
    with _named(name), _opened(image, name) as file:
        _looked_at(file, name)
        return file.size[::-1] if _orientation(file) in _TURNED else file.size


def _looked_at(file: Image.Image, name: str) -> None:
    _check_size(file, name)
    if file.mode == "I":
        _eight_bit(_decoded(file, name), name)
    elif file.mode == "F":
        raise _without_range(name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn whatever is raised into an ImageError that names the picture: on damaged bytes Pillow raises anything."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is. Make it smaller.") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image of a known format, or is damaged. Known are {', '.join(FORMATS)}."
        ) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{name} cannot be read: {reason}") from error


def _opened(image: str | os.PathLike[str] | Encoded, name: str) -> Image.Image:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return identified(io.BytesIO(image))
    if not isinstance(image, (str, os.PathLike)):
        seekable = getattr(image, "seekable", lambda: hasattr(image, "seek"))()
        return identified(image if seekable else io.BytesIO(image.read()))
    path = os.fspath(image)
    kind = os.stat(path).st_mode
    if stat.S_ISDIR(kind):
        raise ImageError(f"{name} is a folder; pass the files in it")
    if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
        raise ImageError(f"{name} is neither a file nor a folder. Save the picture to a file first.")
    return identified(path)


def identified(source: str | BinaryIO) -> Image.Image:
    """Open a picture of a known format, as ``PIL.Image.open`` does of any; its pixels are not decoded yet."""
    Image.preinit()
    try:
        return Image.open(source, formats=tuple(_COMMON_FORMATS))
    except Image.UnidentifiedImageError:
        Image.init()
    return Image.open(source, formats=[name for name in _OTHER_FORMATS if name in Image.OPEN])


def _decoded(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    image.load()
    return image


def _check_size(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, more than {limit}: refused as a possible "
            "decompression bomb. Make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    if 0 in image.size:
        raise ImageError(f"{name} has {image.width} x {image.height} pixels, so nothing to see")


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int | None:
    """Return the orientation, 1 to 8, that EXIF or XMP says, however damaged the rest of it is."""
    with suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        found = image.getexif().get(_ORIENTATION_TAG)
        if isinstance(found, int):
            return found
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
    match = _XMP_ORIENTATION.search(xmp.decode("latin-1") if isinstance(xmp, bytes) else str(xmp))
    return int(match[1]) if match else None


def _converted(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _eight_bit(image, name)
    elif image.mode == "F":
        raise _without_range(name)
    elif image.mode in ("La", "RGBa"):  # Pillow converts premultiplied alpha only to plain alpha
        image = image.convert(image.mode.upper())
    try:
        return image.convert(mode)
    except ValueError as error:
        raise ImageError(f"{name}: {error}. Convert it to RGB or grey.") from error


def _without_range(name: str) -> ImageError:
    return ImageError(f"{name} has floating-point pixels, whose range is unknown. Convert it to 8 bits per channel.")


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name} has integer pixels from {low} to {high}, beyond 16 bits. Convert it to 8 bits.")
    # A table, so that a large picture is not held a second time with more bytes a pixel.
    table = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(table[values])
