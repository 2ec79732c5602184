"""The demo's picture: error curves, digits with predictions, and the learned R as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ccnn_zoo._files.figures import save_figure
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.runtime import Classification
from ccnn_zoo.train import Data, History, TrainingResult, draw_curves

_DIGITS = (4, 8)  # rows and columns
_LAYERS = 5


def draw(
    path: Path,
    histories: Mapping[str, History],
    level: tuple[str, float],
    data: Data,
    results: Sequence[Classification],
    calibrated: TrainingResult,
) -> None:
    """Draw all three parts into one PNG file.

    Args:
        path: the file.
        histories: curves by name in the legend.
        level: name and test error in percent of what has no curve.
        data: the images of ``results`` and their true classes.
        results: classification of all test images.
        calibrated: the network whose R is shown.
    """
    figure = Figure(figsize=(13, 9), dpi=110, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 0.95))
    curves, digits = top.subfigures(1, 2)
    axes = curves.subplots()
    draw_curves(axes, histories)
    axes.axhline(level[1], color="black", linestyle=":", label=f"{level[0]}, test: {level[1]:.2f} %")
    axes.legend()
    axes.set_title(f"{data.name}: training and test error")
    _draw_digits(digits, data, results)
    _draw_calibration(bottom, calibrated)
    save_figure(figure, path)


def _draw_digits(figure: SubFigure, data: Data, results: Sequence[Classification]) -> None:
    """Show the wrongly classified images first, then the first of the others."""
    targets = data.test.targets.tolist()
    right = [result.predictions[0].index == target for result, target in zip(results, targets, strict=True)]
    rows, columns = _DIGITS
    shown = sorted(range(len(results)), key=right.__getitem__)[: rows * columns]
    figure.suptitle(
        f"Predictions of the ONNX network ({right.count(False)} of {len(right)} wrong, in red)", fontsize=12
    )
    for axes, i in zip(figure.subplots(rows, columns).flat, shown, strict=False):
        _show(axes, data.test[i][0], cmap="gray_r")
        top = results[i].predictions[0]
        text = f"{top.label} ({100 * top.probability:.0f} %)"
        if not right[i]:
            text = f"{top.label}, is {data.labels[targets[i]]}"
        axes.set_title(text, fontsize=8, color="black" if right[i] else "crimson")


def _draw_calibration(figure: SubFigure, calibrated: TrainingResult) -> None:
    """Show R_k, one row per layer and one column per branch, for layers spread over the depth."""
    layers = [
        (name, module)
        for name, module in calibrated.model.named_modules()
        if isinstance(module, CalibratedConv2d) and module.kernel_size != (1, 1)
    ]
    shown = [layers[round(i * (len(layers) - 1) / (_LAYERS - 1))] for i in range(_LAYERS)]
    branches = shown[0][1].branches
    figure.suptitle(
        "Learned calibration kernels R (rows: branches, columns: layers); they sum to 1, mean 1/K", fontsize=12
    )
    grid = figure.subplots(branches, _LAYERS, squeeze=False)
    highest = max(module.calibration.max().item() for _, module in shown)
    for column, (name, module) in enumerate(shown):
        for branch, kernel in enumerate(module.calibration.detach().numpy()):
            image = _show(grid[branch][column], kernel, cmap="viridis", vmin=0, vmax=highest)
            if column == 0:
                grid[branch][column].set_ylabel(f"k={branch + 1}")
        grid[0][column].set_title(name, fontsize=9)
    figure.colorbar(image, ax=list(grid.flat), shrink=0.9, label="R")


def _show(axes: Axes, pixels: object, **style: object) -> object:
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(pixels, **style)
