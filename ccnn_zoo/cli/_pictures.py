"""The pictures that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
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
        paths: as named.

    Attributes:
        left_out: what the last iteration has passed by so far.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(map(os.fspath, paths))
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

    def tell(self) -> int:
        """Say on stderr what was left out, and return the number of folders that gave nothing."""
        if str(self.left_out):
            say(f"left out: {self.left_out}", err=True)
        for problem in self.left_out.problems:
            say(problem, err=True)
        return len(self.left_out.problems)
