"""From raw annotations to pictures with boxes; what is wrong is collected, never stumbled over in training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccnn_zoo._printable import printable
from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.pictures import upright_size

from ._annotated import AnnotatedPicture

_ROUNDING = 0.5
"""Pixels by which a box may pass the picture's edge: tools round, and the box is cut there."""
_HELD_OUT = 5
"""One of so many pictures is tested on where a tool exported them all as one part."""


@dataclass(frozen=True)
class RawObject:
    """One annotated object: name of its kind, box (x1, y1, x2, y2) as in :class:`AnnotatedPicture`, area if known."""

    name: str
    box: tuple[float, float, float, float]
    ignored: bool = False
    area: float | None = None


@dataclass
class Collector:
    """Turns raw annotations into pictures and remembers what is wrong with them.

    Args:
        labels: known names.
        problems: one line each, beginning with the name of the file.
    """

    labels: Sequence[str]
    problems: list[str] = field(default_factory=list)

    def picture(
        self, where: str, path: Path, size: tuple[int, int] | None, objects: Sequence[RawObject]
    ) -> AnnotatedPicture | None:
        """Return the picture with its good objects, or None if the picture itself is of no use.

        Args:
            where: name of the annotation file.
            path: of the picture.
            size: width and height as annotated; None if the annotation does not say.
            objects: as annotated.
        """
        try:
            found = upright_size(path)
        except ImageError as error:
            return self._report(where, f"the picture {error}")
        if size is not None and size != found:
            return self._report(where, f"says {size[0]} x {size[1]} pixels, {path.name} has {found[0]} x {found[1]}")
        good = [each for each in objects if self._is_good(where, each, *found)]
        areas = [each.area for each in good]
        boxes = np.array([_cut(each.box, *found) for each in good], dtype=np.float32).reshape(-1, 4)
        return AnnotatedPicture(
            path,
            *found,
            boxes=boxes,
            labels=np.array([self.labels.index(each.name) + 1 for each in good], dtype=np.int64),
            ignored=np.array([each.ignored for each in good], dtype=bool),
            areas=None if any(area is None for area in areas) else np.array(areas, dtype=np.float64),
        )

    def _is_good(self, where: str, each: RawObject, width: int, height: int) -> bool:
        x1, y1, x2, y2 = each.box
        told = f"{each.name} at {x1:g}, {y1:g}, {x2:g}, {y2:g}"
        problem = ""
        if each.name not in self.labels:
            problem = f"unknown class {each.name!r}; known are {', '.join(self.labels)}"
        elif not np.isfinite(each.box).all():
            problem = f"{told} is no box"
        elif x2 < x1 or y2 < y1:
            problem = f"{told} is reversed"
        elif x2 == x1 or y2 == y1:
            problem = f"{told} is empty"
        elif min(x1, y1) < -_ROUNDING or x2 > width + _ROUNDING or y2 > height + _ROUNDING:
            problem = f"{told} is outside the {width} x {height} pixels"
        else:
            left, top, right, bottom = np.float32(_cut(each.box, width, height))
            problem = "" if left < right and top < bottom else f"{told} is empty in the {width} x {height} pixels"
        if problem:
            self._report(where, problem)
        return not problem

    def _report(self, where: str, problem: str) -> None:
        self.problems.append(f"{where}: {problem}")


def _cut(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def refuse_or_skip(name: str, problems: Sequence[str], *, skip: bool) -> tuple[str, ...]:
    """Return the problems if they are to be skipped.

    Raises:
        ConfigurationError: there are some, and they are not; lists them all.
    """
    if problems and not skip:
        raise ConfigurationError(
            f"{len(problems)} annotations of {name} cannot be used; mend them, or leave them out with "
            "skip_bad_annotations=true:",
            *problems,
        )
    return tuple(map(printable, problems))


def hold_out(names: Sequence[str]) -> tuple[set[str], str]:
    """Return which of all pictures are tested on where nobody said so, and a note of it.

    It depends on the names alone, so that it is the same everywhere.

    Args:
        names: of the pictures.
    """
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    held = set(order[: max(1, len(order) // _HELD_OUT)])
    return held, f"all pictures are one part: {len(held)} of {len(order)}, by a sum over their names, are tested on"


def shared_pictures(train: Sequence[AnnotatedPicture], test: Sequence[AnnotatedPicture]) -> tuple[str, ...]:
    """Return a note of the pictures that are trained on and tested on, if there are any."""
    shared = sorted({picture.path for picture in train} & {picture.path for picture in test})
    if not shared:
        return ()
    return (f"{len(shared)} pictures are trained on and tested on, the first is {shared[0].name}",)


def require_pictures(name: str, parts: Mapping[str, Sequence[AnnotatedPicture]]) -> None:
    """Refuse data without training or test pictures.

    Raises:
        ConfigurationError: a part is empty.
    """
    for part, pictures in parts.items():
        if not pictures:
            raise ConfigurationError(f"{name} has no {part} pictures; check its lists and annotations")
