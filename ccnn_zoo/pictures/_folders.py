"""Finding pictures in folders: one walk for all that look through folders.

What begins with a dot is nobody's picture: ``.ipynb_checkpoints``, ``._x.png`` of macOS, ``.DS_Store``. Links are
followed, and no folder is walked through twice.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ._reader import SUFFIXES

_LISTED = 5
"""Suffixes of other files that are told one by one."""


@dataclass
class LeftOut:
    """What a search for pictures has passed by.

    Args:
        hidden: files and folders whose names begin with a dot.
        others: files that are no pictures by their suffixes, by suffix.
        again: ways to folders that were searched already.
        empty: paths of folders that hold nothing.
        without_pictures: paths of folders that were named, and below which there is no picture.
        unsearched: which folders cannot be searched, and why; one sentence each.
    """

    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)
    again: int = 0
    empty: list[str] = field(default_factory=list)
    without_pictures: list[str] = field(default_factory=list)
    unsearched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return what was left out without harm in one phrase, empty for nothing."""
        told = []
        if self.hidden:
            told.append(f"{self.hidden} with names that begin with a dot")
        if self.others:
            kinds = [f"{suffix or 'no suffix'} {count}" for suffix, count in self.others.most_common(_LISTED)]
            more = ["..."] if len(self.others) > _LISTED else []
            told.append(f"{self.others.total()} that are no pictures by their suffixes ({', '.join(kinds + more)})")
        if self.again:
            told.append(f"{self.again} that links lead to again")
        return ", ".join(told)

    @property
    def problems(self) -> list[str]:
        """What the user should know of every folder that gave nothing, one line each."""
        return [
            *self.unsearched,
            *(f"{folder} is an empty folder" for folder in self.empty),
            *(f"{folder} holds no pictures ({', '.join(SUFFIXES)})" for folder in self.without_pictures),
        ]

    def hides(self, name: str) -> bool:
        """Tell whether a name, or a part of a path in an archive, begins with a dot, and count it if so."""
        hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
        self.hidden += hidden
        return hidden

    def keeps(self, name: str) -> bool:
        """Tell whether the name of a file is a picture's, and count it if it is not."""
        if self.hides(name):
            return False
        kept = name.lower().endswith(SUFFIXES)
        if not kept:
            self.others[os.path.splitext(name)[1].lower()] += 1
        return kept


def pictures_in(folder: str | os.PathLike[str], left_out: LeftOut) -> Iterator[str]:
    """Yield the pictures in a folder and its sub-folders, in the order of their names.

    Of the folders on the way to a picture the names are held, nothing of their files.

    Args:
        folder: where to look.
        left_out: what is passed by is added to it; a folder that cannot be searched ends nothing.
    """
    walked: set[object] = set()
    # No recursion: folders may be nested more deeply than calls.
    levels: list[Iterator[tuple[str, bool]]] = [iter([(os.fspath(folder), True)])]
    while levels:
        path, is_folder = next(levels[-1], ("", None))
        if is_folder is None:
            levels.pop()
        elif not is_folder:
            yield path
        elif (entries := _entries(path, walked, left_out)) is not None:
            levels.append(entries)


def folders_in(folder: str | os.PathLike[str], left_out: LeftOut) -> list[str]:
    """Return the names of the folders in a folder, sorted; files beside them are left out.

    Raises:
        OSError: the folder cannot be listed.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if left_out.hides(entry.name):
                continue
            if _is_folder(entry):
                names.append(entry.name)
            else:
                left_out.others[os.path.splitext(entry.name)[1].lower()] += 1
    return sorted(names)


def _entries(folder: str, walked: set[object], left_out: LeftOut) -> Iterator[tuple[str, bool]] | None:
    """Yield the paths of pictures and folders in a folder, and which are folders; None if it is not to be searched."""
    names: list[tuple[str, bool]] = []
    empty = True
    try:
        known = _identity(folder)
        if known in walked:
            left_out.again += 1
            return None
        walked.add(known)
        with os.scandir(folder) as entries:
            for entry in entries:
                empty = False
                is_folder = not entry.name.startswith(".") and _is_folder(entry)
                if is_folder or left_out.keeps(entry.name):
                    names.append((entry.name, is_folder))
    except OSError as error:
        left_out.unsearched.append(f"{folder} cannot be searched: {error.strerror}. Leave it out, or make it readable.")
        return None
    if empty:
        left_out.empty.append(folder)
    names.sort()
    return ((os.path.join(folder, name), is_folder) for name, is_folder in names)  # of paths one at a time is held


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere
        return False


def _identity(folder: str) -> object:
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
