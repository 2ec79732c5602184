"""Checkpoints: one safetensors file that holds a network and how it was trained.

The file's metadata holds timm's ``config.json``, by which the network is rebuilt, a record of the training, and a
sum over everything. It is written under a temporary name and renamed, so that a killed process leaves the
previous checkpoint whole. No pickle is ever written or read.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
from torch import nn

from ccnn_zoo._arguments import ARGUMENTS, TEXT, Kind, checked, whole
from ccnn_zoo._base.compat import save_config_for_hf
from ccnn_zoo._base.wrapped import unwrapped
from ccnn_zoo._conversion.network import CalibratedNetwork
from ccnn_zoo._files.sealed import read_sealed, read_tensors, write_sealed
from ccnn_zoo._rebuild import check_describes, check_same_tensors, parsed, rebuild
from ccnn_zoo._tasks import Task, task_of_texts
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError
from ccnn_zoo.layers import CalibratedConv2d, MirroringConv2d


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


_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,40}")
_RECORD = {
    "data": TEXT,
    "seed": whole(0, 2**64),
    "epochs": whole(0, 10**9),
    "recipe": Kind("a table", lambda value: isinstance(value, dict)),
    "metrics": Kind("a table of numbers", lambda value: _are_all(value, (int, float))),
    "versions": Kind("a table of texts", lambda value: _are_all(value, str)),
}


def save_checkpoint(
    path: str | os.PathLike[str], model: nn.Module, record: TrainingRecord, *, configured: bool = True
) -> None:
    """Write ``model`` and ``record`` to one safetensors file, atomically.

    Args:
        path: the file.
        model: a network made by ``timm.create_model``, or by ``calibrate`` from such a one.
        record: how it was trained.
        configured: False writes nothing by which the network could be built: ``load_checkpoint(path, into=...)``
            loads the file into one that is there.

    Raises:
        ConfigurationError: the network could not be built again, so that nothing could load the file, or is a wrapper
            of a network (torch.compile is looked through); says why, and the way out.
        RepositoryError: the folder cannot be written; what was there before is left untouched.
    """
    model = unwrapped(model)
    try:
        config = rebuildable_config(model) if configured else "{}"
        texts = {"config": config, "record": json.dumps(asdict(record))}
    except OSError as error:  # timm writes the configuration to a file of its own
        raise RepositoryError(
            f"cannot write {path}: {error}. What was there before is kept; free some space, also for temporary files."
        ) from error
    write_sealed(path, model.state_dict(), texts)


def load_checkpoint(path: str | os.PathLike[str], into: nn.Module | None = None) -> tuple[nn.Module, TrainingRecord]:
    """Rebuild the network of a checkpoint, in eval mode, with its record.

    Args:
        path: the file.
        into: a network that gets the weights; by default one is built by what the file says of it.

    Raises:
        RepositoryError: there is no such file.
        IntegrityError: the file is no checkpoint of ours, is truncated, or differs from its sum.
        ConfigurationError: the weights are those of another network than ``into``, or the file says of none.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike is_file() it says no where it may not look, and of a name too long
        raise RepositoryError(f"no checkpoint at {path}; `ccnn train --output FOLDER` writes one")
    weights, texts = read_sealed(path, ("config", "record"), "a ccnn-zoo checkpoint")
    if into is None and texts["config"] == "{}":
        raise ConfigurationError(
            f"{path} holds the weights of a network that is not timm's, trained by train(..., build=...): build it and "
            "pass it, load_checkpoint(path, into=network)"
        )
    if into is not None:
        check_same_tensors(into.state_dict(), weights)
        _check_same_branches(into, texts["config"])
        into.load_state_dict(weights)
    try:
        record = read_record(texts["record"])
        model = into if into is not None else rebuild(parsed(texts["config"], "its configuration"), weights)
    except ConfigurationError as error:
        # The sum is right, so this is how it was written.
        raise IntegrityError(
            f"{path} holds a network or record that this version does not know ({error}); "
            f"it was written by ccnn-zoo {_writer(texts)}, load it with that"
        ) from error
    return model.eval(), record


def load_repository(folder: str | os.PathLike[str]) -> nn.Module:
    """Rebuild the network of a repository's ``config.json`` and ``model.safetensors``, in eval mode.

    Unlike timm's ``local-dir:`` it takes from ``config.json`` only what a network is built from, within bounds, and no
    weights but these. It does not compare checksums: give it what :func:`ccnn_zoo.hub.download` returns.

    Raises:
        RepositoryError: a file is missing or cannot be read.
        IntegrityError: the files are none of a network, or do not fit each other.
    """
    folder = Path(folder)
    try:
        text = (folder / "config.json").read_bytes()
        weights = read_tensors(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise RepositoryError(f"{folder} holds no network that can be read: {error}") from error
    try:
        return rebuild(parsed(text, "config.json"), weights).eval()
    except ConfigurationError as error:
        raise IntegrityError(f"{folder} holds a network that this version does not know: {error}") from error


def read_record(text: str) -> TrainingRecord:
    """Return the record that a file holds.

    Raises:
        ConfigurationError: it is none, or a field is not what it must be.
    """
    values = parsed(text, "the record")
    known = {f.name: f for f in fields(TrainingRecord)}
    missing = [name for name, f in known.items() if f.default_factory is MISSING and name not in values]
    if missing:
        raise ConfigurationError(f"the record lacks {', '.join(missing)}")
    return TrainingRecord(**checked(values, _RECORD, "the record"))


def task_of(path: str | os.PathLike[str]) -> Task:
    """Return what task the network of a checkpoint is for; of what is no checkpoint, classification."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return task_of_texts(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return task_of_texts({})


def load_record(path: str | os.PathLike[str]) -> TrainingRecord:
    """Return how the network of a checkpoint was trained, whatever its task.

    Raises:
        RepositoryError: there is no such file.
        IntegrityError: the file is no checkpoint of ours, is truncated, or differs from its sum.
    """
    if not os.path.isfile(path):
        raise RepositoryError(f"no checkpoint at {path}; `ccnn train --output FOLDER` writes one")
    _, texts = read_sealed(path, (task_of(path).checkpoint, "record"), "a ccnn-zoo checkpoint")
    try:
        return read_record(texts["record"])
    except ConfigurationError as error:
        raise IntegrityError(f"{path} holds a record that this version does not know ({error})") from error


def rebuildable_config(model: nn.Module) -> str:
    """Return :func:`config_json` of ``model``, after making sure that the network can be built by it again.

    Raises:
        ConfigurationError: it cannot; says why, and the way out.
    """
    try:
        config = config_json(model)
        check_describes(json.loads(config), model.state_dict())
    except ConfigurationError as error:
        raise ConfigurationError(
            f"nothing could load this {type(model).__name__} from a file again: {error}. Make it by timm.create_model, "
            "as it is, or by ccnn_zoo.calibrate of such a network; or save model.state_dict() (safetensors.torch."
            "save_file), build the network as you did now, and load that into it"
        ) from error
    return config


def config_json(model: nn.Module) -> str:
    """Return the text of timm's ``config.json`` for ``model``.

    Raises:
        ConfigurationError: the network was made with arguments that no file may set.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not cfg.get("architecture") or not hasattr(model, "num_classes"):
        raise ConfigurationError("it is no classifier of timm's: it has no pretrained_cfg that names its architecture")
    if not isinstance(model, CalibratedNetwork) and any(isinstance(m, MirroringConv2d) for m in model.modules()):
        raise ConfigurationError("it is a branch that sees the mirror image, and would be loaded as one that does not")
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
        try:
            save_config_for_hf(model, path, model_config=corrected, model_args=resolved)
        except ValueError as error:  # an argument that is a class or function
            raise ConfigurationError(
                f"{error} Build the network without it, or publish its ONNX file alone."
            ) from error
        text = path.read_text()
    checked(json.loads(text).get("model_args", {}), ARGUMENTS, "a checkpoint")  # or nobody could load it
    return text


def _check_same_branches(into: nn.Module, config: str) -> None:
    """Refuse weights of branches that see other views or meet otherwise, which the shapes of tensors do not tell.

    Raises:
        ConfigurationError: names in what they differ.
    """
    if not isinstance(into, CalibratedNetwork):
        return
    made = parsed(config, "its configuration").get("model_args")
    of_file, given = made if isinstance(made, dict) else {}, into.conversion.architecture()
    compared = {"mirrored": (of_file.get("mirrored", []), given.get("mirrored", []))}
    if given["branches"] > 1:  # one branch meets no other
        compared["merge"] = (of_file.get("merge", given["merge"]), given["merge"])
    for name, (theirs, ours) in compared.items():
        if theirs != ours:
            raise ConfigurationError(
                f"the checkpoint is of a network with {name}={theirs!r}, the one that is to have its weights has "
                f"{name}={ours!r}; build that with the same"
            )


def _are_all(values: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, dict) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values.values())


def _writer(texts: Mapping[str, str]) -> str:
    try:
        version = json.loads(texts["record"])["versions"]["ccnn-zoo"]
    except (ValueError, LookupError, TypeError, RecursionError):
        version = None
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else "of another version"
