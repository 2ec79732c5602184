"""The heat map of R on the model card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from ccnn_zoo._files.figures import save_figure
from ccnn_zoo.layers import CalibratedConv2d

_MOST_LAYERS, _MOST_BRANCHES = 8, 8


def draw_calibration(model: nn.Module, path: Path) -> None:
    """Draw the calibration kernels R of a network: a column for each of some layers, a row for each branch.

    Nothing is written where there is nothing to draw: a folded network has no R, that of a single branch is 1, and one
    number per branch is no picture.

    Args:
        model: the network.
        path: the PNG file.
    """
    kernels = _kernels(model)
    if not kernels:
        return
    shown = _evenly(list(kernels), _MOST_LAYERS)
    rows = min(_MOST_BRANCHES, max(len(kernels[name]) for name in shown))
    figure = Figure(figsize=(1.3 * len(shown) + 1.2, 1.3 * rows + 0.5), dpi=100, layout="constrained")
    grid = figure.subplots(rows, len(shown), squeeze=False)
    brightest = max(float(kernels[name].max()) for name in shown)
    for column, name in enumerate(shown):
        grid[0][column].set_title(name, fontsize=7)
        for branch, axes in enumerate(grid[:, column]):
            axes.set(xticks=[], yticks=[])
            if branch < len(kernels[name]):
                image = axes.imshow(kernels[name][branch], vmin=0, vmax=brightest, cmap="viridis")
    for branch in range(rows):
        grid[branch][0].set_ylabel(f"branch {branch}", fontsize=7)
    figure.colorbar(image, ax=grid, label="R", shrink=0.8)
    save_figure(figure, path)


def _kernels(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return R (K, kh, kw) by layer, where K and kh * kw are more than 1."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CalibratedConv2d)}
    kernels = {name: layer.calibration.detach().float().cpu().numpy() for name, layer in layers.items()}
    return {name: kernel for name, kernel in kernels.items() if len(kernel) > 1 and kernel[0].size > 1}


def _evenly(names: list[str], most: int) -> list[str]:
    """Return at most so many names, the first and the last among them."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
