"""The runtime's preprocessing gives timm's tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_model_data_config

import ccnn_zoo  # noqa: F401, joins timm's registry
from ccnn_zoo import runtime
from ccnn_zoo.export import to_onnx
from ccnn_zoo.metadata import CROP_MODES, INTERPOLATIONS, ModelMetadata
from ccnn_zoo.pictures import read
from ccnn_zoo.runtime._preprocess import preprocess, resized_size

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
GREY = {"mean": (0.1307,), "std": (0.3081,)}
SIZES = [
    (1, 1),
    (1, 7),
    (2, 90),
    (31, 33),
    (224, 224),
    (256, 256),
    (300, 225),
    (375, 500),
    (640, 427),
    (997, 101),
]


def metadata(input_size: tuple[int, int, int], **fields) -> ModelMetadata:
    return ModelMetadata("test", 1, ("a",), input_size, **fields)


def by_timm(image: Image.Image, meta: ModelMetadata) -> np.ndarray:
    transform = create_transform(
        meta.input_size,
        interpolation=meta.interpolation,
        mean=meta.mean,
        std=meta.std,
        crop_pct=meta.crop_pct,
        crop_mode=meta.crop_mode,
    )
    return transform(image).numpy()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 10007 + height)
    channels = () if mode == "L" else (3,)
    return Image.fromarray(rng.integers(0, 256, (height, width, *channels), dtype=np.uint8))


def short_side_vanishes(image: Image.Image, meta: ModelMetadata) -> bool:
    """timm fails where the short side of a thin picture rounds to 0 in border mode."""
    longest = max(image.height / meta.input_size[1], image.width / meta.input_size[2]) * meta.crop_pct
    return meta.crop_mode == "border" and min(image.size) / longest < 1


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.95, 1.0])
@pytest.mark.parametrize("input_size", [(3, 224, 224), (3, 32, 32), (3, 96, 160), (3, 161, 75)], ids=str)
def test_equals_timm_bit_for_bit_at_every_size(input_size, crop_pct, crop_mode):
    meta = metadata(input_size, crop_pct=crop_pct, crop_mode=crop_mode, **IMAGENET)
    for size in SIZES:
        image = noise(*size)
        if not short_side_vanishes(image, meta):
            np.testing.assert_array_equal(preprocess(image, meta), by_timm(image, meta), err_msg=str(size))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_equals_timm_bit_for_bit_with_every_filter(interpolation, crop_mode):
    meta = metadata((3, 64, 64), crop_pct=0.9, interpolation=interpolation, crop_mode=crop_mode, **CIFAR)
    for size in [(47, 30), (64, 64), (500, 375)]:
        image = noise(*size)
        np.testing.assert_array_equal(preprocess(image, meta), by_timm(image, meta), err_msg=str(size))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_grey_networks_equal_timm_on_grey_pictures(crop_mode):
    meta = metadata((1, 28, 28), crop_pct=0.9, crop_mode=crop_mode, **GREY)
    for size in [(28, 28), (20, 40), (301, 200)]:
        image = noise(*size, mode="L")
        values = preprocess(image, meta)
        assert values.dtype == np.float32
        assert values.shape == (1, 28, 28)
        np.testing.assert_array_equal(values, by_timm(image, meta), err_msg=str(size))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_photographs_equal_timm_bit_for_bit(crop_mode, real_data):
    meta = metadata((3, 224, 224), crop_pct=0.875, crop_mode=crop_mode, **IMAGENET)
    paths = sorted(real_data.glob("imagenet-sample/*.JPEG"))
    assert len(paths) == 100
    for path in paths:
        expected = by_timm(Image.open(path).convert("RGB"), meta)
        np.testing.assert_array_equal(preprocess(read(path, 3, path.name), meta), expected, err_msg=path.name)


def saved_kinds(folder: Path) -> dict[Path, Image.Image]:
    """Files of every kind that pictures come in, and each as RGB, made without the code under test."""
    photo = noise(90, 60).resize((180, 120), Image.Resampling.BICUBIC)
    deep = np.random.default_rng(5).integers(0, 65536, (40, 70), np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    eight_bit = Image.fromarray(np.rint(deep / 257).astype(np.uint8)).convert("RGB")
    kinds = {
        "grey.jpg": (photo.convert("L"), {}),
        "cmyk.jpg": (photo.convert("CMYK"), {}),
        "cmyk.tif": (photo.convert("CMYK"), {}),
        "palette.png": (photo.convert("P"), {}),
        "palette-alpha.png": (photo.convert("P"), {"transparency": 3}),
        "palette.gif": (photo.convert("P"), {}),
        "alpha.png": (Image.merge("RGBA", (*photo.split(), noise(180, 120, "L"))), {}),
        "grey-alpha.png": (Image.merge("LA", (noise(180, 120, "L"), noise(180, 120, "L"))), {}),
        "bits.png": (photo.convert("1"), {}),
        "turned.jpg": (photo, {"exif": turned}),
        "16-bit.png": (Image.fromarray(deep), {}),
        "16-bit.tif": (Image.fromarray(deep), {}),
        "1x1.png": (noise(1, 1), {}),
        "20000x300.jpg": (noise(20000, 300), {}),
        "photo.webp": (photo, {}),
        "photo.avif": (photo, {}),
    }
    expected = {}
    for name, (image, options) in kinds.items():
        path = folder / name
        image.save(path, **options)
        with Image.open(path) as file:
            if name.startswith("16-bit"):
                expected[path] = eight_bit
            elif name.startswith("turned"):
                expected[path] = file.convert("RGB").transpose(Image.Transpose.ROTATE_270)
            else:
                expected[path] = file.convert("RGB")  # as timm opens pictures
    return expected


def test_files_of_every_kind_equal_timm_bit_for_bit(tmp_path):
    meta = metadata((3, 224, 224), crop_pct=0.875, **IMAGENET)
    for path, image in saved_kinds(tmp_path).items():
        values = preprocess(read(path, 3, path.name), meta)
        np.testing.assert_array_equal(values, by_timm(image, meta), err_msg=path.name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[torch.nn.Module, runtime.Classifier]:
    """A trained network in torch, and its file in the runtime."""
    model = timm.create_model("ccnn_resnet18_cifar.cifar10", pretrained=True).eval()
    path = tmp_path_factory.mktemp("trained") / "network.onnx"
    to_onnx(model, path)
    return model, runtime.load(path, device="cpu")


def check_classes(trained: tuple[torch.nn.Module, runtime.Classifier], images: dict[Path, Image.Image]) -> set[int]:
    """Compare the classes of files with timm's and torch's of ``images``; return those that occur."""
    model, classifier = trained
    transform = create_transform(**resolve_model_data_config(model))
    with torch.inference_mode():
        probabilities = torch.cat([model(transform(image)[None]) for image in images.values()]).softmax(1).numpy()
    results = classifier.classify(images)
    assert [r.predictions[0].index for r in results] == list(probabilities.argmax(1))
    np.testing.assert_allclose([r.probability for r in results], probabilities.max(1), atol=1e-4)
    return set(probabilities.argmax(1).tolist())


def test_files_of_every_kind_get_the_class_that_timm_and_torch_give(trained, tmp_path):
    images = saved_kinds(tmp_path)
    for number, pixels in enumerate(load_sample_images().images):  # two photographs, cut into 24 pieces of 160 x 140
        for left, top in itertools.product(range(0, 640, 160), range(0, 420, 140)):
            piece = Image.fromarray(pixels).crop((left, top, left + 160, top + 140))
            path = tmp_path / f"{number}-{left}-{top}.png"
            piece.save(path)
            images[path] = piece
    assert len(check_classes(trained, images)) > 3


def test_photographs_get_the_class_that_timm_and_torch_give(trained, real_data):
    photographs = sorted(real_data.glob("imagenet-sample/*.JPEG"))
    assert len(photographs) == 100
    assert len(check_classes(trained, {path: Image.open(path).convert("RGB") for path in photographs})) > 3


def test_wide_pictures_equal_timm():
    meta = metadata((3, 224, 224), crop_pct=0.875, **IMAGENET)
    image = noise(20000, 300)
    np.testing.assert_array_equal(preprocess(image, meta), by_timm(image, meta))


@pytest.mark.parametrize("size", [(20000, 1), (20000, 17), (3, 40000)], ids=str)
@pytest.mark.parametrize("input_size", [(3, 32, 32), (3, 32, 40)], ids=str)
def test_very_thin_pictures_equal_timm_to_one_grey_level(size, input_size):
    meta = metadata(input_size, crop_pct=0.8, **CIFAR)
    image = noise(*size)
    difference = np.abs(preprocess(image, meta) - by_timm(image, meta))
    assert np.all(difference <= 1.001 / 255 / np.array(meta.std)[:, None, None])


def test_a_thin_picture_is_never_resized_whole():
    meta = metadata((3, 224, 224), crop_pct=0.875, **IMAGENET)
    height, width = resized_size((1, 20000), meta)
    assert height * width > 10**9  # timm's way would take over 5 GB
    red = preprocess(Image.new("RGB", (20000, 1), (255, 0, 0)), meta)
    expected = (np.array([1, 0, 0]) - meta.mean) / meta.std
    np.testing.assert_allclose(red, np.broadcast_to(expected[:, None, None], red.shape), rtol=1e-6)


def test_border_mode_keeps_a_thin_picture_where_timm_fails():
    meta = metadata((3, 32, 32), crop_mode="border", **CIFAR)
    image = Image.new("RGB", (5000, 1), (255, 255, 255))
    with pytest.raises(ValueError, match="> 0"):
        by_timm(image, meta)
    rows = preprocess(image, meta)[0].mean(axis=1)
    assert np.count_nonzero(rows > 1) == 1  # one white line between borders of the mean colour
