"""The numbers that are fitted, as they stand in a file: read back value by value, since a file may hold anything."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from ccnn_zoo._base.checks import check_choice
from ccnn_zoo.errors import ConfigurationError, MetadataError

VERSION = 1
"""Of the form below; a file of another is refused."""

COVERAGES = (0.9, 0.95, 0.99)
"""Shares of pictures whose prediction set shall hold the true class."""

RISKS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of wrong decisions among those that are made."""

SETS = ("lac", "aps")
"""How a prediction set is made, see :func:`ccnn_zoo.uncertainty.prediction_sets`."""

SCORES = ("energy", "mutual_information", "branch_energy", "entropy")
"""Out-of-distribution scores whose quantiles are known: the second where there are branches, and one of the last two
where the logits are logarithms of probabilities."""

QUANTILES = 101
_LARGEST = 1e6
TEMPERATURES = (1e-2, 1e2)


@dataclass(frozen=True)
class Confidence:
    """What was fitted on held-out pictures, for one file: each precision has logits, so numbers, of its own.

    Args:
        pictures: number of pictures on which it was fitted.
        temperature: what logits are divided by before the softmax, in [0.01, 100].
        sets: by kind of set (:data:`SETS`) and coverage, e.g. ``"0.95"``, the threshold in [0, 1] of the scores of its
            members; 1 takes every class.
        decide: by risk, e.g. ``"0.02"``, the lowest top probability in [0, 1] at which a decision is made, or None
            where no threshold keeps that risk.
        quantiles: by score (:data:`SCORES`) its 0th, 1st, ... 100th percentile.
        version: of this form.

    Raises:
        MetadataError: a value is malformed or absurd; names it.
    """

    pictures: int
    temperature: float
    sets: Mapping[str, Mapping[str, float]]
    decide: Mapping[str, float | None]
    quantiles: Mapping[str, tuple[float, ...]]
    version: int = VERSION

    def __post_init__(self) -> None:
        if type(self.version) is not int or self.version != VERSION:
            raise _malformed("version", self.version, f"{VERSION}, which this ccnn-zoo reads,")
        if type(self.pictures) is not int or self.pictures < 1:
            raise _malformed("pictures", self.pictures, "a number of pictures, at least 1")
        least, most = TEMPERATURES
        if not _is_number(self.temperature, least, most):
            raise _malformed("temperature", self.temperature, f"a number in [{least}, {most}]")
        for kind, thresholds in _table(self, "sets", SETS):
            for coverage, threshold in _table(self, "sets", map(str, COVERAGES), thresholds):
                if not _is_number(threshold, 0, 1):
                    raise _malformed(f"sets[{kind}][{coverage}]", threshold, "a number in [0, 1]")
        for risk, threshold in _table(self, "decide", map(str, RISKS)):
            if threshold is not None and not _is_number(threshold, 0, 1):
                raise _malformed(f"decide[{risk}]", threshold, "a number in [0, 1] or null")
        for score, values in _table(self, "quantiles", SCORES):
            held = isinstance(values, list | tuple) and len(values) == QUANTILES
            held = held and all(_is_number(value, -_LARGEST, _LARGEST) for value in values)
            if not held or list(values) != sorted(values):
                raise _malformed(f"quantiles[{score}]", values, f"{QUANTILES} ascending numbers")
        # JSON knows no tuples.
        object.__setattr__(self, "quantiles", {name: tuple(values) for name, values in self.quantiles.items()})
        if "energy" not in self.quantiles or not self.sets.keys() >= {"lac"}:
            raise MetadataError("confidence lacks sets['lac'] or quantiles['energy']; fit it again")

    def to_json(self) -> str:
        """Return the numbers as the property ``confidence`` of an ONNX file holds them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Confidence:
        """Read them back.

        Raises:
            MetadataError: something is malformed; names it.
        """
        return cls(**values_of(cls, "confidence", text))

    def threshold_of_set(self, coverage: float, kind: str = "lac") -> float:
        """Return the threshold for prediction sets of a coverage.

        Raises:
            ConfigurationError: none was fitted for it.
        """
        return _fitted(self.sets[check_choice("sets", kind, self.sets)], "coverage", coverage)

    def threshold_of_decision(self, max_risk: float) -> float:
        """Return the lowest top probability at which a decision keeps a risk; above 1 where none does.

        Raises:
            ConfigurationError: none was fitted for it.
        """
        found = _fitted(self.decide, "max_risk", max_risk)
        return math.inf if found is None else found


def values_of(record: type, name: str, text: str) -> dict[str, Any]:
    """Return the values of a dataclass from the JSON of the property ``name``, which must hold its fields and no more.

    Raises:
        MetadataError: it is no JSON, or holds something else.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{name} is not JSON: {reprlib.repr(text)}") from error
    names = {field.name for field in fields(record)}
    if not isinstance(values, dict) or values.keys() != names:
        raise MetadataError(f"{name} must hold {', '.join(sorted(names))}, got {reprlib.repr(values)}")
    return values


def _fitted(table: Mapping[str, Any], name: str, value: object) -> Any:
    for text, threshold in table.items():
        if isinstance(value, Real) and not isinstance(value, bool) and float(text) == value:
            return threshold
    raise ConfigurationError(f"{name} must be one of those that were fitted, {', '.join(table)}, got {value!r}")


def _table(numbers: Confidence, name: str, keys: Any, table: Any = None) -> Any:
    table = getattr(numbers, name) if table is None else table
    known = set(keys)
    if not isinstance(table, Mapping) or not table or not table.keys() <= known:
        raise _malformed(name, table, f"a table by {', '.join(sorted(known))}")
    return table.items()


def _malformed(name: str, value: object, expected: str) -> MetadataError:
    return MetadataError(f"confidence: {name} must be {expected}, got {reprlib.repr(value)}; fit it again")


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most
