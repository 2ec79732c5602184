"""Table 2 of the paper: parameters of the networks, which are facts, and their errors, which are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

from ccnn_zoo import fold
from ccnn_zoo.layers import CalibratedConv2d

from ._cells import Records
from ._classification import Training
from ._document import Document, table
from ._plans import Plan, need_data
from ._statistics import Spread, difference, spread


@dataclass(frozen=True)
class Row:
    """A line of the paper's table.

    Args:
        method: its name there.
        model: our network.
        branches: K; 1 is the plain network.
        parameters: the paper's, in millions; None where it prints none.
        error: the paper's on CIFAR-10, in percent.
        error_100: the same on CIFAR-100.
        relative: what makes a small relative of the network; empty if there is none.
        kernels: the paper's "network stage kernels": channels of the stem and of the stages.
    """

    method: str
    model: str
    branches: int
    parameters: float | None
    error: float
    error_100: float
    relative: dict[str, Any] = field(default_factory=dict)
    kernels: tuple[int, ...] = ()


ROWS = (
    Row("NIN", "ccnn_nin", 1, None, 8.81, 35.67),
    Row("VGG", "ccnn_vgg16", 1, None, 6.32, 28.49),
    Row("ResNet-110", "ccnn_resnet110_cifar", 1, 1.7, 6.43, 25.16, {"layers": [1, 1, 1]}, (16, 16, 32, 64)),
    Row("ResNet-1202", "ccnn_resnet1202_cifar", 1, 10.2, 7.83, 27.82, {"layers": [2, 2, 2]}, (16, 16, 32, 64)),
    Row("WRN-40", "ccnn_wrn40_4", 1, 8.9, 4.53, 21.18, {"depth": 10, "width": 1}, (64, 64, 128, 256)),
    Row("WRN-28", "ccnn_wrn28_10", 1, 36.5, 4.00, 19.25, {"depth": 10, "width": 2}, (160, 160, 320, 640)),
    Row("CCNNs2-40", "ccnn_wrn40_4", 2, 17.9, 4.62, 21.67, {"depth": 10, "width": 1}, (16, 64, 128, 256)),
    Row("CCNNs3-28", "ccnn_wrn28_4", 3, 17.6, 3.81, 19.11, {"depth": 10, "width": 1}, (64, 64, 128, 256)),
)
COMPARED = (("CCNNs2-40", "WRN-40"), ("CCNNs3-28", "WRN-28"))
CLASSES = 10


def training(plan: Plan, row: Row) -> Training:
    """Return the training of one line, without its seed."""
    network = plan.small_network({"model": row.model, "branches": row.branches, "model_kwargs": {}}, row.relative)
    if row.branches == 1:
        network["noise_std"] = 0.0  # "sigma = 0 denoting the original ResNets"
    return plan.training("cifar10_table1", **network)


def trained_rows(plan: Plan) -> list[Row]:
    """Return the lines that are trained: in other sizes those that have small relatives."""
    return [row for row in ROWS if plan.full or row.relative]


def cells(plan: Plan) -> list[Training]:
    """Return one training per line."""
    need_data(plan, "table2", "cifar10:FOLDER")
    return plan.with_seeds([training(plan, row) for row in trained_rows(plan)])


def report(plan: Plan, records: Records) -> Document:
    """Return the counts, the errors, and what both show."""
    errors = {
        row.method: spread(records.of(plan.with_seeds([training(plan, row)])), "test", "error_percent")
        for row in trained_rows(plan)
    }
    lines = [
        "## Parameters",
        "",
        f"In millions, {CLASSES} classes, counted in the networks of the zoo. Without R: trained, R left out, as the "
        "paper says it counts. Deployed: with the effective kernels in place of w and R.",
        "",
        *_parameters(),
        "",
        "## Errors",
        "",
        *([] if plan.full else [plan.warning("Table 2 is of these networks on CIFAR-10 and CIFAR-100."), ""]),
        *_errors(plan, records, errors),
        "",
        *_findings(errors),
    ]
    title = "Table 2: parameters and errors" + ("" if plan.full else f", {plan.label}")
    return Document(f"table2{plan.suffix}", title, lines, records.of(cells(plan)))


def counts(row: Row, mixing: str, **kwargs: Any) -> tuple[int, int]:
    """Return the parameters of a network without R, and those of its folded form.

    Args:
        row: of the table.
        mixing: of the branches.
        kwargs: further arguments of the network.
    """
    options = {"branches": row.branches, "num_classes": CLASSES, "mixing": mixing, **kwargs}
    model = timm.create_model(row.model, device="meta", **options)
    calibrations = sum(m.calibration.numel() for m in model.modules() if isinstance(m, CalibratedConv2d))
    return _count(model) - calibrations, _count(fold(model))


def stage_kernels(row: Row) -> tuple[int, ...]:
    """Return the channels of one branch in the stem and in the stages of our network."""
    model = timm.create_model(row.model, branches=1, device="meta", features_only=True)
    return tuple(model.feature_info.channels())


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _parameters() -> Iterator[str]:
    head = ["method", "network", "K", "paper", "without R, grouped", "deployed, grouped"]
    found = {(row.method, mixing): counts(row, mixing) for row in ROWS for mixing in ("grouped", "dense")}
    lines = []
    for row in ROWS:
        grouped, dense = ([f"{n / 1e6:.2f}" for n in found[row.method, m]] for m in ("grouped", "dense"))
        printed = "" if row.parameters is None else f"{row.parameters:.1f}"
        other = dense if row.branches > 1 else ["the same", "the same"]
        lines.append([row.method, f"`{row.model}`", str(row.branches), printed, *grouped, *other])
    yield from table([*head, "without R, dense", "deployed, dense"], lines)
    yield ""
    for row in ROWS:
        if row.parameters is None:
            continue
        names = ("without R, grouped", "deployed, grouped", "without R, dense", "deployed, dense")
        values = dict(zip(names, (*found[row.method, "grouped"], *found[row.method, "dense"]), strict=True))
        if row.branches == 1:
            values = {"ours": values["without R, grouped"]}
        near = [f"{name} ({n / 1e6:.2f})" for name, n in values.items() if abs(n / 1e6 / row.parameters - 1) < 0.03]
        said = f"fits {' and '.join(near)}" if near else f"fits none of ours ({_listed(values)})"
        yield f"- {row.method}: the paper's {row.parameters:.1f} {said}."


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {n / 1e6:.2f}" for name, n in values.items())


def _errors(plan: Plan, records: Records, errors: dict[str, Spread]) -> Iterator[str]:
    lines = []
    for row in ROWS:
        run = row.method in errors
        kwargs = "" if plan.full or not run else ", ".join(f"{k} {v}" for k, v in row.relative.items())
        known = records.of(plan.with_seeds([training(plan, row)])) if run else []
        trained = next((f"{r.measured['trained_parameters']:,}" for r in known if "seconds" in r.measured), "")
        ours = errors[row.method].text() if run else "not run"
        lines.append([row.method, kwargs, trained, ours, f"{row.error:.2f}", f"{row.error_100:.2f}"])
    name = "ours" if plan.full else f"ours, small relative on {plan.kind}"
    trained_as = "trained as" if not plan.full else "changes"
    yield from table(
        ["method", trained_as, "trained parameters", f"error, %: {name}", "paper, CIFAR-10", "paper, CIFAR-100"], lines
    )
    yield ""
    yield "CIFAR-100 was not run."


def _findings(errors: dict[str, Spread]) -> Iterator[str]:
    paper = {row.method: row.error for row in ROWS}
    for ours, plain in COMPARED:
        gap = difference(errors[ours], errors[plain])
        yield f"- {ours} less {plain}: {gap.text()}; in the paper {paper[ours] - paper[plain]:+.2f}."
    yield (
        "\nThe paper compares networks of different size: CCNNs2-40 has twice the kernels of WRN-40, CCNNs3-28 half of "
        "those of WRN-28 and another width. The ablation compares at equal cost."
    )
