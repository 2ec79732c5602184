"""Download: a verified repository on disk."""

from __future__ import annotations

from pathlib import Path

from ccnn_zoo.errors import IntegrityError

from . import _remote
from ._manifest import damaged_files, read_manifest, unlisted_files, verify_folder
from ._names import MANIFEST, is_wanted, local_folder, refuse_for_folders


def download(repo_id: str, revision: str | None = None, *, token: str | bool = False) -> Path:
    """Return the folder of a repository, every file compared with its SHA-256 first.

    From the Hub only what is needed comes, into the cache of huggingface_hub, never a pickle; what is there already
    is verified again, not fetched again. A damaged file is removed from the cache.

    Args:
        repo_id: ``"org/name"`` on the Hub, or ``"local:FOLDER"``.
        revision: branch, tag or commit of a Hub repository; None is ``main``.
        token: for private repositories: True for the one of ``hf auth login`` or ``HF_TOKEN``, or a token. By
            default none is sent.

    Returns:
        The folder with ``config.json``, ``model.safetensors``, ``onnx/model.onnx``, ``README.md`` and
        ``manifest.json``.

    Raises:
        RepositoryError: the repository does not exist, cannot be reached, or is none of ours.
        IntegrityError: a file differs from the manifest, or the manifest is malformed; names the file.
        ConfigurationError: ``repo_id`` is malformed, or ``revision`` or ``token`` is given for a folder.
    """
    folder = local_folder(repo_id)
    if folder is not None:
        refuse_for_folders(repo_id, revision=revision, token=token)
        verify_folder(folder, repo_id)
        return folder
    folder = _remote.fetch(repo_id, revision, token)
    _verify_snapshot(folder, repo_id)
    return folder


def _verify_snapshot(folder: Path, repo_id: str) -> None:
    """Compare what was fetched with the manifest: huggingface_hub compares sizes only."""
    try:
        manifest = read_manifest(folder, repo_id)
    except IntegrityError:
        _evict(folder / MANIFEST)
        raise
    files = {name: entry for name, entry in manifest.files.items() if is_wanted(name)}
    damaged = list(damaged_files(folder, files, links=True))
    for name, _ in damaged:
        _evict(folder / name)
    if damaged:
        problems = "; ".join(f"{name} {problem}" for name, problem in damaged)
        raise IntegrityError(
            f"{repo_id}: {problems}. It was removed from the cache: download again; if it stays so, do not use it and "
            "tell its author."
        )
    for name in unlisted_files(folder, manifest):
        raise IntegrityError(f"{repo_id}: {name} is not in {MANIFEST}. Do not use it and tell its author.")


def _evict(path: Path) -> None:
    """Remove a file of the cache and the blob it links to, or the next download would take it for good."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
