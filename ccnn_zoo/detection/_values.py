"""What annotation tools write, as values: every tool has its own way to write a number, a flag or nothing."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import is_label

_FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True}
_NOT_SAID = ("", "none", "unspecified")


class BadValueError(ValueError):
    """A value of an annotation is of no use; says which and why. Only inside the readers."""


def number(value: object, what: str) -> float:
    """Return a number that may be written as text.

    Args:
        value: as it stands in the file.
        what: its name, for the error.

    Raises:
        BadValueError: it is missing or no number.
    """
    if value is None:
        raise BadValueError(f"{what} is missing")
    try:
        if not isinstance(value, bool):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadValueError(f"{what} is {reprlib.repr(value)}, no number")


def flag(value: object, what: str) -> bool:
    """Return a flag that may be written as text; not said is False.

    Raises:
        BadValueError: it is neither.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in _NOT_SAID:
        return False
    if text not in _FLAGS:
        raise BadValueError(f"{what} is {reprlib.repr(value)}, neither 0 nor 1")
    return _FLAGS[text]


def picture_size(width: object, height: object) -> tuple[int, int] | None:
    """Return a picture's size as annotated; None if it is not said, or is the 0 of tools that do not know it.

    Raises:
        BadValueError: a side is no whole number of at least 0.
    """
    if width is None or height is None:
        return None
    sides = number(width, "width"), number(height, "height")
    for side, what in zip(sides, ("width", "height"), strict=True):
        if not math.isfinite(side) or side < 0 or side != int(side):
            raise BadValueError(f"{what} is {side:g}, no whole number of pixels")
    return (int(sides[0]), int(sides[1])) if all(sides) else None


def inside(name: str, what: str) -> str:
    """Return a file's name with the slashes of this system.

    Raises:
        BadValueError: it leads out of the folder that it is in.
    """
    path = PurePosixPath(name.replace("\\", "/"))  # as tools on Windows write them
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:/", str(path)) or "\0" in name:
        raise BadValueError(f"{what} {name!r} lies outside of the folder")
    return str(path)


def check_labels(source: Path | str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes.

    Args:
        source: where they stand, for the error.
        labels: one per class.

    Raises:
        ConfigurationError: there is none, one stands twice, or one is no text that an exported network may carry.
    """
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if not labels:
        raise ConfigurationError(f"{source} names no class")
    if twice:
        raise ConfigurationError(
            f"{source} names the class {', '.join(map(repr, twice))} twice; give each class one name"
        )
    bad = [name for name in labels if not is_label(name) or not name.strip()]
    if bad:
        raise ConfigurationError(f"{source} has a class called {bad[0]!r}; names are texts without control characters")
    return tuple(labels)
