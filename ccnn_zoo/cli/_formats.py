"""Writing results of ``ccnn classify`` as CSV, JSON lines or Parquet, a bounded number at a time."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from ccnn_zoo._base.missing import missing_package
from ccnn_zoo.errors import ConfigurationError

Record = dict[str, Any]
_FORMULA = re.compile(r"['\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBERS = ("entropy", "agreement", "mutual_information", "ood_percentile", "ood_energy")
DOUBTS = ("prediction_set", "abstained", *_NUMBERS, "branches")
"""Columns of what is said of an answer, empty where it was not asked for; lists are JSON."""

_ROWS = 10_000  # of one Parquet row group, held in memory


def check_format(path: Path) -> None:
    """Refuse a file name whose suffix names no format, or one that cannot be written here.

    Raises:
        ConfigurationError: says which suffixes there are, or what to install.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigurationError(f"--output takes a name that ends in {', '.join(WRITERS)}, got {str(path)!r}")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise missing_package("pyarrow")


def write(records: Iterable[Record], path: Path, classes: int, *, doubts: bool = False) -> None:
    """Write results in the format of the path's suffix.

    Args:
        records: as :func:`dataclasses.asdict` makes them of ``Classification``.
        path: passed :func:`check_format`.
        classes: how many predictions a picture has; their columns in CSV and Parquet are ``label_1``,
            ``probability_1``, ``index_1``, ``label_2`` and so on, empty where a picture could not be read.
        doubts: whether the file carries numbers of confidence, so that there are columns :data:`DOUBTS` too.
    """
    WRITERS[path.suffix.lower()](records, path, [*_columns(classes), *(DOUBTS if doubts else ())])


def _write_csv(records: Iterable[Record], path: Path, columns: list[str]) -> None:
    # surrogateescape: a file name that is not UTF-8 comes out with the bytes it has.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.DictWriter(stream, ["source", "error", *columns])
        writer.writeheader()
        writer.writerows(_guarded(_row(record, columns)) for record in records)


def _write_jsonl(records: Iterable[Record], path: Path, columns: list[str]) -> None:
    with path.open("w", encoding="ascii") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


def _write_parquet(records: Iterable[Record], path: Path, columns: list[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"label": pa.string(), "probability": pa.float64(), "index": pa.int32()}
    kinds |= dict.fromkeys(_NUMBERS, pa.float64()) | dict.fromkeys(set(DOUBTS) - set(_NUMBERS), pa.string())
    typed = [(name, kinds.get(name) or kinds[name.split("_")[0]]) for name in columns]
    schema = pa.schema([pa.field("source", pa.string(), nullable=False), ("error", pa.string()), *typed])
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _groups(_row(record, columns) for record in records):
            writer.write_table(pa.Table.from_pylist([_utf8(row) for row in rows], schema))


WRITERS: dict[str, Callable[[Iterable[Record], Path, list[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


def _columns(classes: int) -> list[str]:
    return [f"{name}_{rank}" for rank in range(1, classes + 1) for name in ("label", "probability", "index")]


def _row(record: Record, columns: list[str]) -> Record:
    row = {"source": record["source"], "error": record["error"]}
    for rank, prediction in enumerate(record["predictions"], 1):
        row |= {f"{name}_{rank}": value for name, value in prediction.items()}
    if DOUBTS[0] in columns:
        ood = record.get("ood") or {}
        said = {**record, "ood_percentile": ood.get("percentile"), "ood_energy": ood.get("energy")}
        values = {name: said.get(name) for name in DOUBTS}
        row |= {name: json.dumps(v) if isinstance(v, list | tuple) else v for name, v in values.items()}
    return row


def _guarded(row: Record) -> Record:
    """Put ``'`` before text that a spreadsheet would take for a formula, and, so that it can be undone, before ``'``.

    Source: OWASP, "CSV Injection": what begins with one of these, a tab or a new line is run, in any column.
    """
    return {
        name: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value for name, value in row.items()
    }


def _utf8(row: Record) -> Record:
    """Parquet holds UTF-8 alone: bytes of a file name that are not become ``\\xNN``."""
    return {
        name: os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
        for name, value in row.items()
    }


def _groups(rows: Iterator[Record]) -> Iterator[list[Record]]:
    while group := list(islice(rows, _ROWS)):
        yield group
