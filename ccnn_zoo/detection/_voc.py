"""Pictures and boxes of a folder in PASCAL VOC's layout, as torchvision.datasets.VOCDetection has it."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ccnn_zoo._files import read_text
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import SUFFIXES

from ._annotated import VOC_LABELS, AnnotatedPicture, DetectionData
from ._annotations import Collector, RawObject, hold_out, refuse_or_skip, require_pictures, shared_pictures
from ._values import BadValueError, check_labels, flag, inside, number, picture_size

_SPLITS = (("trainval", "test"), ("train", "test"), ("train", "val"))
_ONE_PART = "default"  # CVAT's name of a list for all pictures
_LISTS = "ImageSets/Main"
_LABELS = "labels.txt"

_Raw = tuple[Path, Path, tuple[int, int] | None, list[RawObject]]


def voc(place: str, *, skip: bool = False) -> DetectionData:
    """Load a VOC folder: ``Annotations``, ``ImageSets/Main``, ``JPEGImages``, below ``VOCdevkit/VOC2007`` or not.

    Trained on is ``trainval.txt``, or ``train.txt``, and tested on ``test.txt``, or ``val.txt``. The picture of an
    annotation is the one of the same name, whatever its suffix; only without one, that of its ``<filename>``. The
    classes are the lines of ``labels.txt`` beside ``Annotations`` if there is one; otherwise VOC's twenty if most
    objects are of theirs, else those of the training annotations, sorted.

    VOC counts pixels from 1 and its boxes include the last one; ours begin at 0 and end at its far edge.

    Args:
        place: the folder.
        skip: leave bad annotations out instead of refusing them.

    Raises:
        ConfigurationError: the folder has another layout, or bad annotations; lists them all.
    """
    reader = _Reader(_root(Path(place).expanduser()))
    root = reader.root
    train, test = ([reader.read(stem) for stem in stems] for stems in reader.parts())
    collector = Collector(_labels(root, [raw for raw in train if raw is not None]), reader.problems)
    pictures = [_kept(part, collector) for part in (train, test)]
    skipped = refuse_or_skip(str(root), collector.problems, skip=skip)
    require_pictures(str(root), {"training": pictures[0], "test": pictures[1]})
    apart = root.parent.name == "VOCdevkit" and collector.labels != VOC_LABELS
    name = root.resolve().parents[1].name if apart else root.resolve().name
    notes = (*reader.all_notes(), *shared_pictures(*pictures))
    return DetectionData(name, *pictures, labels=tuple(collector.labels), skipped=skipped, notes=notes)


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


@dataclass
class _Reader:
    """Reads lists and annotations of one folder.

    Args:
        root: holds ``Annotations``.
        problems: one line each.
        notes: likewise.
        renamed: annotations whose ``<filename>`` is not their own name, with what it says.
        scanned: by folder, the names of its pictures by their stems.
        owners: by picture, the name of its annotation.
    """

    root: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    scanned: dict[Path, dict[str, list[str]]] = field(default_factory=dict)
    owners: dict[Path, str] = field(default_factory=dict)

    def parts(self) -> tuple[list[str], list[str]]:
        """Return the names of the annotations to train on and to test on."""
        lists = self.root / _LISTS
        splits = next((s for s in _SPLITS if all((lists / f"{part}.txt").is_file() for part in s)), None)
        if splits is not None:
            return self._stems(splits[0]), self._stems(splits[1])
        if not (lists / f"{_ONE_PART}.txt").is_file():
            raise ConfigurationError(
                f"{lists} needs trainval.txt and test.txt, or train.txt and val.txt: one picture name a line"
            )
        stems = self._stems(_ONE_PART)
        held, note = hold_out(stems)
        self.notes.append(note)
        return [stem for stem in stems if stem not in held], [stem for stem in stems if stem in held]

    def _stems(self, part: str) -> list[str]:
        lines = read_text(self.root / _LISTS / f"{part}.txt").splitlines()
        counts = Counter(self._stem(line.strip()) for line in lines if line.strip())
        if twice := [stem for stem, count in counts.items() if count > 1]:
            self.notes.append(f"{part}.txt lists {len(twice)} names more than once, the first is {twice[0]!r}")
        return list(counts)

    def _stem(self, line: str) -> str:
        """Return the name that a line gives: it may have spaces, a class's flag behind it, or a picture's suffix."""
        flagless = re.sub(r"\s+-?[01]$", "", line)
        suffixless = flagless.removesuffix(PurePosixPath(flagless).suffix)
        found = [name for name in (line, flagless, suffixless) if (self._annotations / f"{name}.xml").is_file()]
        return found[0] if found else flagless

    @property
    def _annotations(self) -> Path:
        return self.root / "Annotations"

    def read(self, stem: str) -> _Raw | None:
        """Return what an annotation says, or None if it is of no use."""
        path = self._annotations / f"{stem}.xml"
        try:
            path = self._annotations / f"{inside(stem, 'the listed name')}.xml"
            tree = _parsed(path)
            picture = self._picture(stem, (tree.findtext("filename") or "").strip())
            if self.owners.setdefault(picture, stem) != stem:
                raise BadValueError(f"its picture {picture.name} is that of {self.owners[picture]}.xml too")
            size = picture_size(tree.findtext("size/width"), tree.findtext("size/height"))
        except BadValueError as error:
            self.problems.append(f"{path.name}: {error}")
            return None
        objects = []
        for position, each in enumerate(tree.iter("object")):
            try:
                objects.append(_object(each))
            except BadValueError as error:
                self.problems.append(f"{path.name}: object {position}: {error}")
        return path, picture, size, objects

    def _picture(self, stem: str, filename: str) -> Path:
        """Return the picture of the same name; another one, that ``<filename>`` names, only if there is none.

        ``<filename>`` is often that of before the files were renamed, and then may be another picture's name.
        """
        written = PurePosixPath(filename.replace("\\", "/")).name  # some tools write the whole path
        folder, own = (self.root / "JPEGImages" / stem).parent, PurePosixPath(stem).name
        found = self._pictures_in(folder).get(own, [])
        if len(found) > 1 and written not in found:
            raise BadValueError(f"{' and '.join(found)} may both be its picture; move all but one away")
        renamed = written and own not in (written, PurePosixPath(written).stem)
        if found:
            if renamed:
                self.renamed.append(f"{stem}.xml, which says {written!r}")
            return folder / (written if written in found else found[0])
        if not renamed or not (folder / written).is_file():
            return folder / f"{own}.jpg"  # of which the collector says that there is no such file
        owner = PurePosixPath(written).stem
        if (self._annotations / f"{owner}.xml").is_file():
            raise BadValueError(
                f"its picture {own}.* is missing; <filename> says {written!r}, which is the picture of {owner}.xml"
            )
        return folder / written

    def _pictures_in(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.scanned:
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            by_stem = self.scanned[folder] = defaultdict(list)
            for name in map(PurePosixPath, names):
                if name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
                    by_stem[name.stem].append(name.name)
        return self.scanned[folder]

    def all_notes(self) -> list[str]:
        """Return what was odd and how it was read."""
        if not self.renamed:
            return self.notes
        return [
            *self.notes,
            f"{len(self.renamed)} annotations have another name in <filename> than their own, and were taken for the "
            f"picture of their own name; the first is {self.renamed[0]}",
        ]


def _parsed(path: Path) -> ET.Element:
    try:
        tree = ET.parse(path).getroot()  # noqa: S314
    except FileNotFoundError as error:
        raise BadValueError("the annotation is missing") from error
    except ET.ParseError as error:
        line, column = error.position
        raise BadValueError(f"no annotation of VOC: no XML, line {line}, column {column + 1}") from error
    except OSError as error:
        raise BadValueError(f"no annotation of VOC: {error.strerror or error}") from error
    except (ValueError, LookupError) as error:
        raise BadValueError("no annotation of VOC: its encoding is unknown; save it as UTF-8") from error
    if tree.tag != "annotation":
        raise BadValueError(f"no annotation of VOC: it begins with <{tree.tag}>, not <annotation>")
    return tree


def _object(element: ET.Element) -> RawObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise BadValueError("<name> is missing or empty")
    x1, y1, x2, y2 = (number(element.findtext(f"bndbox/{edge}"), edge) for edge in ("xmin", "ymin", "xmax", "ymax"))
    # Pixels count from 1, but some tools write a 0 for the first one.
    left, top = (edge - 1 if edge >= 1 else edge for edge in (x1, y1))
    return RawObject(name, (left, top, x2, y2), flag(element.findtext("difficult"), "difficult"))


def _labels(root: Path, train: list[_Raw]) -> tuple[str, ...]:
    if (root / _LABELS).is_file():
        lines = [line.strip() for line in read_text(root / _LABELS).splitlines()]
        return check_labels(root / _LABELS, [line for line in lines if line])
    counts = Counter(each.name for *_, objects in train for each in objects)
    if sum(counts[name] for name in VOC_LABELS) > counts.total() / 2:
        return VOC_LABELS
    return check_labels(root / "Annotations", sorted(counts)) if counts else ()


def _kept(part: list[_Raw | None], collector: Collector) -> list[AnnotatedPicture]:
    pictures = [collector.picture(raw[0].name, *raw[1:]) for raw in part if raw is not None]
    return [picture for picture in pictures if picture is not None]
