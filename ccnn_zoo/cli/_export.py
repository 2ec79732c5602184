"""``ccnn export``: from a trained network to ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import check_precision

from ._held_out import PICTURES
from ._options import TOKEN
from ._output import say
from ._parts import ExportRequest

SOURCE_HELP = "A checkpoint or training folder, a repository (local:FOLDER or org/name), or a timm name."


def export(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .onnx file, or a folder, which gets onnx/model*.onnx.")
    ] = Path("model.onnx"),
    precision: Annotated[
        list[str] | None, typer.Option("--precision", "-p", help="fp32, fp16 or int8; several for a folder.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Compare with torch on all test images of these data; int8's ranges are of training ones."),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set; a widely supported one by default.")] = None,
    branch_outputs: Annotated[
        bool, typer.Option("--branch-outputs", help="Add a second output: the logits of each branch alone.")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="Fix the number of images.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the images, or any; the network's own.")] = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take uint8 pictures (N, H, W, C); resize and normalise in the graph.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time several forms on this machine and keep what is faster.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty", help="Fit temperature, sets and thresholds on held-out pictures; give them as outputs too."
        ),
    ] = False,
    pictures: PICTURES = None,
    cascade: Annotated[
        bool,
        typer.Option("--cascade", help="Write two files more, to run some branches, and the others where in doubt."),
    ] = False,
    branches: Annotated[
        int | None, typer.Option(help="Take so many of the branches; with --cascade those that always run (1).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report as JSON, of several precisions by name.")
    ] = None,
    report_beside: Annotated[
        bool, typer.Option("--report-beside", help="Write each report as JSON beside its file.")
    ] = False,
    token: Annotated[bool, TOKEN] = False,
    triton: Annotated[Path | None, typer.Option(help="Also put it into this Triton model repository.")] = None,
    triton_set: Annotated[
        list[str] | None, typer.Option("--triton-set", help="NAME=VALUE, e.g. instances=2; docs/serving.md has all.")
    ] = None,
) -> None:
    """Fold a network into plain convolutions and write it as ONNX, in one or more precisions.

    The file is compared with torch before it takes its name; one that differs is not left behind.

    Example:  ccnn export runs/digits -o digits.onnx --data digits

    Example:  ccnn export runs/digits -o exported -p fp32 -p fp16 -p int8 --measure --report-beside

    Example:  ccnn export runs/digits -o exported -p fp32 -p int8 --uncertainty

    Example:  ccnn export runs/digits -o digits.onnx --cascade

    Example:  ccnn export runs/cells -o detector.onnx

    Example:  ccnn export runs/digits -o digits.onnx --triton models --triton-set instances=2
    """
    from ._triton import triton_options

    how = triton_options(triton_set or [], asked=triton is not None)  # before torch is imported

    from . import _sources

    if pictures is not None and not (uncertainty or cascade):
        raise ConfigurationError("--pictures is for --uncertainty, which is fitted on them: add it, or leave them out")
    precisions = list(dict.fromkeys(precision or ["fp32"]))
    for name in precisions:
        check_precision(name)
    if cascade:
        _check_cascade(output, precisions, report, report_beside)
    options = {
        "branch_outputs": branch_outputs,
        "batch": batch,
        "size": _parsed_size(size),
        "preprocess": preprocess,
        "measure": measure,
    }
    if opset is not None:
        options["opset"] = opset
    found = _sources.find(source, token)
    request = ExportRequest(
        found, output, precisions, data, options, uncertainty, cascade, branches, pictures, report, report_beside
    )
    written = _sources.part_of(found).export(request)
    if triton is not None:
        from ccnn_zoo.serve import write_triton

        for path in written:
            say(write_triton(path, triton, options=how))


def _check_cascade(output: Path, precisions: list[str], report: Path | None, report_beside: bool) -> None:
    if precisions != ["fp32"] or output.suffix != ".onnx" or output.is_dir():
        raise ConfigurationError("--cascade writes fp32 files beside --output NAME.onnx: name that, and no --precision")
    if report is not None or report_beside:
        raise ConfigurationError("--cascade has no report as JSON: leave --report and --report-beside out")


def _parsed_size(text: str | None) -> tuple[int, int] | str | None:
    if text is None or text == "any":
        return text
    height, times, width = text.partition("x")
    if not (times and height.isdecimal() and width.isdecimal()):
        raise ConfigurationError(f"--size takes HEIGHTxWIDTH, e.g. 224x224, or any, got {text!r}")
    return int(height), int(width)
