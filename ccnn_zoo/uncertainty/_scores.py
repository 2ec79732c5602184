"""Scores of logits, in double precision: probabilities, entropy, mutual information, energy, prediction sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._numbers import Confidence

Array = NDArray[np.float64]

_SLACK = 1e-9
"""How far a sum of probabilities may lie beyond its threshold by rounding alone."""


def log_softmax(logits: NDArray[np.floating]) -> Array:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def probabilities(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Return the softmax of ``logits / temperature``, (..., classes)."""
    return np.exp(log_softmax(logits.astype(np.float64) / temperature))


def entropy(logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Return the entropy of the probabilities in nats, in [0, log(classes)]; shape (...) of logits (..., classes)."""
    logs = log_softmax(logits.astype(np.float64) / temperature)
    return np.maximum(-(np.exp(logs) * logs).sum(-1), 0)


def mutual_information(branch_logits: NDArray[np.floating], temperature: float = 1.0) -> Array:
    """Return how far branches differ: the entropy of their mean probabilities less their mean entropy, in nats.

    Source: Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", 2011, Eq. 2.

    Args:
        branch_logits: (K, N, classes).
        temperature: divides them.

    Returns:
        (N,), in [0, log(min(K, classes))].
    """
    each = probabilities(branch_logits, temperature)
    mean = each.mean(0)
    of_mean = -(mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny))).sum(-1)
    return np.maximum(of_mean - entropy(branch_logits, temperature).mean(0), 0)


def energy(logits: NDArray[np.floating]) -> Array:
    """Return minus the log-sum-exp of logits (..., classes): the higher, the less a picture is like the known ones.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, Eq. 4, with T = 1.
    """
    largest = logits.max(-1).astype(np.float64)
    return -(largest + np.log(np.exp(logits.astype(np.float64) - largest[..., None]).sum(-1)))


def set_scores(probability: Array, kind: str) -> Array:
    """Return the score of every class, (N, classes): a class belongs to a set if its score is within the threshold.

    ``"lac"`` is 1 - p (Sadinle, Lei and Wasserman 2019: the smallest sets on average); ``"aps"`` is the sum of the
    probabilities of the classes above it (Romano, Sesia and Candes 2020, Eq. 7 with U = 1: the same picture always has
    the same set), which gives hard pictures larger sets. With the class's own probability in the sum, sure pictures
    would score worst: on CIFAR-10 sets for 90 % then hold the true class of 98.8 %, by 4.3 classes each.
    """
    if kind == "lac":
        return 1 - probability
    order = np.argsort(-probability, axis=-1, kind="stable")
    ordered = np.take_along_axis(probability, order, -1)
    scores = np.empty_like(ordered)
    np.put_along_axis(scores, order, np.clip(np.cumsum(ordered, -1) - ordered, 0, 1), -1)
    return scores


def prediction_sets(probability: Array, threshold: float, kind: str = "lac") -> NDArray[np.bool_]:
    """Return which classes belong to each picture's set, (N, classes); the most probable one always does.

    Args:
        probability: (N, classes).
        threshold: of :meth:`Confidence.threshold_of_set`.
        kind: one of :data:`ccnn_zoo.uncertainty.SETS`, the one that the threshold is for.
    """
    members = set_scores(probability, kind) <= threshold + _SLACK
    members[np.arange(len(probability)), probability.argmax(-1)] = True
    return members


class Doubt(NamedTuple):
    """Scores of N pictures; what needs branches, or numbers that were fitted, is None without.

    ``percentile`` says how unlike the held-out pictures one is, in whole percents: the larger of those of its energy
    and of its mutual information. Where the logits are logarithms of probabilities (``merge="probability"``) their
    energy is 0; the mean energy of the branches stands for it, or the entropy in a file that has no branches. Each
    alone fails somewhere: telling CIFAR-10 from MNIST, the energy of the shipped network for MNIST has an AUROC of
    2 %, and the mutual information of those for CIFAR-10 a lower one than their entropy (docs/uncertainty_figures.md).
    """

    probabilities: Array
    entropy: Array
    energy: Array
    percentile: Array | None
    branches: NDArray[np.int64] | None
    agreement: Array | None
    mutual_information: Array | None


def doubt(
    logits: NDArray[np.floating], branch_logits: NDArray[np.floating] | None = None, numbers: Confidence | None = None
) -> Doubt:
    """Return what logits (N, classes), and those of branches (K, N, classes), say of their own worth."""
    temperature = 1.0 if numbers is None else numbers.temperature
    spread = entropy(logits, temperature)
    scores = {"energy": energy(logits), "entropy": spread}
    tops = agreement = information = percentile = None
    if branch_logits is not None:
        tops = branch_logits.argmax(-1)
        agreement = (tops == logits.argmax(-1)).mean(0)
        information = scores["mutual_information"] = mutual_information(branch_logits, temperature)
        if numbers is not None and "branch_energy" in numbers.quantiles:
            scores["branch_energy"] = energy(branch_logits).mean(0)
    if numbers is not None:
        ranks = [percentiles(scores[name], known) for name, known in numbers.quantiles.items() if name in scores]
        percentile = np.max(ranks, axis=0)
    return Doubt(probabilities(logits, temperature), spread, scores["energy"], percentile, tops, agreement, information)


def percentiles(scores: Array, quantiles: Sequence[float]) -> Array:
    """Return how many of the quantiles lie below each score, at most 100: a percentile where there are 101 of them."""
    return np.minimum(np.searchsorted(np.asarray(quantiles), scores, side="left"), 100).astype(np.float64)
