"""What ``ccnn`` does with detectors: :class:`ccnn_zoo.cli._parts.Part`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torchvision.transforms.functional import pil_to_tensor

from ccnn_zoo._files import replacing
from ccnn_zoo.checkpoint import load_record
from ccnn_zoo.detection import load_detection_data, load_detector
from ccnn_zoo.detection import train_detector as train
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import read

from ._held_out import data_of
from ._output import say

if TYPE_CHECKING:
    from torch import Tensor

    from ccnn_zoo.export import DetectionReport

    from ._parts import ExportRequest

__all__ = ["FIGURE", "SKIPS", "beside", "export", "train"]

SKIPS = "skip_bad_annotations"
FIGURE = "test_map_percent", "mAP"
COMPARED = 32
"""Test pictures that an export is compared on: torch and onnxruntime take seconds for a large one."""


def beside(checkpoint: Path, precisions: Iterable[str], data: str | None, pictures: Path | None) -> dict[str, Any]:
    if pictures is not None:
        raise ConfigurationError(f"--pictures is for classifiers, {checkpoint} is a detector. Leave it out.")
    return {"images": _pictures(data_of(data, load_record(checkpoint), checkpoint))}


def export(request: ExportRequest) -> list[Path]:
    """Export a detector, compared with torch on test pictures.

    Raises:
        ConfigurationError: options are given that are for classifiers.
    """
    from ccnn_zoo.export import DEFAULT_OPSET, FILES, detector_to_onnx

    from ._sources import weights_of

    checkpoint, options, output = weights_of(request.found), request.options, request.output
    if request.uncertainty or request.cascade or request.branches is not None:
        raise ConfigurationError(
            f"--uncertainty, --cascade and --branches are for classifiers, not for the detector {checkpoint}"
        )
    refused = [f"--{name.replace('_', '-')}" for name, value in options.items() if value and name != "opset"]
    if refused or request.precisions != ["fp32"]:
        raise ConfigurationError(
            f"{checkpoint} is a detector, which is exported in fp32, for one picture of any size at a time: leave out "
            + ", ".join(refused or ["--precision"])
        )
    detector, record = load_detector(checkpoint)
    if output.suffix != ".onnx" or output.is_dir():
        output = output / FILES["fp32"]
    images = _pictures(data_of(request.data, record, checkpoint))
    made = detector_to_onnx(detector, output, images=images, opset=options.get("opset", DEFAULT_OPSET))
    _show(made, [request.report, made.path.with_suffix(".json") if request.report_beside else None])
    return [made.path]


def _show(report: DetectionReport, paths: Iterable[Path | None]) -> None:
    """Print what an export measured, and write it to the JSON files that are named."""
    for path in filter(None, paths):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    sizes = {(picture.height, picture.width) for picture in report.pictures}
    say(f"{report.path}: {report.file_size / 1e6:.2f} MB, {report.parameters:,} parameters, opset {report.opset}")
    say(f"nodes: {', '.join(f'{count} {kind}' for kind, count in sorted(report.nodes.items()))}")
    say(
        f"compared with torch: {report.detections} objects on {len(report.pictures)} pictures of {len(sizes)} sizes, "
        f"boxes within {report.max_box_difference:.2g} pixels, scores within {report.max_score_difference:.2g}"
    )


def _pictures(data: str | None) -> list[Tensor] | None:
    if data is None:
        return None
    pictures = load_detection_data(data, skip_bad_annotations=True).test
    if not pictures:
        raise ConfigurationError(f"{data} has no test pictures")
    chosen = np.unique(np.linspace(0, len(pictures) - 1, COMPARED).astype(int))
    return [pil_to_tensor(read(pictures[i].path)).float() / 255 for i in chosen]
