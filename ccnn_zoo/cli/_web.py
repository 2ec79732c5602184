"""``ccnn web``: a page whose visitors classify pictures in their browsers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ccnn_zoo.errors import ConfigurationError

from ._options import MODEL_HELP, PRECISION, TOKEN
from ._output import say

MODELS_HELP = f"{MODEL_HELP} Or a folder of .onnx files. Several can be chosen from on the page."
RUNTIME = typer.Option(
    "--runtime", help="A folder with npm's onnxruntime-web of the right version; npm fetches it by itself."
)
WEBGPU = typer.Option("--webgpu", help="Also bring what WebGPU needs, 27 MB; worth it for large networks.")


def web(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODELS_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The site's folder.")] = Path("site"),
    precision: Annotated[str, PRECISION] = "fp32",
    webgpu: Annotated[bool, WEBGPU] = False,
    runtime: Annotated[Path | None, RUNTIME] = None,
    token: Annotated[bool, TOKEN] = False,
) -> None:
    """Write a page that classifies pictures in its visitor's browser: put the folder on any web server.

    Pictures never leave the visitor's machine, and the page loads nothing from elsewhere. Needs npm, or --runtime.

    Example:  ccnn web ccnn_resnet18_cifar.mnist -o site

    Example:  ccnn web digits.onnx local:hub/pets -o site && python -m http.server --directory site
    """
    from ccnn_zoo.web import write_site

    with tempfile.TemporaryDirectory(prefix="ccnn-web-") as work:
        site = write_site(networks_of(models, Path(work), precision, token), output, webgpu=webgpu, runtime=runtime)
    say(f"{site.folder}: {', '.join(site.networks)}, {site.size / 1e6:.1f} MB")
    say(f"look at it: python -m http.server --directory {site.folder}")


def networks_of(models: list[str], work: Path, precision: str, token: bool) -> dict[str, Path]:
    """Return the ONNX files of the networks that a user named, by the names that a page shows.

    Args:
        models: what ``ccnn classify`` takes, folders of ONNX files, and trained weights, which are exported.
        work: a folder for what is exported.
        precision: which file of a repository.
        token: send the stored token to the Hub.

    Raises:
        ConfigurationError: two networks have one name.
        RepositoryError, IntegrityError, MetadataError, ExportError: a network cannot be had or deployed.
    """
    found: dict[str, Path] = {}
    for model in models:
        path = Path(model).expanduser()
        several = sorted(path.glob("*.onnx")) if path.is_dir() and not _is_one_network(path) else []
        for name in map(str, several) if several else (model,):
            shown = Path(name.removeprefix("local:")).name.removesuffix(".onnx") or name
            if shown in found:
                raise ConfigurationError(f"two networks have the name {shown!r}, which the page shows. Rename one.")
            found[shown] = _onnx_file(name, work / f"{len(found)}.onnx", precision, token)
    return found


def _is_one_network(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("manifest.json", "config.json")) or any(
        folder.glob("*.safetensors")
    )


def _onnx_file(name: str, target: Path, precision: str, token: bool) -> Path:
    """Return the file of an exported network; trained weights alone are exported, with what their branches say."""
    from ccnn_zoo import runtime
    from ccnn_zoo._base.named import shipped_weights

    from . import _held_out, _sources

    weights = shipped_weights(name)
    shipped = weights is not None
    if not shipped:
        weights = _sources.checkpoint_path(name)
        folder = Path(name).expanduser()
        exported = any((folder / file).is_file() for file in ("model.onnx", "onnx/model.onnx"))
        if exported or not (weights.is_file() and weights.suffix == ".safetensors"):
            return Path(runtime.load(name, device="cpu", precision=precision, token=token or None).source)
    from ccnn_zoo.checkpoint import load_checkpoint
    from ccnn_zoo.export import to_onnx

    model, record = load_checkpoint(weights)
    images = {}
    if not shipped:  # of a training, its test images to compare on, and what it held out, to say what it doubts
        data = _held_out.data_of(None, record, weights, needed=precision == "int8")
        images = _sources.export_images(data, [precision], model, record, source=name, held_out=None)
    branched = getattr(model, "branches", 1) > 1
    to_onnx(model, target, precision=precision, branch_outputs=branched, preprocess=True, **images)
    return target
