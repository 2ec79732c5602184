"""What probabilities are worth on pictures whose classes are known, with the numbers that were fitted on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._numbers import Confidence
from ._scores import Array, prediction_sets, probabilities

BINS = 15
"""Of equal width, in which probability and accuracy are compared."""


class Reliability(NamedTuple):
    """By bin of the highest probability: its mean, the share of pictures that are right, and their number."""

    probability: Array
    accuracy: Array
    pictures: NDArray[np.int64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of the two over the pictures, in [0, 1].

        Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Eq. 3.
        """
        return float((np.abs(self.probability - self.accuracy) * self.pictures).sum() / self.pictures.sum())


def reliability(probability: Array, targets: NDArray[np.integer], bins: int = BINS) -> Reliability:
    """Compare the highest of the probabilities (N, classes) with how often it is right; empty bins are left out."""
    top, right = probability.max(-1), probability.argmax(-1) == targets
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    there = count > 0
    means = (np.bincount(place, values, bins)[there] / count[there] for values in (top, right))
    return Reliability(*means, count[there])


class RiskCoverage(NamedTuple):
    """Of N pictures the surest first: the share that is decided, and how many of these are wrong, (N,) each."""

    coverage: Array
    risk: Array

    @property
    def area(self) -> float:
        """The mean risk over all coverages from 1/N to 1, in [0, 1].

        Source: Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
        """
        if len(self.risk) == 1:
            return float(self.risk[0])
        return float(np.trapezoid(self.risk, self.coverage) / (1 - self.coverage[0]))


def risk_coverage(probability: Array, targets: NDArray[np.integer]) -> RiskCoverage:
    """Return what is wrong where only the surest of N pictures are decided; probabilities (N, classes)."""
    order = np.argsort(-probability.max(-1), kind="stable")
    wrong = (probability.argmax(-1) != targets)[order]
    decided = np.arange(1, len(order) + 1)
    return RiskCoverage(decided / len(order), np.cumsum(wrong) / decided)


def auroc(usual: NDArray[np.floating], unusual: NDArray[np.floating]) -> float | None:
    """Return how often an unusual picture has the higher score, ties counting half; None where one kind is missing."""
    from scipy.stats import rankdata

    if not len(usual) or not len(unusual):
        return None
    ranks = rankdata(np.concatenate([unusual, usual]))[: len(unusual)]
    return float((ranks.sum() - len(unusual) * (len(unusual) + 1) / 2) / (len(usual) * len(unusual)))


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` finds. Shares and errors are in percent.

    Args:
        pictures: number of them.
        error_percent: pictures whose most probable class is another.
        nll, nll_fitted: mean negative log-likelihood in nats, of the logits as they are and over the temperature.
        ece_percent, ece_percent_fitted: the same of :attr:`Reliability.error`.
        covered_percent, set_size: by coverage, e.g. ``"0.95"``: of the sets, how many hold the true class, and the mean
            number of classes.
        decided_percent, wrong_percent: by risk, e.g. ``"0.02"``: pictures that are decided, and how many of these
            wrongly; None where none is.
        aurc_percent: :attr:`RiskCoverage.area`.
        auroc_errors_percent: how often a wrong picture has a lower highest probability than a right one; None where all
            are right, or wrong.
    """

    pictures: int
    error_percent: float
    nll: float
    nll_fitted: float
    ece_percent: float
    ece_percent_fitted: float
    covered_percent: dict[str, float]
    set_size: dict[str, float]
    decided_percent: dict[str, float]
    wrong_percent: dict[str, float | None]
    aurc_percent: float
    auroc_errors_percent: float | None


def measure(logits: NDArray[np.floating], targets: NDArray[np.integer], numbers: Confidence) -> Measured:
    """Measure on pictures that were used neither for training nor for fitting ``numbers``.

    Args:
        logits: (N, classes), of the file that the numbers were fitted for.
        targets: the true classes, (N,).
        numbers: of :func:`fit`.
    """
    rows = np.arange(len(targets))
    before, after = probabilities(logits), probabilities(logits, numbers.temperature)
    top, wrong = after.max(-1), after.argmax(-1) != targets
    sets = {c: prediction_sets(after, threshold) for c, threshold in numbers.sets["lac"].items()}
    decided = {risk: top >= numbers.threshold_of_decision(float(risk)) for risk in numbers.decide}
    own = auroc(1 - top[~wrong], 1 - top[wrong])
    return Measured(
        pictures=len(targets),
        error_percent=_percent(wrong),
        nll=_nll(before[rows, targets]),
        nll_fitted=_nll(after[rows, targets]),
        ece_percent=100 * reliability(before, targets).error,
        ece_percent_fitted=100 * reliability(after, targets).error,
        covered_percent={c: _percent(members[rows, targets]) for c, members in sets.items()},
        set_size={c: float(members.sum(1).mean()) for c, members in sets.items()},
        decided_percent={risk: _percent(chosen) for risk, chosen in decided.items()},
        wrong_percent={risk: _percent(wrong[chosen]) if chosen.any() else None for risk, chosen in decided.items()},
        aurc_percent=100 * risk_coverage(after, targets).area,
        auroc_errors_percent=None if own is None else 100 * own,
    )


def _percent(chosen: NDArray[np.bool_]) -> float:
    return 100 * float(chosen.mean())


def _nll(probability: Array) -> float:
    return float(-np.log(np.maximum(probability, np.finfo(np.float64).tiny)).mean())
