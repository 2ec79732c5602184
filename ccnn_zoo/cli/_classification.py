"""What ``ccnn`` does with classifiers: :class:`ccnn_zoo.cli._parts.Part`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import train

from ._held_out import data_of
from ._output import say

if TYPE_CHECKING:
    from ccnn_zoo.export import CascadeReport, ExportReport

    from ._parts import ExportRequest

__all__ = ["FIGURE", "SKIPS", "beside", "export", "train"]

SKIPS = "skip_unreadable"
FIGURE = "test_error_percent", "error"


def beside(checkpoint: Path, precisions: Iterable[str], data: str | None, pictures: Path | None) -> dict[str, Any]:
    from ccnn_zoo.checkpoint import load_checkpoint

    from . import _sources

    model, record = load_checkpoint(checkpoint)
    named = data_of(data, record, checkpoint, needed="int8" in precisions)
    return _sources.export_images(named, precisions, model, record, source=checkpoint, pictures=pictures, held_out=None)


def export(request: ExportRequest) -> list[Path]:
    if request.cascade:
        reports: dict[str, ExportReport | CascadeReport] = {"fp32": _export_cascade(request)}
    else:
        reports = _export(request)
        _write_reports(reports, request.report, beside=request.report_beside)
    _show(reports)
    return [one.path for one in reports.values()]


def _export(asked: ExportRequest) -> dict[str, ExportReport]:
    from ccnn_zoo.export import chosen_branches, to_folder, to_onnx

    from . import _sources

    precisions, output = asked.precisions, asked.output
    model, record = _sources.load_network(asked.found)
    if asked.branches is not None:
        whole, model = getattr(model, "branches", 1), chosen_branches(model, range(asked.branches))
        if asked.branches < whole:
            say(
                f"{asked.branches} of {whole} branches: those that were trained together may be worth little alone. "
                "Compare the accuracy with the whole network's, or let --cascade measure it.",
                err=True,
            )
    needed = "int8" in precisions or (asked.uncertainty and not asked.pictures)
    named = data_of(asked.data, record, asked.found, needed=needed)
    options = asked.options | _sources.export_images(
        named, precisions, model, record, source=asked.found, held_out=asked.uncertainty, pictures=asked.pictures
    )
    if asked.uncertainty and getattr(model, "branches", 1) > 1:
        options["branch_outputs"] = True
    if output.suffix == ".onnx" and not output.is_dir():
        if len(precisions) > 1:
            raise ConfigurationError(f"{output} is one file for {', '.join(precisions)}. Name a folder.")
        return {precisions[0]: to_onnx(model, output, precision=precisions[0], **options)}
    return to_folder(model, output, precisions, **options)


def _export_cascade(asked: ExportRequest) -> CascadeReport:
    from ccnn_zoo.export import cascade_to_onnx

    from . import _sources

    model, record = _sources.load_network(asked.found)
    named = data_of(asked.data, record, asked.found, needed=not asked.pictures)
    images = _sources.export_images(
        named, ["fp32"], model, record, source=asked.found, held_out=True, pictures=asked.pictures
    )
    first = 1 if asked.branches is None else asked.branches
    given = {name: value for name, value in asked.options.items() if value}
    return cascade_to_onnx(model, asked.output, first=first, **images, **given)


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
