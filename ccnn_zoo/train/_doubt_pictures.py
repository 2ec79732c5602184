"""Pictures of what a network does not know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ccnn_zoo._files.figures import save_figure
from ccnn_zoo._printable import printable
from ccnn_zoo.uncertainty import Confidence, auroc, probabilities, reliability, risk_coverage

_COLUMNS = 5
_BARS = 25
_MOST_BRANCHES = 8
_LONGEST = 14  # letters of a label, beside a small picture


class Strange(NamedTuple):
    """A score of test pictures and of strange ones, (N,) each: the higher, the stranger."""

    name: str
    usual: NDArray[np.float64]
    strange: NDArray[np.float64]


class Doubtful(NamedTuple):
    """A test picture, uint8 (H, W, C): its class, what the network says with what probability, and each branch."""

    pixels: NDArray[np.uint8]
    label: str
    said: str
    probability: float
    branches: tuple[str, ...]


def draw_confidence(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    numbers: Confidence | None,
    scores: Strange,
    path: str | os.PathLike[str],
) -> None:
    """Draw reliability before and after the temperature, risk over coverage, and scores of strange pictures.

    Args:
        logits: of the test pictures, (N, classes).
        targets: their classes, (N,).
        numbers: fitted on held-out pictures; None where none were held out.
        scores: of these pictures and of strange ones.
        path: the PNG file, written atomically.
    """
    figure = Figure(figsize=(13, 4.2), dpi=100)
    reliable, risky, strange = figure.subplots(1, 3)
    figure.subplots_adjust(0.05, 0.12, 0.99, 0.86, wspace=0.18)
    ways = {"as trained": 1.0}
    if numbers is not None:
        ways[f"temperature {numbers.temperature:.2f}"] = numbers.temperature
    _draw_reliability(reliable, {name: probabilities(logits, t) for name, t in ways.items()}, targets)
    _draw_risk(risky, probabilities(logits, list(ways.values())[-1]), targets, numbers)
    _draw_strange(strange, scores)
    fitted = "no pictures were held out (validation: 0), so nothing was fitted"
    if numbers is not None:
        fitted = f"fitted on {numbers.pictures:,} held-out pictures"
    figure.suptitle(f"{len(targets):,} test pictures; {fitted}", fontsize=10)
    save_figure(figure, path)


def draw_doubtful(pictures: Sequence[Doubtful], path: str | os.PathLike[str]) -> None:
    """Draw pictures with what is said of them, the most doubtful first."""
    rows = -(-len(pictures) // _COLUMNS)
    figure = Figure(figsize=(2.9 * _COLUMNS, 0.5 + 1.45 * rows), dpi=100)
    axes = figure.add_axes((0.005, 0.005, 0.99, 0.99 - 0.4 / (0.5 + 1.45 * rows)))
    for number, picture in enumerate(pictures):
        left, top = 2 * (number % _COLUMNS), number // _COLUMNS
        grey = picture.pixels.shape[2] == 1
        axes.imshow(
            picture.pixels[:, :, 0] if grey else picture.pixels,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(left, left + 0.92, top + 0.92, top),
            interpolation="nearest",
            aspect="auto",
        )
        axes.text(left + 0.98, top + 0.46, _told(picture), fontsize=7.5, va="center", family="monospace")
    axes.set(xlim=(0, 2 * _COLUMNS), ylim=(rows, 0), aspect="auto")
    axes.set_axis_off()
    axes.set_title("The test pictures that are most in doubt, by entropy: class, answer, answers of the branches")
    save_figure(figure, path)


def _told(picture: Doubtful) -> str:
    right = "right" if picture.label == picture.said else "wrong"
    lines = [f"is {_short(picture.label)}", f"said {_short(picture.said)}", f"{picture.probability:.0%}, {right}"]
    lines += [f"{k}: {_short(said)}" for k, said in enumerate(picture.branches[:_MOST_BRANCHES])]
    left = len(picture.branches) - _MOST_BRANCHES
    return "\n".join([*lines, *([f"and {left} more"] if left > 0 else [])])


def _short(label: str) -> str:
    label = printable(label).replace("$", r"\$")  # matplotlib reads formulas between dollars
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def _draw_reliability(axes: Axes, ways: dict[str, NDArray[np.float64]], targets: NDArray[np.int64]) -> None:
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
    for name, probability in ways.items():
        found = reliability(probability, targets)
        label = f"{name}: ECE {100 * found.error:.2f} %"
        (line,) = axes.plot(found.probability, found.accuracy, linewidth=1, label=label)
        share = found.pictures / found.pictures.sum()
        axes.scatter(found.probability, found.accuracy, 8 + 160 * share, color=line.get_color(), alpha=0.7)
    axes.set(xlabel="highest probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.04))
    axes.set_title("Reliability; dots by their number of pictures", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.3)


def _draw_risk(
    axes: Axes, probability: NDArray[np.float64], targets: NDArray[np.int64], numbers: Confidence | None
) -> None:
    found = risk_coverage(probability, targets)
    axes.plot(100 * found.coverage, 100 * found.risk, label=f"AURC {100 * found.area:.2f} %")
    top = probability.max(1)
    for risk, threshold in {} if numbers is None else numbers.decide.items():
        decided = int((top >= threshold).sum()) if threshold is not None else 0
        if decided:
            label = f"asked {100 * float(risk):g} %: decides {100 * decided / len(top):.0f} %"
            axes.plot(100 * found.coverage[decided - 1], 100 * found.risk[decided - 1], "o", markersize=5, label=label)
    axes.set(xlabel="decided, the surest first (%)", ylabel="wrong of them (%)", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    axes.set_title("Risk over coverage", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    axes.grid(alpha=0.3)


def _draw_strange(axes: Axes, scores: Strange) -> None:
    edges = np.histogram_bin_edges(np.concatenate([scores.usual, scores.strange]), _BARS)
    for values, name in ((scores.usual, "test pictures"), (scores.strange, "their pixels shuffled")):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values, edges, weights=weights, alpha=0.6, label=name)
    area = auroc(scores.usual, scores.strange)
    axes.set(xlabel=scores.name, ylabel="share (%)")
    axes.set_title(f"Strange pictures: AUROC {100 * area:.1f} %", fontsize=10)
    axes.legend(fontsize=8)
