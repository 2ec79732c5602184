"""Publish: from a trained network to a repository, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from . import _local, _remote
from ._card import card_of
from ._manifest import Manifest, verify_folder
from ._names import CARD, MANIFEST, REQUIRED, local_folder, refuse_for_folders

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from ccnn_zoo.checkpoint import TrainingRecord


@dataclass(frozen=True)
class Publication:
    """What was published, and where.

    Args:
        repo_id: the repository's name, as :func:`ccnn_zoo.hub.download` takes it.
        location: the folder, or the address of the commit on the Hub.
        manifest: its files and what it holds.
        commit: hash of the commit on the Hub; None for a folder.
    """

    repo_id: str
    location: str
    manifest: Manifest
    commit: str | None = None


def publish(
    source: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    record: TrainingRecord | None = None,
    images: Tensor | Iterable[Tensor] | None = None,
    revision: str | None = None,
    private: bool = False,
    parent_commit: str | None = None,
    token: str | None = None,
) -> Publication:
    """Publish a trained network with its ONNX form, its card and its checksums.

    All files are made and checked in a temporary folder first; then a local repository is replaced by renaming,
    one on the Hub by a single commit. A failure leaves the earlier repository as it was.

    Args:
        source: a trained network made by ``timm.create_model``, a checkpoint file of ``ccnn train``, or the folder of a
            repository. A folder is published as it is; only a card that was generated for a local repository is
            written anew when it goes to the Hub, whose name its examples then show.
        repo_id: ``"org/name"`` on the Hub, or ``"local:FOLDER"``.
        record: how the network was trained; needed where ``source`` is a network. By default the checkpoint's.
        images: what :func:`ccnn_zoo.export.to_onnx` verifies the exported network on.
        revision: branch of the Hub repository, made where it is missing; None is ``main``.
        private: make a new Hub repository private.
        parent_commit: publish only on top of this commit of the Hub repository. By default on its newest one, and
            a change by somebody else in between is an error.
        token: the token that may write; by default the one of ``hf auth login`` or ``HF_TOKEN``.

    Raises:
        ConfigurationError: an argument is missing or malformed, a metric of the record is no finite number, or
            timm cannot build the network again from its configuration.
        RepositoryError: the source does not exist, or the repository cannot be written; says what to do.
        IntegrityError: the checkpoint or a file of the folder is damaged.
        ExportError: the exported network failed its check.
    """
    target = local_folder(repo_id)
    if target is None:
        with tempfile.TemporaryDirectory(prefix="ccnn-publish-") as folder:
            staged = Path(folder)
            manifest = _stage(source, staged, record, images, address=_address(repo_id, revision))
            commit = _remote.push(
                staged,
                [*manifest.files, MANIFEST],
                repo_id,
                revision=revision,
                private=private,
                parent_commit=parent_commit,
                token=token,
            )
        return Publication(repo_id, commit.commit_url, manifest, commit.oid)
    refuse_for_folders(repo_id, revision=revision, private=private, parent_commit=parent_commit, token=token)
    with _local.replacing_folder(target, repo_id) as staged:
        manifest = _stage(source, staged, record, images, address=None)
    return Publication(repo_id, str(target), manifest)


def _address(repo_id: str, revision: str | None) -> str:
    return repo_id if revision in (None, "main") else f"{repo_id}@{revision}"


def _stage(
    source: nn.Module | str | os.PathLike[str],
    folder: Path,
    record: TrainingRecord | None,
    images: Tensor | Iterable[Tensor] | None,
    address: str | None,
) -> Manifest:
    """Fill ``folder`` with the repository and return its manifest."""
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        if record is not None or images is not None:
            raise ConfigurationError(f"record and images are for networks, {os.fspath(source)!r} is a folder")
        return _stage_folder(Path(source), folder, address)
    from ._stage import stage_network  # imports torch and timm, which publishing a folder does not need

    details = stage_network(source, folder, record, images)
    (folder / CARD).write_bytes(card_of(folder, details, address))
    manifest = Manifest.of(folder, REQUIRED, details)
    manifest.write(folder)
    return manifest


def _stage_folder(source: Path, folder: Path, address: str | None) -> Manifest:
    if not (source / MANIFEST).is_file() and any(source.glob("*.safetensors")):
        raise RepositoryError(f"{source} is no repository. To publish a checkpoint in it, name the .safetensors file.")
    manifest = verify_folder(source, str(source))
    missing = [name for name in REQUIRED if name not in manifest.files]
    if missing:
        raise RepositoryError(f"{source} lacks {', '.join(missing)}. Publish the network's checkpoint instead.")
    with _reading(source):
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    manifest.write(folder)
    verify_folder(folder, str(source))  # as copied
    if address is not None and _is_generated(folder, manifest):
        (folder / CARD).write_bytes(card_of(folder, manifest.details, address))
        manifest = Manifest.of(folder, manifest.files, manifest.details)
        manifest.write(folder)
    return manifest


def _is_generated(folder: Path, manifest: Manifest) -> bool:
    """Whether the card is the one generated for a repository on disk, so that no word of anybody gets lost."""
    try:
        return (folder / CARD).read_bytes() == card_of(folder, manifest.details, address=None)
    except (KeyError, TypeError, ValueError):  # a manifest of another version, or made by hand
        return False


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"cannot copy {source}: {error.strerror or error}. Check it and try again.") from error
