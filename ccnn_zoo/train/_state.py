"""The state of a running training: all that a run needs to go on as if it had never stopped.

One safetensors file per saved step, ``resume/step-00000351.safetensors``, with a sum over everything. Nothing random
is in it but the generator of CSGD's noise: order, augmentation and dropout are functions of seed and step.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccnn_zoo._files.sealed import read_sealed, write_sealed
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

from ._history import EpochResult, History

FOLDER = "resume"


@dataclass(frozen=True)
class RunState:
    """A run between two optimizer steps.

    Args:
        recipe: the resolved values of the run.
        versions: package name to version.
        step: optimizer steps done.
        lr: learning rate of the last of them.
        sums: loss, misses and images of the epoch that is under way (:class:`ccnn_zoo.train._meter.Meter`).
        history: epochs that were evaluated.
        parts: state dicts by name: network, optimizer, average, scaler.
    """

    recipe: dict[str, Any]
    versions: dict[str, str]
    step: int
    lr: float
    sums: tuple[float, int, int]
    history: History
    parts: dict[str, Any]


class StateFolder:
    """The last few states of the run in one output folder.

    Args:
        output: the folder of the run.
        keep: number of states that stay; older ones are removed once a newer one is whole.
    """

    def __init__(self, output: Path, keep: int) -> None:
        self.path, self._keep = output / FOLDER, keep
        self._ours: list[Path] = []

    def save(self, state: RunState) -> Path:
        """Write a state, then remove all but the last ``keep`` of this run.

        Raises:
            RepositoryError: it cannot be written; the states before are kept.
        """
        path = self.file_of(state.step)
        tensors, parts = _encoded(state.parts)
        values = {**vars(state), "history": [asdict(result) for result in state.history], "parts": parts}
        write_sealed(path, tensors, {"state": json.dumps(values)})
        # Only now, so that what an earlier run left is there until this one can replace it.
        self._ours = [*(p for p in self._ours if p != path), path][-self._keep :]
        for old in self.path.glob("*.safetensors"):
            if old not in self._ours:
                old.unlink(missing_ok=True)
        return path

    def newest(self, recipe: Mapping[str, Any]) -> RunState | None:
        """Return the newest state that is whole, or None if the folder has no file.

        Args:
            recipe: values that the state must have been made with.

        Raises:
            ConfigurationError: a state was made with other values; names them.
            IntegrityError: there are states, and all of them are damaged.
        """
        paths = sorted(self.path.glob("step-*.safetensors"), reverse=True)
        for number, path in enumerate(paths):
            try:
                state = load_state(path)
            except IntegrityError as error:
                warnings.warn(f"{error}. The state before it is used.", RuntimeWarning, stacklevel=2)
                continue
            _require_same(recipe, state.recipe, path)
            self._ours = paths[number:][::-1]
            return state
        if paths:
            raise IntegrityError(f"all {len(paths)} states in {self.path} are damaged; train anew, without resume")
        return None

    def at(self, step: int) -> RunState:
        """Return the state of a step that another process of the same run has found.

        Raises:
            RepositoryError: it is not here.
        """
        if not self.file_of(step).is_file():
            raise RepositoryError(
                f"no {self.file_of(step)}: all processes must see one output folder; put it on a shared disk"
            )
        return load_state(self.file_of(step))

    def file_of(self, step: int) -> Path:
        """Return the file of the state after ``step`` steps."""
        return self.path / f"step-{step:08d}.safetensors"


def load_state(path: Path) -> RunState:
    """Read one state.

    Raises:
        IntegrityError: it is damaged, or of a version that wrote it otherwise.
    """
    tensors, texts = read_sealed(path, ("state",), "a state of a training run")
    try:
        values = json.loads(texts["state"])
        values["history"] = tuple(EpochResult(**result) for result in values["history"])
        return RunState(**{**values, "sums": tuple(values["sums"]), "parts": _decoded(values["parts"], tensors)})
    except (TypeError, KeyError, ValueError) as error:
        raise IntegrityError(f"{path} was written by another version ({error}); train anew, without resume") from error


def _require_same(asked: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    names = sorted({*asked, *found})
    changed = [name for name in names if asked.get(name) != found.get(name)]
    if changed:
        listed = ", ".join(f"{name}={found.get(name)!r}, not {asked.get(name)!r}" for name in changed)
        raise ConfigurationError(
            f"{path} is of a run with {listed}. Resume with the values of recipe.yaml beside it, or train anew in "
            "another folder."
        )


def _encoded(value: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors in nested dicts and lists, and JSON that says where each belongs."""
    tensors: dict[str, Tensor] = {}

    def encode(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach().cpu()
            return {"tensor": name, "strides": list(value.stride())}
        if isinstance(value, Mapping):  # as pairs: JSON would turn an optimizer's integer keys into text
            return {"pairs": [[key, encode(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [encode(item) for item in value]
        return value

    return tensors, encode(value)


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if isinstance(value, dict) and "tensor" in value:
        tensor = tensors[value["tensor"]]
        # The layout too: a kernel may round otherwise in another one.
        return torch.empty_strided(tensor.shape, value["strides"], dtype=tensor.dtype).copy_(tensor)
    if isinstance(value, dict):
        return {key: _decoded(item, tensors) for key, item in value["pairs"]}
    return value
