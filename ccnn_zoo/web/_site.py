"""A static site: the page, its networks, and what runs them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccnn_zoo._files.folders import replacing_folder
from ccnn_zoo.errors import ConfigurationError, RepositoryError
from ccnn_zoo.metadata import ModelMetadata

from . import _examples
from ._onnxruntime_web import VERSION, copy_runtime
from ._page import asset, static_files

SITE = "site.json"
"""Says what there is to choose from, and tells a site from any other folder."""


@dataclass(frozen=True)
class Site:
    """What was written.

    Args:
        folder: the site's.
        networks: their names, in the page's order.
        size: bytes of all files.
    """

    folder: Path
    networks: tuple[str, ...]
    size: int


def write_site(
    networks: Mapping[str, str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    webgpu: bool = False,
    runtime: str | os.PathLike[str] | None = None,
) -> Site:
    """Write a page that classifies pictures in its visitor's browser, with all that it needs.

    Preprocessing, and the outputs of confidence where a file carries the numbers, are put into each network's graph.
    A site that was there before is replaced as a whole.

    Args:
        networks: by the names that the page shows, ONNX files that this package exported.
        folder: the site's.
        webgpu: bring what WebGPU needs, 27 MB more. Worth it for large networks.
        runtime: a folder with onnxruntime-web of the version :data:`ccnn_zoo.web.VERSION`; None lets npm fetch it.

    Raises:
        ConfigurationError: there is no network, npm is missing, or a network's preprocessing cannot be in a graph.
        IntegrityError: a file is damaged, or onnxruntime-web is not that of the version.
        MetadataError: a file carries no labels and preprocessing.
        ExportError: an extended graph fails its check.
        RepositoryError: the folder cannot be written, or holds something else than a site.
    """
    if not networks:
        raise ConfigurationError("a site needs at least one network")
    target = Path(folder)
    with replacing_folder(target, str(target), lambda: _refuse_foreign(target)) as staged:
        fill_site(staged, networks, webgpu=webgpu, runtime=runtime)
        size = sum(path.stat().st_size for path in staged.rglob("*") if path.is_file())
    return Site(target, tuple(networks), size)


def fill_site(
    folder: Path,
    networks: Mapping[str, str | os.PathLike[str]],
    *,
    webgpu: bool = False,
    runtime: str | os.PathLike[str] | None = None,
) -> None:
    """Write a site into an existing empty folder; see :func:`write_site`."""
    for name in ("ort", "networks"):
        (folder / name).mkdir()
    copy_runtime(folder / "ort", webgpu=webgpu, folder=None if runtime is None else Path(runtime))
    (folder / "ort" / "LICENSE.txt").write_bytes(asset("onnxruntime-web.txt"))
    for name, content in static_files(f"onnxruntime-web {VERSION}").items():
        (folder / name).write_bytes(content)
    described = [
        _network(name, Path(path), folder, f"networks/{position}_{_harmless(name)}.onnx")
        for position, (name, path) in enumerate(networks.items())
    ]
    site = {"webgpu": webgpu, "networks": described, "examples": _write_examples(folder, described)}
    (folder / SITE).write_text(json.dumps(site, indent=1) + "\n", encoding="utf-8")


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is a file. Name a folder for the site.")
    if any(folder.iterdir()) and not (folder / SITE).is_file():
        raise RepositoryError(f"{folder} holds something else than a site, which would be lost. Name another folder.")


def _harmless(name: str) -> str:
    """Return a file's name for a network: every web server and every address takes it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60]


def _network(name: str, path: Path, folder: Path, file: str) -> dict[str, Any]:
    from ccnn_zoo.export import add_confidence, add_preprocessing  # torch and onnx

    written = add_preprocessing(path, folder / file)
    metadata = _metadata_of(written)
    if metadata.confidence is not None:
        add_confidence(written, metadata.confidence, outputs=True)
    return {
        "name": name,
        "file": file,
        "bytes": written.stat().st_size,
        "labels": metadata.labels,
        "channels": metadata.input_size[0],
        "digits": _examples.share_of_ink(metadata),
    }


def _metadata_of(path: Path) -> ModelMetadata:
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    return ModelMetadata.from_props(properties, str(path))


def _write_examples(folder: Path, networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write pictures of digits for the networks that read them; return what the page is told."""
    shares = {network["digits"] for network in networks} - {None}
    if not shares:
        return []
    (folder / "examples").mkdir()
    written = []
    for share, pictures in _examples.digits().items():
        readers = [position for position, network in enumerate(networks) if network["digits"] == share]
        for digit, content in enumerate(pictures if readers else []):
            file = f"examples/{'scan' if share < 1 else 'digit'}_{digit}.png"
            (folder / file).write_bytes(content)
            written.append({"file": file, "name": f"a handwritten {digit}", "networks": readers})
    return written
