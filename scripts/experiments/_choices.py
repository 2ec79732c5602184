"""The choices that the paper leaves open, by held-out training images: one is changed at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from ._cells import Records, key_of
from ._classification import Training
from ._document import table
from ._plans import Plan
from ._statistics import Spread, difference, spread

Maker: TypeAlias = Callable[..., Training]

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "calibration_lr, l of R": {f"{rate:g}": {"calibration_lr": rate} for rate in (0.0, 0.01, 0.1, 1.0, 10.0)},
    "calibration_update, the sign of R's step": {
        "descent, l = 0.1": {"calibration_update": "descent"},
        "ascent, l = 0.1": {"calibration_update": "ascent"},
        "descent, l = 10": {"calibration_update": "descent", "calibration_lr": 10.0},
        "ascent, l = 10": {"calibration_update": "ascent", "calibration_lr": 10.0},
    },
    "merge, how branches meet": {merge: {"merge": merge} for merge in ("mean", "max", "concat")},
    "init, the first R and w": {
        "R random": {},
        "R 0.5 random, 0.5 equal": {"model_kwargs": {"diversity": 0.5}},
        "R 0.1 random, 0.9 equal": {"model_kwargs": {"diversity": 0.1}},
        "R random, w K times larger": {"model_kwargs": {"rescale": True}},
    },
}
"""By choice: option, and what it changes of the default, which is the option that changes nothing."""


def cells(plan: Plan, training: Maker) -> list[Training]:
    """Return one training per option; several may be the same one."""
    return [training(plan, **changes) for options in CHOICES.values() for changes in options.values()]


def report(plan: Plan, records: Records, training: Maker) -> Iterator[str]:
    """Yield one table and one sentence per choice."""
    yield "## Choices, by held-out images"
    yield ""
    yield "Each option changes the default in one thing. The default is that of the package's networks and recipes."
    default = plan.with_seeds([training(plan)])
    others = len({key_of(cell.settings()) for cell in cells(plan, training)}) - 1
    for choice, options in CHOICES.items():
        found = {
            option: {
                name: spread(records.of(plan.with_seeds([training(plan, **changes)])), "validation", name)
                for name in ("error_percent", "nll")
            }
            for option, changes in options.items()
        }
        base = {name: spread(records.of(default), "validation", name) for name in ("error_percent", "nll")}
        yield ""
        yield f"### {choice}"
        yield ""
        yield from table(
            ["option", "validation error, %", "less the default", "validation NLL", "less the default"],
            [_row(option, figures, base) for option, figures in found.items()],
        )
        yield ""
        yield _sentence(
            {option: figures["error_percent"] for option, figures in found.items()}, base["error_percent"], others
        )


def _row(option: str, figures: dict[str, Spread], base: dict[str, Spread]) -> list[str]:
    row = [option]
    for name, digits in (("error_percent", 2), ("nll", 3)):
        same = figures[name] == base[name]
        gap = "the default" if same else difference(figures[name], base[name]).text(digits)
        row += [figures[name].text(digits), gap]
    return row


def _sentence(errors: dict[str, Spread], base: Spread, others: int) -> str:
    lowest = min((o for o in errors if errors[o].values), key=lambda o: errors[o].mean, default=None)
    if lowest is None:
        return "Nothing was run."
    gap = difference(errors[lowest], base)
    if errors[lowest] == base:
        return "The default has the lowest validation error of these."
    if gap.beyond:
        return (
            f"Lowest: {lowest}, {gap.text()}. A candidate for the default, if fresh seeds and other data agree: this "
            f"page compares {others} options with it."
        )
    return f"Lowest: {lowest}, {gap.text()}. That is no reason to leave the default."
