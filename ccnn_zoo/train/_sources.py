"""Where images come from: one function per source, each returns the fields of ``Data``."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import MNIST

from ccnn_zoo._files import why_unreadable
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import SUFFIXES, LeftOut, folders_in, pictures_in, read

from ._images import ArrayImages, FileImages, photographs, stacked
from .layouts import TEST_SPLITS

_MNIST_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz")


def digits() -> dict[str, Any]:
    """scikit-learn's digits: 1,437 training and 360 test images, the same split for every seed.

    Pixel values, 0 to 16 there, are stretched to 0 to 255. Writers are not kept apart by the split.
    """
    from sklearn.datasets import load_digits  # 1 s to import, rarely needed
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    pixels = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.uint8))[..., None]
    images = ArrayImages(pixels, torch.from_numpy(raw.target).long())
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=raw.target)
    labels = tuple(str(name) for name in raw.target_names)
    return _small("scikit-learn digits", images.subset(np.sort(train)), images.subset(np.sort(test)), labels)


def mnist(place: str) -> dict[str, Any]:
    """MNIST's IDX files, wherever below ``place`` torchvision's layout begins."""
    root = _existing(place, "MNIST's folder")
    candidates = [root / "MNIST" / "raw", root / "raw", root]
    raw = next((c for c in candidates if any(_idx_file(c, name) for name in _MNIST_FILES)), None)
    missing = [name for name in _MNIST_FILES if raw is None or _idx_file(raw, name) is None]
    if missing:
        raise ConfigurationError(
            f"{root} is not MNIST: {', '.join(missing)} not found (gzipped or not) in {raw or candidates[0]}. Expected "
            f"FOLDER/MNIST/raw/{{{','.join(_MNIST_FILES)}}}, as torchvision.datasets.MNIST stores it."
        )
    parts = {}
    with tempfile.TemporaryDirectory() as unpacked:
        _unpack(raw, Path(unpacked, "MNIST", "raw"))
        for part in ("train", "test"):
            try:
                images = MNIST(unpacked, train=part == "train")
            except (ValueError, RuntimeError, AssertionError) as error:
                raise ConfigurationError(f"the {part} part of MNIST in {raw} is damaged; fetch it again") from error
            parts[part] = ArrayImages(images.data[..., None], images.targets.long())
    name = "MNIST" if len(parts["test"]) == 10_000 else f"MNIST ({len(parts['test']):,} test images)"
    return _small(name, parts["train"], parts["test"], tuple("0123456789"))


def cifar10(place: str) -> dict[str, Any]:
    """CIFAR-10 as image files, from a folder or straight out of an archive, which is not unpacked."""
    root = _existing(place, "the folder or archive of CIFAR-10")
    if root.is_dir() and not (root / "train").is_dir():
        archives = sorted(p for p in root.iterdir() if p.name.startswith("cifar10") and p.name.endswith(_ARCHIVES))
        root = archives[0] if archives else root
    left_out = LeftOut()
    if root.is_file():
        train, test, labels = _from_archive(root, left_out)
    else:
        files, test_files, labels = _splits(root, left_out)
        train, test = files.in_memory(), test_files.in_memory()
    return {**_small("CIFAR-10 (image files)", train, test, labels), "left_out": left_out}


def folder(place: str) -> dict[str, Any]:
    """Any folder of images, decoded as they are asked for; preprocessing as for ImageNet."""
    root = _existing(place, "the image folder")
    left_out = LeftOut()
    train, test, labels = _splits(root, left_out)
    return photographs(root.resolve().name, train, test, labels, left_out)


def _small(name: str, train: ArrayImages, test: ArrayImages, labels: tuple[str, ...]) -> dict[str, Any]:
    height, width, channels = train.pixels.shape[1:]
    mean, std = _statistics(train.pixels)
    return {
        "name": name,
        "train": train,
        "test": test,
        "labels": labels,
        "input_size": (channels, height, width),
        "mean": mean,
        "std": std,
    }


def _statistics(pixels: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of uint8 (N, H, W, C), on values in [0, 1]."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in pixels.unbind(-1):
        # By counts, since 150 million pixels would not fit as floats.
        share = np.bincount(channel.numpy().ravel(), minlength=256) / channel.numel()
        means.append(float(share @ values))
        stds.append(float(np.sqrt(share @ (values - means[-1]) ** 2)))
    return tuple(means), tuple(stds)


def _existing(place: str, what: str) -> Path:
    path = Path(place).expanduser()
    if not path.exists():
        raise ConfigurationError(f"{what} does not exist: {path.absolute()}. Check the path after the colon.")
    return path


def _splits(root: Path, left_out: LeftOut) -> tuple[FileImages, FileImages, tuple[str, ...]]:
    expected = (
        "Expected train/CLASS/*.jpg and test/CLASS/*.jpg, one folder per class; instead of test/ also "
        f"{', '.join(f'{name}/' for name in TEST_SPLITS[1:])}."
    )
    parts = {name: root / name for name in ("train", *TEST_SPLITS) if (root / name).is_dir()}
    if "train" not in parts or len(parts) < 2:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) if root.is_dir() else "a file"
        raise ConfigurationError(f"{root} is no image folder: found {found or 'nothing'}. {expected}")
    test_path = next(parts[name] for name in TEST_SPLITS if name in parts)
    try:
        classes = [folders_in(part, left_out) for part in (parts["train"], test_path)]
    except OSError as error:
        raise ConfigurationError(f"{root} is no image folder: {why_unreadable(error)}. {expected}") from error
    if classes[0] != classes[1]:
        differing = ", ".join(sorted(set(classes[0]) ^ set(classes[1])))
        raise ConfigurationError(
            f"train/ and {test_path.name}/ of {root} must hold the same classes; differ: {differing}"
        )
    if not classes[0]:
        raise ConfigurationError(f"{root} is no image folder: there are no folders in train/. {expected}")
    train, test = (_labelled(part, classes[0], left_out) for part in (parts["train"], test_path))
    return train, test, tuple(classes[0])


def _labelled(part: Path, classes: list[str], left_out: LeftOut) -> FileImages:
    """Return the pictures in the folders of the classes, of one class in torchvision's order: folder by folder."""
    paths, targets = [], []
    for target, label in enumerate(classes):
        found = sorted(pictures_in(part / label, left_out), key=os.path.split)
        if not found:
            nothing = f"the class {part / label} holds no pictures ({', '.join(SUFFIXES)})"
            raise ConfigurationError("; ".join([nothing, *left_out.unsearched]))
        paths += found
        targets += [target] * len(found)
    return FileImages(paths, torch.tensor(targets))


def _from_archive(path: Path, left_out: LeftOut) -> tuple[ArrayImages, ArrayImages, tuple[str, ...]]:
    found: dict[str, list[tuple[str, str, Image.Image]]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                parts = Path(member.name).parts
                if member.isfile() and len(parts) == 3 and parts[0] in found and left_out.keeps(member.name):
                    picture = read(io.BytesIO(archive.extractfile(member).read()), name=f"{path}: {member.name}")
                    found[parts[0]].append((parts[1], member.name, picture))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigurationError(
            f"{path} is not a readable archive: {why_unreadable(error)}; fetch it again"
        ) from error
    labels = tuple(sorted({label for label, *_ in found["train"]}))
    if not found["test"] or labels != tuple(sorted({label for label, *_ in found["test"]})):
        raise ConfigurationError(f"{path} must hold train/CLASS/*.jpg and test/CLASS/*.jpg with the same classes")
    train, test = (_joined(found[part], labels) for part in ("train", "test"))
    return train, test, labels


def _joined(items: list[tuple[str, str, Image.Image]], labels: tuple[str, ...]) -> ArrayImages:
    items = sorted(items, key=lambda item: item[:2])  # ImageFolder's order
    targets = torch.tensor([labels.index(label) for label, *_ in items])
    return stacked([picture for *_, picture in items], [name for _, name, _ in items], targets)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _unpack(raw: Path, target: Path) -> None:
    """Copy MNIST's files to ``target``, unzipped: torchvision reads plain files in its own layout only."""
    target.mkdir(parents=True)
    for name in _MNIST_FILES:
        path = _idx_file(raw, name)
        try:
            with (
                gzip.open(path) if path.suffix == ".gz" else path.open("rb") as source,
                (target / name).open("wb") as to,
            ):
                shutil.copyfileobj(source, to)
        except (OSError, EOFError) as error:
            raise ConfigurationError(f"{path} cannot be unpacked: {why_unreadable(error)}; fetch it again") from error
