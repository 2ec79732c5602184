"""``ccnn export``: from a trained network to an ONNX file."""

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
