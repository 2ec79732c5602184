"""What rounds of runs took: ratios, their median and how sure it is, and whether an aim is met."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Way:
    """One network in one engine, and what its rounds took.

    Args:
        network: ``"plain"`` or ``"K=2"`` and so on.
        engine: what runs it.
        run: classifies one batch.
        wall: seconds of every run.
        processor: the same in processor time.
        runs: how many of them a round has.
    """

    network: str
    engine: str
    run: Callable[[], object]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    runs: int = 1

    def timed(self) -> None:
        """Run once, and keep what it took."""
        wall, processor = time.perf_counter(), time.process_time()
        self.run()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def ratios(way: Way, other: Way, clock: str) -> list[float]:
    """Return the ratio of each round, by the fastest run in it; ``clock`` is ``"wall"`` or ``"processor"``."""
    fastest = []
    for each in (way, other):
        runs = getattr(each, clock)
        fastest.append([min(runs[start : start + each.runs]) for start in range(0, len(runs), each.runs)])
    return [one / another for one, another in zip(*fastest, strict=True)]


def ratio(way: Way, other: Way, clock: str) -> float:
    """Return the median over the rounds."""
    return statistics.median(ratios(way, other, clock))


def percentile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` of the values are."""
    return sorted(values)[min(math.ceil(share * len(values)), len(values)) - 1]


def between(values: list[float]) -> tuple[float, float, float]:
    """Return the median of values between the ends of its interval of at least 95 %, by ranks; of few, all of them."""
    values = sorted(values)
    count = len(values)
    beyond = [sum(math.comb(count, k) for k in range(rank + 1)) / 2**count for rank in range(count)]
    outside = max(sum(share <= 0.025 for share in beyond) - 1, 0)
    return values[outside], statistics.median(values), values[-1 - outside]


def verdict(found: Sequence[tuple[float, float, float]], bound: float, *, least: bool) -> str:
    """Say whether medians of several measures, each between its ends, are at most ``bound`` (or at ``least``)."""
    sign = -1 if least else 1
    hold = {sign * median <= sign * bound for _, median, _ in found}
    if len(hold) > 1:
        return "the two measures disagree"
    sure = all((sign * low <= sign * bound) == (sign * high <= sign * bound) for low, _, high in found)
    return ("holds" if hold.pop() else "does not hold") + ("" if sure else ", within the noise")
