"""A network sees the same pixels through every door, and what one door refuses, all do."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_specimens import SIDE, Specimen, specimens
from PIL import Image
from pixel_network import pixels_of, save_pixel_network

from ccnn_zoo import pictures, runtime
from ccnn_zoo.detection import load_detection_data
from ccnn_zoo.detection._data import DetectionView
from ccnn_zoo.errors import CCNNError, ImageError
from ccnn_zoo.runtime import Detection
from ccnn_zoo.train import load_data

SPECIMENS = specimens()
GOOD = Specimen(".png", SPECIMENS["grey"].content)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> runtime.ImageClassifier:
    return runtime.load(save_pixel_network(tmp_path_factory.mktemp("network") / "pixels.onnx", SIDE, SIDE))


def image_folder(root: Path, specimen: Specimen) -> Path:
    """Write the specimen as the only training picture; return its path."""
    for part, content in (("train", specimen), ("test", GOOD)):
        (root / part / "cat").mkdir(parents=True)
        (root / part / "cat" / f"x{content.suffix}").write_bytes(content.content)
    return root / "train" / "cat" / f"x{specimen.suffix}"


def by_folder(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    image_folder(root, specimen)
    return np.asarray(load_data(f"folder:{root}").train[0][0])


def by_cifar_folder(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    image_folder(root, specimen)
    return load_data(f"cifar10:{root}").train.pixels[0].numpy()


def by_cifar_archive(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    image_folder(root, specimen)
    with tarfile.open(root / "cifar10.tar", "w") as archive:
        for part in ("train", "test"):
            archive.add(root / part, part)
    return load_data(f"cifar10:{root / 'cifar10.tar'}").train.pixels[0].numpy()


def by_shard(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    for part, content in (("train", specimen), ("test", GOOD)):
        with tarfile.open(root / f"{part}.tar", "w") as archive:
            for name, data in ((f"x{content.suffix}", content.content), ("x.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    splits = {part: {"filenames": [f"{part}.tar"]} for part in ("train", "test")}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return np.asarray(load_data(f"wds/{root}").train[0][0])


def by_detection_data(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    (root / "annotations").mkdir()
    for part, content in (("train", specimen), ("val", GOOD)):
        (root / part).mkdir()
        (root / part / f"x{content.suffix}").write_bytes(content.content)
        annotations = {
            "images": [{"id": 1, "file_name": f"x{content.suffix}"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(annotations))
    images, _ = DetectionView(load_detection_data(f"coco:{root}").train).__getitems__([0])
    return np.rint(images[0].numpy() * 255).astype(np.uint8).transpose(1, 2, 0)


def by_detection_runtime(root: Path, specimen: Specimen, _: object) -> np.ndarray:
    path = root / f"x{specimen.suffix}"
    path.write_bytes(specimen.content)
    return np.asarray(runtime.draw(path, Detection(str(path), SIDE, SIDE, ())))


def by_classify(root: Path, specimen: Specimen, classifier: runtime.ImageClassifier) -> np.ndarray:
    path = root / f"x{specimen.suffix}"
    path.write_bytes(specimen.content)
    return _seen(classifier, path)


def by_service(root: Path, specimen: Specimen, classifier: runtime.ImageClassifier) -> np.ndarray:
    """What the service does with the bytes it is sent."""
    return _seen(classifier, pictures.identified(io.BytesIO(specimen.content)))


def _seen(classifier: runtime.ImageClassifier, image: object) -> np.ndarray:
    (result,) = classifier.classify(image, top_k=3 * SIDE * SIDE + 1)
    if result.error is not None:
        raise ImageError(result.error)
    return pixels_of(result.predictions, SIDE, SIDE)


DOORS: dict[str, Callable[[Path, Specimen, runtime.ImageClassifier], np.ndarray]] = {
    "folder": by_folder,
    "cifar10 folder": by_cifar_folder,
    "cifar10 archive": by_cifar_archive,
    "shard": by_shard,
    "detection data": by_detection_data,
    "detect": by_detection_runtime,
    "classify": by_classify,
    "service": by_service,
}


# What has no header, or one that promises too much, the service refuses by itself (tests/test_serve.py).
_BY_ITSELF = ("empty", "no picture", "bomb")
CASES = [(door, name) for door in DOORS for name in SPECIMENS if door != "service" or name not in _BY_ITSELF]


@pytest.mark.parametrize(("door", "name"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_door_shows_the_same_pixels_or_refuses_by_name(tmp_path, classifier, door, name):
    specimen = SPECIMENS[name]
    if specimen.shown is None:
        with pytest.raises(CCNNError) as caught:
            DOORS[door](tmp_path, specimen, classifier)
        assert specimen.told in str(caught.value)
        named = {"shard": "train.tar: the picture at byte 512", "service": "image 0"}
        assert named.get(door, f"x{specimen.suffix}") in str(caught.value)
        return
    found = DOORS[door](tmp_path, specimen, classifier)
    assert found.shape == specimen.shown.shape
    assert np.abs(found.astype(int) - specimen.shown).max() <= specimen.within


@pytest.mark.filterwarnings("ignore")
def test_rows_of_the_library_datasets_show_the_same_pixels(tmp_path):
    datasets = pytest.importorskip("datasets")
    shown = {name: each for name, each in SPECIMENS.items() if each.shown is not None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    rows = {"image": [{"bytes": each.content, "path": None} for each in shown.values()], "label": [0] * len(shown)}
    for part in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{part}.parquet")
    data = load_data(f"hfds/{tmp_path}")
    for (picture, _), (name, specimen) in zip(data.train, shown.items(), strict=True):
        assert np.abs(np.asarray(picture).astype(int) - specimen.shown).max() <= specimen.within, name


@pytest.mark.parametrize("name", [name for name, each in SPECIMENS.items() if each.shown is None])
@pytest.mark.filterwarnings("ignore")
def test_a_look_refuses_what_reading_refuses(name):
    with pytest.raises(ImageError, match=SPECIMENS[name].told):
        pictures.look(io.BytesIO(SPECIMENS[name].content), name)


@pytest.mark.parametrize("name", [name for name, each in SPECIMENS.items() if each.shown is not None])
@pytest.mark.filterwarnings("ignore")
def test_a_look_passes_what_reading_passes(name):
    pictures.look(io.BytesIO(SPECIMENS[name].content), name)
    height, width, _ = SPECIMENS[name].shown.shape
    assert pictures.upright_size(io.BytesIO(SPECIMENS[name].content), name) == (width, height)


def test_suffixes_are_those_that_pillow_knows_for_the_formats():
    registered = Image.registered_extensions()
    for kind, suffixes in pictures.FORMATS.items():
        known = {
            suffix for suffix, name in registered.items() if name in ((kind, "MPO") if kind == "JPEG" else (kind,))
        }
        assert set(suffixes) == known - {".pfm"}
