"""Table 1 of the paper: error on CIFAR-10 by K and sigma, and the plain network with gradient noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ._cells import Records
from ._classification import Training
from ._document import Document, table
from ._plans import Plan, need_data
from ._statistics import Spread, difference, spread

BRANCHES = (1, 2, 4, 8)
SIGMAS = (0.0, 1e-3, 1e-4)
PAPER = {  # error in percent
    (0.0, 1): 9.68, (0.0, 2): 8.52, (0.0, 4): 7.82, (0.0, 8): 7.63,
    (1e-3, 1): 9.60, (1e-3, 2): 8.49, (1e-3, 4): 7.68, (1e-3, 8): 7.54,
    (1e-4, 1): 9.48, (1e-4, 2): 8.32, (1e-4, 4): 7.61, (1e-4, 8): 7.42,
}  # fmt: skip
PAPER_GRADIENT_NOISE = 9.72


def training(plan: Plan, branches: int, sigma: float) -> Training:
    """Return one cell of the grid, without its seed."""
    return plan.training("cifar10_table1", **plan.small_network({"branches": branches, "noise_std": sigma}))


def gradient_noise(plan: Plan) -> Training:
    """Return the row "ResNet-18*": the plain network, noise of sigma 0.001 on gradients, annealed by 0.55."""
    plain = training(plan, 1, 1e-3)
    return replace(plain, recipe=replace(plain.recipe, noise="gradient", noise_decay=0.55))


def cells(plan: Plan) -> list[Training]:
    """Return the grid, K=1 and K=4 first."""
    need_data(plan, "table1", "cifar10:FOLDER")
    order = [(k, s) for ks in ((1, 4), (2, 8)) for s in (1e-4, 0.0, 1e-3) for k in ks]
    return plan.with_seeds([*(training(plan, k, s) for k, s in order), gradient_noise(plan)])


def report(plan: Plan, records: Records) -> Document:
    """Return the table, the paper's beside it, and what it shows."""
    title = "Table 1: error by K and sigma" + ("" if plan.full else f", {plan.label}")
    lines = [] if plan.full else [plan.warning("Table 1 is the paper's ResNet-18 on CIFAR-10, 64,000 iterations."), ""]
    errors = {(s, k): _errors(plan, records, training(plan, k, s)) for s in SIGMAS for k in BRANCHES}
    starred = _errors(plan, records, gradient_noise(plan))
    lines += ["Test error in percent; the paper's figure in brackets.", ""]
    rows = [[f"sigma = {s:g}", *(f"{errors[s, k].text()} ({PAPER[s, k]:.2f})" for k in BRANCHES)] for s in SIGMAS]
    rows.append(["ResNet-18*, sigma = 0.001", f"{starred.text()} ({PAPER_GRADIENT_NOISE:.2f})", "", "", ""])
    lines += table(["", *(f"K = {k}" for k in BRANCHES)], rows)
    lines += [
        "",
        "ResNet-18* is the plain network with annealed gradient noise. The paper prints its figure in the column "
        "K = 4, but a plain network has no K.",
        "",
        "## What it shows",
        "",
        *_findings(errors, starred),
    ]
    return Document(f"table1{plan.suffix}", title, lines, records.of(cells(plan)))


def _errors(plan: Plan, records: Records, cell: Training) -> Spread:
    return spread(records.of(plan.with_seeds([cell])), "test", "error_percent")


def _findings(errors: dict[tuple[float, int], Spread], starred: Spread) -> Iterator[str]:
    for s in SIGMAS:
        for k in BRANCHES[1:]:
            gap = difference(errors[s, k], errors[s, 1])
            paper = PAPER[s, k] - PAPER[s, 1]
            yield f"- sigma = {s:g}, K = {k} less K = 1: {gap.text()}; in the paper {paper:+.2f}."
    for s in SIGMAS[1:]:
        for k in BRANCHES:
            gap = difference(errors[s, k], errors[0.0, k])
            paper = PAPER[s, k] - PAPER[0.0, k]
            yield f"- K = {k}, sigma = {s:g} less sigma = 0: {gap.text()}; in the paper {paper:+.2f}."
    gap = difference(starred, errors[0.0, 1])
    paper = PAPER_GRADIENT_NOISE - PAPER[0.0, 1]
    yield f"- ResNet-18* less the plain network with sigma = 0: {gap.text()}; in the paper {paper:+.2f}."
    seeds = max(len(e.values) for e in errors.values())
    yield (
        f"\nThe paper gives one figure per cell and no spread; here are {seeds} seeds. Its largest effect of sigma, "
        f"{max(abs(PAPER[s, k] - PAPER[0.0, k]) for s in SIGMAS[1:] for k in BRANCHES):.2f} percentage points, is "
        f"{_compared(errors)}."
    )


def _compared(errors: dict[tuple[float, int], Spread]) -> str:
    """Say how that effect stands to the spread of our seeds."""
    deviations = [e.deviation for e in errors.values() if len(e.values) > 1]
    if not deviations:
        return "not to be judged without a spread"
    largest = max(abs(PAPER[s, k] - PAPER[0.0, k]) for s in SIGMAS[1:] for k in BRANCHES)
    typical = sorted(deviations)[len(deviations) // 2]
    kind = "smaller than" if largest < typical else "larger than"
    return f"{kind} the median deviation between our seeds, {typical:.2f}"
