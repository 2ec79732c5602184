"""Repositories on disk, replaced as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ccnn_zoo._files import folders
from ccnn_zoo.errors import IntegrityError, RepositoryError

from ._manifest import all_files, read_manifest
from ._names import MANIFEST


@contextmanager
def replacing_folder(target: Path, repo_id: str) -> Iterator[Path]:
    """Yield an empty folder; on success it takes the place of ``target`` in one step, on failure it is removed.

    Raises:
        ConfigurationError: another process is publishing to the same folder.
        RepositoryError: ``target`` holds something else than a repository of ours, or cannot be written.
    """
    with folders.replacing_folder(target, repo_id, lambda: refuse_foreign(target, repo_id)) as staged:
        yield staged


def refuse_foreign(target: Path, repo_id: str) -> None:
    """Refuse what replacing must not remove: only an earlier repository of ours, with nothing added, may go.

    Raises:
        RepositoryError: ``target`` holds something else.
    """
    if not folders.is_there(target):
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
