"""The pictures that a user names, and names that can be printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ccnn_zoo.errors import ImageError, RepositoryError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".pgm", ".ppm")


def pictures_below(paths: list[Path]) -> Iterator[str]:
    """Yield the named files, and the pictures in folders and their sub-folders in the order of their names."""
    for path in paths:
        if not path.is_dir():
            yield os.fspath(path)
            continue
        empty = True
        for picture in _below(os.fspath(path)):
            empty = False
            yield picture
        if empty:
            raise ImageError(f"{path} holds no pictures ({', '.join(PICTURES)}). Name files, or another folder.")


def _below(folder: str) -> Iterator[str]:
    """Yield pictures below a folder; of one folder at a time the names are held, nothing of its files."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif entry.name.lower().endswith(PICTURES):
                    names.append(entry.name)
    except OSError as error:
        raise RepositoryError(f"cannot list {folder}: {error.strerror}. Leave it out, or make it readable.") from error
    names.sort()
    for name in names:
        path = os.path.join(folder, name)
        if name in folders:
            yield from _below(path)
        else:
            yield path


def printable(text: str) -> str:
    """Names of files need not be UTF-8, what is printed must be."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
