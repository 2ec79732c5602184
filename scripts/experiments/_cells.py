"""A cell: one training with what is measured of it, in a folder of its own that what decides it names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from documents import write
from filelock import FileLock

RECORD = "record.json"


class Cell(Protocol):
    """One training; picklable, for other processes run it."""

    @property
    def name(self) -> str:
        """A short name for people, decided by :meth:`settings`."""

    def settings(self) -> dict[str, Any]:
        """Return all that decides the result, as JSON holds it: other settings are another cell."""

    def run(self, folder: Path) -> dict[str, Any]:
        """Train, going on with what is in ``folder``, and return what was measured, as JSON holds it."""


@dataclass(frozen=True)
class Record:
    """A finished cell.

    Args:
        name: of the cell.
        settings: of the cell.
        measured: what :meth:`Cell.run` returned.
        folder: where its files are.
    """

    name: str
    settings: dict[str, Any]
    measured: dict[str, Any]
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """Return all but the folder, which is of one machine."""
        return {"name": self.name, "settings": self.settings, "measured": self.measured}


class Records:
    """Finished cells, by cell."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_key = {key_of(record.settings): record for record in records}

    def __getitem__(self, cell: Cell) -> Record:
        return self._by_key[key_of(cell.settings())]

    def get(self, cell: Cell) -> Record | None:
        """Return the record of a cell, or None."""
        return self._by_key.get(key_of(cell.settings()))

    def __contains__(self, cell: Cell) -> bool:
        return key_of(cell.settings()) in self._by_key

    def of(self, cells: Iterable[Cell]) -> list[Record]:
        """Return the records of those cells that are finished, each once."""
        keys = dict.fromkeys(key_of(cell.settings()) for cell in cells)
        return [self._by_key[key] for key in keys if key in self._by_key]


def key_of(settings: Mapping[str, Any]) -> str:
    """Return the first 12 digits of the settings' SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(cell: Cell, place: Path) -> Path:
    """Return the folder of a cell below ``place``."""
    return place / f"{re.sub(r'[^a-z0-9.]+', '-', cell.name.lower())}-{key_of(cell.settings())}"


def find(cell: Cell, place: Path) -> Record | None:
    """Return the record of a finished cell, or None."""
    folder = folder_of(cell, place)
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Record(**values, folder=folder)


def finish(cell: Cell, place: Path) -> Record:
    """Run a cell, unless it is finished; wait for another process that is running it."""
    folder = folder_of(cell, place)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        found = find(cell, place)
        if found is None:
            found = Record(cell.name, cell.settings(), cell.run(folder), folder)
            # Last, and whole or not at all: this file says that the cell is finished.
            write(folder / RECORD, [json.dumps(found.as_json(), indent=1)])
    return found


def written(documents: Path) -> Records:
    """Return the records that stand in the documents of a folder, so that another machine goes on from them."""
    found = []
    for path in sorted(documents.glob("*_medium_*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        found += [Record(**value, folder=path) for value in values]
    return Records(found)
