"""Pictures of every kind become upright 8-bit ones, or an ImageError that says why."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ccnn_zoo import pictures
from ccnn_zoo.errors import ImageError

MODES = {1: "L", 3: "RGB"}
RAMP = np.arange(7 * 11 * 3, dtype=np.uint8).reshape(7, 11, 3)


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RAMP).convert(mode)


def encoded(image: Image.Image, format: str, **options) -> bytes:  # noqa: A002, Pillow's name for it
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG file whose header claims other sizes: a decompression bomb."""
    data = encoded(Image.new("1", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA"])
def test_every_mode_is_converted_as_timm_does(mode, channels):
    source = picture("L").convert("LA") if mode == "LA" else picture(mode)
    image = pictures.read(source, channels, "x")
    assert image.mode == MODES[channels]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(source.convert(MODES[channels])))


def test_premultiplied_alpha_is_divided_out():
    source = Image.new("RGBA", (2, 2), (200, 100, 50, 128)).convert("RGBa")
    pixel = np.asarray(pictures.read(source, 3, "x"))[0, 0]
    np.testing.assert_allclose(pixel, (200, 100, 50), atol=2)


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    path = tmp_path / "x.png"
    picture("P").save(path, transparency=0)
    np.testing.assert_array_equal(pictures.read(path, 3, "x"), picture("P").convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, format, channels):  # noqa: A002
    values = np.array([[0, 128, 129, 255, 256, 1000, 32767, 65406, 65407, 65535]], np.uint16)
    path = tmp_path / f"x.{format.lower()}"
    Image.fromarray(values).save(path)
    pixels = np.asarray(pictures.read(path, channels, "x")).reshape(1, 10, -1)
    assert np.all(pixels == np.round(values[..., None] / 257))
    assert pixels[0, 1, 0] == 0
    assert pixels[0, 2, 0] == 1


def test_integers_beyond_sixteen_bits_and_floats_are_refused():
    with pytest.raises(ImageError, match=r"big\.tif has integer pixels from 0 to 70000.*Convert"):
        pictures.read(Image.fromarray(np.array([[0, 70000]], np.int32)), 3, "big.tif")
    with pytest.raises(ImageError, match=r"float\.tif has floating-point pixels.*Convert"):
        pictures.read(Image.fromarray(np.array([[0, 0.5]], np.float32)), 3, "float.tif")
    with pytest.raises(ImageError, match=r"lab\.tif: .*Convert"):
        pictures.read(Image.new("LAB", (2, 2)), 1, "lab.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(tmp_path, format, orientation):  # noqa: A002
    path = tmp_path / f"x.{format.lower()}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(path, format, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
        assert expected.size == ((11, 7) if orientation < 5 else (7, 11))
    np.testing.assert_array_equal(pictures.read(path, 3, "x"), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(pictures.read(image, 3, "x"), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_spoil_the_picture(tmp_path):
    path = tmp_path / "x.png"
    picture().save(path, exif=b"Exif\0\0MM\0*\0\0\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(pictures.read(path, 3, "x"), RAMP)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)], ids=str)
def test_arrays_of_every_layout_are_read(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rgb = array[..., :3] if array.shape[2:] in ((3,), (4,)) else np.repeat(array.reshape(5, 4, 1), 3, axis=2)
    np.testing.assert_array_equal(pictures.read(array, 3, "x"), rgb)
    np.testing.assert_array_equal(pictures.read(np.asfortranarray(array)[::-1], 3, "x"), rgb[::-1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"image 0 is an array of float32.*uint8"),
        (np.zeros((4, 4, 3), bool), r"array of bool"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\).*list\(batch\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"at least one pixel"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (None, r"image 0 is a NoneType. Pass a path"),
        (["x.png", 3], r"image 1 is a int"),
        ([3.5], r"image 0 is a float"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_before_any_file_is_opened(image, message):
    with pytest.raises(ImageError, match=message):
        pictures.iterate(image)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((10000, 10000), "100"), ((60000, 60000), "bomb|exceeds limit"), ((2**31 - 1, 1), "bomb|exceeds limit")],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(tmp_path, size, reason):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(*size))
    with pytest.raises(ImageError, match=rf"bomb\.png .*({reason})"):
        pictures.read(path, 3, "bomb.png")


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_formats_that_run_programs_are_not_opened(tmp_path, monkeypatch, name):
    picture().save(tmp_path / name, "EPS")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ImageError, match=r"known format.*JPEG, PNG"):
        pictures.read(tmp_path / name, 3, name)
    assert not (tmp_path / "ran").exists()


def test_a_bomb_held_in_memory_is_refused_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 76)
    with pytest.raises(ImageError, match=r"image 0 has 11 x 7 pixels, more than 76.*MAX_IMAGE_PIXELS"):
        pictures.read(picture(), 3, "image 0")


def test_missing_unknown_and_empty_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.jpg").write_text("no picture at all")
    for name, reason in {
        "gone.png": "no such file",
        "empty.png": "known format, or is damaged",
        "notes.jpg": "known format",
        ".": "is a folder",
        "nul\0.png": "cannot be read",
    }.items():
        path = tmp_path / name
        with pytest.raises(ImageError, match=reason) as caught:
            pictures.read(path, 3, str(path))
        assert str(path).replace("\0", r"\x00") in str(caught.value)
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        pictures.read(Image.new("RGB", (0, 5)), 3, "image 0")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "ICO", "AVIF"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_nothing_but_image_errors(tmp_path, format):  # noqa: A002
    whole = encoded(picture().resize((48, 40)), format)
    rng = np.random.default_rng(len(whole))
    path = tmp_path / f"damaged.{format}"
    refused = 0
    for trial in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole))] if trial % 2 else whole)
        for position in rng.integers(0, len(data), 1 + trial % 5):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            pictures.read(path, 3, path.name)
        except ImageError:
            refused += 1
    assert refused > 30


def test_truncated_jpeg_is_refused_with_its_reason(tmp_path: Path):
    path = tmp_path / "half.jpg"
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)), "JPEG")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half\.jpg cannot be read: .*truncated"):
        pictures.read(path, 3, "half.jpg")
