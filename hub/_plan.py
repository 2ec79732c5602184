"""What publishing would change in a repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ccnn_zoo._files import sha256_of

from ._manifest import git_blob_id
from ._names import is_published

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

_GIT_ID_LENGTH = 40

Action = Literal["add", "replace", "keep", "delete"]


@dataclass(frozen=True)
class Change:
    """What becomes of one file of a repository.

    Args:
        path: in the repository.
        action: ``"add"`` a new file, ``"replace"`` an earlier one, ``"keep"`` one that is the same already, or
            ``"delete"`` one that an earlier publication left.
        size: bytes of the new file; 0 where it is deleted.
        sha256: of the new file; empty where it is deleted.
    """

    path: str
    action: Action
    size: int = 0
    sha256: str = ""


def changes_between(folder: Path, files: Iterable[str], there: Mapping[str, str]) -> tuple[Change, ...]:
    """Return what publishing ``files`` changes, in the order of their paths; files of others are left alone.

    Args:
        folder: the staged repository.
        files: paths in it.
        there: path to id of each file that is there now: a SHA-256, or git's id of a blob.
    """
    files = sorted(files)
    changes = [_change(folder / name, name, there.get(name)) for name in files]
    stale = [name for name in there if is_published(name) and name not in files]
    return tuple(sorted([*changes, *(Change(name, "delete") for name in stale)], key=lambda change: change.path))


def operations_of(changes: Iterable[Change], folder: Path) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what a commit of huggingface_hub does for the changes, with files of ``folder``."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return [
        CommitOperationDelete(change.path)
        if change.action == "delete"
        else CommitOperationAdd(change.path, folder / change.path)
        for change in changes
        if change.action != "keep"
    ]


def _change(file: Path, name: str, identity: str | None) -> Change:
    sha256 = sha256_of(file)
    if identity is None:
        action: Action = "add"
    else:
        own = git_blob_id(file.read_bytes()) if len(identity) == _GIT_ID_LENGTH else sha256
        action = "keep" if own == identity else "replace"
    return Change(name, action, file.stat().st_size, sha256)
