"""Pictures and boxes of a folder in COCO's layout."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ccnn_zoo.errors import ConfigurationError

from ._annotations import Collector, RawObject, refuse_or_skip, require_pictures
from ._pictures import AnnotatedPicture, DetectionData

_EXPECTED = (
    "Expected annotations/instances_train*.json and instances_val*.json (or test), pictures in train*/ and val*/."
)


def coco(place: str, *, skip: bool = False) -> DetectionData:
    """Load a COCO folder: ``annotations/instances_train2017.json``, ``train2017/*.jpg``, the same for ``val2017``.

    Pictures may also lie in ``images/``, with or without the name of the part, or in the folder itself. Crowds are
    ignored objects. The classes are the categories of the training file, by their ids.

    Args:
        place: the folder.
        skip: leave bad annotations out instead of refusing them.

    Raises:
        ConfigurationError: the folder has another layout, or bad annotations; lists them all.
    """
    root = Path(place).expanduser()
    files = {part: _file(root, kinds) for part, kinds in (("training", ("train",)), ("test", ("val", "test")))}
    contents = {part: _parsed(path) for part, path in files.items()}
    try:
        categories = sorted(contents["training"]["categories"], key=lambda each: each["id"])
        collector = Collector(tuple(each["name"] for each in categories))
        parts = {part: _pictures(root, files[part], contents[part], collector) for part in files}
    except (KeyError, TypeError) as error:
        raise ConfigurationError(f"an image or category in {root}/annotations lacks {error}. {_EXPECTED}") from error
    skipped = refuse_or_skip(str(root), collector.problems, skip=skip)
    require_pictures(str(root), parts)
    return DetectionData(
        root.resolve().name, parts["training"], parts["test"], labels=tuple(collector.labels), skipped=skipped
    )


def _file(root: Path, kinds: tuple[str, ...]) -> Path:
    found = [path for kind in kinds for path in sorted((root / "annotations").glob(f"instances_{kind}*.json"))]
    if not found:
        raise ConfigurationError(f"{root.absolute()} is no COCO folder: no {kinds[0]} annotations. {_EXPECTED}")
    return found[0]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(content[key], list)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no COCO annotation file ({error!r}). {_EXPECTED}") from error
    if missing:
        raise ConfigurationError(f"{path} is no COCO annotation file: {', '.join(missing)} must be lists")
    return content


def _pictures(root: Path, file: Path, content: dict[str, Any], collector: Collector) -> list[AnnotatedPicture]:
    names = {each["id"]: each["name"] for each in content["categories"]}
    objects: dict[Any, list[RawObject]] = defaultdict(list)
    known = {image["id"] for image in content["images"]}
    for number, each in enumerate(content["annotations"]):
        try:
            left, top, width, height = map(float, each["bbox"])
            area = float(each.get("area", width * height))
            name = names.get(each["category_id"], f"category {each['category_id']}")
            if each["image_id"] not in known:
                raise ValueError(f"no image has id {each['image_id']!r}")
        except (KeyError, TypeError, ValueError) as error:
            collector.problems.append(f"{file.name}: annotation {each.get('id', number)}: {error!r}")
            continue
        box = (left, top, left + width, top + height)
        objects[each["image_id"]].append(RawObject(name, box, bool(each.get("iscrowd", 0)), area))
    pictures = []
    for image in content["images"]:
        size = (image["width"], image["height"]) if {"width", "height"} <= image.keys() else None
        where = f"{file.name}, {image['file_name']}"
        pictures.append(collector.picture(where, _path(root, file, image["file_name"]), size, objects[image["id"]]))
    return [picture for picture in pictures if picture is not None]


def _path(root: Path, file: Path, name: str) -> Path:
    part = file.stem.removeprefix("instances_")
    folders = [root / part, root / "images" / part, root / "images", root]
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
