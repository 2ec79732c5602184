"""Writes pages of docs/, whole or between two marks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ccnn_zoo._files import replacing

__all__ = ["renewed", "replacing", "write", "write_between"]


def write(page: Path, lines: Iterable[str]) -> str:
    """Write a page, with one newline at its end, in place of the one that is there; return its text."""
    text = "\n".join(lines).rstrip("\n") + "\n"
    with replacing(page) as path:
        path.write_text(text, encoding="utf-8")
    return text


def write_between(page: Path, name: str, lines: Iterable[str]) -> None:
    """Write what stands in a page between the marks of a name."""
    write(page, [renewed(page.read_text(encoding="utf-8"), name, lines)])


def renewed(text: str, name: str, lines: Iterable[str]) -> str:
    """Return a page's text with other lines between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``.

    Raises:
        ValueError: the text has not one of each.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(end) < text.index(begin):
        raise ValueError(f"the page has no place for {name!r}: it needs {begin} and, after it, {end}, once each")
    before, _, rest = text.partition(begin)
    return "\n".join([before + begin, *lines, end + rest.partition(end)[2]])
