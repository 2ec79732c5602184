"""The analysis of one trained network: run it on, compare with the theorem, write JSON and pictures."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ccnn_zoo._files import replacing
from ccnn_zoo._rebuild import check_builds
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import CHECKPOINT, Data, Recipe, build_model, data_to_open, evaluation_batches, load_data

from ._bounds import Array, lipschitz_constants, mean_tail_bound, tail_bound, threshold
from ._diversity import Diversity, branch_diversity, calibration_distance
from ._pictures import draw_bounds, draw_calibrations, draw_diversity
from ._trajectory import Trajectory, record_runs

TOTALS = (1.0, 0.5, 0.1, 0.05, 0.01)
"""Values of sum a_i at which the theorem is compared with what was measured."""


@dataclass(frozen=True)
class BoundReport:
    """The theorem (Eq. 14 to 17) against several runs from the same network.

    Every row takes the same a_i for all coordinates, which gives lambda_i by Eq. 16. E of the average over steps is
    estimated by the mean over runs, so the deviations are those from it, larger by ``sqrt(runs / (runs - 1))`` to
    allow for the estimate.

    Args:
        constants: C(i, j) of Eq. 15, the largest step of a coordinate over the runs: mean over coordinates, by step.
        totals: sum a_i of Eq. 14, the bound on the probability.
        threshold_sums: sum of lambda_i in every row, in the unit of w.
        measured_sums: ``|mean(Y) - E(mean(Y))|`` of every run, summed over the coordinates as Lemma 1 does.
        measured_shares: share of the runs with a measured sum at or above the threshold, by row.
        coordinate_bounds: a_i in every row, after Eq. 16.
        coordinate_mean_bounds: the same for the average itself, mean over coordinates.
        coordinate_shares: share of (run, coordinate) with a deviation at or above lambda_i, by row.
        largest_threshold: the largest lambda_i by row; the theorem asks for at most 1.
    """

    constants: tuple[float, ...]
    totals: tuple[float, ...]
    threshold_sums: tuple[float, ...]
    measured_sums: tuple[float, ...]
    measured_shares: tuple[float, ...]
    coordinate_bounds: tuple[float, ...]
    coordinate_mean_bounds: tuple[float, ...]
    coordinate_shares: tuple[float, ...]
    largest_threshold: tuple[float, ...]


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` finds.

    Args:
        source: the checkpoint.
        settings: runs, steps, coordinates, lr, and where the runs started.
        bound: the theorem against the runs.
        diversity: of the network in the checkpoint.
        calibration_distance: of every layer, mean distance of two R_k before the first and after every step of the
            first run.
        calibrations: R of every layer, (K, kh, kw), before the first and after the last step of that run.
        losses: training loss by run and step.
    """

    source: str
    settings: dict[str, Any]
    bound: BoundReport
    diversity: Diversity
    calibration_distance: dict[str, tuple[float, ...]]
    calibrations: dict[str, tuple[Any, Any]]
    losses: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        return asdict(self)


def analyze(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | None = None,
    runs: int = 8,
    steps: int = 40,
    lr: float | None = None,
    coordinates: int = 256,
    from_scratch: bool = False,
) -> Analysis:
    """Run a trained network on for a few steps, several times, and hold the paper's theory against it.

    Args:
        source: a checkpoint or training folder.
        output: folder for ``analysis.json``, ``bounds.png``, ``calibration.png`` and ``diversity.png``.
        data: what ``load_data`` takes; None is digits, where the checkpoint says that it was trained on them. Other
            data are not opened because a file names them.
        runs: runs, which differ in batches and noise.
        steps: steps of each.
        lr: learning rate, constant; None is a tenth of the recipe's, or the recipe's from scratch.
        coordinates: values of w that are followed.
        from_scratch: start from the network as its training did, instead of as it ended.

    Raises:
        RepositoryError: there is no checkpoint, or the output cannot be written.
        IntegrityError: the checkpoint is damaged.
        ConfigurationError: the network has no branches to analyse, there are fewer than two runs, the data are not
            named or cannot be had, or the checkpoint holds no recipe, or that of another network.
        NonFiniteLossError: a run diverged.
    """
    if runs < 2:
        raise ConfigurationError(f"runs must be at least 2 to have a mean and deviations from it, got {runs!r}")
    path = Path(source)
    model, record = load_checkpoint(path / CHECKPOINT if path.is_dir() else path)
    named = data_to_open(data, record.recipe.get("data"), path)
    recipe = Recipe.from_mapping({**record.recipe, **({"data": named} if named else {})}, f"the recipe in {source}")
    images = load_data(recipe.data, recipe.image_size)
    if from_scratch:
        check_builds(lambda: build_model(recipe, images), model.state_dict())
    start = build_model(recipe, images) if from_scratch else model
    recipe = replace(recipe, lr=lr if lr is not None else recipe.lr * (1.0 if from_scratch else 0.1))
    trajectories = record_runs(start, recipe, images, runs=runs, steps=steps, coordinates=coordinates)
    settings = {"runs": runs, "steps": steps, "coordinates": trajectories[0].weights.shape[1], "lr": recipe.lr}
    settings |= {"start": "from scratch" if from_scratch else "from the checkpoint", "data": images.name}
    analysis = _analysis(str(source), settings, model, images, trajectories)
    _write(analysis, trajectories[0], Path(output))
    return analysis


def compare_with_theorem(trajectories: list[Trajectory]) -> BoundReport:
    """Return the theorem of the paper against runs of the same length from the same network."""
    values = torch.stack([trajectory.weights for trajectory in trajectories]).double().numpy()
    constants, deviations = lipschitz_constants(values), mean_deviations(values)
    sums, dimensions = np.abs(deviations).sum(axis=1), deviations.shape[1]
    bounds = [total / dimensions for total in TOTALS]
    limits = [threshold(bound, constants) for bound in bounds]
    return BoundReport(
        constants=_floats(constants.mean(axis=1)),
        totals=TOTALS,
        threshold_sums=_floats([limit.sum() for limit in limits]),
        measured_sums=_floats(sums),
        measured_shares=_floats([(sums >= limit.sum()).mean() for limit in limits]),
        coordinate_bounds=_floats([tail_bound(limit, constants).mean() for limit in limits]),
        coordinate_mean_bounds=_floats([mean_tail_bound(limit, constants).mean() for limit in limits]),
        coordinate_shares=_floats([(np.abs(deviations) >= limit).mean() for limit in limits]),
        largest_threshold=_floats([limit.max() for limit in limits]),
    )


def mean_deviations(values: Array) -> Array:
    """Return Z of Eq. 16 by run and coordinate: the average over steps, less its mean over the runs.

    Args:
        values: before the first and after every step, (runs, n + 1, dimensions).
    """
    averages = values[:, 1:].mean(axis=1)
    # A deviation from the mean of the same runs is too small by this much, root mean square.
    return (averages - averages.mean(axis=0)) * np.sqrt(len(values) / (len(values) - 1))


def _analysis(
    source: str, settings: dict[str, Any], model: nn.Module, data: Data, trajectories: list[Trajectory]
) -> Analysis:
    first = trajectories[0].calibrations
    return Analysis(
        source=source,
        settings=settings,
        bound=compare_with_theorem(trajectories),
        diversity=branch_diversity(model, evaluation_batches(data)),
        calibration_distance={name: tuple(map(calibration_distance, r)) for name, r in first.items()},
        calibrations={name: (r[0].tolist(), r[-1].tolist()) for name, r in first.items()},
        losses=tuple(trajectory.losses for trajectory in trajectories),
    )


def _write(analysis: Analysis, first: Trajectory, output: Path) -> None:
    draw_bounds(analysis.bound, output / "bounds.png")
    draw_calibrations(first.calibrations, output / "calibration.png")
    draw_diversity(analysis.calibration_distance, analysis.diversity, output / "diversity.png")
    with replacing(output / "analysis.json") as path:
        path.write_text(json.dumps(analysis.to_dict(), indent=1) + "\n", encoding="utf-8")


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
