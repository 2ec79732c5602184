"""Checkpoints: one safetensors file that holds a network and how it was trained.

The file's metadata holds timm's ``config.json``, by which the network is rebuilt, a record of the training, and a
sum over everything. It is written under a temporary name and renamed, so that a killed process leaves the
previous checkpoint whole. No pickle is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

import ccnn_zoo.models  # noqa: F401, registers the networks that a checkpoint names
from ccnn_zoo._files import replacing
from ccnn_zoo.errors import IntegrityError, RepositoryError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.models._calibrated import CalibratedClassifier


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
        config, record_json = config_json(model), json.dumps(asdict(record))
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        metadata = {"format": "pt", "config": config, "record": record_json}
        metadata["sha256"] = _digest(metadata, weights)
        with replacing(path) as temporary:
            safetensors.torch.save_file(weights, temporary, metadata=metadata)
    except RepositoryError:
        raise
    except (OSError, safetensors.SafetensorError) as error:
        raise RepositoryError(
            f"cannot write {path}: {error}. What was there before is kept; free some space or choose another folder."
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[nn.Module, TrainingRecord]:
    """Rebuild the network of a checkpoint, in eval mode, with its record.

    Raises:
        RepositoryError: there is no such file.
        IntegrityError: the file is no checkpoint of ours, is truncated, or differs from its sum.
    """
    path = Path(path)
    if not path.is_file():
        raise RepositoryError(f"no checkpoint at {path}; `ccnn train --output FOLDER` writes one")
    metadata, weights = _read(path)
    try:
        model = build_from_config(json.loads(metadata["config"]))
        model.load_state_dict(weights)
        record = TrainingRecord(**json.loads(metadata["record"]))
    except (RuntimeError, TypeError, KeyError) as error:
        # The sum is right, so this is how it was written.
        raise IntegrityError(
            f"{path} holds a network or record that this version does not know ({error}); "
            f"it was written by ccnn-zoo {_writer(metadata)}, load it with that"
        ) from error
    return model.eval(), record


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and weights of a file whose sum is right."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (safetensors.SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file ({error}); restore or retrain it") from error
    if metadata.keys() != {"format", "config", "record", "sha256"}:
        raise IntegrityError(
            f"{path} is not a ccnn-zoo checkpoint: its metadata must be format, config, record and sha256, "
            f"got {', '.join(sorted(metadata)) or 'none'}"
        )
    digest = _digest(metadata, weights)
    if digest != metadata["sha256"]:
        raise IntegrityError(
            f"{path} is corrupt: its sum is {digest[:12]}…, not {metadata['sha256'][:12]}…; restore or retrain it"
        )
    return metadata, weights


def config_json(model: nn.Module) -> str:
    """Return the text of timm's ``config.json`` for ``model``."""
    resolved = {}
    if isinstance(model, CalibratedClassifier):
        # timm records the arguments that were given; a default of today may be another one tomorrow.
        resolved = {"branches": model.branches, "merge": model.merge}
        if not any(isinstance(module, CalibratedConv2d) for module in model.modules()):
            resolved["folded"] = True
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


def _digest(metadata: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """Return the sum of metadata and weights: of what they say, not of safetensors' layout, which may change."""
    digest = hashlib.sha256()
    for name in ("format", "config", "record"):
        digest.update(hashlib.sha256(metadata[name].encode()).digest())
    for name, tensor in sorted(weights.items()):
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        digest.update(hashlib.sha256(described.encode()).digest())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(hashlib.sha256(values.numpy()).digest())
    return digest.hexdigest()


def _writer(metadata: Mapping[str, str]) -> str:
    return json.loads(metadata["record"]).get("versions", {}).get("ccnn-zoo", "of another version")
