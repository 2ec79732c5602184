"""What a run of ``ccnn classify --output FILE`` has done so far: ``FILE.part``, one JSON object per line.

The first line says which network and options the results are of. A result is whole once its line ends. ``FILE``
itself appears under its name when all results are there, so that nothing half-written is ever taken for whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ccnn_zoo._files.locks import held
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

Record = dict[str, Any]
_LONGEST_HEAD = 10_000  # bytes


class Journal:
    """Results so far, appended to and read again; a context manager that closes the file and leaves it.

    Args:
        path: the journal.
        run: what all results have in common, as JSON values.
        resume: continue a journal that is there; without it there must be none, but for one without any result.

    Raises:
        ConfigurationError: a journal is there and must not be continued, by this run or while another writes it.
        IntegrityError: a line before the last is damaged.
        RepositoryError: the file cannot be written.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self._run = json.loads(json.dumps(run))
        self._claimed: set[bytes] = set()
        self._count = 0
        with ExitStack() as stack:
            stack.enter_context(held(path.with_name(f"{path.name}.lock"), str(path)))
            self._file = stack.enter_context(_opened(path, self._run, resume))
            self._continue()
            self._held = stack.pop_all()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # what could not be flushed was reported when it was written
            self._file.close()
        if self._count == 0:  # nothing that another run could go on from, so none shall have to
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        self._held.close()

    def __len__(self) -> int:
        """Return the number of results."""
        return self._count

    def claim(self, source: str) -> bool:
        """Say whether a picture is still to be classified; only the first time, so that none is there twice."""
        digest, known = _digest(source), len(self._claimed)
        self._claimed.add(digest)
        return len(self._claimed) > known

    def append(self, record: Record) -> None:
        """Add the result of one picture; it survives the end of this process from now on.

        Raises:
            RepositoryError: the disk is full or gone.
        """
        self._write(record)
        self._count += 1

    def records(self) -> Iterator[Record]:
        """Read all results from the beginning."""
        with self.path.open("rb") as stream:
            next(stream)
            yield from map(json.loads, stream)

    def remove(self) -> None:
        """Remove the file, its results being elsewhere."""
        self._file.close()
        self.path.unlink()

    def _write(self, record: Record) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise RepositoryError(
                f"cannot write {self.path}: {error.strerror}. Free some space, then continue with --resume."
            ) from error

    def _continue(self) -> None:
        """Read what is there, cut off a line that was never finished, and stand at the end."""
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            record = self._parsed(line, number + 1)
            if number == 0:
                self._compare(record)
            else:
                self._claimed.add(_digest(record["source"]))
                self._count += 1
            whole += len(line)
        self._file.seek(whole)
        self._file.truncate()
        if whole == 0:
            self._write(self._run)

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            return record if number == 1 else record | {"source": str(record["source"])}
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{self.path}: line {number} is damaged. Delete the file and start again.") from error

    def _compare(self, run: Record) -> None:
        if run == self._run:
            return
        found = run if isinstance(run, dict) else {}
        other = [f"{name} {found.get(name)!r}, not {value!r}" for name, value in self._run.items()
                 if found.get(name) != value]  # fmt: skip
        raise ConfigurationError(
            f"{self.path} is of another run ({'; '.join(other)}). Repeat that run's options, or delete the file."
        )


def _holds_no_result(path: Path, run: Record) -> bool:
    """Whether a run was killed before its first result, so that there is nothing to go on from, and nothing to lose."""
    try:
        with path.open("rb") as stream:
            first, more = stream.readline(_LONGEST_HEAD), stream.read(1)
        return not more and (not first or json.loads(first).keys() == run.keys())
    except (OSError, ValueError, AttributeError):
        return False


def _opened(path: Path, run: Record, resume: bool) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _holds_no_result(path, run):
            return path.open("w+b")
        return path.open("r+b" if resume and path.exists() else "x+b")
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} holds the results of a run that was interrupted. Continue it with --resume, or delete the file."
        ) from error
    except OSError as error:
        raise RepositoryError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error


def _digest(source: str) -> bytes:
    """Return what stands for a name, so that memory does not grow with its length."""
    return hashlib.blake2b(os.fsencode(source), digest_size=16).digest()
