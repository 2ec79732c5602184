"""Table 3 of the paper: ResNet-18 and its calibrated form on ImageNet."""

from __future__ import annotations

from collections.abc import Iterator

from ._cells import Records
from ._classification import Training
from ._document import Document, table
from ._plans import Plan, need_data
from ._statistics import Spread, difference, spread

PAPER = {1: {"error_percent": 30.7, "top5_error_percent": 10.8}, 2: {"error_percent": 29.2, "top5_error_percent": 10.3}}
LABELS = {1: "ResNet-18", 2: "CCNNs-18, K = 2"}


def training(plan: Plan, branches: int) -> Training:
    """Return the training with K branches, without its seed."""
    network = {"branches": branches, "noise_std": 1e-4 if branches > 1 else 0.0, "model_kwargs": {}}
    if not plan.full:
        network["model"] = "ccnn_resnet18_cifar"  # ImageNet's layout reduces 32 times, these images are smaller
    return plan.training("imagenet_table3", **plan.small_network(network))


def cells(plan: Plan) -> list[Training]:
    """Return both networks."""
    need_data(plan, "table3", "folder:IMAGENET")
    return plan.with_seeds([training(plan, branches) for branches in PAPER])


def report(plan: Plan, records: Records) -> Document:
    """Return both errors beside the paper's."""
    found = {
        (k, name): spread(records.of(plan.with_seeds([training(plan, k)])), "test", name)
        for k in PAPER
        for name in PAPER[k]
    }
    lines = [] if plan.full else [plan.warning("Table 3 is of ResNet-18 on ImageNet, 120 epochs."), ""]
    rows = [
        [
            LABELS[k],
            *(f"{found[k, name].text()} ({PAPER[k][name]:.1f})" for name in PAPER[k]),
            _size(plan, records, k),
        ]
        for k in PAPER
    ]
    lines += [
        "Error in percent of the test images (ImageNet: validation images); the paper's figure, 100 less its accuracy, "
        "in brackets.",
        "",
        *table(["", "top-1 error", "top-5 error", "trained parameters"], rows),
        "",
        *_findings(found),
    ]
    title = "Table 3: ImageNet" + ("" if plan.full else f", {plan.label}")
    return Document(f"table3{plan.suffix}", title, lines, records.of(cells(plan)))


def _size(plan: Plan, records: Records, branches: int) -> str:
    known = records.of(plan.with_seeds([training(plan, branches)]))
    return next((f"{r.measured['trained_parameters']:,}" for r in known if "seconds" in r.measured), "")


def _findings(found: dict[tuple[int, str], Spread]) -> Iterator[str]:
    for name, text in (("error_percent", "Top-1"), ("top5_error_percent", "Top-5")):
        gap = difference(found[2, name], found[1, name])
        yield f"- {text}, K = 2 less plain: {gap.text()}; in the paper {PAPER[2][name] - PAPER[1][name]:+.1f}."
