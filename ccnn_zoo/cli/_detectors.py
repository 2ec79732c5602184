"""``ccnn export`` and ``ccnn publish`` of detectors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torchvision.transforms.functional import pil_to_tensor

from ccnn_zoo._files import replacing
from ccnn_zoo.detection import load_detection_data, load_detector
from ccnn_zoo.errors import CCNNError, ConfigurationError
from ccnn_zoo.export import DEFAULT_OPSET, FILES, DetectionReport, detector_to_onnx
from ccnn_zoo.pictures import read

from ._output import say

if TYPE_CHECKING:
    from torch import Tensor

COMPARED = 32
"""Test pictures that an export is compared on: torch and onnxruntime take seconds for a large one."""


def export_detector(
    checkpoint: Path, output: Path, data: str | None, precisions: list[str], options: dict[str, Any]
) -> DetectionReport:
    """Export a detector, compared with torch on test pictures of ``data`` or of the data it was trained on.

    Raises:
        ConfigurationError: options are given that are for classifiers.
    """
    refused = [f"--{name.replace('_', '-')}" for name, value in options.items() if value and name != "opset"]
    if refused or precisions != ["fp32"]:
        raise ConfigurationError(
            f"{checkpoint} is a detector, which is exported in fp32, for one picture of any size at a time: leave out "
            + ", ".join(refused or ["--precision"])
        )
    detector, record = load_detector(checkpoint)
    if output.suffix != ".onnx" or output.is_dir():
        output = output / FILES["fp32"]
    images = _pictures(data, record.recipe.get("data"))
    return detector_to_onnx(detector, output, images=images, opset=options.get("opset", DEFAULT_OPSET))


def show_report(report: DetectionReport, paths: Iterable[Path | None]) -> None:
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


def beside_detector(checkpoint: Path) -> dict[str, Any]:
    """Return the test pictures that publishing a checkpoint verifies on, if its data are still there."""
    _, record = load_detector(checkpoint)
    return {"images": _pictures(None, record.recipe.get("data"))}


def _pictures(given: str | None, trained_on: str | None) -> list[Tensor] | None:
    """Return test pictures; where nobody names data, those of the training, which may be gone by now."""
    if given is None and trained_on is None:
        return None
    try:
        pictures = load_detection_data(given or trained_on, skip_bad_annotations=True).test
    except CCNNError as error:
        if given is not None:
            raise
        say(f"compared on seeded pictures only: {error}", err=True)
        return None
    if not pictures:
        raise ConfigurationError(f"{given or trained_on} has no test pictures")
    chosen = np.unique(np.linspace(0, len(pictures) - 1, COMPARED).astype(int))
    return [pil_to_tensor(read(pictures[i].path)).float() / 255 for i in chosen]
