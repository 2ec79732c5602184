"""The cell of image classification: a recipe through ccnn_zoo.train, then its predictions kept and scored."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
import torch
from documents import replacing
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ccnn_zoo import fold
from ccnn_zoo.analysis import branch_diversity
from ccnn_zoo.errors import NonFiniteLossError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.train import Data, History, Images, Recipe, TrainingResult, build_model, load_data, train
from ccnn_zoo.train.tasks import loader_of, view_of

from . import _others, _variants
from ._cells import Record
from ._scores import scores

PREDICTIONS = "predictions.safetensors"
BUILDERS: dict[str, Callable[[Recipe, Data], nn.Module]] = {
    "ours": build_model,
    **_others.NETWORKS,
    "late_branches": _variants.late_branches,
    "free_calibration": _variants.free_calibration,
    "random_signs": _variants.random_signs,
    "learned_scales": _variants.learned_scales,
}


@dataclass(frozen=True)
class Training:
    """A training by a recipe; :class:`experiments._cells.Cell`.

    Args:
        recipe: what to train.
        network: name of what builds it, of :data:`BUILDERS`; others than ours have ``recipe.branches`` members.
    """

    recipe: Recipe
    network: str = "ours"

    @property
    def name(self) -> str:
        """Network, K, sigma and seed."""
        network = self.recipe.model.removeprefix("ccnn_") if self.network == "ours" else self.network
        member = f"-member{self.recipe.member}" if self.recipe.member else ""
        return f"{network}-k{self.recipe.branches}-sigma{self.recipe.noise_std:g}-seed{self.recipe.seed}{member}"

    def as_member(self, number: int) -> Self:
        """Return the training of a member of an ensemble."""
        return replace(self, recipe=replace(self.recipe, member=number))

    def settings(self) -> dict[str, Any]:
        """Return the decisive values; of the data's place its last name only, so that a moved copy stays the same."""
        values = self.recipe.decisive()
        kind, colon, place = values["data"].partition(":")
        member = self.recipe.member  # also 0, which a recipe leaves out
        return {**values, "data": f"{kind}{colon}{Path(place).name}", "network": self.network, "member": member}

    def run(self, folder: Path) -> dict[str, Any]:
        """Train and score. A loss that does not stay finite is a result too: ``{"diverged": why}``."""
        data = load_data(self.recipe.data, self.recipe.image_size)
        held_out = None
        if self.recipe.validation:
            data, held_out = data.hold_out(self.recipe.validation, self.recipe.seed)
        measured = {"data": sizes(data, held_out)}
        try:
            result = self._trained(folder)
        except NonFiniteLossError as error:
            return {**measured, "diverged": str(error), **_environment(folder)}
        found = {"test": _predictions(result.model, data.test, data, self.recipe)}
        if held_out is not None:
            found["validation"] = _predictions(result.model, held_out, data, self.recipe)
        with replacing(folder / PREDICTIONS) as temporary:
            save_file({f"{part}/{name}": v for part, pair in found.items() for name, v in pair.items()}, temporary)
        last = result.history[-1]
        return {
            **measured,
            **{part: scores(**pair) for part, pair in found.items()},
            "train": {"loss": last.train_loss, "error_percent": last.train_error_percent},
            "epochs": last.epoch,
            "iterations": last.step,
            "seconds": _training_seconds(result.history, self.recipe),
            **costs(result.model, data.input_size),
            **self._branches(result.model, data),
            **self._further(folder, result.model, data, held_out),
            **_environment(result.checkpoint.parent),
        }

    def _trained(self, folder: Path) -> TrainingResult:
        return train(self.recipe, folder, resume=True, progress=False, build=self._build)

    def _further(self, folder: Path, model: nn.Module, data: Data, held_out: Images | None) -> dict[str, Any]:
        """Return what else a kind of cell measures of the trained network."""
        return {}

    def _branches(self, model: nn.Module, data: Data) -> dict[str, Any]:
        """Return how far R moved and how far apart the branches are on test images, of our networks with K > 1."""
        if self.network != "ours" or self.recipe.branches == 1:
            return {}
        networks = (self._build(self.recipe, data), model)
        first, last = ([m for m in n.modules() if isinstance(m, CalibratedConv2d)] for n in networks)
        moved = [
            (a.calibration - b.calibration).detach().square().mean().sqrt() for a, b in zip(first, last, strict=True)
        ]
        found = branch_diversity(model, loader_of(view_of(data.test, data), self.recipe))
        return {
            "branches": {
                "r_moved_rms": float(torch.stack(moved).mean()),
                "r_distance": fmean(found.calibration_distance.values()),
                "disagreement_percent": 100 * found.disagreement,
                "error_alone_percent": fmean(found.branch_error_percent),
            }
        }

    def _build(self, recipe: Recipe, data: Data) -> nn.Module:
        return BUILDERS[self.network](recipe, data)


def predictions(record: Record, part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return log-probabilities (N, classes) and classes (N,) of ``"test"`` or ``"validation"``."""
    tensors = load_file(record.folder / PREDICTIONS)
    return tensors[f"{part}/log_probabilities"], tensors[f"{part}/targets"]


@torch.no_grad()
def _predictions(model: nn.Module, images: Images, data: Data, recipe: Recipe) -> dict[str, NDArray[Any]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    logits, targets = [], []
    for batch, classes in loader_of(view_of(images, data), recipe):
        logits.append(model(batch.to(device)).float().cpu())
        targets.append(classes)
    model.cpu()
    return {
        "log_probabilities": torch.cat(logits).log_softmax(1).numpy(),
        "targets": torch.cat(targets).numpy(),
    }


def sizes(data: Data, held_out: Images | None) -> dict[str, Any]:
    """Return the name of the data, their size and how many images each part has."""
    parts = {"train": data.train, "test": data.test, **({} if held_out is None else {"validation": held_out})}
    return {"name": data.name, "input_size": list(data.input_size), **{k: len(v) for k, v in parts.items()}}


def _training_seconds(history: History, recipe: Recipe) -> float | None:
    """Return the time of the training steps alone, by each epoch's throughput: true of resumed runs too.

    An epoch that a run resumed at its very end has no throughput, and counts as the others do on average; None if
    no epoch has one.
    """
    before = [0, *(result.step for result in history)]
    timed = [(r.step - b, r.images_per_second) for r, b in zip(history, before, strict=False) if r.images_per_second]
    if not timed:
        return None
    seconds = sum(steps * recipe.batch_size / throughput for steps, throughput in timed)
    return seconds * history[-1].step / sum(steps for steps, _ in timed)


def costs(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, int]:
    """Return the parameters of a network, trained and folded, and its multiply-adds for one image."""
    deployed = fold(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        deployed(torch.zeros(1, *input_size))
    return {
        "trained_parameters": sum(p.numel() for p in model.parameters()),
        "deployed_parameters": sum(p.numel() for p in deployed.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,  # it counts multiplications and additions
    }


def _environment(folder: Path) -> dict[str, Any]:
    """Return what the trainer wrote of versions and device, and what the time depends on beside."""
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    name = cpu_name() if environment["device"] == "cpu" else torch.cuda.get_device_name()
    return {"environment": {**environment, "device_name": name, "threads": torch.get_num_threads()}}


def cpu_name() -> str:
    """Return what the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
