"""Folders of huggingface_hub's cache: links to blobs that lie beside them, and only what somebody fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ccnn_zoo.errors import IntegrityError

from ._manifest import (
    Manifest,
    damaged_files,
    read_manifest,
    refuse_link_out,
    refused_files,
    unlisted_files,
    verify_folder,
)
from ._names import CARD, MANIFEST, WANTED, is_wanted

DISTRUST = "Do not use it and tell its author."


def cache_of(folder: Path) -> Path | None:
    """Return the cached repository ``models--org--name`` that ``folder`` is a snapshot of, or None."""
    folder = folder.resolve()
    cached = folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir()
    return folder.parent.parent if cached else None


def addresses_of(folder: Path) -> Iterator[str]:
    """Yield the names on the Hub, ``"org/name"`` and ``"org/name@revision"``, under which a snapshot was fetched."""
    cache = cache_of(folder)
    if cache is not None:
        repo_id = cache.name.removeprefix("models--").replace("--", "/", 1)
        yield repo_id
        refs = cache / "refs"
        yield from (f"{repo_id}@{ref.relative_to(refs).as_posix()}" for ref in refs.rglob("*") if ref.is_file())


def verify_repository(folder: Path, repo_id: str, patterns: tuple[str, ...] = WANTED) -> Manifest:
    """Compare a repository on disk with its manifest, and return the manifest.

    Args:
        folder: a repository, of which every file is compared, or a snapshot in the cache of huggingface_hub.
        repo_id: its name, for the messages.
        patterns: what must be there of a snapshot, and is compared.

    Raises:
        RepositoryError: the folder does not exist or is no repository of ours.
        IntegrityError: a file is not what the manifest says, or holds what is refused; names it.
    """
    if not os.path.isdir(folder) or cache_of(folder) is None:
        return verify_folder(folder, repo_id)
    for name in (MANIFEST, CARD):
        refuse_link_out(folder / name, _roots(folder), repo_id)
    manifest = read_manifest(folder, repo_id)
    verify_snapshot(folder, repo_id, manifest, patterns)
    return manifest


def verify_snapshot(
    folder: Path, repo_id: str, manifest: Manifest, patterns: tuple[str, ...], *, fetched: bool = False
) -> None:
    """Compare what was fetched with the manifest: huggingface_hub compares sizes only.

    The card is not compared: it is text that anybody may edit on the Hub, and nothing loads it.

    Args:
        folder: the snapshot.
        repo_id: its name, for the messages.
        manifest: its manifest.
        patterns: what must be there.
        fetched: huggingface_hub has just made the folder. Its links may then lead anywhere, and damaged files are
            removed. Of a folder that somebody named, links lead to the blobs of its cache, and nothing is removed.

    Raises:
        IntegrityError: a file is missing, differs, is not listed, or holds what is refused; names it.
    """
    within = None if fetched or cache_of(folder) is None else _roots(folder)
    files = {name: entry for name, entry in manifest.files.items() if is_wanted(name, patterns) and name != CARD}
    damaged = list(damaged_files(folder, files, within=within))
    if damaged:
        advice = "Download it again; without a precision every file comes."
        if fetched:
            advice = "It was removed from the cache: download again; if it stays so, do not use it and tell its author."
            for name, _ in damaged:
                evict(folder / name)
        problems = "; ".join(f"{name} {problem}" for name, problem in damaged)
        raise IntegrityError(f"{repo_id}: {problems}. {advice}")
    for name in unlisted_files(folder, manifest):
        raise IntegrityError(f"{repo_id}: {name} is not in {MANIFEST}. {DISTRUST}")
    for name, problem in refused_files(folder, manifest, files):
        raise IntegrityError(f"{repo_id}: {name} {problem}. {DISTRUST}")


def _roots(folder: Path) -> tuple[Path, ...]:
    """Return the folders that links of a snapshot may lead into."""
    cache = cache_of(folder)
    return (folder,) if cache is None else (folder, cache / "blobs")


def evict(path: Path) -> None:
    """Remove a file of the cache and the blob it links to, or the next download would take it for good."""
    for file in (path.resolve(), path):
        with suppress(OSError):  # a cache that cannot be written: what is wrong with the file is said all the same
            file.unlink(missing_ok=True)
