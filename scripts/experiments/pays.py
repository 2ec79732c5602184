"""What K branches buy on CIFAR-10: against plain networks at equal cost, by the probabilities' worth too.

What is chosen, is chosen by held-out images; what is claimed, by the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, TypeAlias

from . import _others
from ._cells import Cell, Record, Records
from ._document import Document, table
from ._plans import MissingDataError, Plan
from ._statistics import difference, spread
from ._trial import AVERAGED, CASCADE, CascadedEnsemble, Ensemble, Mirrored, MirroredCascade, Student, Trial, Unaveraged

PLAIN = "plain"
_DECAY = 0.998
Path_: TypeAlias = tuple[str, ...]

FIGURES: dict[str, tuple[Path_, int]] = {
    "error, %": (("test", "error_percent"), 2),
    "NLL": (("test", "nll"), 3),
    "NLL, tempered": (("doubt", "nll_tempered"), 3),
    "ECE, %": (("test", "ece_percent"), 2),
    "ECE, tempered, %": (("doubt", "ece_percent_tempered"), 2),
    "AURC, %": (("doubt", "aurc_percent"), 2),
    "AUROC elsewhere, %": (("doubt", "auroc_percent", "mean"), 1),
}
BRANCHES: dict[str, tuple[Path_, int]] = {
    "branches disagree, %": (("doubt", "disagreement_percent"), 1),
    "KL of branches": (("doubt", "kl"), 3),
    "AUROC, mutual information, %": (("doubt", "auroc_percent_mutual_information", "mean"), 1),
    "best single branch, error, %": (("doubt", "best_branch", "error_percent"), 2),
    "averaged kernels, error, %": (("averaged_kernels", "error_percent"), 2),
    "R moved": (("branches", "r_moved_rms"), 4),
}


@dataclass(frozen=True)
class Row:
    """A line of the comparison: how its cell of a seed is made, or why it cannot be."""

    label: str
    make: Callable[[Plan, int], Cell]
    missing: str | None = None


def _trial(label: str, network: str = "ours", width: float = 1, kind: type[Trial] = Trial, **changes: Any) -> Row:
    def make(plan: Plan, seed: int) -> Trial:
        sizes = {**plan.network, "channels": [round(width * c) for c in plan.network["channels"]]}
        kwargs = {**changes.get("model_kwargs", {}), **sizes}
        settings = {"branches": 1, **changes, "model_kwargs": kwargs, "seed": seed}
        made = plan.training("cifar10_table1", network, **settings)
        return kind(made.recipe, network, elsewhere=plan.elsewhere, row=label)

    missing = None if network not in _others.NETWORKS or _others.available() else _others.MISSING
    return Row(label, make, missing)


def _both(label: str, **changes: Any) -> tuple[Row, Row]:
    """Return a network with the average of its weights, and the same training without: one training for both."""
    last = _trial(label, kind=partial(Unaveraged, decay=_DECAY), **changes)
    return Row(label + AVERAGED, lambda plan, seed: last.make(plan, seed).averaged()), last


def _ensemble(members: int, kind: type[Ensemble] = Ensemble, how: str = "", mirrored: bool = False) -> Row:
    label = f"ensemble of {members} plain networks{how}"

    def make(plan: Plan, seed: int) -> Ensemble:
        first = (_TWICE if mirrored else _PLAIN).make(plan, seed)
        return kind(tuple(first.as_member(number) for number in range(members)), label)

    return Row(label, make)


def _cascade(members: int) -> Row:
    return _ensemble(members, CascadedEnsemble, CASCADE)


def _teachers(plan: Plan, seed: int) -> Ensemble:
    """Return four plain networks with averaged weights, which their checkpoints are."""
    first = _PLAIN.make(plan, seed).averaged()
    return Ensemble(tuple(first.as_member(number) for number in range(4)), _TEACHERS.label)


def _student(teacher: Row) -> Row:
    label = f"{PLAIN}, taught by {teacher.label}"
    plain = _trial(label)

    def make(plan: Plan, seed: int) -> Student:
        own = plain.make(plan, seed)
        return Student(own.recipe, elsewhere=own.elsewhere, row=label, teacher=teacher.make(plan, seed))

    return Row(label, make)


_PLAIN_AVERAGED, _PLAIN = _both(PLAIN)
_MIRRORED = ", image and mirror image"
_TWICE, _TWICE_CASCADE = (
    _trial(PLAIN + _MIRRORED + how, kind=partial(kind, decay=_DECAY, plain=PLAIN))
    for kind, how in ((Mirrored, ""), (MirroredCascade, CASCADE))
)
_K2_AVERAGED, _K2 = _both("K=2, joint", branches=2)
_K4_AVERAGED, _K4 = _both("K=4, joint", branches=4)
_K8 = _trial("K=8, joint", branches=8)
_JOINT_MIRRORED = _trial("K=2, joint, one sees the mirror image", branches=2, model_kwargs={"mirrored": [1]})
_FOUR_MIRRORED = _trial("K=4, joint, two see the mirror image", branches=4, model_kwargs={"mirrored": [2, 3]})
# The same, with branches that answer alone, too.
_MIRRORED_ALONE = tuple(
    _trial(
        f"K=2, {how}, one sees the mirror image",
        branches=2,
        merge="probability",
        objective=objective,
        model_kwargs={"mirrored": [1]},
    )
    for how, objective in (("branches", "branches"), ("half joint", 0.5))
)
_QUICKEST = (_PLAIN, _PLAIN_AVERAGED, _TWICE, _TWICE_CASCADE, _K2, _K2_AVERAGED, _JOINT_MIRRORED)
_FIRST = (*_QUICKEST, _K4, _K4_AVERAGED)
# Each with two branches, which train in half the time of four.
_CHOICES = (
    _trial("K=2, branches, probability", branches=2, merge="probability", objective="branches"),
    _trial("K=2, half joint, probability", branches=2, merge="probability", objective=0.5),
    _trial("K=2, joint, probability", branches=2, merge="probability"),
    _trial("K=2, joint, R of any sign", "free_calibration", branches=2),
    _trial("K=2, joint, random signs", "random_signs", branches=2),
    _trial("K=2, joint, learned scales", "learned_scales", branches=2),
    _trial("K=2, joint, R frozen", branches=2, calibration_lr=0.0),
    _trial("K=2, joint, sigma 1e-4", branches=2, noise_std=1e-4),
    _trial("K=2, joint, dense", branches=2, model_kwargs={"mixing": "dense"}),
)
_TEACHERS = Row(f"ensemble of 4 plain networks{AVERAGED}", _teachers)
_TAUGHT = (_student(_TEACHERS), _student(_K4_AVERAGED))
_ENSEMBLES = (_ensemble(2), _cascade(2), _ensemble(2, how=_MIRRORED, mirrored=True), _ensemble(4), _cascade(4))
# Of as many multiply-adds as an ensemble of two as a cascade, an ensemble of two, and one of four.
_WIDER = (
    _trial("plain, 1.19 times wider", width=2**0.25),
    _trial("plain, 1.41 times wider", width=2**0.5),
    _trial("plain, 2 times wider", width=2),
)
_SHARED_BY_OTHERS = (
    _trial("Packed-Ensembles, 4 members, alpha 2", "packed_ensemble", branches=4),
    _trial("BatchEnsemble, 4 members", "batch_ensemble", branches=4),
)
_OTHERS = (
    _FOUR_MIRRORED,
    *_MIRRORED_ALONE,
    *_TAUGHT,
    *_ENSEMBLES,
    *_WIDER,
    *_SHARED_BY_OTHERS,
    *_CHOICES,
    _trial("K=4 from the third stage on, joint", "late_branches", branches=4),
    _trial("K=4, branches, probability", branches=4, merge="probability", objective="branches"),
    _K8,
)
ROWS = (*_FIRST, *_OTHERS)
"""Those of narrow networks. Of the whole ones, which take three times as long, and with few pictures fewer."""

WHOLE = (_PLAIN, _K2)
FEW = (*_FIRST, _K8, _FOUR_MIRRORED, _TAUGHT[0], *_ENSEMBLES, _WIDER[1], _CHOICES[0], *_SHARED_BY_OTHERS)
# What is taken from another one's training comes after it, so that no process waits.
_BEFORE_OTHERS = (
    _PLAIN_AVERAGED,
    _K2_AVERAGED,
    _PLAIN,
    _TWICE,
    _TWICE_CASCADE,
    _K4_AVERAGED,
    _K2,
    _K4,
    *_ENSEMBLES,
    *_WIDER[:2],
)
_ORDER = list(dict.fromkeys((*_BEFORE_OTHERS, _TAUGHT[0], *(row for row in ROWS if row is not _TAUGHT[1]), _TAUGHT[1])))
_SEEDS_OF_OTHERS = 3


def _rows(plan: Plan) -> Iterator[tuple[Row, tuple[int, ...]]]:
    """Yield the rows of the plan with their seeds."""
    all_seeds = _QUICKEST if plan.few else _FIRST if plan.narrow else ()
    for row in FEW if plan.few else ROWS if plan.narrow else WHOLE:
        if row.missing is None:
            yield row, plan.seeds if row in all_seeds else plan.seeds[:_SEEDS_OF_OTHERS]


def cells(plan: Plan) -> list[Cell]:
    """Return the comparison, row by row, each with its seeds.

    Raises:
        MissingDataError: the plan is of another size.
    """
    if plan.size != "medium":
        raise MissingDataError("pays is an experiment of --medium")
    found = [(row, seed) for row, seeds in _rows(plan) for seed in seeds]
    found.sort(key=_turn)
    return [row.make(plan, seed) for row, seed in found]


def _turn(pair: tuple[Row, int]) -> tuple[bool, int, int]:
    """Return when a training's turn is: what others are compared with, then the first seed of all others, and so on."""
    row, seed = pair
    return seed >= _SEEDS_OF_OTHERS, 0 if row in _BEFORE_OTHERS else 1 + seed, _ORDER.index(row)


def report(plan: Plan, records: Records) -> Document:
    """Return the figures, and what the rows gain over the plain network."""
    found = {row.label: records.of(row.make(plan, seed) for seed in seeds) for row, seeds in _rows(plan)}
    done = {label: rows for label, rows in found.items() if rows}
    epochs = plan.overrides["epochs"]
    lines = [
        f"CIFAR-10 (JPEG copy) at {plan.side}x{plan.side} pixels, {_pictures(plan)}{_network(plan)}, one cycle of "
        f"{epochs} epochs, weight decay 5e-4, no noise unless a row says so. Figures are of test images; the "
        "temperature is fitted, and the best branch chosen, on held-out ones. AUROC: of the highest probability, or of "
        "the mutual information of the branches, as the sign of a picture of something else (digits, photographs, "
        "blood cells, noise; the mean of the four). As a cascade, the first member of an ensemble answers alone where "
        "its highest probability is above a threshold, which is chosen on held-out images; the multiply-adds are then "
        "the mean over the test images.",
        "",
        *table(["", *FIGURES], [[label, *_figures(rows, FIGURES)] for label, rows in done.items()]),
        "",
        "## What it costs",
        "",
        *table(["", "trained parameters", "deployed parameters", "multiply-adds", "training, s"], _costs(done)),
        "",
        "## Branches, and networks of one branch's cost",
        "",
        "One branch alone, and the plain network that holds the mean of the branches' kernels with its statistics "
        "measured anew, cost what the plain network costs.",
        "",
        *table(["", *BRANCHES], [[n, *_figures(rows, BRANCHES)] for n, rows in done.items() if _branched(rows)]),
        "",
        "## Less the plain network",
        "",
        *_less(done, PLAIN, done, {name: FIGURES[name] for name in _COMPARED}),
        "",
        "## By held-out images",
        "",
        *table(["", *_HELD_OUT], [[n, *_figures(rows, _HELD_OUT)] for n, rows in done.items()]),
    ]
    if plan.narrow:
        choices = _less(done, _K2.label, [row.label for row in _CHOICES], _HELD_OUT)
        lines += ["", f"## Choices: less {_K2.label}, by held-out images", "", *choices]
    return Document(f"pays{plan.suffix}", f"What K branches buy {_name(plan)}", lines, records.of(cells(plan)))


def _name(plan: Plan) -> str:
    return _depth(plan) + ", few pictures" * plan.few


def _depth(plan: Plan) -> str:
    return "ResNet-10" if plan.narrow else "ResNet-18"


def _pictures(plan: Plan) -> str:
    return "a tenth of the training images (the others are held out), " * plan.few


def _network(plan: Plan) -> str:
    stages = "-".join(map(str, plan.network["channels"]))
    return f"{_depth(plan)}{', one block a stage,' * plan.narrow} with stages {stages}"


_COMPARED = ("error, %", "NLL, tempered", "AUROC elsewhere, %")
_HELD_OUT = {"error, %": (("validation", "error_percent"), 2), "NLL": (("validation", "nll"), 3)}


def _figures(records: Sequence[Record], figures: dict[str, tuple[Path_, int]]) -> list[str]:
    texts = []
    for path, digits in figures.values():
        those = [r for r in records if "diverged" in r.measured or path[0] in r.measured]
        texts.append(spread(those, *path).text(digits) if those else "")
    return texts


def _branched(records: Sequence[Record]) -> bool:
    return any("kl" in record.measured.get("doubt", {}) for record in records)


def _costs(done: dict[str, list[Record]]) -> Iterator[list[str]]:
    names = ("trained_parameters", "deployed_parameters", "multiply_adds")
    for label, records in done.items():
        counts = [f"{round(mean(record.measured.get(name, 0) for record in records)):,}" for name in names]
        yield [label, *counts, spread(records, "seconds").text(0)]


def _less(
    done: dict[str, list[Record]], reference: str, labels: Iterable[str], figures: dict[str, tuple[Path_, int]]
) -> Iterator[str]:
    """Yield what each of the rows is better or worse by than the one of ``reference``."""
    rows = [name for name in labels if name in done and name != reference]
    if reference not in done or not rows:
        yield "Not trained yet."
        return
    yield from table(["", *figures], [[name, *_differences(done[name], done[reference], figures)] for name in rows])


def _differences(
    records: Sequence[Record], reference: Sequence[Record], figures: dict[str, tuple[Path_, int]]
) -> Iterator[str]:
    for path, digits in figures.values():
        yield difference(spread(records, *path), spread(reference, *path)).text(digits)
