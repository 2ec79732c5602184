"""Repositories on disk, replaced as a whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccnn_zoo.errors import IntegrityError, RepositoryError

from ._manifest import all_files, read_manifest
from ._names import MANIFEST


@contextmanager
def replacing_folder(target: Path, repo_id: str) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; on success it takes the place of ``target``, on failure it is removed.

    The earlier repository is renamed away for the moment of the exchange, and removed only when the new one stands
    in its place.

    Raises:
        RepositoryError: ``target`` holds something else than a repository of ours, or cannot be written.
    """
    target = target.resolve()
    refuse_foreign(target, repo_id)
    workshop = _make_workshop(target, repo_id)
    try:
        staged = workshop / "new"
        staged.mkdir()
        yield staged
        refuse_foreign(target, repo_id)  # staging takes a while: somebody may have put a file there
        try:
            _synchronise(staged)
            _exchange(staged, target, workshop / "old")
        except OSError as error:
            raise _cannot_write(repo_id, target, error) from error
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _make_workshop(target: Path, repo_id: str) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(repo_id, target, error) from error


def _cannot_write(repo_id: str, target: Path, error: OSError) -> RepositoryError:
    return RepositoryError(
        f"cannot write {repo_id} ({target}): {error.strerror or error}. Choose a folder that you may write to."
    )


def refuse_foreign(target: Path, repo_id: str) -> None:
    """Refuse what replacing must not remove: only an earlier repository of ours, with nothing added, may go.

    Raises:
        RepositoryError: ``target`` holds something else.
    """
    if not target.exists():
        return
    advice = "Choose another folder, or move it away."
    if not target.is_dir():
        raise RepositoryError(f"{repo_id} is a file, not a folder. {advice}")
    files = list(all_files(target))
    if not files:
        return
    try:
        listed = {MANIFEST, *read_manifest(target, repo_id).files}
    except (RepositoryError, IntegrityError) as error:
        raise RepositoryError(f"{repo_id} is not empty, and no repository of ours ({error}). {advice}") from error
    foreign = [name for name in files if name not in listed]
    if foreign:
        raise RepositoryError(
            f"{repo_id} holds {foreign[0]}, which is not part of the published repository and would be lost. "
            "Move that file away, or choose another folder."
        )


def _exchange(staged: Path, target: Path, old: Path) -> None:
    if not target.exists():
        staged.rename(target)
        return
    target.rename(old)
    try:
        staged.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _synchronise(folder: Path) -> None:
    """Bring the files to the disk before the rename does: after a power cut both are there, or neither."""
    for name in all_files(folder):
        with (folder / name).open("rb") as stream:
            os.fsync(stream.fileno())
