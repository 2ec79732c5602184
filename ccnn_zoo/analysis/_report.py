"""The analysis of one trained network: run it on, compare with the theorem, write JSON and pictures."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ccnn_zoo._files import replacing
from ccnn_zoo._rebuild import check_builds
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import CHECKPOINT, Data, Recipe, build_model, data_to_open, evaluation_batches, load_data

from ._diversity import Diversity, branch_diversity, calibration_distance
from ._drawing import draw_bounds, draw_calibrations, draw_diversity
from ._theorem import BoundReport, compare_with_theorem
from ._trajectory import Trajectory, record_runs


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
