"""Table 4 and Figure 3 of the paper: Faster R-CNN on plain and calibrated backbones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ccnn_zoo.detection import VOC_LABELS, load_detection_data
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import FEATURE_MERGES
from ccnn_zoo.pictures import read
from ccnn_zoo.train import Recipe

from ._cells import Record, Records
from ._detection import DetectorTraining, kept_detections
from ._document import Document, table
from ._plans import Plan
from ._statistics import Spread, difference, spread

# In percent: mAP, then the average precision of each class in the order of VOC_LABELS.
_ALEX = "51.5 56.4 63.6 47.2 34.3 31.3 54.0 69.4 60.6 31.0 56.3 47.4 56.2 68.6 62.2 60.0 26.5 50.6 40.0 59.6 54.4"
_ALEX_CCNN = "52.6 58.4 61.0 48.7 34.3 28.2 57.6 69.4 61.3 31.5 59.9 51.0 54.7 69.8 65.9 61.3 28.2 48.9 40.8 66.0 55.7"
_RES = "68.3 69.2 79.3 65.8 54.0 47.4 77.7 79.0 78.5 52.3 73.3 63.4 73.7 80.0 74.8 77.4 45.1 64.6 69.6 75.1 65.8"
_RES_CCNN = "68.71 71.5 78.5 63.3 54.7 47.9 78.1 80.3 75.8 52.8 73.1 63.5 73.7 81.2 74.4 77.1 43.6 63.9 68.9 76.4 67.5"
PAPER = {
    ("ccnn_alexnet", 1): tuple(map(float, _ALEX.split())),
    ("ccnn_alexnet", 2): tuple(map(float, _ALEX_CCNN.split())),
    ("ccnn_resnet18", 1): tuple(map(float, _RES.split())),
    ("ccnn_resnet18", 2): tuple(map(float, _RES_CCNN.split())),
}
WEIGHTS = {"ccnn_alexnet": "torchvision:alexnet", "ccnn_resnet18": "torchvision:resnet18"}
COLUMNS = (
    *("aero", "bic", "bir", "boa", "bot", "bus", "car", "cat", "cha", "cow"),
    *("dta", "dog", "hor", "mbi", "per", "pln", "she", "sof", "tra", "tv"),
)
SHORT = dict(zip(VOC_LABELS, COLUMNS, strict=True))
_HELD_OUT = 0.2
_SHOWN_FROM = 0.5


def training(plan: Plan, network: str, branches: int, **changes: object) -> DetectorTraining:
    """Return one training, without its seed."""
    name = "voc07_detection" if plan.full else "bccd_detection"
    recipe = Recipe.load(name)
    values = {"model": network, "branches": branches, "data": plan.data, **plan.overrides, **changes}
    if branches == 1:
        values["noise_std"] = 0.0
    if plan.full:
        values["model_kwargs"] = {**recipe.model_kwargs, "backbone_weights": WEIGHTS[network]}
    return DetectorTraining(replace(recipe, **values))


def networks(plan: Plan) -> list[tuple[str, int]]:
    """Return backbones with their K, the plain one first."""
    return [pair for pair in PAPER if plan.full or pair[0] == "ccnn_resnet18"]


def cells(plan: Plan) -> list[DetectorTraining]:
    """Return all trainings, the table's first, then those by which the merge is chosen."""
    if plan.size == "quick" or plan.kind not in ("voc", "coco"):
        raise ConfigurationError(
            "table4 needs pictures with boxes: --voc FOLDER for the paper's recipe, --small --voc FOLDER for BCCD's"
        )
    return [*plan.with_seeds([training(plan, *pair) for pair in networks(plan)]), *merge_cells(plan)]


def merge_cells(plan: Plan) -> list[DetectorTraining]:
    """Return trainings that hold out pictures, one for each way in which branches meet."""
    return plan.with_seeds([training(plan, "ccnn_resnet18", 2, merge=m, validation=_HELD_OUT) for m in FEATURE_MERGES])


def report(plan: Plan, records: Records) -> Document:
    """Return the table, the paper's beside it, and pictures as in Figure 3."""
    found = {pair: records.of(plan.with_seeds([training(plan, *pair)])) for pair in networks(plan)}
    lines = [] if plan.full else [*_warning(plan), ""]
    lines += [*_figures(found), "", *_by_class(found), "", "## What it shows", "", *_findings(found)]
    lines += ["", "## How branches meet", "", *_merges(plan, records), "", "## Beside the paper", "", *_paper()]
    pictures = {}
    last = next((records_[0] for records_ in reversed(found.values()) if records_), None)
    if last is not None and "seconds" in last.measured:
        name = "table4.png" if plan.full else "detection.png"
        pictures[name] = _picture(last, plan.data)
        lines += ["", "## Pictures", "", f"![Detections on test pictures]({name})", "", _caption(last)]
    title = "Table 4: detection" + ("" if plan.full else f", a small network on {Path(plan.data).name}")
    return Document("table4" if plan.full else "detection", title, lines, records.of(cells(plan)), pictures)


def _warning(plan: Plan) -> list[str]:
    recipe = training(plan, "ccnn_resnet18", 2).recipe
    return [
        "**Not the paper's experiment.** Table 4 is of PASCAL VOC 2007 and of backbones trained on ImageNet; neither "
        f"was at hand. Here a narrow ResNet-18-D (channels {recipe.model_kwargs['backbone_kwargs']['channels']}) was "
        f"trained from scratch on {Path(plan.data).name}, pictures brought to a short side of "
        f"{recipe.model_kwargs['min_size']} pixels, for {recipe.epochs} epochs. Where VOC2007 is: "
        "`python scripts/reproduce.py table4 --voc FOLDER` runs the paper's recipe on it.",
    ]


def _figures(found: dict[tuple[str, int], list[Record]]) -> list[str]:
    paths = {
        "mAP, 11 points": ("map_percent",),
        "mAP, area": ("area_map_percent",),
        "COCO AP50": ("coco", "AP50"),
        "COCO AP": ("coco", "AP"),
    }
    rows = []
    for (network, branches), records in found.items():
        values = [spread(records, "test", *path).text() for path in paths.values()]
        size = next((f"{r.measured['trained_parameters']:,}" for r in records if "seconds" in r.measured), "")
        seconds = spread(records, "seconds").text(0)
        rows.append([network, str(branches), *values, size, seconds])
    head = ["backbone", "K", *paths, "trained parameters", "seconds of steps"]
    return [
        "Percent of the test pictures' objects, at an IoU of 0.5; COCO AP is the mean over IoU 0.5 to 0.95.",
        "",
        *table(head, rows),
    ]


def _by_class(found: dict[tuple[str, int], list[Record]]) -> Iterator[str]:
    labels = next((r.measured["labels"] for records in found.values() for r in records), [])
    rows = []
    for (network, branches), records in found.items():
        ended = [r.measured["test"]["eleven_point"] for r in records if "seconds" in r.measured]
        means = [_mean([values[n] for values in ended]) for n in range(len(labels))]
        rows.append([network, str(branches), *("" if isnan(m) else f"{100 * m:.1f}" for m in means)])
    yield "Average precision by class, 11 points, mean over the seeds:"
    yield ""
    yield from table(["backbone", "K", *(SHORT.get(label, label) for label in labels)], rows)


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else nan


def _findings(found: dict[tuple[str, int], list[Record]]) -> Iterator[str]:
    for network in dict.fromkeys(name for name, _ in found):
        for path, name in (("map_percent", "11 points"), ("area_map_percent", "area")):
            plain, calibrated = (spread(found[network, k], "test", path) for k in (1, 2))
            gap = difference(calibrated, plain)
            paper = PAPER[network, 2][0] - PAPER[network, 1][0]
            told = f"; in the paper, on VOC2007, {paper:+.2f}" if path == "map_percent" else ""
            yield f"- {network}, mAP by {name}, K = 2 less plain: {gap.text()}{told}."
    seeds = max((len(records) for records in found.values()), default=0)
    yield f"\nThe paper gives one figure per row and no spread; here are {seeds} seeds."


def _merges(plan: Plan, records: Records) -> Iterator[str]:
    found = {}
    for merge in FEATURE_MERGES:
        cell = training(plan, "ccnn_resnet18", 2, merge=merge, validation=_HELD_OUT)
        found[merge] = spread(records.of(plan.with_seeds([cell])), "validation", "map_percent")
    if not any(each.values for each in found.values()):
        yield "Not run: the default of `create_detector`, the mean, is a choice without a measurement."
        return
    yield f"mAP (11 points) on {100 * _HELD_OUT:.0f} % of the training pictures, held out, K = 2:"
    yield ""
    yield from table(["merge", "mAP", "seeds"], [[m, f.text(), str(len(f.values))] for m, f in found.items()])
    yield ""
    yield from (f"- {m} less mean: {_gap(found[m], found['mean'])}." for m in FEATURE_MERGES if m != "mean")


def _gap(one: Spread, other: Spread) -> str:
    return difference(one, other).text()


def _paper() -> Iterator[str]:
    yield "Table 4 of the paper, PASCAL VOC 2007, mAP and AP in percent:"
    yield ""
    rows = [[network, str(k), *(f"{v:g}" for v in values)] for (network, k), values in PAPER.items()]
    yield from table(["backbone", "K", "mAP", *COLUMNS], rows)
    yield ""
    yield (
        'The paper does not say K here. It says "K=4" of "all the following experiments" earlier, but its ImageNet '
        "networks, on which detectors are built, have K = 2; so K = 2 stands for its CCNNs."
    )


def _picture(record: Record, data: str) -> Figure:
    """Return four test pictures, the annotated objects dashed and the detections drawn through."""
    loaded = load_detection_data(data, skip_bad_annotations=True)
    detections = kept_detections(record)
    figure = Figure(figsize=(9, 7), dpi=60, layout="constrained")
    chosen = range(0, len(loaded.test), max(1, len(loaded.test) // 4))[:4]
    for axes, number in zip(figure.subplots(2, 2).flat, chosen, strict=False):
        picture, found = loaded.test[number], detections[number]
        axes.imshow(read(picture.path))
        axes.set_axis_off()
        axes.set_title(picture.path.name, fontsize=8)
        for box, label in zip(picture.boxes, picture.labels, strict=True):
            _draw(axes, box, label, "--", "")
        for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
            if score >= _SHOWN_FROM:
                _draw(axes, box, label, "-", f"{loaded.labels[int(label) - 1]} {score:.2f}")
    return figure


def _draw(axes: object, box: object, label: int, style: str, text: str) -> None:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    colour = f"C{int(label) - 1}"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style))
    if text:
        axes.text(x1 + 2, y1 + 2, text, fontsize=6, va="top", color="white", backgroundcolor=colour)


def _caption(record: Record) -> str:
    return (
        f"Test pictures, evenly spaced through the list, by the detector of K = {record.settings['branches']}, seed "
        f"{record.settings['seed']}: detections of a score of {_SHOWN_FROM} and more drawn through, annotations dashed."
    )
