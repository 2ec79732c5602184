"""``ccnn export``, ``ccnn publish`` and ``ccnn download``: from a trained network to where others find it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCE_HELP = "A checkpoint or training folder, a repository (local:FOLDER or org/name), or a timm name."


def export(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")] = Path("model.onnx"),
    data: Annotated[
        str | None, typer.Option(help="Compare with torch on all test images of these data, e.g. digits.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set; a widely supported one by default.")] = None,
    branch_outputs: Annotated[
        bool, typer.Option("--branch-outputs", help="Add a second output: the logits of each branch alone.")
    ] = False,
) -> None:
    """Fold a network into plain convolutions and write it as one ONNX file.

    The file is compared with torch before it takes its name; one that differs is not left behind.

    Example:  ccnn export runs/digits -o digits.onnx --data digits
    """
    from ccnn_zoo.export import DEFAULT_OPSET, to_onnx

    from . import _sources

    model, record = _sources.load_network(source)
    data = data or (record.recipe.get("data") if record else None)
    images = _sources.image_batches(data) if data else None
    report = to_onnx(model, output, images=images, opset=opset or DEFAULT_OPSET, branch_outputs=branch_outputs)
    nodes = ", ".join(f"{count} {kind}" for kind, count in sorted(report.nodes.items()))
    typer.echo(f"{output}: {report.file_size / 1e6:.2f} MB, {report.parameters:,} parameters, opset {report.opset}")
    typer.echo(f"nodes: {nodes}")
    typer.echo(f"largest difference to torch: {report.max_difference:.2g}")
    if report.branch_difference is not None:
        typer.echo(f"largest difference to torch, branch by branch: {report.branch_difference:.2g}")
    if report.images:
        typer.echo(f"same class as torch on {100 * report.agreement:g} % of {report.images} images")


def publish(
    source: Annotated[str, typer.Argument(help="A checkpoint, training folder, or folder in the Hub's layout.")],
    repo_id: Annotated[str, typer.Argument(help="org/name on the Hugging Face Hub, or local:FOLDER.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new Hub repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch of the Hub repository.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name for the commit, e.g. v1.0.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of a commit.")] = False,
    parent_commit: Annotated[str | None, typer.Option(help="Publish only on top of this commit.")] = None,
    fp16: Annotated[Path | None, typer.Option(help="An ONNX file of the network in half precision.")] = None,
    int8: Annotated[Path | None, typer.Option(help="An ONNX file of the network in 8-bit integers.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and write nothing.")] = False,
) -> None:
    """Publish a trained network: weights, ONNX, model card and checksums in one commit.

    Example:  ccnn publish runs/digits local:hub/digits
    """
    from ccnn_zoo import hub

    from . import _sources

    path = _sources.checkpoint_path(source)
    publication = hub.publish(
        path,
        repo_id,
        **_sources.beside_checkpoint(path),
        networks={name: file for name, file in (("fp16", fp16), ("int8", int8)) if file is not None},
        private=private,
        revision=revision,
        tag=tag,
        create_pr=create_pr,
        parent_commit=parent_commit,
        dry_run=dry_run,
    )
    for change in publication.changes:
        if dry_run or change.action != "keep":
            typer.echo(f"{change.action:7} {change.size:>12,} bytes  {change.path}")
    typer.echo(f"{'would publish' if dry_run else 'published'} {publication.location}")


def download(
    repo_id: Annotated[str, typer.Argument(help="org/name on the Hugging Face Hub, or local:FOLDER.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8: only the ONNX file of this precision.")
    ] = None,
) -> None:
    """Download a repository, compare every file with its checksum, and print the folder.

    Example:  ccnn download org/ccnn_resnet18_cifar
    """
    from ccnn_zoo import hub

    typer.echo(hub.download(repo_id, revision=revision, precision=precision))
