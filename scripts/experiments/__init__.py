"""The paper's tables and figures as experiments: one small module each, found by its name.

A module ``experiments.NAME`` has

- ``cells(plan)``: the trainings that it needs, as a list of :class:`experiments._cells.Cell`;
- ``report(plan, records)``: its :class:`experiments._document.Document`, from their records.

A new experiment is a new module and its name in :data:`NAMES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # so that the names alone import no torch
    from ._cells import Cell, Records
    from ._document import Document
    from ._plans import Plan

OF_THEIR_OWN = ("table4", "pays")
"""Those that need data or a size of their own, and are not part of ``all``."""

NAMES = ("table1", "table2", "table3", "figure2", "ablation")


class Experiment(Protocol):
    """What a module of an experiment offers."""

    def cells(self, plan: Plan) -> Sequence[Cell]:
        """Return all trainings, the most telling first; what is already there is not trained again."""

    def report(self, plan: Plan, records: Records) -> Document:
        """Return the text and the pictures, every figure in them computed from ``records``."""


def load(name: str) -> Experiment:
    """Return the experiment called ``name``, one of :data:`NAMES`."""
    return cast("Experiment", import_module(f"{__name__}.{name}"))
