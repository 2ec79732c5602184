"""Fitting on held-out pictures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo.errors import ConfigurationError

from ._numbers import COVERAGES, QUANTILES, RISKS, SETS, TEMPERATURES, Confidence
from ._scores import energy, entropy, log_softmax, mutual_information, probabilities, set_scores

LEAST_PICTURES = 100
"""With fewer, the sets of 99 % coverage would hold every class: (n + 1) * 0.99 must be at most n."""

_SAME = 1e-4
"""Mutual information or spread of energies in nats, below which single precision would rank noise."""

_CERTAINTY = 0.95
"""How surely the risk of decisions is kept, over the draw of the held-out pictures."""


def fit(
    logits: NDArray[np.floating], targets: NDArray[np.integer], branch_logits: NDArray[np.floating] | None = None
) -> Confidence:
    """Fit the numbers of one file on pictures that were used neither for training nor for testing.

    - The temperature minimises the negative log-likelihood (Guo et al., ICML 2017).
    - The thresholds of sets are the ceil((n + 1) * coverage)-th smallest score of the true classes: split conformal
      prediction, so the set of a new picture of the same kind holds its class with at least that probability, whatever
      the network is.
    - The thresholds of decisions are the lowest for which the risk is kept with 95 % certainty over the draw of the
      held-out pictures (bounds of Clopper and Pearson, as Geifman and El-Yaniv, NeurIPS 2017, tried in the order of
      Angelopoulos et al., "Learn then Test", 2021).

    Args:
        logits: (N, classes) of the file itself.
        targets: the true classes, (N,).
        branch_logits: (K, N, classes), where the file gives them.

    Raises:
        ConfigurationError: there are fewer than 100 pictures, or the arrays do not fit each other.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    _check(logits, targets, branch_logits)
    temperature = _temperature(logits, targets)
    probability = probabilities(logits, temperature)
    scores = {"energy": energy(logits)}
    if np.ptp(scores["energy"]) < _SAME:
        # Of logarithms of probabilities (merge="probability") it is 0 but for rounding. None is above this: it says
        # nothing, so another score does.
        scores["energy"] = np.full(len(targets), scores["energy"].max() + 2 * _SAME)
        of_branches = energy(logits[None] if branch_logits is None else np.asarray(branch_logits)).mean(0)
        if np.ptp(of_branches) < _SAME:
            scores["entropy"] = entropy(logits, temperature)
        else:
            scores["branch_energy"] = of_branches
    if branch_logits is not None:
        information = mutual_information(np.asarray(branch_logits), temperature)
        if np.quantile(information, 0.99) > _SAME:
            scores["mutual_information"] = information
    return Confidence(
        pictures=len(targets),
        temperature=temperature,
        sets={kind: _sets(set_scores(probability, kind), targets) for kind in SETS},
        decide=_decisions(probability, targets),
        quantiles={
            name: tuple(np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist()) for name, values in scores.items()
        },
    )


def _check(logits: NDArray, targets: NDArray, branch_logits: NDArray | None) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or not np.isfinite(logits).all():
        raise ConfigurationError(
            f"logits must be finite (N, classes) and targets (N,), got {logits.shape} and {targets.shape}"
        )
    if not np.issubdtype(targets.dtype, np.integer) or targets.min(initial=0) < 0 or targets.max() >= logits.shape[1]:
        raise ConfigurationError(f"targets must be classes from 0 to {logits.shape[1] - 1}, got others")
    if branch_logits is not None and np.shape(branch_logits)[1:] != logits.shape:
        raise ConfigurationError(f"branch_logits must be (K, N, classes), got {np.shape(branch_logits)}")
    if len(targets) < LEAST_PICTURES:
        raise ConfigurationError(
            f"{len(targets)} held-out pictures are too few to say anything of 1 in 100: give at least "
            f"{LEAST_PICTURES}, better a thousand"
        )


def _temperature(logits: NDArray, targets: NDArray) -> float:
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / math.exp(log_temperature))[rows, targets].mean())

    found = minimize_scalar(loss, bounds=tuple(map(math.log, TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return min(max(math.exp(found.x), TEMPERATURES[0]), TEMPERATURES[1])


def _sets(scores: NDArray[np.float64], targets: NDArray) -> dict[str, float]:
    own = np.sort(scores[np.arange(len(targets)), targets])
    ranks = {coverage: math.ceil((len(own) + 1) * coverage - 1e-9) for coverage in COVERAGES}
    return {str(c): float(np.clip(own[rank - 1], 0, 1)) if rank <= len(own) else 1.0 for c, rank in ranks.items()}


def _decisions(probability: NDArray[np.float64], targets: NDArray) -> dict[str, float | None]:
    """Return by risk the lowest top probability that keeps it.

    Thresholds are tried from the top down, until the first whose risk may be higher: then each is judged at the full
    certainty (fixed-sequence testing). What is tried is chosen without a look at the classes.
    """
    from scipy.stats import beta

    top, wrong = probability.max(-1), probability.argmax(-1) != targets
    thresholds = np.unique(np.quantile(top, np.linspace(0, 0.99, 100), method="higher"))[::-1]
    chosen = top >= thresholds[:, None]
    decided, failed = chosen.sum(1), (chosen & wrong).sum(1)
    bounds = np.where(failed < decided, beta.ppf(_CERTAINTY, failed + 1, np.maximum(decided - failed, 1)), 1.0)
    found: dict[str, float | None] = {}
    for risk in RISKS:
        least = math.log(1 - _CERTAINTY) / math.log(1 - risk)  # decisions that show the risk if none is wrong
        tried = decided >= 2 * least  # of fewer, one wrong decision would end it
        kept = np.logical_and.accumulate(bounds[tried] <= risk)
        found[str(risk)] = float(thresholds[tried][kept][-1]) if kept.any() else None
    return found
