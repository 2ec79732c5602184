"""Upload to the Hub: one commit on top of a known one, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import RepositoryError

from . import _limits
from ._plan import Change, changes_between, operations_of
from ._remote import CHANGED, client, explained, listing
from ._retry import is_brief, is_transient, persistently, root_of, status_of, was_refused_unread

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_MESSAGE = "Publish with ccnn-zoo"


@dataclass(frozen=True)
class Target:
    """Where on the Hub to publish, and how; the arguments of :func:`ccnn_zoo.hub.publish`."""

    repo_id: str
    revision: str | None = None
    private: bool = False
    parent_commit: str | None = None
    create_pr: bool = False
    tag: str | None = None
    token: str | bool | None = None


@dataclass(frozen=True)
class Pushed:
    """The commit that holds what was published, made now or found to be there already."""

    commit: str
    url: str
    changes: tuple[Change, ...]
    pull_request: str | None = None


def push(folder: Path, files: list[str], target: Target) -> Pushed:
    """Upload the files of ``folder`` in one commit; the repository and the branch are made where they are missing.

    Files that are there already are not sent; those of an earlier publication that are no longer there are deleted
    in the same commit. Where nothing changes, no commit is made.

    Raises:
        RepositoryError: the repository cannot be written, has changed since ``parent_commit``, or has the tag.
        ConfigurationError: the name is malformed.
    """
    _limits.limit_waiting()
    with explained(target.repo_id, target.revision):
        api = client(target.token)
        parent = _make_tip(api, target)
        changes = changes_between(folder, files, listing(api, target.repo_id, parent))
        unchanged = all(change.action == "keep" for change in changes)
        _check_tag(api, target, parent if unchanged else None)
        if unchanged:
            pushed = Pushed(parent, _url(api, target, parent), changes)
        else:
            pushed = _commit(api, folder, changes, parent, target)
    if target.tag is not None:
        _tag(api, target, pushed.commit)
    return pushed


def preview(folder: Path, files: list[str], target: Target) -> tuple[Change, ...]:
    """Return what :func:`push` would change, writing nothing.

    Raises:
        RepositoryError: as :func:`push`.
        ConfigurationError: the name is malformed.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    _limits.limit_waiting()
    with explained(target.repo_id, target.revision):
        api = client(target.token)
        try:
            parent = _look_at_tip(api, target, target.revision)
        except RevisionNotFoundError:
            parent = _look_at_tip(api, target, None)  # a new branch starts at main
        except RepositoryNotFoundError:
            if target.create_pr or target.parent_commit:
                raise
            return changes_between(folder, files, {})
        changes = changes_between(folder, files, listing(api, target.repo_id, parent))
        _check_tag(api, target, parent if all(change.action == "keep" for change in changes) else None)
    return changes


def _make_tip(api: HfApi, target: Target) -> str:
    """Return the commit on which to publish, after making the repository and the branch where they are missing."""
    if not target.create_pr and target.parent_commit is None:
        # None, not False: an organisation may make its repositories private by default.
        _write(lambda: api.create_repo(target.repo_id, private=target.private or None, exist_ok=True))
        if target.revision is not None:
            _write(lambda: api.create_branch(target.repo_id, branch=target.revision, exist_ok=True))
    return _look_at_tip(api, target, target.revision)


def _look_at_tip(api: HfApi, target: Target, revision: str | None) -> str:
    info = persistently(lambda: _info(api, target, revision), is_brief)
    if target.private and info.private is False:
        raise RepositoryError(
            f"{target.repo_id} is public, and private is for new repositories: nothing was published. "
            "Make it private in its settings, or choose another name."
        )
    if target.parent_commit is not None and not info.sha.startswith(target.parent_commit):
        raise RepositoryError(
            f"{target.repo_id}: {CHANGED} (its newest commit is {info.sha[:12]}, not {target.parent_commit[:12]}), "
            "nothing was published. Look at the change, then publish again."
        )
    return info.sha


def _commit(api: HfApi, folder: Path, changes: tuple[Change, ...], parent: str, target: Target) -> Pushed:
    operations = operations_of(changes, folder)

    def attempt() -> Pushed:
        try:
            commit = api.create_commit(
                target.repo_id,
                operations,
                commit_message=_MESSAGE,
                revision=target.revision,
                parent_commit=parent,
                create_pr=target.create_pr,
            )
        except Exception as error:
            if not target.create_pr and _has_landed(api, folder, changes, parent, target, error):
                tip = _info(api, target, target.revision).sha
                return Pushed(tip, _url(api, target, tip), changes)
            raise
        return Pushed(commit.oid, commit.commit_url, changes, commit.pr_url)

    # A second pull request would be a surprise; a second commit is impossible on the same parent.
    return persistently(attempt, was_refused_unread if target.create_pr else is_brief)


def _write(call: Callable[[], object]) -> None:
    persistently(call, is_brief)


def _info(api: HfApi, target: Target, revision: str | None) -> ModelInfo:
    # Where it is given none, huggingface_hub would wait for this one without a limit.
    return api.model_info(target.repo_id, revision=revision, timeout=_limits.ANSWER)


def _has_landed(
    api: HfApi, folder: Path, changes: tuple[Change, ...], parent: str, target: Target, error: Exception
) -> bool:
    """Whether the commit was made although its answer got lost."""
    if not is_transient(error) and status_of(root_of(error)) != 412:
        return False
    tip = _info(api, target, target.revision).sha
    if tip == parent:
        return False
    files = [change.path for change in changes if change.action != "delete"]
    remaining = changes_between(folder, files, listing(api, target.repo_id, tip))
    return all(change.action == "keep" for change in remaining)


def _check_tag(api: HfApi, target: Target, commit: str | None) -> None:
    """Refuse a tag that exists elsewhere, before anything is sent.

    Args:
        commit: the one that will be tagged; None where it is yet to be made.
    """
    if target.tag is None:
        return
    refs = persistently(lambda: api.list_repo_refs(target.repo_id), is_brief)
    there = {ref.name: ref.target_commit for ref in refs.tags}.get(target.tag)
    if there is not None and there != commit:
        raise RepositoryError(
            f"{target.repo_id} has a tag {target.tag!r} at another commit, {there[:12]}: nothing was published. "
            "Tags stay where they are; choose another name."
        )


def _tag(api: HfApi, target: Target, commit: str) -> None:
    try:
        with explained(target.repo_id):
            _write(lambda: api.create_tag(target.repo_id, tag=target.tag, revision=commit, exist_ok=True))
    except RepositoryError as error:
        raise RepositoryError(
            f"{error} Commit {commit[:12]} is published, its tag {target.tag!r} is missing: publish again to set it."
        ) from error


def _url(api: HfApi, target: Target, commit: str) -> str:
    return f"{api.endpoint}/{target.repo_id}/commit/{commit}"
