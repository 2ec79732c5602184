"""Pictures and boxes of a folder in PASCAL VOC's layout, as torchvision.datasets.VOCDetection has it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from ccnn_zoo.errors import ConfigurationError

from ._annotations import Collector, RawObject, refuse_or_skip, require_pictures
from ._pictures import VOC_LABELS, AnnotatedPicture, DetectionData

_SPLITS = (("trainval", "test"), ("train", "val"))
_LABELS = "labels.txt"

_Raw = tuple[Path, Path, tuple[int, int] | None, list[RawObject]]


def voc(place: str, *, skip: bool = False) -> DetectionData:
    """Load a VOC folder: ``Annotations``, ``ImageSets/Main``, ``JPEGImages``, below ``VOCdevkit/VOC2007`` or not.

    Trained on is ``trainval.txt`` and tested on ``test.txt``; without a test list, ``train.txt`` and ``val.txt``. The
    classes are the lines of ``labels.txt`` beside ``Annotations`` if there is one; otherwise VOC's twenty if most
    objects are of theirs, else those of the training annotations, sorted.

    VOC counts pixels from 1 and its boxes include the last one; ours begin at 0 and end at its far edge.

    Args:
        place: the folder.
        skip: leave bad annotations out instead of refusing them.

    Raises:
        ConfigurationError: the folder has another layout, or bad annotations; lists them all.
    """
    root = _root(Path(place).expanduser())
    splits = next((s for s in _SPLITS if all((root / "ImageSets/Main" / f"{part}.txt").is_file() for part in s)), None)
    if splits is None:
        raise ConfigurationError(
            f"{root}/ImageSets/Main needs trainval.txt and test.txt, or train.txt and val.txt: one picture name a line"
        )
    problems: list[str] = []
    train, test = ([_read(root, stem, problems) for stem in _stems(root, part)] for part in splits)
    collector = Collector(_labels(root, [raw for raw in train if raw is not None]), problems)
    pictures = [_kept(part, collector) for part in (train, test)]
    skipped = refuse_or_skip(str(root), collector.problems, skip=skip)
    require_pictures(str(root), {"training": pictures[0], "test": pictures[1]})
    apart = root.parent.name == "VOCdevkit" and collector.labels != VOC_LABELS
    name = root.resolve().parents[1].name if apart else root.resolve().name
    return DetectionData(name, *pictures, labels=tuple(collector.labels), skipped=skipped)


def _root(place: Path) -> Path:
    """Return the folder that holds ``Annotations``."""
    found = [place, *sorted(place.glob("VOC[0-9]*")), *sorted(place.glob("VOCdevkit/VOC[0-9]*"))]
    found = [folder for folder in found if (folder / "Annotations").is_dir()]
    if len(found) != 1:
        raise ConfigurationError(
            f"{place.absolute()} must hold one VOC folder with Annotations, ImageSets/Main and JPEGImages, found "
            f"{', '.join(map(str, found)) or 'none'}; name the folder that holds Annotations"
        )
    return found[0]


def _stems(root: Path, part: str) -> list[str]:
    lines = (root / "ImageSets/Main" / f"{part}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _read(root: Path, stem: str, problems: list[str]) -> _Raw | None:
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ET.parse(path).getroot()  # noqa: S314
        picture = root / "JPEGImages" / (tree.findtext("filename") or f"{stem}.jpg")
        if not picture.is_file():  # some tools write another name, or none with its suffix
            picture = root / "JPEGImages" / f"{stem}.jpg"
        size = None
        if tree.find("size") is not None:
            size = tuple(int(tree.findtext(f"size/{side}")) for side in ("width", "height"))
        return path, picture, size, [_object(each) for each in tree.iter("object")]
    except FileNotFoundError:
        problems.append(f"{path.name}: the annotation is missing")
    except (ET.ParseError, OSError, TypeError, ValueError) as error:
        problems.append(f"{path.name}: no annotation of VOC ({error})")
    return None


def _object(element: ET.Element) -> RawObject:
    x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    # Pixels count from 1, but some tools write a 0 for the first one.
    left, top = (edge - 1 if edge >= 1 else edge for edge in (x1, y1))
    return RawObject((element.findtext("name") or "").strip(), (left, top, x2, y2), difficult)


def _labels(root: Path, train: list[_Raw]) -> tuple[str, ...]:
    if (root / _LABELS).is_file():
        return tuple(line.strip() for line in (root / _LABELS).read_text(encoding="utf-8").splitlines() if line.strip())
    counts = Counter(each.name for *_, objects in train for each in objects)
    if sum(counts[name] for name in VOC_LABELS) > counts.total() / 2:
        return VOC_LABELS
    return tuple(sorted(counts))


def _kept(part: list[_Raw | None], collector: Collector) -> list[AnnotatedPicture]:
    pictures = [collector.picture(raw[0].name, *raw[1:]) for raw in part if raw is not None]
    return [picture for picture in pictures if picture is not None]
