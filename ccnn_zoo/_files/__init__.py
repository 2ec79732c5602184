"""Writing files so that nothing is ever half-written, and summing them."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccnn_zoo.errors import ConfigurationError, RepositoryError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file name beside ``path``; on success it is renamed to ``path``, on failure removed.

    Parents are created. A reader sees the old file or the new one, also when the process is killed.

    Raises:
        RepositoryError: the folder cannot be written, or the disk is full; what was there before is kept.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays: some writers choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise RepositoryError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; give them the permissions of any new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        _rename(temporary, path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RepositoryError(
            f"cannot write {path}: {error.strerror}. What was there before is kept; free some space or choose another "
            "folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:  # a folder stands there, or somebody else's file that only they may replace
        raise RepositoryError(
            f"cannot replace {path}: {error.strerror}. What was there before is kept; choose another name."
        ) from error


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while they wrote ``path`` left beside it."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        leftover.unlink(missing_ok=True)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that a person may have saved with any editor: UTF-8 with or without a byte-order mark.

    Raises:
        ConfigurationError: it cannot be read, or holds something else; names it.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: no system has such a name
        raise ConfigurationError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def parsed_yaml(text: str, what: str) -> Any:
    """Return the value that a text in YAML says.

    Raises:
        ConfigurationError: it is no YAML, or says a value that there is not, such as the date 2020-99-99.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML's own, and what its constructors raise on nonsense: anything
        shown = " ".join(str(error).split()) or type(error).__name__
        raise ConfigurationError(f"{what} is not YAML: {shown}") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def why_unreadable(error: Exception) -> str:
    """Return why a file that somebody brought cannot be read: the system's reason, not how a parser puts it."""
    return getattr(error, "strerror", None) or "it is damaged, cut off, or something else"
