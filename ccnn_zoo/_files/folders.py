"""Replacing a folder as a whole: whoever reads it sees the old one or the new one, however the writer ends.

Linux exchanges two folders in one step. Elsewhere it takes two renames; what a process that was killed between them
left is put back by whoever reads or writes the folder next.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ccnn_zoo.errors import CCNNError, RepositoryError

from .locks import HeldError, held

T = TypeVar("T")

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_PATIENCE = 5.0  # seconds; a reader that puts a folder back holds the lock for milliseconds


@contextmanager
def replacing_folder(target: Path, what: str, check: Callable[[], None]) -> Iterator[Path]:
    """Yield an empty folder; on success it takes the place of ``target``, on failure it is removed.

    A lock that ends with the process keeps a second writer away, and tells what dead ones left, which is removed.

    Args:
        target: the folder; its parents are made.
        what: to call it in messages.
        check: raises where ``target`` must not be replaced; called before anything is made, and again before the
            exchange.

    Raises:
        HeldError: another process is writing the same folder, and did not end within five seconds.
        RepositoryError: it cannot be written; what was there before is kept.
    """
    target = target.resolve()
    check()
    workshop = _workshop(target)
    try:
        with held(workshop / "lock", what, _PATIENCE) as locked:
            with _explained(target, what):
                if locked:
                    _recover(target)
                work = Path(tempfile.mkdtemp(prefix="work-", dir=workshop))
                staged = work / "new"
                staged.mkdir()
            try:
                yield staged
                check()  # staging takes a while: somebody may have put a file there
                with _explained(target, what):
                    _synchronise(staged)
                    _take_place(staged, target, work / "old")
                    _synchronise_folder(target.parent)
            finally:
                if target.exists() or not (work / "old").exists():  # else whoever reads it next puts it back
                    shutil.rmtree(work, ignore_errors=True)
    finally:
        _remove_if_empty(workshop)


def is_there(target: Path) -> bool:
    """Whether a folder exists, after putting back what a writer that was killed had taken away."""
    while not os.path.exists(target):
        try:
            resolved = target.resolve()
        except (OSError, ValueError, RuntimeError):  # no system has such a name, or it is a loop of links
            return False
        workshop = _workshop(resolved)
        if not _old_ones(workshop):
            return os.path.exists(target)
        try:
            with held(workshop / "lock", str(target)) as locked:
                if not locked:
                    return os.path.exists(target)
                _recover(resolved)
        except HeldError:
            time.sleep(0.001)  # a living writer is between its two renames
        except OSError:
            return os.path.exists(target)
        _remove_if_empty(workshop)
    return True


def while_it_stays(folder: Path, read: Callable[[], T]) -> T:
    """Return what ``read`` returns; where it fails and the folder was replaced meanwhile, read again.

    A reader opens several files, and the folder may be replaced in between.

    Args:
        folder: the folder, or a file in it; one that does not exist is nobody's.
        read: reads it, and changes nothing.
    """
    while True:
        is_there(folder)
        before = _identity(folder)
        try:
            return read()
        except (CCNNError, OSError):
            if _identity(folder) == before:
                raise


def _workshop(target: Path) -> Path:
    return target.parent / f".{target.name}.ccnn"


def _old_ones(workshop: Path) -> list[Path]:
    try:
        return [old for work in os.scandir(workshop) if (old := Path(work, "old")).exists()]
    except OSError:  # there is no workshop, or it has just been removed
        return []


def _recover(target: Path) -> None:
    """Put back what a dead writer had moved away, and remove what dead ones left; called under the lock."""
    workshop = _workshop(target)
    if not target.exists():
        for old in _old_ones(workshop)[:1]:
            old.rename(target)
    for work in workshop.glob("work-*"):
        shutil.rmtree(work, ignore_errors=True)


def _remove_if_empty(workshop: Path) -> None:
    with suppress(OSError):  # it holds the lock of another writer
        workshop.rmdir()


def _take_place(staged: Path, target: Path, old: Path) -> None:
    if not target.exists():
        staged.rename(target)
    elif not _exchanged(staged, target):
        target.rename(old)
        try:
            staged.rename(target)
        except BaseException:
            old.rename(target)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where system or file system does not."""
    if os.name == "nt":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    # Whatever the reason of a failure is, plain renames meet it too, and say it.
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0


def _synchronise(folder: Path) -> None:
    """Bring files to the disk before the rename does: after a power cut both are there, or neither."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as stream:
                os.fsync(stream.fileno())
        _synchronise_folder(Path(root))


def _synchronise_folder(folder: Path) -> None:
    if os.name == "nt":  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(folder: Path) -> tuple[int, int, int] | None:
    try:
        status = folder.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns  # numbers of removed folders are given again


@contextmanager
def _explained(target: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, CCNNError):
            raise
        raise RepositoryError(
            f"cannot write {what} ({target}): {error.strerror or error}. Choose a folder that you may write to."
        ) from error
