"""Error curves as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ccnn_zoo._files.figures import save_figure
from ccnn_zoo.errors import ConfigurationError

from ._history import History


def plot_curves(histories: Mapping[str, History], path: str | os.PathLike[str]) -> None:
    """Draw training (dashed) and test (solid) error over epochs of one or several networks, as Figure 2.

    Of detectors, it draws training loss (dashed) and mean average precision on the test images (solid).

    Args:
        histories: name in the legend to history.
        path: the PNG file, written atomically.

    Raises:
        ConfigurationError: there is nothing to draw.
        RepositoryError: the file cannot be written.
    """
    if not any(histories.values()):
        raise ConfigurationError("plot_curves needs at least one history with one epoch, got none")
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    draw_curves(figure.add_subplot(), histories)
    save_figure(figure, path)


def draw_curves(axes: Axes, histories: Mapping[str, History]) -> None:
    """Draw the curves of :func:`plot_curves` into a part of a picture."""
    right: Axes | None = None
    for number, (name, history) in enumerate(histories.items()):
        epochs = [result.epoch for result in history]
        tested = [(result.epoch, *judged) for result in history if (judged := result.judged("test"))]
        # One epoch alone would be an invisible line.
        style = {"color": f"C{number}", "marker": "o", "markersize": 3}
        quality = tested[-1][1] if tested else None
        # What is not measured in training as it is in the test has an axis of its own, beside the loss.
        beside = quality is not None and history[-1].judged("train") is None
        trained = [r.train_loss if beside else r.train_error_percent for r in history]
        axes.plot(epochs, trained, linestyle="--", label=f"{name}, training", **style)
        if beside:
            right = right or axes.twinx()
            right.set(ylabel=quality.axis, ylim=(0, 100))
        test = [value for _, _, value in tested]
        (right if beside else axes).plot([epoch for epoch, _, _ in tested], test, label=f"{name}, test", **style)
    axes.set(xlabel="epoch", ylabel="error (%)" if right is None else "loss (dashed)")
    axes.set_ylim(bottom=0)
    if right is not None:
        right.legend(loc="lower right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
