"""From a trained detector to the files of its repository."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from ccnn_zoo.checkpoint import TrainingRecord
from ccnn_zoo.convert import fold
from ccnn_zoo.detection import detector_config, load_detector, save_detector
from ccnn_zoo.errors import ConfigurationError, IntegrityError
from ccnn_zoo.export import detector_to_onnx
from ccnn_zoo.metadata import DETECTION

from ._heat_map import draw_calibration
from ._names import CONFIG, HEAT_MAP, NETWORK, WEIGHTS
from ._stage import check_metrics, count, require_record, with_sorted_metadata

_PACKAGES = ("ccnn-zoo", "torch", "torchvision", "timm", "onnx", "safetensors")


def stage_detector(
    source: FasterRCNN | str | os.PathLike[str],
    folder: Path,
    record: TrainingRecord | None,
    images: Iterable[Tensor] | None,
) -> dict[str, Any]:
    """Write configuration, weights, ONNX file and heat map of a detector; return its part of the manifest.

    ``model.safetensors`` is a checkpoint, which ``ccnn_zoo.detection.load_detector`` reads.

    Args:
        source: made by ``create_detector``, or its checkpoint file.
        folder: where to write.
        record: how it was trained; the checkpoint's by default.
        images: pictures to verify the exported network on, float (3, H, W) in [0, 1].

    Raises:
        ConfigurationError: no record, a metric that is not measured, or another network.
        IntegrityError: the checkpoint is damaged.
        ExportError: the exported network failed its check.
    """
    detector = source
    if not isinstance(source, FasterRCNN):
        detector, recorded = load_detector(source)
        record = record or recorded
    record = require_record(record)
    check_metrics(record)
    config = detector_config(detector)
    labels = config["labels"]
    if not labels:
        raise ConfigurationError("a detector is published with the names of its labels: make it with labels=[...]")
    # Not the backbone's name, under which timm would try to build a classifier of it.
    described = {"task": DETECTION, "architecture": f"fasterrcnn_{config['backbone']}", "detector": config}
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    save_detector(folder / WEIGHTS, detector, record)
    (folder / WEIGHTS).write_bytes(with_sorted_metadata((folder / WEIGHTS).read_bytes()))
    _check_rebuilt(folder / WEIGHTS, detector)
    report = detector_to_onnx(detector, folder / NETWORK, images=images)
    draw_calibration(detector, folder / HEAT_MAP)
    return {
        "task": DETECTION,
        "architecture": config["backbone"],
        "branches": config["branches"],
        "merge": config["merge"],
        "labels": labels,
        "parameters": {"shared": count(detector), "folded": count(fold(detector))},
        "record": asdict(record),
        "export": {name: value for name, value in report.to_dict().items() if name != "path"},
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _check_rebuilt(path: Path, detector: FasterRCNN) -> None:
    """The repository must give the same network: no key lost, no tensor adapted."""
    advice = "Publish it as create_detector made it and training left it."
    try:
        with torch.random.fork_rng(devices=[]):  # building draws initial weights
            rebuilt = load_detector(path)[0].state_dict()
    except IntegrityError as error:  # whose file is a temporary one
        raise ConfigurationError(
            f"no detector of its configuration holds its tensors: {error.__cause__}. {advice}"
        ) from error
    own = detector.state_dict()
    changed = [n for n, t in own.items() if n not in rebuilt or not torch.equal(t.cpu(), rebuilt[n])]
    if changed or len(rebuilt) != len(own):
        raise ConfigurationError(f"another detector comes out of its configuration ({changed[:3]} differ). {advice}")
