"""Figure 2 of the paper: error curves of ResNet-18 and CCNNs-18, from two cells of Table 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ccnn_zoo.train import read_history

from . import table1
from ._cells import Record, Records
from ._classification import Training
from ._document import Document
from ._plans import Plan, need_data
from ._statistics import Spread, difference

NETWORKS = {"ResNet-18 (K = 1, sigma = 0)": (1, 0.0), "CCNNs-18 (K = 4, sigma = 0.0001)": (4, 1e-4)}


def cells(plan: Plan) -> list[Training]:
    """Return the plain network and the calibrated one; Table 1 has the same cells."""
    need_data(plan, "figure2", "cifar10:FOLDER")
    return plan.with_seeds([table1.training(plan, *network) for network in NETWORKS.values()])


def report(plan: Plan, records: Records) -> Document:
    """Return the curves, and how far apart they are."""
    found = {
        label: [
            record
            for record in records.of(plan.with_seeds([table1.training(plan, *network)]))
            if "diverged" not in record.measured
        ]
        for label, network in NETWORKS.items()
    }
    name = f"figure2{plan.suffix}"
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (label, of_label) in enumerate(found.items()):
        _draw(axes, of_label, label, f"C{number}")
    axes.set(xlabel="epoch", ylabel="error (%)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    lines = [] if plan.full else [plan.warning("Figure 2 is of ResNet-18 on CIFAR-10."), ""]
    lines += [
        f"![Training and test error over epochs, plain and calibrated]({name}.png)",
        "",
        "Lines are means over seeds, bands reach from the lowest to the highest seed. Training error is that of the "
        "epoch's augmented batches as they were trained on, test error that after the epoch.",
        "",
        *_findings(list(found.values())),
    ]
    title = "Figure 2: error curves" + ("" if plan.full else f", {plan.label}")
    return Document(name, title, lines, records.of(cells(plan)), {f"{name}.png": figure})


def curve(record: Record, figure: str) -> dict[int, float]:
    """Return a figure of a training's history by epoch, where it was measured."""
    history = read_history(record.folder / "history.csv")
    return {result.epoch: value for result in history if (value := getattr(result, figure)) is not None}


def _draw(axes: Axes, records: Sequence[Record], label: str, colour: str) -> None:
    styles = {"train_error_percent": ("--", "training"), "test_error_percent": ("-", "test")}
    for figure, (line, part) in styles.items():
        curves = [curve(record, figure) for record in records]
        if not curves:
            continue
        epochs = list(curves[0])
        values = [[c[epoch] for c in curves] for epoch in epochs]
        style = {"color": colour, "linestyle": line, "marker": "o" if len(epochs) < 10 else None, "markersize": 3}
        axes.plot(epochs, [fmean(v) for v in values], label=f"{label}, {part}", **style)
        axes.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0)


def _findings(found: list[list[Record]]) -> Iterator[str]:
    plain, ours = found
    for figure, text in (("train_error_percent", "training"), ("test_error_percent", "test")):
        for moment, share in (("after a quarter of the run", 0.25), ("at its end", 1.0)):
            gap = difference(_at(ours, figure, share), _at(plain, figure, share))
            yield f"- {text.capitalize()} error {moment}, calibrated less plain: {gap.text()}."
    yield (
        "\nThe paper says that the calibrated network converges slightly faster, to lower training and test errors; a "
        "negative difference above agrees with it."
    )


def _at(records: Sequence[Record], figure: str, share: float) -> Spread:
    """Return the figure at the first epoch that was measured after a share of the run."""
    values = {}
    for record in records:
        points = curve(record, figure)
        wanted = share * max(points)
        values[record.settings["seed"]] = next(value for epoch, value in points.items() if epoch >= wanted)
    return Spread(values)
