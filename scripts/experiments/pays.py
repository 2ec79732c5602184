"""What K branches buy on CIFAR-10: against plain networks at equal cost, by the probabilities' worth too.

What is chosen, is chosen by held-out images; what is claimed, by the test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import mean
from typing import TypeAlias

from ._beyond import NAMES
from ._cells import Cell, Record, Records
from ._document import Document, table
from ._plans import MissingDataError, Plan
from ._rows import CHOICES, K2, PLAIN, rows_of, turn
from ._statistics import difference, spread

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
    "R moved": (("branches", "r_moved_rms"), 4),
}
ONE_BRANCH: dict[str, tuple[Path_, int]] = {
    f"{what}, {name}": ((*path, key), digits)
    for what, path in (("best single branch", ("doubt", "best_branch")), ("averaged kernels", ("averaged_kernels",)))
    for name, key, digits in (("error, %", "error_percent", 2), ("NLL", "nll", 3), ("ECE, %", "ece_percent", 2))
}
ELSEWHERE: dict[str, tuple[Path_, int]] = {f"{kind}, %": (("doubt", "auroc_percent", kind), 1) for kind in NAMES}

EQUALS = (
    (PLAIN, "Packed-Ensembles, 4 members, alpha 2"),
    ("plain, image and mirror image", "plain, average of the weights"),
    ("K=2, joint, one sees the mirror image", "plain, average of the weights"),
    ("ensemble of 2 plain networks", "plain, 1.41 times wider"),
    ("ensemble of 4 plain networks", "plain, 2 times wider"),
    ("K=2, joint", "plain, 1.41 times wider"),
    ("K=2, joint", "ensemble of 2 plain networks"),
    ("K=2, joint, one sees the mirror image", "plain, image and mirror image"),
    ("K=2, joint, one sees the mirror image", "plain, trained twice as long, image and mirror image"),
    ("K=2, half joint, one sees the mirror image, R alike", "plain, image and mirror image"),
    ("K=2, half joint, one sees the mirror image, R alike", "plain, trained twice as long, image and mirror image"),
    ("K=2, joint, dense, 1.41 times narrower", PLAIN),
    ("K=2, joint, dense, 1.41 times narrower", "plain, 1.41 times wider"),
    ("K=2, joint, dense", "plain, 1.41 times wider"),
    ("K=2, joint, dense", "plain, 2 times wider"),
    ("K=4, joint, dense, 2 times narrower", PLAIN),
    ("K=4, joint, dense, 2 times narrower", "plain, 2 times wider"),
    ("K=4, joint", "plain, 2 times wider"),
    ("K=4, joint", "ensemble of 4 plain networks"),
)
"""Labels of a row and of one that has as many trained parameters, or multiplies as often, in training or in use."""


def cells(plan: Plan) -> list[Cell]:
    """Return the comparison, row by row, each with its seeds.

    Raises:
        MissingDataError: the plan is of another size.
    """
    if plan.size != "medium":
        raise MissingDataError("pays is an experiment of --medium")
    found = [(row, seed) for row, seeds in rows_of(plan) for seed in seeds]
    found.sort(key=turn)
    return [row.make(plan, seed) for row, seed in found]


def report(plan: Plan, records: Records) -> Document:
    """Return the figures, and what the rows gain over the plain network."""
    found = {row.label: records.of(row.make(plan, seed) for seed in seeds) for row, seeds in rows_of(plan)}
    done = {label: rows for label, rows in found.items() if rows}
    branched = {label: rows for label, rows in done.items() if _branched(rows)}
    epochs = plan.overrides["epochs"]
    lines = [
        f"CIFAR-10 (JPEG copy) at {plan.side}x{plan.side} pixels, {_pictures(plan)}{_network(plan)}, one cycle of "
        f"{epochs} epochs, weight decay 5e-4, no noise unless a row says so. Figures are of test images; the "
        "temperature is fitted, and the best branch chosen, on held-out ones. AUROC: of the highest probability, or of "
        "the mutual information of the branches, as the sign of a picture of something else (digits, photographs, "
        "blood cells, noise; the mean of the four). As a cascade, the first member of an ensemble answers alone where "
        "its highest probability is above a threshold, which is chosen on held-out images; the multiply-adds are then "
        "the mean over the test images. A network that trains twice as long computes as much in training as one of two "
        "branches. Where R is alike, the branches share all of w and are not calibrated. A row of one seed is one that "
        "its first seed ruled out, that takes hours, or that others are only compared with.",
        "",
        *_table(done, FIGURES),
        "",
        "## What it costs",
        "",
        "Bytes are those of the weights, four each.",
        "",
        *table(["", *_COSTS, "training, s"], _costs(done)),
        "",
        "## Branches",
        "",
        *_table(branched, BRANCHES),
        "",
        "## Networks of one branch's cost",
        "",
        "One branch alone, and the plain network that holds the mean of the branches' kernels with its statistics "
        "measured anew, cost what the plain network costs.",
        "",
        *_table(branched, ONE_BRANCH),
        "",
        "## AUROC by what is elsewhere",
        "",
        *_table(done, ELSEWHERE),
        "",
        "## Less the plain network",
        "",
        *_less(done, PLAIN, done, {name: FIGURES[name] for name in _COMPARED}),
        "",
        *_pairs(done),
        "## By held-out images",
        "",
        *_table(done, _HELD_OUT),
    ]
    if plan.narrow:
        choices = _less(done, K2.label, [row.label for row in CHOICES], _HELD_OUT)
        lines += ["", f"## Choices: less {K2.label}, by held-out images", "", *choices]
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
_COSTS = {
    "trained parameters": ("trained_parameters", 1),
    "deployed parameters": ("deployed_parameters", 1),
    "multiply-adds": ("multiply_adds", 1),
    "trained, bytes": ("trained_parameters", 4),
    "deployed, bytes": ("deployed_parameters", 4),
}
_RATIOS = ("trained parameters", "multiply-adds")
_HELD_OUT = {"error, %": (("validation", "error_percent"), 2), "NLL": (("validation", "nll"), 3)}


def _table(rows: dict[str, list[Record]], figures: dict[str, tuple[Path_, int]]) -> Iterator[str]:
    yield from table(["", *figures], [[label, *_figures(records, figures)] for label, records in rows.items()])


def _figures(records: Sequence[Record], figures: dict[str, tuple[Path_, int]]) -> list[str]:
    texts = []
    for path, digits in figures.values():
        those = [r for r in records if "diverged" in r.measured or path[0] in r.measured]
        texts.append(spread(those, *path).text(digits) if those else "")
    return texts


def _branched(records: Sequence[Record]) -> bool:
    return any("kl" in record.measured.get("doubt", {}) for record in records)


def _costs(done: dict[str, list[Record]]) -> Iterator[list[str]]:
    for label, records in done.items():
        means = (times * round(mean(r.measured.get(name, 0) for r in records)) for name, times in _COSTS.values())
        yield [label, *(f"{value:,}" for value in means), spread(records, "seconds").text(0)]


def _pairs(done: dict[str, list[Record]]) -> Iterator[str]:
    """Yield what each row of :data:`EQUALS` is better or worse by than its control, and ratios of costs."""
    figures = {name: FIGURES[name] for name in _COMPARED}
    pairs = [(label, control) for label, control in EQUALS if label in done and control in done]
    if not pairs:
        return
    rows = []
    for label, control in pairs:
        ours, theirs = done[label], done[control]
        costs = (_COSTS[name][0] for name in _RATIOS)
        ratios = (f"{spread(ours, cost).mean / spread(theirs, cost).mean:.1f} x" for cost in costs)
        rows.append([label, control, *ratios, *_differences(ours, theirs, figures)])
    yield "## At equal cost"
    yield ""
    yield (
        "Each pair trains as many parameters, or multiplies as often in use or in training. Ratios are those of the "
        "first network over the second."
    )
    yield ""
    yield from table(["", "less", *_RATIOS, *figures], rows)
    yield ""


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
