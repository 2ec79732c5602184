"""A static Space on the Hub: a folder of files in one commit, with what an earlier one left taken away."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from . import _limits
from ._names import local_folder
from ._plan import Change, changes_between, operations_of
from ._remote import client, explained, listing
from ._retry import is_brief, persistently

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MESSAGE = "Publish with ccnn-zoo"
_CARD = "README.md"
_OF_THE_HUB = frozenset({".gitattributes", _CARD, "index.html", "style.css"})
"""What the Hub itself puts into a new static Space."""


@dataclass(frozen=True)
class SpacePublication:
    """What was published as a Space, or would be.

    Args:
        repo_id: the Space.
        location: address of the Space.
        changes: what became of each file, or would.
        commit: hash of the commit; None of a dry run.
        dry_run: whether nothing was written.
    """

    repo_id: str
    location: str
    changes: tuple[Change, ...]
    commit: str | None = None
    dry_run: bool = False


def publish_space(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    mark: str,
    private: bool = False,
    token: str | bool | None = None,
    dry_run: bool = False,
) -> SpacePublication:
    """Publish a folder as a static Space, in one commit; the Space is made where it is missing.

    Files that are there already are not sent, others of an earlier publication are deleted, and where nothing changes
    no commit is made.

    Args:
        folder: with a ``README.md`` whose header says ``sdk: static``.
        repo_id: ``"org/name"``.
        mark: a file by which a Space is known as published from here; a Space with other files and without it is
            somebody's work, and left alone.
        private: make a new Space private.
        token: one that may write; None or True is that of ``hf auth login`` or ``HF_TOKEN``.
        dry_run: look at what is there, and write nothing.

    Raises:
        ConfigurationError: the name is none of the Hub's.
        RepositoryError: the Space cannot be written, or holds something else.
    """
    folder = Path(folder)
    if local_folder(repo_id) is not None:
        raise ConfigurationError(
            f"a Space is on the Hub: name it org/name, not {repo_id!r}. `ccnn web` makes a folder."
        )
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    _limits.limit_waiting()
    with explained(f"the Space {repo_id}"):
        api = client(token)
        location = f"{api.endpoint}/spaces/{repo_id}"
        if not dry_run:
            made = {"repo_type": "space", "space_sdk": "static", "private": private or None, "exist_ok": True}
            persistently(lambda: api.create_repo(repo_id, **made), is_brief)
        parent, there = _what_is_there(api, repo_id, missing_is_empty=dry_run)
        if mark not in there and (others := sorted(there.keys() - _OF_THE_HUB)):
            raise RepositoryError(
                f"the Space {repo_id} holds something else ({', '.join(others[:3])}), which would be lost: nothing was "
                "published. Choose another name."
            )
        changes = _changes(folder, files, there)
        if not dry_run and any(change.action != "keep" for change in changes):
            parent = _commit(api, repo_id, folder, changes, parent)
    return SpacePublication(repo_id, location, changes, None if dry_run else parent, dry_run)


def _what_is_there(api: HfApi, repo_id: str, *, missing_is_empty: bool) -> tuple[str | None, dict[str, str]]:
    """Return the newest commit, and path to id of its files."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = persistently(lambda: api.space_info(repo_id, timeout=_limits.ANSWER), is_brief)
    except RepositoryNotFoundError:
        if missing_is_empty:
            return None, {}
        raise
    return info.sha, listing(api, repo_id, info.sha, repo_type="space")


def _changes(folder: Path, files: list[str], there: dict[str, str]) -> tuple[Change, ...]:
    stale = [Change(name, "delete") for name in there if name not in files and name not in _OF_THE_HUB]
    kept = {name: identity for name, identity in there.items() if name in files}
    return tuple(sorted([*changes_between(folder, files, kept), *stale], key=lambda change: change.path))


def _commit(api: HfApi, repo_id: str, folder: Path, changes: tuple[Change, ...], parent: str | None) -> str:
    operations = operations_of(changes, folder)
    options = {"repo_type": "space", "commit_message": _MESSAGE, "parent_commit": parent}
    return persistently(lambda: api.create_commit(repo_id, operations, **options), is_brief).oid
