"""The analysis as pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ccnn_zoo._files.figures import save_figure

from ._diversity import Diversity
from ._theorem import BoundReport

COLUMNS = 4


def draw_calibrations(calibrations: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Draw R of every layer as a heat map: a row per branch and kernel position, a column per step.

    Args:
        calibrations: R by layer, (steps + 1, K, kh, kw).
        path: the PNG file, written atomically.
    """
    rows = -(-len(calibrations) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 0.6 + 2.4 * rows), dpi=100, layout="constrained")
    for number, (name, values) in enumerate(calibrations.items(), start=1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        branches, top = values.shape[1], max(values.max().item(), 1e-9)
        image = axes.imshow(values.flatten(1).T.numpy(), aspect="auto", interpolation="nearest", vmin=0, vmax=top)
        positions = values[0, 0].numel()
        axes.set_yticks([positions * (k + 0.5) - 0.5 for k in range(branches)], [f"R{k + 1}" for k in range(branches)])
        for k in range(1, branches):
            axes.axhline(positions * k - 0.5, color="white", linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        figure.colorbar(image, ax=axes)
    save_figure(figure, path)


def draw_bounds(bound: BoundReport, path: str | os.PathLike[str]) -> None:
    """Draw the constants C(i, j) over time, and the theorem's thresholds beside the measured deviations."""
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    over_time, against = figure.subplots(1, 2)
    over_time.plot(np.arange(1, len(bound.constants) + 1), bound.constants)
    over_time.set(xlabel="step j", ylabel="C(i, j-1), mean over i", title="Largest step of a weight over runs (Eq. 15)")
    over_time.set_ylim(bottom=0)
    against.plot(bound.threshold_sums, bound.totals, marker="o", label=r"bound $\sum a_i$ (Eq. 14)")
    shares = np.arange(len(bound.measured_sums), 0, -1) / len(bound.measured_sums)
    against.step(np.sort(bound.measured_sums), shares, where="pre", marker=".", label="measured, share of runs")
    against.set(xscale="log", xlabel=r"deviation, $\sum \lambda_i$", ylabel="probability", title="Theorem and runs")
    against.legend()
    save_figure(figure, path)


def draw_diversity(
    distances: Mapping[str, Sequence[float]], diversity: Diversity, path: str | os.PathLike[str]
) -> None:
    """Draw the distance of the R_k by layer over time, and the error of every branch beside the network's."""
    figure = Figure(figsize=(12, 4), dpi=100, layout="constrained")
    over_time, errors = figure.subplots(1, 2, width_ratios=(2, 1))
    for name, values in distances.items():
        over_time.plot(values, label=name)
    over_time.set(xlabel="step", ylabel="distance of two R_k, mean over pairs", title="Diversity of R")
    over_time.set_ylim(bottom=0)
    over_time.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    names = [f"branch {k + 1}" for k in range(len(diversity.branch_error_percent))]
    errors.bar([*names, "network"], [*diversity.branch_error_percent, diversity.error_percent])
    errors.set(ylabel="error (%)", title=f"two branches disagree on {100 * diversity.disagreement:.2f} %")
    errors.tick_params(axis="x", rotation=60)
    save_figure(figure, path)
