"""From a trained network to the files of its repository."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from ccnn_zoo._base.wrapped import usual_settings
from ccnn_zoo.checkpoint import TrainingRecord, config_json, load_checkpoint, rebuildable_config
from ccnn_zoo.convert import fold, timm_name
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.export import ExportReport, ImageBatches, metadata_of, to_folder

from ._heat_map import draw_calibration
from ._names import CONFIG, HEAT_MAP, WEIGHTS

_PACKAGES = ("ccnn-zoo", "torch", "timm", "onnx", "safetensors")


@usual_settings()
def stage_network(
    source: nn.Module | str | os.PathLike[str],
    folder: Path,
    record: TrainingRecord | None,
    images: ImageBatches | None,
    precisions: Iterable[str] = (),
    int8_images: ImageBatches | None = None,
    held_out: ImageBatches | None = None,
) -> dict[str, Any]:
    """Write configuration, weights, ONNX files and heat map of a network; return its part of the manifest.

    Args:
        source: the network, or its checkpoint file.
        folder: where to write.
        record: how it was trained; the checkpoint's by default.
        images: what to verify the exported networks on.
        precisions: those to export besides fp32.
        int8_images: images to measure the ranges of int8 on.
        held_out: images to fit the numbers of confidence of every exported file on.

    Raises:
        ConfigurationError: no record, a metric that is not measured, or a network that timm cannot build again.
        RepositoryError: there is no such checkpoint.
        IntegrityError: the checkpoint is damaged.
        MetadataError: the names of the classes are unknown, see :func:`ccnn_zoo.export.metadata_of`.
        ExportError: the exported network failed its check.
    """
    if isinstance(source, nn.Module):
        model = source
    else:
        model, recorded = load_checkpoint(source)
        record = record or recorded
    record = require_record(record)
    check_metrics(record)
    rebuildable_config(model)  # before anything is written
    details = _describe(model)
    _write_config(model, folder)
    _write_weights(model, folder, details)
    reports = to_folder(
        model,
        folder,
        ["fp32", *precisions],
        images=images,
        int8_images=int8_images,
        held_out=held_out,
        branch_outputs=held_out is not None and getattr(model, "branches", 1) > 1,
    )
    draw_calibration(model, folder / HEAT_MAP)
    exports = {precision: _measured(report) for precision, report in reports.items()}
    versions = {name: version(name) for name in _PACKAGES}
    return {
        **details,
        "record": asdict(record),
        "export": exports.pop("fp32"),
        "further_exports": exports,
        "versions": versions,
    }


def _measured(report: ExportReport) -> dict[str, Any]:
    """Return what the manifest keeps of a report: its path is that of a temporary folder."""
    # The numbers of confidence stand in a table of their own, for every file.
    return {name: value for name, value in report.to_dict().items() if name not in ("path", "confidence")}


def require_record(record: TrainingRecord | None) -> TrainingRecord:
    """Refuse a network without a record."""
    if record is None:
        raise ConfigurationError(
            "record is missing: a network is published with its TrainingRecord, or from its checkpoint, which holds one"
        )
    return record


def check_metrics(record: TrainingRecord) -> None:
    """Refuse metrics that are no finite numbers."""
    for name, value in record.metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigurationError(
                f"metric {name!r} of the record is {value!r}; only measured, finite numbers are published. Leave it out"
            )


def _write_config(model: nn.Module, folder: Path) -> None:
    """timm's configuration, with the labels that the ONNX files carry: the examples of the card read them."""
    config = json.loads(config_json(model))
    config["pretrained_cfg"]["label_names"] = metadata_of(model).labels
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _write_weights(model: nn.Module, folder: Path, details: dict[str, Any]) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    described = {name: value if isinstance(value, str) else json.dumps(value) for name, value in details.items()}
    metadata = {"format": "pt", "library": f"ccnn-zoo {version('ccnn-zoo')}", **described}
    (folder / WEIGHTS).write_bytes(with_sorted_metadata(safetensors.torch.save(weights, metadata)))
    _check_rebuilt(folder, weights)


def with_sorted_metadata(file: bytes) -> bytes:
    """safetensors writes metadata in random order; the same network must have the same sum every time."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + file[end:]


def _check_rebuilt(folder: Path, weights: dict[str, Tensor]) -> None:
    """timm must get the same network from the repository: no key lost, no tensor adapted."""
    advice = (
        "Publish a network as timm.create_model made it and training left it, with its number of classes, input "
        "channels and branches given to create_model."
    )
    try:
        with torch.random.fork_rng(devices=[]):  # building draws initial weights
            rebuilt = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        why = textwrap.shorten(str(error), 200, placeholder=" …")
        raise ConfigurationError(f"timm cannot build the network again ({why}). {advice}") from error
    changed = [n for n, t in weights.items() if n not in rebuilt or not _same_bits(t, rebuilt[n])]
    if changed or len(rebuilt) != len(weights):
        raise ConfigurationError(f"timm builds another network from its configuration ({changed[:3]} differ). {advice}")


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _describe(model: nn.Module) -> dict[str, Any]:
    return {
        "architecture": timm_name(model),
        "branches": getattr(model, "branches", 1),
        "merge": getattr(model, "merge", "mean"),
        "parameters": {"shared": count(model), "folded": count(fold(model))},
    }


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
