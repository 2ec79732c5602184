"""Pictures of every mode and format as encoded bytes, with the pixels that they show: computed here by numpy alone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

SIDE = 6
"""Of all pictures, so that one that is turned fits too."""

_RNG = np.random.default_rng(15)
GREY = _RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
RGB = _RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ALPHA = _RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
WIDE = _RNG.integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
INDICES = _RNG.integers(0, 4, (SIDE, SIDE), dtype=np.uint8)
PALETTE = np.array([[250, 10, 20], [0, 200, 30], [7, 8, 240], [99, 98, 97]], np.uint8)


class Specimen(NamedTuple):
    """A picture file.

    Args:
        suffix: of its name.
        content: its bytes.
        shown: uint8 (H, W, 3); None for what is refused.
        told: what the refusal says.
        within: greatest difference of a value, of formats that lose some.
    """

    suffix: str
    content: bytes
    shown: NDArray[np.uint8] | None = None
    told: str = ""
    within: int = 0


def specimens() -> dict[str, Specimen]:
    """Return the pictures by name."""
    return {**_modes(), **_formats(), **_exif(), **_refused()}


def _modes() -> dict[str, Specimen]:
    scaled = _as_rgb(np.rint(WIDE / 257).astype(np.uint8))
    cmyk = np.concatenate([RGB, ALPHA[..., None]], axis=2)
    rest = 255 - ALPHA[..., None].astype(float)
    inks = np.clip(rest - np.rint(RGB * rest / 255), 0, 255).astype(np.uint8)
    palette = Image.fromarray(INDICES, "P")
    palette.putpalette(PALETTE.tobytes())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    wide_rgb = _RNG.integers(0, 65536, (SIDE, SIDE, 3), dtype=np.uint16)
    rgba = Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], axis=2))
    return {
        "1 bit": Specimen(".png", _saved(Image.fromarray(GREY > 127), "PNG"), _as_rgb((GREY > 127) * np.uint8(255))),
        "grey": Specimen(".png", _saved(Image.fromarray(GREY), "PNG"), _as_rgb(GREY)),
        "grey and alpha": Specimen(
            ".png", _saved(Image.merge("LA", [*map(Image.fromarray, (GREY, ALPHA))]), "PNG"), _as_rgb(GREY)
        ),
        "palette": Specimen(".png", _saved(palette, "PNG"), PALETTE[INDICES]),
        "palette with transparency": Specimen(".png", _saved(palette, "PNG", transparency=1), PALETTE[INDICES]),
        "alpha": Specimen(".png", _saved(rgba, "PNG"), RGB),
        "alpha in TIFF": Specimen(".tif", _saved(rgba, "TIFF"), RGB),
        "colour profile": Specimen(".png", _saved(Image.fromarray(RGB), "PNG", icc_profile=profile), RGB),
        "CMYK": Specimen(".tiff", _saved(Image.fromarray(cmyk, "CMYK"), "TIFF"), inks),
        "16 bits": Specimen(".png", _saved(Image.fromarray(WIDE), "PNG"), scaled),
        "16 bits in TIFF": Specimen(".tif", _saved(Image.fromarray(WIDE), "TIFF"), scaled),
        "16 bits, big end first": Specimen(".tif", _saved(Image.fromarray(WIDE.astype(">u2")), "TIFF"), scaled),
        "16 bits in PGM": Specimen(".pgm", b"P5 %d %d 65535\n" % (SIDE, SIDE) + WIDE.astype(">u2").tobytes(), scaled),
        "16 bits a colour": Specimen(".png", _png(wide_rgb), (wide_rgb >> 8).astype(np.uint8)),
        "32-bit integers": Specimen(".tif", _saved(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), scaled),
    }


def _formats() -> dict[str, Specimen]:
    image, flat = Image.fromarray(RGB), np.full_like(RGB, 120)
    even, palette = Image.fromarray(flat), Image.fromarray(INDICES, "P")
    palette.putpalette(PALETTE.tobytes())
    others = [Image.fromarray(RGB // 2)]
    return {
        "JPEG": Specimen(".jpg", _saved(even, "JPEG"), flat, within=2),
        "JPEG by another name": Specimen(".jfif", _saved(even, "JPEG"), flat, within=2),
        "JPEG of a phone": Specimen(
            ".mpo", _saved(even, "MPO", save_all=True, append_images=[Image.fromarray(flat // 2)]), flat, within=2
        ),
        "grey JPEG": Specimen(".jpe", _saved(even.convert("L"), "JPEG"), flat, within=2),
        "PNG, animated": Specimen(".apng", _saved(image, "PNG", save_all=True, append_images=others), RGB),
        "GIF": Specimen(".gif", _saved(palette, "GIF"), PALETTE[INDICES]),
        "BMP": Specimen(".bmp", _saved(image, "BMP"), RGB),
        "PPM": Specimen(".ppm", _saved(image, "PPM"), RGB),
        "PNM": Specimen(".pnm", _saved(Image.fromarray(GREY), "PPM"), _as_rgb(GREY)),
        "TIFF, packed": Specimen(".tiff", _saved(image, "TIFF", compression="tiff_lzw"), RGB),
        "TIFF of pages": Specimen(".tif", _saved(image, "TIFF", save_all=True, append_images=others), RGB),
        "WebP": Specimen(".webp", _saved(image, "WEBP", lossless=True), RGB),
        "AVIF": Specimen(".avif", _saved(even, "AVIF"), flat, within=3),
        "JPEG 2000": Specimen(".jp2", _saved(image, "JPEG2000"), RGB),
        "JPEG 2000, bare": Specimen(".j2k", _saved(image, "JPEG2000", no_jp2=True), RGB),
        "ICO": Specimen(".ico", _saved(image, "ICO", sizes=[(SIDE, SIDE)]), RGB),
        "QOI": Specimen(".qoi", _saved(image, "QOI"), RGB),
        "a name that lies": Specimen(".jpg", _saved(image, "PNG"), RGB),
    }


def _exif() -> dict[str, Specimen]:
    image, turned = Image.fromarray(RGB), np.rot90(RGB, -1)
    # An orientation beside a signed rational of -1/0, which EXIF's readers can read and its writers cannot write.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x9204, 10, 1, 38)
    odd = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + struct.pack(">Iii", 0, -1, 0)
    profile = b"Raw profile type exif\0\nexif\n      12\nno hexadecimal digits\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    png = _saved(image, "PNG")
    return {
        "turned": Specimen(".png", _saved(image, "PNG", exif=_orientation(6)), turned),
        "turned TIFF": Specimen(".tif", _saved(image, "TIFF", exif=_orientation(6)), turned),
        "EXIF with -1/0": Specimen(".png", _saved(image, "PNG", exif=odd), turned),
        "EXIF with -1/0 in JPEG": Specimen(
            ".jpg", _saved(Image.fromarray(np.full_like(RGB, 120)), "JPEG", exif=odd), np.full_like(RGB, 120), within=2
        ),
        "EXIF that ends early": Specimen(".png", _saved(image, "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff"), RGB),
        "malformed raw profile": Specimen(".png", _with_chunk(png, b"tEXt", profile), RGB),
        "malformed raw profile, XMP": Specimen(
            ".png", _with_chunk(_with_chunk(png, b"tEXt", profile), b"iTXt", text), turned
        ),
    }


def _refused() -> dict[str, Specimen]:
    floats = Image.fromarray(np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE))
    many = Image.fromarray(np.full((SIDE, SIDE), 70000, np.int32))
    return {
        "floats": Specimen(".tif", _saved(floats, "TIFF"), told="has floating-point pixels, whose range is unknown"),
        "more than 16 bits": Specimen(".tif", _saved(many, "TIFF"), told="integer pixels from 70000 to 70000, beyond"),
        "empty": Specimen(".png", b"", told="is not an image of a known format, or is damaged"),
        "no picture": Specimen(".jpg", b"no picture at all", told="is not an image of a known format, or is damaged"),
        "bomb": Specimen(".png", _png_claiming(60000, 60000), told="bomb"),
    }


def _as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Return a PNG file with one more chunk behind its header."""
    return png[:33] + _chunk(kind, content) + png[33:]


def _png(values: NDArray[np.uint16]) -> bytes:
    """Return a PNG file of 16 bits a colour, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _png_claiming(width: int, height: int) -> bytes:
    png = _saved(Image.new("1", (1, 1)), "PNG")
    header = struct.pack(">II", width, height) + png[24:29]
    return png[:8] + _chunk(b"IHDR", header) + png[33:]
