"""Publish: from a trained network to a repository, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from . import _local, _upload
from ._contents import numbers_in, refused_content
from ._manifest import CONFIDENCE, Manifest, all_files, read_manifest, sums_of, verify_folder
from ._names import (
    CARD,
    CURVES,
    DOUBT,
    HEAT_MAP,
    MANIFEST,
    NETWORK,
    PRECISIONS,
    REQUIRED,
    local_folder,
    refuse_for_folders,
)
from ._parts import Staging, card_of, part_of
from ._plan import Change, changes_between
from ._snapshot import addresses_of, cache_of, verify_repository

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ccnn_zoo.checkpoint import TrainingRecord
    from ccnn_zoo.export import ImageBatches

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Publication:
    """What was published, and where; or what would be, of a dry run.

    Args:
        repo_id: the repository's name, as :func:`ccnn_zoo.hub.download` takes it.
        location: the folder, or the address of the commit, the pull request or, of a dry run, the repository.
        manifest: its files and what it holds.
        changes: what became of each file, or would.
        commit: hash of the commit on the Hub; None for a folder and of a dry run.
        pull_request: address of the pull request, where one was asked for.
        dry_run: whether nothing was written.
    """

    repo_id: str
    location: str
    manifest: Manifest
    changes: tuple[Change, ...]
    commit: str | None = None
    pull_request: str | None = None
    dry_run: bool = False


def publish(
    source: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    record: TrainingRecord | None = None,
    images: ImageBatches | None = None,
    curves: str | os.PathLike[str] | None = None,
    networks: Mapping[str, str | os.PathLike[str] | None] | None = None,
    int8_images: ImageBatches | None = None,
    held_out: ImageBatches | None = None,
    pictures: Mapping[str, str | os.PathLike[str]] | None = None,
    revision: str | None = None,
    tag: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    parent_commit: str | None = None,
    token: str | bool | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish a trained network with its ONNX form, its card and its checksums.

    All files are made and checked in a temporary folder first; then a local repository is replaced by renaming,
    one on the Hub by a single commit. A failure leaves the earlier repository as it was; publishing again sends only
    what is not there yet, and makes no commit where nothing has changed. Requests that the Hub answers with 429 or 5xx,
    or whose connection breaks, are tried again. Bars on stderr show the progress (``HF_HUB_DISABLE_PROGRESS_BARS=1``
    hides them).

    Args:
        source: a trained network made by ``timm.create_model`` or ``ccnn_zoo.detection.create_detector``, a checkpoint
            file of ``ccnn train``, or the folder of a repository, also a downloaded one, which has no pictures. It is
            published as it is; only a generated card is written anew, with the new name in its examples.
        repo_id: ``"org/name"`` on the Hub, or ``"local:FOLDER"``.
        record: how the network was trained; needed where ``source`` is a network. By default the checkpoint's.
        images: what :func:`ccnn_zoo.export.to_onnx` verifies the exported networks on; with their classes, the accuracy
            of each is measured too. For a detector, pictures as ``detector_to_onnx`` takes them.
        curves: PNG file of the error curves, for the card.
        networks: further ONNX files by precision (``"fp16"``, ``"int8"``); None in a file's place exports the network
            in this precision. The fp32 one is always exported.
        int8_images: images of the training set, for an int8 that is exported, see :func:`ccnn_zoo.export.to_onnx`.
        held_out: images with their classes that were used neither for training nor for testing: numbers of confidence
            are fitted on them for every file that is exported, see :func:`ccnn_zoo.export.to_onnx`.
        pictures: further PNG files for the card, ``"confidence"`` and ``"doubtful"``, as the training draws them. The
            latter shows twenty test pictures.
        revision: branch of the Hub repository, made where it is missing; None is ``main``.
        tag: name for the commit, e.g. ``"v1.0"``; one that exists at another commit is an error.
        private: make a new Hub repository private; an existing public one is an error.
        create_pr: open a pull request in an existing Hub repository instead of changing it.
        parent_commit: publish only on top of this commit of the Hub repository. By default on its newest one, and
            a change by somebody else in between is an error.
        token: as in :func:`ccnn_zoo.hub.download`: a token that may write; None or True is that of ``hf auth login`` or
            ``HF_TOKEN``.
        dry_run: make and check everything, look at what is there, and write nothing.

    Raises:
        ConfigurationError: an argument is missing or malformed, ``source`` is a wrapper of a network (torch.compile is
            looked through), a metric of the record is no finite number, or timm cannot build the network again from
            its configuration.
        RepositoryError: the source does not exist, or the repository cannot be written; says what to do.
        IntegrityError: the checkpoint or a file of the folder is damaged.
        ExportError: the exported network failed its check.
    """
    folder = local_folder(repo_id)
    if folder is not None:
        options = {"revision": revision, "tag": tag, "private": private, "create_pr": create_pr}
        refuse_for_folders(repo_id, **options, parent_commit=parent_commit, token=token)
    if tag is not None and create_pr:
        raise ConfigurationError("tag and create_pr exclude each other: tag the commit when the request is merged")
    staging = Staging(source, record, images, curves, dict(networks or {}), int8_images, held_out, dict(pictures or {}))
    if folder is not None:
        return _publish_folder(staging, folder, repo_id, dry_run)
    if token is False:
        raise ConfigurationError("token=False sends none, and nobody may write to the Hub without one. Leave it out.")
    target = _upload.Target(repo_id, revision, private, parent_commit, create_pr, tag, token)
    return _publish_to_hub(staging, target, dry_run)


def _publish_folder(staging: Staging, target: Path, repo_id: str, dry_run: bool) -> Publication:
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="ccnn-publish-") as folder:
            manifest = _stage(staging, Path(folder), address=None)
            changes = _local_changes(Path(folder), manifest, target, repo_id)
        return Publication(repo_id, str(target), manifest, changes, dry_run=True)
    with _local.replacing_folder(target, repo_id) as staged:
        manifest = _stage(staging, staged, address=None)
        changes = _local_changes(staged, manifest, target, repo_id)
    return Publication(repo_id, str(target), manifest, changes)


def _local_changes(staged: Path, manifest: Manifest, target: Path, repo_id: str) -> tuple[Change, ...]:
    _local.refuse_foreign(target, repo_id)
    there = sums_of(target, all_files(target)) if target.is_dir() else {}
    return changes_between(staged, [*manifest.files, MANIFEST], there)


def _publish_to_hub(staging: Staging, target: _upload.Target, dry_run: bool) -> Publication:
    on_main = target.revision in (None, "main")
    address = target.repo_id if on_main else f"{target.repo_id}@{target.revision}"
    with tempfile.TemporaryDirectory(prefix="ccnn-publish-") as folder:
        staged = Path(folder)
        manifest = _stage(staging, staged, address)
        files = [*manifest.files, MANIFEST]
        if dry_run:
            changes = _upload.preview(staged, files, target)
            return Publication(target.repo_id, address, manifest, changes, dry_run=True)
        pushed = _upload.push(staged, files, target)
    location = pushed.pull_request or pushed.url
    return Publication(target.repo_id, location, manifest, pushed.changes, pushed.commit, pushed.pull_request)


def _stage(staging: Staging, folder: Path, address: str | None) -> Manifest:
    """Fill ``folder`` with the repository and return its manifest."""
    source = staging.source
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        images = [given for given in (staging.images, staging.held_out) if given is not None]
        if staging.record is not None or images or staging.curves or staging.pictures or staging.networks:
            raise ConfigurationError(
                "record, images, held_out, curves, pictures and networks are for a trained network, "
                f"{os.fspath(source)!r} is a folder"
            )
        return _stage_folder(Path(source), folder, address)
    if not isinstance(source, str | os.PathLike):
        from torch import nn  # it takes a second, and publishing a folder does not need it

        from ccnn_zoo._base.wrapped import unwrapped

        if not isinstance(source, nn.Module):
            raise ConfigurationError(f"source must be a network, a checkpoint file or a folder, got {source!r}")
        staging = replace(staging, source=unwrapped(source))
    files = [*REQUIRED]
    if staging.curves is not None:
        files.append(_add_picture("curves", Path(staging.curves), CURVES, folder))
    files += [_add_picture(name, Path(path), DOUBT[name], folder) for name, path in staging.pictures.items()]
    given = {precision: path for precision, path in staging.networks.items() if path is not None}
    files += [_add_network(precision, Path(path), folder) for precision, path in given.items()]
    details = part_of(staging.source).stage(staging, folder)
    files += [PRECISIONS[precision] for precision in staging.exported]
    if (folder / HEAT_MAP).is_file():
        files.append(HEAT_MAP)
    details["networks"] = {name: path for name, path in PRECISIONS.items() if path == NETWORK or path in files}
    numbers = {path: numbers_in(folder / path) for path in details["networks"].values()}
    if any(numbers.values()):
        details[CONFIDENCE] = {path: found for path, found in numbers.items() if found is not None}
    (folder / CARD).write_bytes(card_of(folder, files, details, address))
    manifest = Manifest.of(folder, files, details)
    manifest.write(folder)
    return manifest


def _add_picture(argument: str, picture: Path, name: str, folder: Path) -> str:
    with _reading(picture):
        content = picture.read_bytes()
    if not content.startswith(_PNG):
        raise ConfigurationError(f"{argument} must be a PNG picture, {picture} is none")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return name


def _add_network(precision: str, network: Path, folder: Path) -> str:
    name = PRECISIONS[precision]
    (folder / name).parent.mkdir(exist_ok=True)
    with _reading(network):
        shutil.copyfile(network, folder / name)
    problem = refused_content(folder / name, name)
    if problem:
        raise ConfigurationError(f"the {precision} network {network} {problem}. Export it again as one file.")
    return name


def _stage_folder(source: Path, folder: Path, address: str | None) -> Manifest:
    if not (source / MANIFEST).is_file() and any(source.glob("*.safetensors")):
        raise RepositoryError(f"{source} is no repository. To publish a checkpoint in it, name the .safetensors file.")
    listed = verify_repository(source, str(source))
    there = [name for name in listed.files if (source / name).is_file()]  # of a download the pictures are not
    missing = [name for name in REQUIRED if name not in there]
    if missing:
        raise RepositoryError(f"{source} lacks {', '.join(missing)}. Publish the network's checkpoint instead.")
    with _reading(source):
        for name in there:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    # The card of a download is not what the manifest says, if somebody has edited it on the Hub.
    card = Manifest.of(folder, [CARD], {}).files if cache_of(source) else {}
    files = {name: listed.files[name] for name in there} | dict(card)
    Manifest(files, listed.details).write(folder)
    verify_folder(folder, str(source))  # as copied
    if _is_generated(folder, listed, [None, *addresses_of(source)]):
        (folder / CARD).write_bytes(card_of(folder, there, listed.details, address))
        Manifest.of(folder, there, listed.details).write(folder)
    return read_manifest(folder, str(source))


def _is_generated(folder: Path, listed: Manifest, addresses: Iterable[str | None]) -> bool:
    """Whether the card is one generated for these addresses, so that no word of anybody gets lost."""
    try:
        card = (folder / CARD).read_bytes()
        return any(card == card_of(folder, listed.files, listed.details, address) for address in addresses)
    except (KeyError, TypeError, ValueError):  # a manifest of another version, or made by hand
        return False


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"cannot copy {source}: {error.strerror or error}. Check it and try again.") from error
