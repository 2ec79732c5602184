"""One process at a time: lock files that are free again when the process that holds them ends, however it ends."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, RepositoryError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


class HeldError(ConfigurationError):
    """Another process, or another thread of this one, holds the lock."""


@contextmanager
def held(path: Path, what: str, patience: float = 0.0) -> Iterator[bool]:
    """Hold a lock file during the block, and remove it afterwards; whoever is second is refused.

    The lock is the operating system's: that of a process that was killed is free. (Forks of it hold it too with
    versions of filelock before 4.)

    Args:
        path: the lock file, which says who holds it; its folder is made.
        what: is being written, for the message.
        patience: seconds to wait for a lock that others hold for a moment only.

    Yields:
        whether the file is locked; False on a file system without locks.

    Raises:
        HeldError: another process holds it; names both.
        RepositoryError: the file cannot be written.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    holder = _holder(path)  # before the attempt: older versions of filelock empty the file by it
    lock = FileLock(path)
    try:
        _acquire(lock, path, patience)
    except Timeout as error:
        raise HeldError(
            f"{_holder(path) or holder or 'another process'} is writing {what}. Wait for it, or choose another name."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RepositoryError(
                f"cannot write {what}: {error.strerror or error}. Choose a folder that you may write to."
            ) from error
        yield False
        return
    of_the_system = not isinstance(lock, SoftFileLock)  # what filelock makes of it where the system has no locks
    try:
        if of_the_system:
            with suppress(OSError):  # Windows lets nobody write what is locked
                path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield True
    finally:
        if of_the_system:
            with suppress(OSError):  # Windows removes it when it is released
                path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, patience: float) -> None:
    from filelock import Timeout

    end = time.monotonic() + patience
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            return
        except (Timeout, FileNotFoundError):  # the latter: whoever held it has just removed the folder
            if time.monotonic() >= end:
                raise
        time.sleep(0.01)


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return text if text.isprintable() and len(text) < 300 else ""
