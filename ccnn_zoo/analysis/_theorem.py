"""The theorem of the paper against what runs from the same network did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._bounds import Array, lipschitz_constants, mean_tail_bound, tail_bound, threshold
from ._trajectory import Trajectory

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


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
