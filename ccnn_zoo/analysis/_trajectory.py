"""How w and R move, step by step: a recorder on an optimizer, and several short runs from one network."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ccnn_zoo.errors import ConfigurationError, NonFiniteLossError
from ccnn_zoo.train import Data, Recipe, build_optimizer
from ccnn_zoo.train.tasks import view_of

from ._diversity import calibrated_layers


@dataclass(frozen=True)
class Trajectory:
    """Values before the first and after every step of one run.

    Args:
        weights: sampled values of w, (steps + 1, coordinates).
        calibrations: R by layer, (steps + 1, K, kh, kw).
        losses: training loss of every step, as far as it is known.
    """

    weights: Tensor
    calibrations: dict[str, Tensor]
    losses: tuple[float, ...] = ()


class Recorder:
    """Records w and R after every step of an optimizer: ``with Recorder(model, optimizer) as recorder: ...``.

    Args:
        model: the network, with at least one calibrated convolution.
        optimizer: any that moves its parameters.
        coordinates: how many values of w to follow, drawn from all layers alike; all where there are fewer. R is
            followed whole.
        seed: seed of that draw.

    Raises:
        ConfigurationError: the network has no calibrated convolution, or ``coordinates`` is below 1.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, coordinates: int = 256, seed: int = 0) -> None:
        if coordinates < 1:
            raise ConfigurationError(f"coordinates must be at least 1, got {coordinates!r}")
        self._layers, self._optimizer = calibrated_layers(model), optimizer
        weights = [layer.weight for layer in self._layers.values()]
        ends = np.cumsum([w.numel() for w in weights])
        drawn = np.random.default_rng(seed).choice(ends[-1], min(coordinates, ends[-1]), replace=False)
        parts = np.split(np.sort(drawn), np.searchsorted(np.sort(drawn), ends[:-1]))
        self._indices = [
            torch.from_numpy(part - (end - w.numel())).to(w.device)
            for part, end, w in zip(parts, ends, weights, strict=True)
        ]
        self._weights: list[Tensor] = []
        self._calibrations: list[list[Tensor]] = []

    def __enter__(self) -> Recorder:
        self._record()
        self._hook = self._optimizer.register_step_post_hook(lambda *_: self._record())
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    @torch.no_grad()
    def _record(self) -> None:
        layers = self._layers.values()
        values = [layer.weight.flatten()[i] for layer, i in zip(layers, self._indices, strict=True)]
        self._weights.append(torch.cat(values).float().cpu())
        self._calibrations.append([layer.calibration.to("cpu", torch.float32, copy=True) for layer in layers])

    def trajectory(self, losses: tuple[float, ...] = ()) -> Trajectory:
        """Return what was recorded so far."""
        by_layer = [torch.stack(values) for values in zip(*self._calibrations, strict=True)]
        return Trajectory(torch.stack(self._weights), dict(zip(self._layers, by_layer, strict=True)), losses)


def record_runs(
    model: nn.Module, recipe: Recipe, data: Data, *, runs: int, steps: int, coordinates: int = 256
) -> list[Trajectory]:
    """Train copies of ``model`` for a few steps each and record them; ``model`` itself is left as it is.

    The runs differ in their batches, drawn with replacement and augmented as the recipe says, and in CSGD's noise.

    Args:
        model: where every run starts.
        recipe: batch size, augmentation and the optimizer's values; ``lr`` stays constant, ``seed`` is that of the
            first run.
        data: its training images.
        runs: number of runs.
        steps: steps of each.
        coordinates: values of w to follow, the same in all runs.

    Raises:
        ConfigurationError: ``runs`` or ``steps`` is below 1.
        NonFiniteLossError: a run diverged.
    """
    for name, value in (("runs", runs), ("steps", steps)):
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {value!r}")
    return [_record_run(deepcopy(model), recipe, data, recipe.seed + run, steps, coordinates) for run in range(runs)]


def _record_run(model: nn.Module, recipe: Recipe, data: Data, seed: int, steps: int, coordinates: int) -> Trajectory:
    recipe = replace(recipe, seed=seed)
    optimizer, view = build_optimizer(recipe, model.train()), view_of(data.train, data, recipe)
    chosen = np.random.default_rng(seed).integers(len(data.train), size=(steps, recipe.batch_size))
    losses = []
    with Recorder(model, optimizer, coordinates) as recorder:
        for step, indices in enumerate(chosen.tolist(), start=1):
            view.start_epoch(step)
            images, targets = view.__getitems__(indices)
            loss = F.cross_entropy(model(images), targets)
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise NonFiniteLossError(f"the loss became {losses[-1]} in step {step}; give a smaller lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return recorder.trajectory(tuple(losses))
