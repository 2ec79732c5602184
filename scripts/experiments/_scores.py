"""What is measured of predicted probabilities: error, negative log-likelihood, calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15


def scores(log_probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> dict[str, float]:
    """Return the figures of one set of images.

    Args:
        log_probabilities: natural logarithms, (N, classes).
        targets: classes, (N,).

    Returns:
        ``error_percent``; ``top5_error_percent`` if there are more than 5 classes; ``nll``, the mean negative
        log-likelihood in nats; ``ece_percent``, :func:`calibration_error`.
    """
    log_probabilities = log_probabilities.astype(np.float64)
    right = log_probabilities[np.arange(len(targets)), targets]
    # Ties count against the network.
    rank = (log_probabilities >= right[:, None]).sum(1)
    found = {"error_percent": 100 * float((rank > 1).mean())}
    if log_probabilities.shape[1] > 5:
        found["top5_error_percent"] = 100 * float((rank > 5).mean())
    confidence = np.exp(log_probabilities.max(1))
    return {**found, "nll": -float(right.mean()), "ece_percent": 100 * calibration_error(confidence, rank == 1)}


def calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: mean over images of abs(accuracy - confidence) of their bin.

    Bins are :data:`BINS` of equal width; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Eq. 3.

    Args:
        confidence: probability of the predicted class, (N,).
        correct: whether it was right, (N,).
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gap = np.bincount(bins, correct - confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def mean_prediction(members: list[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Return the logarithm of the mean of the members' probabilities, (N, classes)."""
    return np.logaddexp.reduce([m.astype(np.float64) for m in members]) - np.log(len(members))
