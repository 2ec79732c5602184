"""From a name to a classifier: a file, a repository folder or a Hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ccnn_zoo.errors import ConfigurationError, RepositoryError

from ._providers import check_device, open_session
from ._session import ImageClassifier, at_least_one

_LOCAL = "local:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MODEL = Path("onnx", "model.onnx")


def load(
    path_or_repo_id: str | os.PathLike[str],
    *,
    device: str = "auto",
    revision: str | None = None,
    threads: int | None = None,
    batch_size: int = 32,
) -> ImageClassifier:
    """Load an exported network.

    Files of a repository, local or from the Hub, are compared with its checksums first.

    Args:
        path_or_repo_id: an ``.onnx`` file, a repository folder (as it is or as ``"local:FOLDER"``), or a Hub
            id ``"org/name"``. What exists as a path is taken as a path.
        device: ``"cuda"`` and ``"cpu"`` are strict. ``"auto"`` takes CUDA if it starts; if not, it says why
            once through the logger ``ccnn_zoo.runtime`` and takes the CPU.
        revision: branch, tag or commit of a Hub repository.
        threads: CPU threads of one inference; None takes all cores.
        batch_size: images that are classified at once.

    Raises:
        RepositoryError: the name is none of these, or the repository cannot be had.
        IntegrityError: the file differs from its checksum or is no ONNX network.
        MetadataError: the file carries no (matching) labels and preprocessing.
        DeviceError: the device was asked for and cannot run the network; names what is missing.
        ConfigurationError: an argument is outside its range.
    """
    if threads is not None:
        at_least_one("threads", threads)
    at_least_one("batch_size", batch_size)
    check_device(device)
    path = _locate(os.fspath(path_or_repo_id), revision)
    return ImageClassifier(open_session(path, device, threads), source=str(path), batch_size=batch_size)


def _locate(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        _refuse_revision(name, revision)
        folder = path.absolute().parent.parent
        # A repository's file named by itself is still compared with its checksum.
        if path.absolute().parent.name == "onnx" and (folder / "manifest.json").is_file():
            return _download(f"{_LOCAL}{folder}", None, Path("onnx", path.name))
        return path
    if path.is_dir():
        _refuse_revision(name, revision)
        return _download(f"{_LOCAL}{path}", None)
    if name.startswith(_LOCAL):
        _refuse_revision(name, revision)
        return _download(name, None)
    if _HUB_ID.fullmatch(name) and path.suffix != ".onnx":
        return _download(name, revision)
    raise RepositoryError(
        f"no network found for {name!r}: it is no existing file or folder (tried {path.absolute()}), does "
        "not start with 'local:', and is no Hub id of the form 'org/name'. Check the spelling."
    )


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigurationError(f"revision={revision!r} is for Hub ids, {name!r} is a path. Leave it out.")


def _download(repo_id: str, revision: str | None, file: Path = _MODEL) -> Path:
    from ccnn_zoo import hub  # imports huggingface_hub, which a plain .onnx file does not need

    path = hub.download(repo_id, revision=revision) / file
    if not path.is_file():
        raise RepositoryError(f"{repo_id} has no {file.as_posix()}. Publish it with its ONNX file.")
    return path
