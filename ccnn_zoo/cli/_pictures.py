"""The pictures that a user names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ImageError

from ._output import say

if TYPE_CHECKING:
    from ccnn_zoo.pictures import LeftOut


class Pictures:
    """What a user named: files, and the pictures in folders and their sub-folders.

    Folders without pictures and those that cannot be searched end nothing: the others are searched all the same.

    Args:
        paths: as named; ``-`` is standard input.

    Attributes:
        left_out: what the last iteration has passed by so far.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(map(os.fspath, paths))
        self._standard_input: bytes | None = None
        self._restart()

    def _restart(self) -> None:
        from ccnn_zoo.pictures import LeftOut

        self.left_out: LeftOut = LeftOut()

    def __iter__(self) -> Iterator[str]:
        """Yield paths, those in folders in the order of their names.

        Raises:
            ImageError: there was no picture at all; says why, after the last folder.
        """
        from ccnn_zoo.pictures import pictures_in

        self._restart()
        some = False
        for path in self.paths:
            if not os.path.isdir(path):  # Path.is_dir raises where the way to it is barred
                yield path
                some = True
                continue
            empty, known = True, len(self.left_out.problems)
            for picture in pictures_in(path, self.left_out):
                yield picture
                some, empty = True, False
            if empty and len(self.left_out.problems) == known:
                self.left_out.without_pictures.append(path)
        if not some:
            told = [*self.left_out.problems, *([f"left out: {self.left_out}"] if str(self.left_out) else [])]
            raise ImageError(f"{'. '.join(told)}. Name files, or another folder.")

    def opened(self, path: str) -> str | BytesIO:
        """Return a path, or what came in by standard input, which is read once and named ``-``."""
        if not is_standard_input(path):
            return path
        if self._standard_input is None:
            self._standard_input = b"" if sys.stdin is None else sys.stdin.buffer.read()
        picture = BytesIO(self._standard_input)
        picture.name = path
        return picture

    def tell(self) -> int:
        """Say on stderr what was left out, and return the number of folders that gave nothing."""
        if str(self.left_out):
            say(f"left out: {self.left_out}", err=True)
        for problem in self.left_out.problems:
            say(problem, err=True)
        return len(self.left_out.problems)


def is_standard_input(path: str | os.PathLike[str]) -> bool:
    """Whether a name means standard input; a file of this name is ``./-``."""
    return os.fspath(path) == "-"
