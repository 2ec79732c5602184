"""Checkpoints: one safetensors file that holds a network and how it was trained.

The file's metadata holds timm's ``config.json``, by which the network is rebuilt, a record of the training, and a
sum over everything. It is written under a temporary name and renamed, so that a killed process leaves the
previous checkpoint whole. No pickle is ever written or read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import timm
from timm.models._hub import save_config_for_hf
from torch import nn

import ccnn_zoo.models  # noqa: F401, registers the networks that a checkpoint names
from ccnn_zoo._network import CalibratedNetwork
from ccnn_zoo._sealed import read_sealed, write_sealed
from ccnn_zoo.errors import IntegrityError, RepositoryError
from ccnn_zoo.layers import CalibratedConv2d


@dataclass(frozen=True)
class TrainingRecord:
    """How a network was trained and what was measured of it.

    Args:
        data: name of the data, as a reader would cite it, e.g. ``"scikit-learn digits"``.
        seed: seed of the run.
        epochs: epochs done.
        recipe: the resolved options of the run.
        metrics: measured figures by name, in the unit that the name says (``test_error_percent``).
        versions: package name to version.
    """

    data: str
    seed: int
    epochs: int
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, record: TrainingRecord) -> None:
    """Write ``model`` and ``record`` to one safetensors file, atomically.

    Args:
        path: the file.
        model: a network made by ``timm.create_model``.
        record: how it was trained.

    Raises:
        RepositoryError: the folder cannot be written; what was there before is left untouched.
    """
    try:
        texts = {"config": config_json(model), "record": json.dumps(asdict(record))}
    except OSError as error:  # timm writes the configuration to a file of its own
        raise RepositoryError(
            f"cannot write {path}: {error}. What was there before is kept; free some space, also for temporary files."
        ) from error
    write_sealed(path, model.state_dict(), texts)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[nn.Module, TrainingRecord]:
    """Rebuild the network of a checkpoint, in eval mode, with its record.

    Raises:
        RepositoryError: there is no such file.
        IntegrityError: the file is no checkpoint of ours, is truncated, or differs from its sum.
    """
    path = Path(path)
    if not path.is_file():
        raise RepositoryError(f"no checkpoint at {path}; `ccnn train --output FOLDER` writes one")
    weights, texts = read_sealed(path, ("config", "record"), "a ccnn-zoo checkpoint")
    try:
        model = build_from_config(json.loads(texts["config"]))
        model.load_state_dict(weights)
        record = TrainingRecord(**json.loads(texts["record"]))
    except (RuntimeError, TypeError, KeyError) as error:
        # The sum is right, so this is how it was written.
        raise IntegrityError(
            f"{path} holds a network or record that this version does not know ({error}); "
            f"it was written by ccnn-zoo {_writer(texts)}, load it with that"
        ) from error
    return model.eval(), record


def holds_detector(path: str | os.PathLike[str]) -> bool:
    """Whether a file is the checkpoint of a detector, which ``ccnn_zoo.detection.load_detector`` reads."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "detector" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def config_json(model: nn.Module) -> str:
    """Return the text of timm's ``config.json`` for ``model``."""
    resolved = {}
    if isinstance(model, CalibratedNetwork):
        # timm records the arguments that were given; a default of today may be another one tomorrow.
        folded = not any(isinstance(module, CalibratedConv2d) for module in model.modules())
        resolved = {**model.conversion.architecture(), "folded": folded}
        if "base" in getattr(model, "_model_args", {}):  # its tag names weights
            resolved["base"] = model._model_args["base"].partition(".")[0]
    # timm drops the class names of a network whose default configuration has another number of classes.
    named = len(model.pretrained_cfg.get("label_names") or ()) == model.num_classes
    corrected = {"pretrained_cfg": {"num_classes": model.num_classes}} if named else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        save_config_for_hf(model, path, model_config=corrected, model_args=resolved)
        return path.read_text()


def build_from_config(config: dict[str, Any]) -> nn.Module:
    """Build the network that timm's ``config.json`` describes, without its weights."""
    cfg = {**config["pretrained_cfg"], "architecture": config["architecture"]}
    return timm.create_model(config["architecture"], pretrained_cfg=cfg, **config.get("model_args", {}))


def _writer(texts: Mapping[str, str]) -> str:
    return json.loads(texts["record"]).get("versions", {}).get("ccnn-zoo", "of another version")
