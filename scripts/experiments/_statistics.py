"""Means and spreads over seeds, and what a difference between them says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.stats import t as student

from ._cells import Record

RULE = (
    "Figures are mean ± sample standard deviation over seeds. Differences are means over seeds of the difference at "
    "the same seed, which decides split, initial weights and order, ± the half-width of Student's 95 % interval; one "
    "that is smaller than that is within the spread. Among many comparisons about one in twenty is beyond it by chance."
)


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Args:
        values: by seed, of the runs that ended.
        diverged: seeds whose loss did not stay finite.
    """

    values: dict[int, float]
    diverged: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the seeds; infinite if a seed diverged, NaN of nothing."""
        if self.diverged:
            return math.inf
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of fewer than two values."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

    def text(self, digits: int = 2) -> str:
        """Return mean ± deviation, and how many seeds diverged."""
        if self.diverged:
            return f"diverged on {len(self.diverged)} of {len(self.diverged) + len(self.values)} seeds"
        if not self.values:
            return "not run"
        return f"{self.mean:.{digits}f}" + (f" ± {self.deviation:.{digits}f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Difference:
    """A figure minus another one, seed by seed.

    Args:
        value: mean; NaN if there is no common seed.
        margin: half-width of Student's 95 % interval; NaN of fewer than two seeds.
    """

    value: float
    margin: float

    @property
    def beyond(self) -> bool:
        """Whether it is larger than its margin."""
        return abs(self.value) > self.margin

    def verdict(self) -> str:
        """Return what it says, in words."""
        if math.isnan(self.value):
            return "nothing to compare"
        if math.isnan(self.margin):
            return "one seed, no spread"
        if not self.beyond:
            return "within the spread"
        return "lower, beyond the spread" if self.value < 0 else "higher, beyond the spread"

    def text(self, digits: int = 2) -> str:
        """Return the difference with its margin and the verdict."""
        if math.isnan(self.value):
            return self.verdict()
        margin = "" if math.isnan(self.margin) else f" ± {self.margin:.{digits}f}"
        return f"{self.value:+.{digits}f}{margin}: {self.verdict()}"


def spread(records: Iterable[Record], *path: str) -> Spread:
    """Return the figure at ``path`` in what each record measured, e.g. ``"test", "error_percent"``, by seed."""
    values, diverged = {}, []
    for record in records:
        seed = record.settings["seed"]
        if "diverged" in record.measured:
            diverged.append(seed)
            continue
        value = record.measured
        for name in path:
            value = value[name]
        if value is not None:
            values[seed] = value
    return Spread(values, tuple(diverged))


def difference(ours: Spread, reference: Spread) -> Difference:
    """Return ``ours`` minus ``reference`` over the seeds that both have; NaN if any diverged, which no mean shows."""
    if ours.diverged or reference.diverged:
        return Difference(math.nan, math.nan)
    gaps = [ours.values[seed] - value for seed, value in reference.values.items() if seed in ours.values]
    if not gaps:
        return Difference(math.nan, math.nan)
    if len(gaps) == 1:
        return Difference(gaps[0], math.nan)
    margin = student.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Difference(statistics.fmean(gaps), float(margin))
