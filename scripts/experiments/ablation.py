"""Does calibration pay, and why: against plain, wider and ensembled networks at equal cost.

What is chosen, is chosen by held-out images (:mod:`experiments._choices`); what is compared, by the test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

from . import _choices, _others
from ._cells import Record, Records
from ._classification import Training, predictions
from ._document import Document, table
from ._plans import Plan, need_data
from ._scores import mean_prediction, scores
from ._statistics import Difference, Spread, difference, spread

BRANCHES = 4
NEAR = 0.15
"""Costs that differ by no more than this share count as equal."""

FIGURES = {"error_percent": "error, %", "nll": "NLL, nats", "ece_percent": "ECE, %"}


@dataclass(frozen=True)
class Row:
    """A line of the comparison.

    Args:
        label: what it is.
        cells: without seeds: one training, or the members of an ensemble.
        missing: why it cannot be run here, or None.
    """

    label: str
    cells: tuple[Training, ...]
    missing: str | None = None


def training(plan: Plan, network: str = "ours", width: int = 1, **changes: Any) -> Training:
    """Return one training of K = 4, ``width`` times wider."""
    base = plan.small_network({"model_kwargs": {"channels": [16, 16, 32, 64]}, "branches": BRANCHES})
    kwargs = {**base["model_kwargs"], **changes.pop("model_kwargs", {})}
    kwargs["channels"] = [width * c for c in kwargs["channels"]]
    return plan.training("cifar10_table1", network, **{**base, **changes, "model_kwargs": kwargs})


def rows(plan: Plan) -> list[Row]:
    """Return what is compared; the plain network and ours come first."""
    of = Row
    missing = None if _others.available() else _others.MISSING
    plain = training(plan, branches=1)
    members = tuple(plain.as_member(number) for number in range(BRANCHES))
    wider = {w: (training(plan, width=w, branches=1),) for w in (BRANCHES // 2, BRANCHES)}
    return [
        of(PLAIN, (plain,)),
        of(OURS, (training(plan),)),
        of(f"ensemble of {BRANCHES} plain networks", members),
        of(ROOT_WIDER, wider[BRANCHES // 2]),
        of("BatchEnsemble", (training(plan, "batch_ensemble"),), missing),
        of("Packed-Ensembles, alpha 2", (training(plan, "packed_ensemble"),), missing),
        of("calibrated, R by ascent, as printed", (training(plan, calibration_update="ascent"),)),
        of("calibrated, R frozen at random", (training(plan, calibration_lr=0.0),)),
        of("calibrated, R frozen at 1/K", (training(plan, calibration_lr=0.0, model_kwargs={"diversity": 0.0}),)),
        of(DENSE, (training(plan, model_kwargs={"mixing": "dense"}),)),
        of(f"plain, {BRANCHES} times wider", wider[BRANCHES]),
    ]


PLAIN = "plain"
OURS = "calibrated, R by descent"
ROOT_WIDER = f"plain, {BRANCHES // 2} times wider"
DENSE = 'calibrated, `mixing="dense"`'


def cells(plan: Plan) -> list[Training]:
    """Return what is compared, then the choices, by seeds."""
    need_data(plan, "ablation", "cifar10:FOLDER")
    compared = [cell for row in rows(plan) if row.missing is None for cell in row.cells]
    return plan.with_seeds([*compared, *_choices.cells(plan, training)])


def report(plan: Plan, records: Records) -> Document:
    """Return comparison, conclusions at equal cost, and choices."""
    lines = [] if plan.full else [plan.warning("The full ablation is that of the network of Table 1, on CIFAR-10."), ""]
    found = {row.label: measured(plan, records, row) for row in rows(plan) if row.missing is None}
    lines += [
        f"K = {BRANCHES} branches or members everywhere. Error, negative log-likelihood (NLL) and expected calibration "
        "error (ECE, 15 bins) of the test images. Branches disagree: share of the test images on which two branches "
        "alone say different classes. R moved: root mean square of its change in training. Deployed is folded; "
        "multiply-adds are those of one image.",
        "",
        *_comparison(plan, found),
        "",
        "## At equal trained parameters",
        "",
        *_equal(found, "trained_parameters", PLAIN),
        "",
        f"As many as dense mixing, whose control is the plain network {BRANCHES // 2} times wider:",
        "",
        *_equal(found, "trained_parameters", ROOT_WIDER),
        "",
        "## At equal deployed cost",
        "",
        "As many multiply-adds as the calibrated network, less it:",
        "",
        *_equal(found, "multiply_adds", OURS),
        "",
        "## Does it pay?",
        "",
        *_conclusions(found),
        "",
        *_choices.report(plan, records, training),
    ]
    return Document(
        f"ablation{plan.suffix}",
        "Ablation: does calibration pay?" + ("" if plan.full else f" {plan.label.capitalize()}"),
        lines,
        records.of(cells(plan)),
    )


def measured(plan: Plan, records: Records, row: Row) -> list[Record]:
    """Return one record per seed; of an ensemble, of its members together."""
    if len(row.cells) == 1:
        return records.of(plan.with_seeds(row.cells))
    members = [records.of(replace(c, recipe=replace(c.recipe, seed=seed)) for c in row.cells) for seed in plan.seeds]
    return [_together(finished) for finished in members if len(finished) == len(row.cells)]


def _together(members: Sequence[Record]) -> Record:
    """Return the record of an ensemble: scores of the mean probability, costs added up."""
    first = members[0]
    if any("diverged" in member.measured for member in members):
        return replace(first, measured={**first.measured, "diverged": "a member"})
    totals = ("trained_parameters", "deployed_parameters", "multiply_adds", "seconds")
    joined: dict[str, Any] = {name: sum(m.measured[name] for m in members) for name in totals}
    for part in [p for p in ("test", "validation") if p in first.measured]:
        pairs = [predictions(member, part) for member in members]
        joined[part] = scores(mean_prediction([p for p, _ in pairs]), pairs[0][1])
    losses = [member.measured["train"]["loss"] for member in members]
    joined["train"] = {"loss": sum(losses) / len(losses)}
    return replace(first, measured={**first.measured, **joined})


def _comparison(plan: Plan, found: dict[str, list[Record]]) -> Iterator[str]:
    head = ["", *FIGURES.values(), "training loss", "branches disagree, %", "R moved"]
    head += ["trained parameters", "deployed parameters", "multiply-adds", "training, s"]
    lines = []
    for row in rows(plan):
        if row.missing is not None:
            lines.append([row.label, f"not run: {row.missing}", *[""] * (len(head) - 2)])
            continue
        records = found[row.label]
        scored = [spread(records, "test", name).text(3 if name == "nll" else 2) for name in FIGURES]
        branches = [r for r in records if "branches" in r.measured]
        apart = spread(branches, "branches", "disagreement_percent").text(1) if branches else ""
        moved = spread(branches, "branches", "r_moved_rms").text(4) if branches else ""
        costs = [_cost(records, c) for c in ("trained_parameters", "deployed_parameters", "multiply_adds")]
        seconds = spread(records, "seconds").text(1)
        lines.append(
            [
                *(row.label, *scored, spread(records, "train", "loss").text(3), apart, moved),
                *(f"{c:,}" if c else "" for c in costs),
                seconds,
            ]
        )
    yield from table(head, lines)


def _cost(records: Sequence[Record], name: str) -> int:
    return next((r.measured[name] for r in records if name in r.measured), 0)


def _equal(found: dict[str, list[Record]], cost: str, reference: str) -> Iterator[str]:
    """Yield the rows that cost what the reference costs, each less the reference."""
    wanted = _cost(found[reference], cost)
    same = [
        label
        for label, records in found.items()
        if label != reference and wanted and abs(_cost(records, cost) / wanted - 1) <= NEAR
    ]
    if not same:
        yield f"Nothing else costs what this does: {reference}."
        return
    gaps = [
        [label, *(_gap(found, label, reference, name).text(3 if name == "nll" else 2) for name in FIGURES)]
        for label in same
    ]
    yield from table([f"less {reference}", *FIGURES.values()], gaps)


def _gap(found: dict[str, list[Record]], label: str, reference: str, name: str) -> Difference:
    return difference(_test(found[label], name), _test(found[reference], name))


def _test(records: Sequence[Record], name: str) -> Spread:
    return spread(records, "test", name)


def _conclusions(found: dict[str, list[Record]]) -> Iterator[str]:
    questions = [
        ("Calibrated against plain, equal trained parameters", OURS, PLAIN),
        ("Learning R against freezing it at random", OURS, "calibrated, R frozen at random"),
        ("Descent against the printed ascent", OURS, "calibrated, R by ascent, as printed"),
        ("Random R against equal R", "calibrated, R frozen at random", "calibrated, R frozen at 1/K"),
        ("Calibrated against a wider plain network, equal deployed cost", OURS, ROOT_WIDER),
        ("Calibrated against an ensemble, equal deployed cost", OURS, f"ensemble of {BRANCHES} plain networks"),
        ("Calibrated against BatchEnsemble, both costs equal", OURS, "BatchEnsemble"),
        ("Dense mixing against a plain network with as many trained parameters", DENSE, ROOT_WIDER),
    ]
    for question, ours, reference in questions:
        if ours in found and reference in found:
            parts = [f"{text} {_gap(found, ours, reference, n).text(3)}" for n, text in FIGURES.items()]
            yield f"- {question}: {'; '.join(parts)}."
    gaps = {text: _gap(found, OURS, PLAIN, name) for name, text in FIGURES.items()}
    better = [text for text, gap in gaps.items() if gap.beyond and gap.value < 0]
    worse = [text for text, gap in gaps.items() if gap.beyond and gap.value > 0]
    if any(isnan(gap.margin) for gap in gaps.values()):
        yield "\n**Fewer than two seeds of both: no spread is known, and nothing can be concluded.**"
    elif not better and not worse:
        yield "\n**Here calibration neither helps nor harms beyond the spread.**"
    else:
        sides = [f"{word}: {', '.join(side)}" for word, side in (("better", better), ("worse", worse)) if side]
        yield f"\n**Here calibration changes, beyond the spread, against the plain network: {'; '.join(sides)}.**"
    yield (
        "\nEqual R_k make every branch the plain network, so the line 1/K should differ from plain only by rounding, "
        "noise, and the steps of batch normalisation, whose K copies each get a K-th of the gradient."
    )
