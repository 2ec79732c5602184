"""Pictures and boxes of a folder in COCO's layout, and in those of the tools that write COCO's annotations."""

from __future__ import annotations

import json
import reprlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccnn_zoo.errors import ConfigurationError

from ._annotated import AnnotatedPicture, DetectionData
from ._annotations import Collector, RawObject, hold_out, refuse_or_skip, require_pictures, shared_pictures
from ._layouts import EXPECTED, Part, coco_parts
from ._values import BadValueError, check_labels, flag, inside, number, picture_size

_LISTS = ("images", "annotations", "categories")


def coco(place: str, *, skip: bool = False) -> DetectionData:
    """Load a COCO folder: ``annotations/instances_train2017.json``, ``train2017/*.jpg``, the same for ``val2017``.

    Pictures may also lie in ``images/``, with or without the name of the part, or in the folder itself. What Roboflow
    and CVAT export is read too; docs/detection.md lists the layouts. Crowds are ignored objects. The classes are the
    categories of the training file, by their ids.

    Args:
        place: the folder.
        skip: leave bad annotations out instead of refusing them.

    Raises:
        ConfigurationError: the folder has another layout, or bad annotations; lists them all.
    """
    root = Path(place).expanduser()
    files = {name: _File(part) for name, part in coco_parts(root).items()}
    first, notes = files.get("training") or files["all"], ()
    collector = Collector(first.labels(placeholders=_placeholders(list(files.values()))))
    parts = {name: file.pictures(collector) for name, file in files.items()}
    if "all" in parts:
        held, note = hold_out([picture.path.name for picture in parts["all"]])
        notes = (note,)
        everything = parts.pop("all")
        parts["training"] = [picture for picture in everything if picture.path.name not in held]
        parts["test"] = [picture for picture in everything if picture.path.name in held]
    skipped = refuse_or_skip(str(root), collector.problems, skip=skip)
    require_pictures(str(root), parts)
    train, test = parts["training"], parts["test"]
    notes += shared_pictures(train, test)
    return DetectionData(root.resolve().name, train, test, tuple(collector.labels), skipped, notes)


@dataclass
class _File:
    """One annotation file, read.

    Args:
        part: the file and where its pictures are.
        content: its lists.
        names: of the categories, by id.

    Raises:
        ConfigurationError: it is no annotation file of COCO, or its categories are of no use.
    """

    part: Part
    content: dict[str, list[dict[str, Any]]] = field(init=False)
    names: dict[int | str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.content = _parsed(self.part.file)
        self.names = {}
        for position, each in enumerate(self.content["categories"]):
            try:
                key, name = _key(each, "id"), each.get("name")
            except BadValueError as error:
                raise ConfigurationError(f"{self.part.file}: category {position} {error}") from error
            if not isinstance(name, str):
                raise ConfigurationError(f"{self.part.file}: category {key!r} lacks 'name'")
            if key in self.names:
                raise ConfigurationError(
                    f"{self.part.file}: two categories have the id {key!r}, {self.names[key]!r} and {name!r}; give "
                    "each its own"
                )
            self.names[key] = name

    def labels(self, placeholders: set[int | str]) -> tuple[str, ...]:
        """Return the names of the categories in the order of their ids, without those that only head others."""
        if len({type(key) for key in self.names}) > 1:
            raise ConfigurationError(
                f"{self.part.file}: ids of categories are partly numbers, partly texts; use numbers"
            )
        kept = [key for key in sorted(self.names) if key not in placeholders]
        return check_labels(self.part.file, [self.names[key] for key in kept])

    def pictures(self, collector: Collector) -> list[AnnotatedPicture]:
        """Return the pictures that can be used, and tell ``collector`` of the others."""
        images = dict(self._images(collector))
        objects: dict[int | str, list[RawObject]] = defaultdict(list)
        refused = self._ids() - images.keys()
        for position, each in enumerate(self.content["annotations"]):
            try:
                key, found = self._object(each)
                if key in refused:  # named already, with its picture
                    continue
                if key not in images:
                    raise BadValueError(f"no image has id {key!r}")
            except BadValueError as error:
                where = each.get("id", position)
                collector.problems.append(f"{self.part.file.name}: annotation {reprlib.repr(where)}: {error}")
            else:
                objects[key].append(found)
        pictures = [collector.picture(*image, objects[key]) for key, image in images.items()]
        return [picture for picture in pictures if picture is not None]

    def _images(self, collector: Collector) -> Iterator[tuple[int | str, tuple[str, Path, tuple[int, int] | None]]]:
        """Yield id, description, path and size of the images that are what they say."""
        read = []
        for position, each in enumerate(self.content["images"]):
            try:
                key, name = _key(each, "id"), each.get("file_name")
                if not isinstance(name, str) or not name:
                    raise BadValueError("lacks 'file_name'")
                path = self._path(inside(name, "file_name"))
                read.append((key, name, path, picture_size(each.get("width"), each.get("height"))))
            except BadValueError as error:
                collector.problems.append(f"{self.part.file.name}: image {position}: {error}")
        keys, paths = Counter(key for key, *_ in read), Counter(path for _, _, path, _ in read)
        for key, name, path, size in read:
            where = f"{self.part.file.name}, {name}"
            if keys[key] > 1:
                collector.problems.append(f"{where}: another image has the id {key!r} too; whose boxes are whose?")
            elif paths[path] > 1:
                collector.problems.append(f"{where}: is listed twice; put all of its boxes under one image")
            else:
                yield key, (where, path, size)

    def _ids(self) -> set[int | str]:
        return {each["id"] for each in self.content["images"] if isinstance(each.get("id"), int | str)}

    def _object(self, each: dict[str, Any]) -> tuple[int | str, RawObject]:
        box = each.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            raise BadValueError(f"bbox is {reprlib.repr(box)}, not four numbers" if "bbox" in each else "lacks 'bbox'")
        left, top, width, height = (number(value, "bbox") for value in box)
        area = width * height if each.get("area") is None else number(each["area"], "area")
        category = _key(each, "category_id")
        name = self.names.get(category, f"category {category}")
        crowd = flag(each.get("iscrowd"), "iscrowd")
        return _key(each, "image_id"), RawObject(name, (left, top, left + width, top + height), crowd, area)

    def _path(self, name: str) -> Path:
        places = self.part.folders
        return next((folder / name for folder in places if (folder / name).is_file()), places[0] / name)


def _parsed(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())  # in bytes, json knows byte-order marks
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} is no JSON, line {error.lineno}, column {error.colno}. {EXPECTED}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is no COCO annotation file: no JSON in UTF-8. {EXPECTED}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is no COCO annotation file: it holds no table. {EXPECTED}")
    for name in _LISTS:
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            raise ConfigurationError(f"{path} is no COCO annotation file: {name} must be a list of tables. {EXPECTED}")
    return content


def _key(entry: dict[str, Any], name: str) -> int | str:
    if entry.get(name) is None:
        raise BadValueError(f"lacks {name!r}")
    if isinstance(entry[name], bool) or not isinstance(entry[name], int | str):
        raise BadValueError(f"{name} is {reprlib.repr(entry[name])}, neither a whole number nor a text")
    return entry[name]


def _placeholders(files: list[_File]) -> set[int | str]:
    """Return ids of categories that only head others: never used, of supercategory "none". Roboflow writes one."""
    used = {each.get("category_id") for file in files for each in file.content["annotations"] if _hashable(each)}
    categories = [each for file in files for each in file.content["categories"]]
    heads = {each["supercategory"] for each in categories if isinstance(each.get("supercategory"), str)}
    alone = {each["id"] for each in categories if each.get("supercategory") == "none" and each.get("name") in heads}
    return alone - used


def _hashable(each: dict[str, Any]) -> bool:
    return isinstance(each.get("category_id"), int | str)
