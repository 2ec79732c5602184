"""WebDataset shards, read in any order: a shard is a tar file, whose headers say where every sample lies.

timm's own reader streams shards, in an order that a killed run could not go on from. Here the headers are read once,
and a sample is then a place in a file, like the images of a folder.
"""

from __future__ import annotations

import io
import json
import reprlib
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ccnn_zoo._files import read_text, why_unreadable
from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.pictures import SUFFIXES, LeftOut, look, read

from ._images import photographs
from .layouts import TEST_SPLITS

_INFO = ("_info.json", "info.json")
_HEADER = 2**16
"""Bytes in which most formats say what a picture is."""
_CLASSES = 1_000_000
_PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
_EXPECTED = (
    'Expected FOLDER/_info.json with {"splits": {"train": {"filenames": [...]}, "validation": {...}}}, as timm reads '
    "it, and shards whose samples are NAME.jpg (or another format's suffix) and NAME.cls, or NAME.json."
)


class _Place(NamedTuple):
    offset: int
    size: int


class ShardImages(Dataset[tuple[Image.Image, int]]):
    """Images inside tar files, decoded as upright RGB one by one.

    Args:
        shards: the tar files.
        places: int64 (N, 3): shard, offset in it, bytes.
        targets: class of each image, int64 (N,).
    """

    def __init__(self, shards: Sequence[Path], places: NDArray[np.int64], targets: Tensor) -> None:
        self._shards, self._places = shards, places
        self.targets = targets

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, place, name = self._where(index)
        return read(io.BytesIO(_read(path, place)), name=name), int(self.targets[index])

    def look(self, index: int) -> None:
        """Refuse a picture of no use by its header, without decoding it.

        Raises:
            ImageError: as of :func:`ccnn_zoo.pictures.look`; names the shard and the place in it.
        """
        path, place, name = self._where(index)
        if place.size > _HEADER:
            with suppress(ImageError):
                return look(io.BytesIO(_read(path, place._replace(size=_HEADER))), name)
        return look(io.BytesIO(_read(path, place)), name)

    def _where(self, index: int) -> tuple[Path, _Place, str]:
        shard, offset, size = self._places[index].tolist()
        path = self._shards[shard]
        return path, _Place(offset, size), f"{path}: the picture at byte {offset}"

    def subset(self, indices: NDArray[np.int64]) -> ShardImages:
        """Return the images at ``indices``, in that order."""
        return ShardImages(self._shards, self._places[indices], self.targets[indices])


def wds(name: str) -> dict[str, Any]:
    """Shards in a folder, described as timm's reader wants them; preprocessing as for ImageNet.

    Args:
        name: ``"wds/"`` and the folder. Class names stand in its ``classes.txt``, one a line, if there is one.
    """
    root = Path(name.removeprefix("wds/")).expanduser()
    info = next((root / file for file in _INFO if (root / file).is_file()), None)
    if info is None:
        raise ConfigurationError(f"{root.absolute()} has no _info.json. {_EXPECTED}")
    left_out = LeftOut()
    parts = [_read_split(root, split, left_out) for split in _splits(info)]
    classes = 1 + max(int(part.targets.max()) for part in parts)
    return photographs(root.resolve().name, parts[0], parts[1], _labels(root / "classes.txt", classes), left_out)


def _splits(info: Path) -> list[Mapping[str, Any]]:
    """Return the descriptions of the training part and of the first test part that there is."""
    try:
        described = json.loads(read_text(info))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ConfigurationError(f"{info} is no JSON. {_EXPECTED}") from error
    splits = described.get("splits") if isinstance(described, dict) else None
    if not isinstance(splits, dict):
        raise ConfigurationError(f"{info} has no object 'splits'. {_EXPECTED}")
    test = next((split for split in TEST_SPLITS if split in splits), None)
    if "train" not in splits or test is None:
        raise ConfigurationError(
            f"{info} has the splits {', '.join(splits) or 'none'}, not train and one of {', '.join(TEST_SPLITS)}. "
            f"{_EXPECTED}"
        )
    for name in ("train", test):
        files = splits[name].get("filenames") if isinstance(splits[name], dict) else None
        if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
            raise ConfigurationError(f"{info}: the split {name!r} has no list 'filenames' of shards. {_EXPECTED}")
    return [splits["train"], splits[test]]


def _read_split(root: Path, split: Mapping[str, Any], left_out: LeftOut) -> ShardImages:
    shards = [root / file for file in split["filenames"]]
    places, targets = [], []
    for number, path in enumerate(shards):
        for key, files in _samples(path, left_out).items():
            picture = next((files[kind] for kind in _PICTURES if kind in files), None)
            if picture is None:
                raise ConfigurationError(f"{path}: the sample {key} has no picture ({', '.join(files)}). {_EXPECTED}")
            places.append((number, *picture))
            targets.append(_target(path, key, files, split.get("alt_label") or "label"))
    if not places:
        raise ConfigurationError(f"{root}: the shards {split['filenames']} hold no samples. {_EXPECTED}")
    return ShardImages(shards, np.array(places, dtype=np.int64), torch.tensor(targets))


def _samples(path: Path, left_out: LeftOut) -> dict[str, dict[str, _Place]]:
    """Return where the files of every sample lie, by the part of the name behind the first dot."""
    found: dict[str, dict[str, _Place]] = {}
    try:
        with tarfile.open(path, "r:") as archive:  # compressed shards have no places
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, kind = file.partition(".")
                if member.isfile() and kind and not left_out.hides(member.name):
                    found.setdefault(f"{folder}/{key}", {})[kind.lower()] = _Place(member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigurationError(
            f"{path} is no readable, uncompressed tar file: {why_unreadable(error)}; fetch it again"
        ) from error
    return found


def _target(path: Path, key: str, files: Mapping[str, _Place], field: str) -> int:
    kind = next((kind for kind in ("cls", "json") if kind in files), None)
    text = _read(path, files[kind]) if kind else b""
    with suppress(KeyError, TypeError, ValueError, OverflowError, RecursionError):
        named = text if kind == "cls" else json.loads(text)[field]
        target = -1 if isinstance(named, bool | float) else int(named)  # int() would make 1 of true, and of 1.9
        if 0 <= target < _CLASSES:
            return target
    found = f": .{kind} holds {reprlib.repr(text)}" if kind else ""
    raise ConfigurationError(
        f"{path}: the sample {key} has no class from 0, neither in .cls nor as {field!r} in .json{found}. {_EXPECTED}"
    )


def _read(path: Path, place: _Place) -> bytes:
    with path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def _labels(path: Path, classes: int) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(map(str, range(classes)))
    names = tuple(read_text(path).splitlines())
    if len(names) < classes:
        raise ConfigurationError(f"{path} names {len(names)} classes, the samples have {classes}; add the others")
    return names
