"""From a name to a classifier: a file, a repository folder or a Hub id."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ccnn_zoo._base.checks import check_integer
from ccnn_zoo._base.named import hub_name, refuse_weights, shipped_weights
from ccnn_zoo._files.folders import while_it_stays
from ccnn_zoo._files.onnx_contents import checked_content
from ccnn_zoo._tasks import task_of_properties
from ccnn_zoo.errors import ConfigurationError, MetadataError, RepositoryError
from ccnn_zoo.metadata import FILES, ModelMetadata, check_precision

from ._backend import Backend, OpenOptions
from ._checks import check_graph, usual_shape
from ._header import Header, parse_header
from ._registry import AUTO, check_device, find, open_session
from ._session import ImageClassifier

_LOCAL = "local:"
# Named, not imported: it needs torch when it exports.
_DEPLOYED = "ccnn_zoo._deployed"


def load(
    path_or_repo_id: str | os.PathLike[str],
    *,
    device: str | Backend = "auto",
    metadata: ModelMetadata | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = 32,
    branches: int | None = None,
    cascade: bool = False,
) -> ImageClassifier:
    """Load an exported network.

    Files of a repository, local or from the Hub, are compared with its checksums first.

    Args:
        path_or_repo_id: an ``.onnx`` file, a repository folder (as it is or as ``"local:FOLDER"``), a training folder
            in which an exported network lies, a Hub id (``"org/name"``, ``"org/name@revision"``, either after
            ``"hf-hub:"``, or the address of its page), or the name of trained weights that come with the package
            (``"ccnn_resnet18_cifar.cifar10"``: exported when first asked for, which needs torch, and kept in
            ``HF_HOME``). What exists as a path is taken as a path.
        device: what runs it: ``"cpu"``, ``"cuda"``, ``"tensorrt"``, ``"openvino"``, ``"torch"``, the name of another
            package's backend, or a backend with options, e.g. ``Cuda(cuda_graph=True)``. All are strict.
            ``"auto"`` takes CUDA if it starts, else the CPU. Where an NVIDIA GPU is there, the logger
            ``ccnn_zoo.runtime`` warns once why it is not used; where there is none, that is information.
        metadata: labels and preprocessing for a file that carries none; where given, the file's own do not count.
        revision: branch, tag or commit of a Hub repository.
        token: for private repositories: True for the one of ``hf auth login`` or ``HF_TOKEN``, or a token. By default
            none is sent.
        precision: which ONNX file of a repository or training folder: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        threads: CPU threads of one inference; None takes all cores.
        batch_size: images that are classified at once.
        branches: run so many of the network's K branches, at as many parts of the time: all, or the number that
            ``ccnn export --cascade`` wrote a file of. What it is worth, and that file's own numbers of confidence,
            were measured then.
        cascade: run the first branches, and the others only where these are in doubt, by the two files that
            ``ccnn export --cascade`` wrote beside this one. Sets, decisions and scores are those fitted for it.

    Raises:
        RepositoryError: the name is none of these, or the repository cannot be had or lacks the precision.
        IntegrityError: the file differs from its checksum, is no ONNX network, keeps tensors in other files, or has
            operators that are not ONNX's own.
        MetadataError: the file carries no labels and preprocessing and none are given, or they contradict its graph.
        DeviceError: the device was asked for and cannot run the network; names what is missing.
        ConfigurationError: an argument is outside its range, or the name is of weights that are to be exported first.
    """
    if threads is not None:
        check_integer("threads", threads, numpys=True)
    check_integer("batch_size", batch_size, numpys=True)
    check_device(device)
    if cascade and branches is not None:
        raise ConfigurationError(f"cascade=True chooses branches by itself: leave branches={branches!r} out")
    whole = device != AUTO and find(device).whole_repository
    again = {"device": device, "metadata": metadata, "threads": threads, "batch_size": batch_size}

    def opened() -> ImageClassifier:
        path = locate(os.fspath(path_or_repo_id), revision, precision, whole=whole, token=token)
        content, header = read_safely(path)
        task = task_of_properties(header.properties)
        if task.metadata is not ModelMetadata:
            raise MetadataError(
                f"{path} is a {task.noun}: load it with ccnn_zoo.runtime.{task.loader}, or run `ccnn {task.command}` "
                "on pictures."
            )
        described = metadata or ModelMetadata.from_props(header.properties, source=str(path))
        if cascade or (branches is not None and branches != described.branches):
            return _of_parts(path, header, described, branches, cascade, again)
        check_graph(header, described, str(path))
        tensor = header.inputs[0]
        options = OpenOptions(usual_shape(tensor, described, batch_size), tensor.dtype, threads, content=content)
        session = open_session(path, device, options)
        classifier = ImageClassifier(session, header, described, source=str(path), batch_size=batch_size)
        classifier.reopened_by = reopening(load, path, again)
        return classifier

    return while_it_stays(path_of(path_or_repo_id), opened)


def _of_parts(
    path: Path, header: Header, described: ModelMetadata, branches: int | None, cascade: bool, again: Mapping[str, Any]
) -> ImageClassifier:
    """Open some branches of a network, or its cascade, from the files that lie beside its own."""
    from ._cascade import CascadedClassifier, cascade_of, check_choice, part_of, same_labels

    record = cascade_of(header, path)
    if not cascade:
        check_choice(record, branches, path)
        return load(part_of(record, "first", path), **again)
    first, rest = (load(part_of(record, part, path), **again) for part in ("first", "rest"))
    same_labels(first, rest, described, path)
    classifier = CascadedClassifier(first, rest, record, described, str(path))
    classifier.reopened_by = reopening(load, path, {**again, "cascade": True})
    return classifier


def reopening(function: Callable[..., Any], path: Path, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what opens a network again in another process, for pickle."""
    return partial(function, os.path.abspath(path), **arguments)


def path_of(name: str | os.PathLike[str]) -> Path:
    """Return the path that a name stands for, if it stands for one."""
    return Path(os.fspath(name).removeprefix(_LOCAL)).expanduser()


def read_safely(path: Path) -> tuple[bytes, Header]:
    """Read an ONNX file once, look it through before any runtime parses it, and return its content and header.

    Raises:
        RepositoryError: it cannot be read.
        IntegrityError: it holds what is refused, or is no ONNX network.
    """
    content = checked_content(path)
    return content, parse_header(content, path)


def locate(
    name: str, revision: str | None, precision: str, *, whole: bool = False, token: str | bool | None = None
) -> Path:
    """Return the ONNX file that a name stands for; those of repositories are compared with their checksums.

    Args:
        name: path, repository folder or Hub id.
        revision: of a Hub repository.
        precision: which ONNX file of a repository.
        whole: bring and compare all files of a repository, where the fp32 one is wanted.
        token: for a private Hub repository.
    """
    path = Path(name).expanduser()
    if os.path.isfile(path):  # unlike is_file() it says no where it may not look, and of a name too long
        _refuse_for_paths(name, revision=revision, token=token)
        refuse_weights(path)
        _refuse_other_precision(path, precision)
        folder = path.absolute().parent.parent
        # A repository's file named by itself is still compared with its checksum.
        if path.absolute().parent.name == "onnx" and os.path.isfile(folder / "manifest.json"):
            _verify(folder, path.name, whole)
        return path
    if os.path.isdir(path):
        _refuse_for_paths(name, revision=revision, token=token)
        return _exported_into(path, precision) or _verified(f"{_LOCAL}{path}", precision, whole)
    if name.startswith(_LOCAL):
        _refuse_for_paths(name, revision=revision, token=token)
        return _verified(name, precision, whole)
    named = hub_name(name, revision)
    if named is not None and not (path.suffix == ".onnx" and named.repo_id == name):  # else a misspelt path
        return _verified(named.repo_id, precision, whole, revision=named.revision, token=token)
    if shipped_weights(name) is not None:
        _refuse_for_paths(name, revision=revision, token=token)
        return import_module(_DEPLOYED).deployed(name, precision)
    raise RepositoryError(
        f"no network found for {name!r}: it is no existing file or folder (tried {path.absolute()}), does not start "
        "with 'local:', is no Hub id of the form 'org/name', and no trained network of `ccnn list`. Check the spelling."
    )


def _exported_into(folder: Path, precision: str) -> Path | None:
    """Return the network that was exported into a training folder, or into a folder of its own; None for repositories.

    Raises:
        ConfigurationError: nothing was exported in this precision, but there are trained weights.
    """
    if (folder / "manifest.json").exists() or (folder / "config.json").exists():
        return None
    check_precision(precision)
    file = Path(FILES[precision])
    for path in (folder / file, folder / file.name):
        if path.is_file():
            return path
    if any(folder.glob("*.safetensors")):
        raise ConfigurationError(
            f"{folder} holds trained weights, and no exported network {file.name}: run `ccnn export {folder} -p "
            f"{precision} -o {folder / file.name}` first"
        )
    return None


def _refuse_other_precision(path: Path, precision: str) -> None:
    check_precision(precision)
    if precision != "fp32" and path.name != Path(FILES[precision]).name:
        raise ConfigurationError(f"precision chooses a file of a repository, {str(path)!r} is a file. Leave it out.")


def _refuse_for_paths(name: str, **arguments: object) -> None:
    for argument, value in arguments.items():
        if value is not None and value is not False:
            # The value may be a token: it is not shown.
            raise ConfigurationError(f"{argument} is for Hub ids, {name!r} is a path. Leave it out.")


def _verify(folder: Path, name: str, whole: bool) -> None:
    from ccnn_zoo import hub

    precisions = {path: precision for precision, path in FILES.items()}
    hub.download(f"{_LOCAL}{folder}", precision=None if whole else precisions.get(f"onnx/{name}"))


def _verified(repo_id: str, precision: str, whole: bool, **of_hub: Any) -> Path:
    from ccnn_zoo import hub  # imports huggingface_hub, which a plain .onnx file does not need

    wanted = None if whole and precision == "fp32" else precision
    return hub.download(repo_id, precision=wanted, **of_hub) / FILES[precision]
