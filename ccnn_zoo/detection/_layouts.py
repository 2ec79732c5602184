"""Where tools put what they export: the layouts of COCO and VOC folders that are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train.layouts import LAYOUTS as CLASSIFICATION_LAYOUTS
from ccnn_zoo.train.layouts import TEST_SPLITS

ROBOFLOW = "_annotations.coco.json"
CVAT = "instances_default.json"

LAYOUTS = (
    ("`coco:`", "COCO", "`annotations/instances_train*.json`", "`instances_test*.json`, else `instances_val*.json`"),
    ("`coco:`", "Roboflow", f"`train/{ROBOFLOW}`", f"`test/{ROBOFLOW}`, else `valid/`"),
    ("`coco:`", "CVAT, one export a part", f"`train/annotations/{CVAT}`", f"`test/annotations/{CVAT}`, else `val/`"),
    ("`coco:`", "CVAT, one export", f"`annotations/{CVAT}`", "a fifth of it, by a sum over the pictures' names"),
    ("`voc:`", "VOC", "`ImageSets/Main/trainval.txt`, else `train.txt`", "`test.txt`, else `val.txt`"),
    ("`voc:`", "CVAT", "`ImageSets/Main/default.txt`", "a fifth of it, by a sum over the pictures' names"),
)
"""What is read with boxes: (source, who writes it, training annotations or list, those that are tested on)."""


EXPECTED = (
    "Expected annotations/instances_train*.json and instances_val*.json (or test), pictures in train*/ and val*/; or "
    f"train/{ROBOFLOW} and test/ or valid/ beside it; or annotations/{CVAT}, alone or in train/ and val/."
)


def layout_table() -> list[str]:
    """Return all layouts, with and without boxes, as a table for the documents."""
    rows = ("data", "as written by", "trained on", "tested on"), ("---",) * 4, *CLASSIFICATION_LAYOUTS, *LAYOUTS
    return [f"| {' | '.join(row)} |" for row in rows]


@dataclass(frozen=True)
class Part:
    """One annotation file.

    Args:
        file: the file.
        folders: where its pictures may lie, the first one that has a picture counts.
    """

    file: Path
    folders: tuple[Path, ...]


def coco_parts(root: Path) -> dict[str, Part]:
    """Return the annotations of a folder: ``training`` and ``test``, or ``all`` where a tool knows no parts.

    Raises:
        ConfigurationError: it has another layout, or two files for one part.
    """
    listed = sorted((root / "annotations").glob("instances_*.json"))
    parts = {}
    for part, kinds in (("training", ("train",)), ("test", ("test", "val"))):
        found = (_of_kind(root, listed, kind) or _in_folders(root, kind) for kind in kinds)
        if (first := next(filter(None, found), None)) is not None:
            parts[part] = first
    if not parts and (root / "annotations" / CVAT).is_file():
        return {"all": _cvat(root)}
    for part in ("training", "test"):
        if part not in parts:
            raise ConfigurationError(f"{root.absolute()} is no COCO folder: no {part} annotations. {EXPECTED}")
    return parts


def _of_kind(root: Path, listed: list[Path], kind: str) -> Part | None:
    """Return COCO's own layout: a file that is named by the part, e.g. ``instances_val2017.json``."""
    files = [path for path in listed if re.match(f"instances_{kind}", path.name, re.IGNORECASE)]
    if len(files) > 1:
        raise ConfigurationError(
            f"{files[0].parent} has {len(files)} files of one part: {', '.join(path.name for path in files)}; move all "
            "but one away"
        )
    if not files:
        return None
    part = files[0].stem[len("instances_") :]
    return Part(files[0], (root / part, root / "images" / part, root / "images", root))


def _in_folders(root: Path, kind: str) -> Part | None:
    """Return the layouts in which a part is a folder of its own."""
    for name in (split for split in ("train", *TEST_SPLITS) if split.startswith(kind)):
        folder = root / name
        if (folder / ROBOFLOW).is_file():
            return Part(folder / ROBOFLOW, (folder,))
        if (folder / "annotations" / CVAT).is_file():
            return _cvat(folder)
    return None


def _cvat(root: Path) -> Part:
    images = root / "images"
    return Part(root / "annotations" / CVAT, (images, images / "default", root))
