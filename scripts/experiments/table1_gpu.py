"""The page of scripts/gpu_table1.py: Table 1's row sigma = 0.0001, trained in full length on one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ccnn_zoo.train import Recipe

from ._cells import Record, Records
from ._classification import Training
from ._document import Document, table
from ._statistics import Spread, difference, spread
from .table1 import PAPER

NAME = "table1_gpu"
_SIGMA = 1e-4
_FIGURES = {"error": ("test", "error_percent"), "held out": ("validation", "error_percent"), "nll": ("test", "nll")}


@dataclass(frozen=True, eq=False)
class OnDevice:
    """A training of the table; :class:`experiments._cells.Cell`, but run with others.

    Args:
        training: as it would be run alone.
        precision: of :data:`experiments._side_by_side.PRECISIONS`.
    """

    training: Training
    precision: str

    @property
    def name(self) -> str:
        return f"{self.training.name}-{self.precision}"

    def settings(self) -> dict[str, Any]:
        return {**self.training.settings(), "precision": self.precision}


def document(cells: Sequence[OnDevice], records: Mapping[str, Record], begun: Mapping[OnDevice, int]) -> Document:
    """Return the page.

    Args:
        cells: all that were asked for.
        records: those that have ended, by key.
        begun: iterations of those that have not.
    """
    ended = Records(records.values()).of(cells)
    recipe = cells[0].training.recipe
    lines = [*_warning(recipe, ended), *_table(cells, Records(ended)), *_how(ended)]
    lines += [
        f"- {names([cell])}: {done:,} of {recipe.iterations:,} iterations when this was written; no figure of it is in "
        "the table."
        for cell, done in begun.items()
    ]
    return Document(NAME, "Table 1 in full length on one GPU: error by K, sigma = 0.0001", lines, ended)


def names(cells: Sequence[OnDevice]) -> str:
    """Return K and seed of each, in words."""
    return ", ".join(f"K = {c.training.recipe.branches} seed {c.training.recipe.seed}" for c in cells)


def _table(cells: Sequence[OnDevice], records: Records) -> Iterator[str]:
    """Yield the table with the paper's figures beside ours, and what it shows."""
    found = {}
    for k in sorted({cell.training.recipe.branches for cell in cells}):
        some = records.of(cell for cell in cells if cell.training.recipe.branches == k)
        found[k] = {name: spread(some, *path) for name, path in _FIGURES.items()}
    yield from table(
        ["K", "test error, %", "the paper's, %", "held-out error, %", "test NLL", "seeds"],
        [
            [
                str(k),
                figures["error"].text(),
                f"{PAPER[_SIGMA, k]:.2f}" if (_SIGMA, k) in PAPER else "",
                figures["held out"].text(),
                figures["nll"].text(3),
                str(len(figures["error"].values)),
            ]
            for k, figures in found.items()
        ],
    )
    yield from ["", "## What it shows", ""]
    plain = found[1]["error"] if 1 in found else Spread({})
    for k in found:
        if k != 1:
            paper = f"; in the paper {PAPER[_SIGMA, k] - PAPER[_SIGMA, 1]:+.2f}" if (_SIGMA, k) in PAPER else ""
            yield f"- K = {k} less K = 1: {difference(found[k]['error'], plain).text()}{paper}."
    yield ""


def _warning(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    """Return what stands above figures that are not the paper's experiment."""
    paper, ours = Recipe.load("cifar10_table1").decisive(), recipe.decisive()
    changed = [name for name in paper if name not in ("data", "branches", "seed") and ours[name] != paper[name]]
    images = {record.measured["data"]["train"] for record in records}
    if not changed and images <= {45_000}:
        return []
    told = [f"{name} = {ours[name]}" for name in changed] + [f"{count:,} training images" for count in sorted(images)]
    return [f"**Not the paper's experiment**: {', '.join(told)}.", ""]


def _how(records: Sequence[Record]) -> Iterator[str]:
    """Yield how the steps were computed and timed."""
    yield from ["## Steps", ""]
    for words in dict.fromkeys(_precision(record) for record in records):
        yield f"- {words}"
    ways = {(r.settings["branches"], way, ms) for r in records for way, ms in r.measured["ways_ms"].items()}
    for k, way, ms in sorted(ways):
        yield f"- K = {k}, {way}: {ms:.2f} ms a step, alone on the device."
    yield from dict.fromkeys(
        f"- K = {r.settings['branches']} was trained {r.measured['way']}, {r.measured['side_by_side']} networks side "
        "by side; its seconds are its share of theirs."
        for r in records
    )


def _precision(record: Record) -> str:
    words = {
        "fp32": "Computed in float32.",
        "tf32": "Convolutions and matrix products take their factors as TensorFloat-32 (10 bits of mantissa) and sum "
        "in float32, torch's default for convolutions on such GPUs; all else is float32.",
        "bf16": "Computed in bfloat16 where torch's autocast does so; weights and their steps are float32.",
    }[record.settings["precision"]]
    how = "replays of CUDA graphs" if record.measured["environment"]["graph"] else "taken one by one from the host"
    return f"{words} The paper names no precision. Steps are {how}; images are cut and flipped on the device."
