"""``ccnn export``: from a trained network to ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccnn_zoo.errors import ConfigurationError

from ._held_out import PICTURES, data_of
from ._options import TOKEN
from ._output import say

if TYPE_CHECKING:
    from ccnn_zoo.export import CascadeReport, ExportReport

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
    checkpoint = _sources.detector_checkpoint(found)
    if checkpoint is None and cascade:
        one = _export_cascade(found, output, data, options, pictures, 1 if branches is None else branches)
        _show({"fp32": one})
        written = [one.path]
    elif checkpoint is None:
        reports = _export_classifier(found, output, data, precisions, options, uncertainty, pictures, branches)
        _write_reports(reports, report, beside=report_beside)
        _show(reports)
        written = [one.path for one in reports.values()]
    else:
        from . import _detectors

        if uncertainty or cascade or branches is not None:
            raise ConfigurationError(
                f"--uncertainty, --cascade and --branches are for classifiers, not for the detector {checkpoint}"
            )
        made = _detectors.export_detector(checkpoint, output, data, precisions, options)
        _detectors.show_report(made, [report, made.path.with_suffix(".json") if report_beside else None])
        written = [made.path]
    if triton is not None:
        from ccnn_zoo.serve import write_triton

        for path in written:
            say(write_triton(path, triton, options=how))


def _export_classifier(
    found: Path | str,
    output: Path,
    data: str | None,
    precisions: list[str],
    options: dict[str, Any],
    uncertainty: bool,
    pictures: Path | None,
    branches: int | None,
) -> dict[str, ExportReport]:
    from ccnn_zoo.export import chosen_branches, to_folder, to_onnx

    from . import _sources

    model, record = _sources.load_network(found)
    if branches is not None:
        whole, model = getattr(model, "branches", 1), chosen_branches(model, range(branches))
        if branches < whole:
            say(
                f"{branches} of {whole} branches: those that were trained together may be worth little alone. Compare "
                "the accuracy with the whole network's, or let --cascade measure it.",
                err=True,
            )
    named = data_of(data, record, found, needed="int8" in precisions or (uncertainty and not pictures))
    options |= _sources.export_images(
        named, precisions, model, record, source=found, held_out=uncertainty, pictures=pictures
    )
    if uncertainty and getattr(model, "branches", 1) > 1:
        options["branch_outputs"] = True
    if output.suffix == ".onnx" and not output.is_dir():
        if len(precisions) > 1:
            raise ConfigurationError(f"{output} is one file for {', '.join(precisions)}. Name a folder.")
        return {precisions[0]: to_onnx(model, output, precision=precisions[0], **options)}
    return to_folder(model, output, precisions, **options)


def _check_cascade(output: Path, precisions: list[str], report: Path | None, report_beside: bool) -> None:
    if precisions != ["fp32"] or output.suffix != ".onnx" or output.is_dir():
        raise ConfigurationError("--cascade writes fp32 files beside --output NAME.onnx: name that, and no --precision")
    if report is not None or report_beside:
        raise ConfigurationError("--cascade has no report as JSON: leave --report and --report-beside out")


def _export_cascade(
    found: Path | str, output: Path, data: str | None, options: dict[str, Any], pictures: Path | None, first: int
) -> CascadeReport:
    from ccnn_zoo.export import cascade_to_onnx

    from . import _sources

    model, record = _sources.load_network(found)
    named = data_of(data, record, found, needed=not pictures)
    images = _sources.export_images(named, ["fp32"], model, record, source=found, held_out=True, pictures=pictures)
    return cascade_to_onnx(model, output, first=first, **images, **{k: v for k, v in options.items() if v})


def _parsed_size(text: str | None) -> tuple[int, int] | str | None:
    if text is None or text == "any":
        return text
    height, times, width = text.partition("x")
    if not (times and height.isdecimal() and width.isdecimal()):
        raise ConfigurationError(f"--size takes HEIGHTxWIDTH, e.g. 224x224, or any, got {text!r}")
    return int(height), int(width)


def _write_reports(reports: dict[str, ExportReport], path: Path | None, *, beside: bool) -> None:
    import json

    from ccnn_zoo._files import replacing

    if beside:
        for one in reports.values():
            one.save(one.path.with_suffix(".json"))
    if path is not None and len(reports) == 1:
        next(iter(reports.values())).save(path)
    elif path is not None:
        text = json.dumps({name: one.to_dict() for name, one in reports.items()}, indent=2)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _show(reports: dict[str, ExportReport | CascadeReport]) -> None:
    for one in reports.values():
        say(one.path)
        for what, figure in one.rows():
            say(f"  {what:38} {figure}")
