"""The Hugging Face Hub, with its errors in our words."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ccnn_zoo._base.named import PICKLES
from ccnn_zoo._base.version import version
from ccnn_zoo.errors import CCNNError, ConfigurationError, RepositoryError

from . import _limits
from ._names import MANIFEST
from ._retry import persistently, root_of, status_of, was_unanswered

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Token: TypeAlias = str | bool | None
_CLIENT = {"library_name": "ccnn-zoo", "library_version": version()}
CHANGED = "somebody else has changed the repository in the meantime"
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_SEND = "pass token=True (--token)"


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
    except CCNNError:
        raise
    except HFValidationError as error:
        raise ConfigurationError(
            f"{repo_id!r} is no repository name ({error}); write 'org/name' or 'local:FOLDER'"
        ) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: an upload's, about its cause
        raise RepositoryError(f"{repo_id}: {_explain(error, repo_id, revision)}") from error


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    cause = root_of(error)
    if isinstance(error, hub.GatedRepoError):
        return f"access is gated. Ask for it on {constants.ENDPOINT}/{repo_id}, {_LOGIN}, and {_SEND}."
    if isinstance(error, hub.RevisionNotFoundError):
        return f"there is no revision {revision or 'main'!r}. Give an existing branch, tag or commit."
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "offline mode is on. Unset HF_HUB_OFFLINE."
    if isinstance(error, OSError) and status_of(cause) is None and (unusable := _cache_problem()) is not None:
        return unusable
    if isinstance(error, hub.LocalEntryNotFoundError) and status_of(cause) is None:
        if constants.is_offline_mode():
            return (
                "it is not (wholly) in the cache and offline mode is on. Unset HF_HUB_OFFLINE, or download it before."
            )
        return f"{constants.ENDPOINT} cannot be reached and it is not in the cache. Check the connection and try again."
    if isinstance(error, hub.LocalTokenNotFoundError):
        return f"there is no token on this machine: {_LOGIN}."
    if status_of(cause) is not None:
        return _explain_status(status_of(cause), cause)
    if was_unanswered(error):
        return (
            f"{constants.ENDPOINT} took the request and did not answer in time ({_limits.ANSWER:g} s where it writes). "
            "Try again: what has arrived is not sent twice."
        )
    if isinstance(cause, hub.HTTPError):
        why = f"{type(cause).__name__}: {_in_one_line(cause)}"
        return f"{constants.ENDPOINT} cannot be reached ({why}). Check it and try again."
    return f"{_in_one_line(error)}. Try again."


def _cache_problem() -> str | None:
    """Return why nothing can be written where huggingface_hub keeps what it fetches, or None."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return (
            f"the cache {folder} cannot be written ({error.strerror}). Set HF_HOME to a folder that you may write to."
        )


def _explain_status(status: int, error: Exception) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            "there is no such repository on the Hub, or it is private. Check the spelling; "
            f"if it is private, {_LOGIN}, and {_SEND}."
        )
    if status == 401:
        return f"there is no token, or none that the Hub accepts (401): {_LOGIN}, with a valid one."
    if status == 403:
        return f"the token gives no right to this (403): {_LOGIN}, with a token that may write here."
    if status == 412:
        return f"{CHANGED} (412), nothing was published. Look at the change, then publish again."
    if status == 429:
        return "the Hub asks to slow down (429). Wait a few minutes and try again."
    return f"the Hub answered {status} ({_in_one_line(error)}). Try again later."


def _in_one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 300, placeholder=" …")


def client(token: Token) -> HfApi:
    """Return the client of the Hub's API; ``token``: False sends none, True the stored one, None that if any."""
    from huggingface_hub import HfApi

    return HfApi(token=token, **_CLIENT)


def fetch(repo_id: str, revision: str | None, token: Token, patterns: tuple[str, ...]) -> Path:
    """Bring the manifest and the files of ``patterns`` into the cache of huggingface_hub; return their folder.

    A file whose connection closes early goes on where it stopped; one whose connection is reset starts anew.

    Raises:
        RepositoryError: the repository cannot be had.
        ConfigurationError: the name is malformed.
    """
    with explained(repo_id, revision):
        from huggingface_hub import snapshot_download

        def attempt() -> str:
            return snapshot_download(
                repo_id,
                revision=revision,
                token=token or False,
                allow_patterns=[MANIFEST, *patterns],
                ignore_patterns=[f"*{suffix}" for suffix in PICKLES],
                **_CLIENT,
            )

        return Path(persistently(attempt))


def listing(api: HfApi, repo_id: str, revision: str, repo_type: str | None = None) -> dict[str, str]:
    """Return path to id of all files: the SHA-256 of large ones, git's id of the others."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: _identity(entry) for entry in tree if isinstance(entry, RepoFile)}


def listed_id(repo_id: str, commit: str, token: Token) -> str | None:
    """Return the id that the Hub lists for the manifest at a commit; None without a network.

    Raises:
        RepositoryError: the repository cannot be had.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return None  # it was compared when it was fetched
    with explained(repo_id, commit):
        found = persistently(lambda: client(token or False).get_paths_info(repo_id, [MANIFEST], revision=commit))
        return _identity(found[0]) if found else None


def _identity(entry: Any) -> str:
    return entry.lfs.sha256 if entry.lfs else entry.blob_id
