"""The Hugging Face Hub, with its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from ._names import MANIFEST, PICKLES, WANTED, is_wanted

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

_CLIENT = {"library_name": "ccnn-zoo", "library_version": version("ccnn-zoo")}
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors, each with its remedy.

    Raises:
        RepositoryError: the repository cannot be had, or cannot be written.
        ConfigurationError: the name or another argument is malformed.
    """
    # HTTPError is the base of the HTTP client's errors, whichever client this version of huggingface_hub uses.
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise ConfigurationError(
            f"{repo_id!r} is no repository name ({error}); write 'org/name' or 'local:FOLDER'"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        raise RepositoryError(f"{repo_id}: {_explain(error, repo_id, revision)}") from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return f"access is gated. Ask for it on {constants.ENDPOINT}/{repo_id}, {_LOGIN}, and pass token=True."
    if isinstance(error, hub.RevisionNotFoundError):
        return f"there is no revision {revision or 'main'!r}. Give an existing branch, tag or commit."
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "offline mode is on. Unset HF_HUB_OFFLINE."
    if isinstance(error, hub.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return (
                "it is not (wholly) in the cache and offline mode is on. Unset HF_HUB_OFFLINE, or download it before."
            )
        return f"{constants.ENDPOINT} cannot be reached and it is not in the cache. Check the connection and try again."
    if isinstance(error, hub.LocalTokenNotFoundError):
        return f"there is no token on this machine: {_LOGIN}."
    if isinstance(error, hub.HfHubHTTPError):
        return _explain_status(error.response.status_code, error)
    if isinstance(error, hub.HTTPError):
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}). Check it and try again."
    return f"{error}. Try again."


def _explain_status(status: int, error: Exception) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            "there is no such repository on the Hub, or it is private. Check the spelling; "
            f"if it is private, {_LOGIN}, and pass token=True."
        )
    if status == 401:
        return f"there is no token, or none that the Hub accepts (401): {_LOGIN}, with a valid one."
    if status == 403:
        return f"the token gives no right to this (403): {_LOGIN}, with a token that may write here."
    if status == 412:
        return (
            "somebody else has changed the repository in the meantime (412), nothing was published. "
            "Look at the change, then publish again."
        )
    if status == 429:
        return "the Hub asks to slow down (429). Wait a few minutes and try again."
    return f"the Hub answered {status} ({error}). Try again later."


def fetch(repo_id: str, revision: str | None, token: str | bool) -> Path:
    """Bring the files that a download needs into the cache of huggingface_hub; return their folder.

    Raises:
        RepositoryError: the repository cannot be had.
        ConfigurationError: the name is malformed.
    """
    with explained(repo_id, revision):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=[MANIFEST, *WANTED],
            ignore_patterns=[f"*{suffix}" for suffix in PICKLES],
            **_CLIENT,
        )
    return Path(folder)


def push(
    folder: Path,
    files: list[str],
    repo_id: str,
    *,
    revision: str | None,
    private: bool,
    parent_commit: str | None,
    token: str | None,
) -> CommitInfo:
    """Upload the files of ``folder`` in one commit, and return it; the repository is made where it is missing.

    Files of an earlier publication that are no longer there are deleted in the same commit.

    Raises:
        RepositoryError: the repository cannot be written, or has changed since ``parent_commit``.
        ConfigurationError: the name is malformed.
    """
    with explained(repo_id, revision):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi(token=token, **_CLIENT)
        parent = parent_commit or _tip(api, repo_id, revision, private)
        remote = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in remote if is_wanted(name) and name not in files]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in files),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Publish with ccnn-zoo",
            revision=revision,
            parent_commit=parent,
        )


def _tip(api: HfApi, repo_id: str, revision: str | None, private: bool) -> str:
    """Return the commit on which to publish, after making the repository and the branch where they are missing."""
    # None, not False: an organisation may make its repositories private by default.
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision).sha
