"""Download: a verified repository on disk."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ccnn_zoo._base.named import hub_name
from ccnn_zoo._files.folders import while_it_stays
from ccnn_zoo.errors import IntegrityError, RepositoryError
from ccnn_zoo.metadata import check_precision

from . import _remote
from ._manifest import Manifest, git_blob_id, read_manifest
from ._names import LOCAL, MANIFEST, PRECISIONS, WANTED, local_folder, refuse_for_folders
from ._snapshot import DISTRUST, evict, verify_repository, verify_snapshot

_COMMIT = re.compile(r"[0-9a-f]{40}")


def download(
    repo_id: str, revision: str | None = None, *, precision: str | None = None, token: _remote.Token = None
) -> Path:
    """Return the folder of a repository, every file compared with its SHA-256 first.

    From the Hub only what is needed comes, into the cache of huggingface_hub, never a pickle; what is there already
    is verified again, not fetched again, and without a network the cache is enough. A damaged file is removed from
    the cache. ONNX files may hold ONNX's own operators and their own tensors only. The card of a repository on the Hub
    is not compared: it is text that anybody may edit there.

    Args:
        repo_id: ``"org/name"`` on the Hub, also with ``@revision``, after ``hf-hub:`` or as its page's address; or
            ``"local:FOLDER"``, also of a folder that was downloaded.
        revision: branch, tag or commit of a Hub repository; None is ``main``. With a full commit hash, the manifest
            must be the file that the repository lists at that commit.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"`` fetches only the manifest and the ONNX file of this precision;
            None fetches everything.
        token: True for the one of ``hf auth login`` or ``HF_TOKEN``, or a token, for private repositories; False for
            none. None is what the call needs: reading sends none, :func:`ccnn_zoo.hub.publish` the stored one.

    Returns:
        The folder with ``config.json``, ``model.safetensors``, ``onnx/model.onnx``, ``README.md`` and
        ``manifest.json``.

    Raises:
        RepositoryError: the repository does not exist, cannot be reached, is none of ours, or lacks the precision.
        IntegrityError: a file differs from the manifest, holds what is refused, or the manifest is malformed; names
            the file.
        ConfigurationError: ``repo_id`` or ``precision`` is malformed, or ``revision`` or ``token`` is given for a
            folder.
    """
    if precision is not None:
        check_precision(precision)
    patterns = WANTED if precision is None else (PRECISIONS[precision],)
    if not repo_id.startswith(LOCAL):
        repo_id, revision = hub_name(repo_id, revision) or (repo_id, revision)
    folder = local_folder(repo_id)
    if folder is not None:
        refuse_for_folders(repo_id, revision=revision, token=token)
        manifest = while_it_stays(folder, lambda: verify_repository(folder, repo_id, patterns))
    else:
        folder = _remote.fetch(repo_id, revision, token, patterns)
        manifest = read_fetched_manifest(folder, repo_id, revision, token)
        verify_snapshot(folder, repo_id, manifest, patterns, fetched=True)
    if precision is not None and PRECISIONS[precision] not in manifest.files:
        there = [name for name, path in PRECISIONS.items() if path in manifest.files]
        raise RepositoryError(f"{repo_id} has no {precision} network. It has: {', '.join(there) or 'none'}.")
    return folder


def read_fetched_manifest(folder: Path, repo_id: str, revision: str | None, token: _remote.Token) -> Manifest:
    """Read the manifest, which vouches for all other files, and compare it with what the Hub lists for it.

    Raises:
        RepositoryError: there is none.
        IntegrityError: it is malformed, or not the file that the Hub lists.
    """
    path = folder / MANIFEST
    pinned = revision is not None and _COMMIT.fullmatch(revision)
    if pinned and folder.name != revision:
        raise IntegrityError(f"{repo_id}: asked for commit {revision}, the Hub gave {folder.name}. {DISTRUST}")
    if path.is_file():
        # The cache of huggingface_hub names a file by what the Hub lists for it; where it makes no links, ask.
        listed = path.resolve().name if path.is_symlink() else pinned and _remote.listed_id(repo_id, folder.name, token)
        if listed and not _is_listed(path.read_bytes(), listed):
            evict(path)
            raise IntegrityError(
                f"{repo_id}: {MANIFEST} is not the file that commit {folder.name[:12]} lists. It was removed from the "
                f"cache: download again; if it stays so, do not use it and tell its author."
            )
    try:
        return read_manifest(folder, repo_id)
    except IntegrityError:
        evict(path)
        raise


def _is_listed(content: bytes, listed: str) -> bool:
    """Whether the content has this id: git's of a blob, or the SHA-256 of a large file."""
    if re.fullmatch(r"[0-9a-f]{64}", listed):
        return hashlib.sha256(content).hexdigest() == listed
    if _COMMIT.fullmatch(listed):
        return git_blob_id(content) == listed
    return True  # a mirror's own name for the file, which says nothing
