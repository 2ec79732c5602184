"""Lemma 1, Lemma 3 and the theorem of the paper, as functions of numbers.

What is implemented is Eq. 16, which is the inequality of Azuma and Hoeffding: for a martingale with steps
``|x_j - x_(j-1)| <= c_(j-1)``::

    P(|x_n - x_0| >= lambda) <= 2 exp(-lambda^2 / (2 sum_j c_(j-1)^2))

The average of ``x_1, ..., x_n``, whose steps weigh less, obeys it too. Eq. 13 prints the same without the 2
and for a deviation of the average by ``lambda / n``; a random walk of steps +-c violates it
(tests/test_analysis_bounds.py), so it is not offered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ccnn_zoo.errors import ConfigurationError

Array = NDArray[np.float64]


def lipschitz_constants(trajectories: ArrayLike) -> Array:
    """Return the smallest C(i, j) with which Eq. 15 holds in all runs: the largest step that was seen.

    Args:
        trajectories: values before the first and after every step, (runs, n + 1, dimensions).

    Returns:
        Array (n, dimensions), in the unit of the values.

    Raises:
        ConfigurationError: there is no step.
    """
    values = np.asarray(trajectories, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] < 2:
        raise ConfigurationError(f"trajectories must be (runs, steps + 1, dimensions), got shape {values.shape}")
    return np.abs(np.diff(values, axis=1)).max(axis=0)


def tail_bound(deviation: ArrayLike, constants: ArrayLike) -> Array:
    """Return a_i of Eq. 16 and 17, ``2 exp(-lambda_i^2 / (2 sum_j C(i, j)^2))``, at most 1.

    Args:
        deviation: lambda_i, (..., dimensions).
        constants: C(i, j), (n, dimensions).
    """
    return _two_sided(deviation, np.square(np.asarray(constants, dtype=np.float64)).sum(axis=0))


def mean_tail_bound(deviation: ArrayLike, constants: ArrayLike) -> Array:
    r"""Return the same inequality for the average of n values itself, at most 1 and never above Eq. 16.

    Step j stays in n - j + 1 of the n averaged values, so its constant counts by the share ``(n - j + 1) / n``.
    With equal constants the exponent is about three times as large as in Eq. 16.

    Args:
        deviation: lambda_i, (..., dimensions).
        constants: C(i, j), (n, dimensions).
    """
    steps = np.asarray(constants, dtype=np.float64)
    shares = np.arange(len(steps), 0, -1) / len(steps)
    return _two_sided(deviation, np.square(shares.reshape(-1, *[1] * (steps.ndim - 1)) * steps).sum(axis=0))


def _two_sided(deviation: ArrayLike, squares: Array) -> Array:
    deviation = np.asarray(deviation, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(deviation == 0, 0.0, np.square(deviation) / (2 * squares))
    return np.minimum(1.0, 2 * np.exp(-exponent))


def threshold(probability: float, constants: ArrayLike) -> Array:
    """Return the lambda_i at which a_i of Eq. 16 is ``probability``, one per dimension.

    Raises:
        ConfigurationError: ``probability`` is outside (0, 1].
    """
    if not 0 < probability <= 1:
        raise ConfigurationError(f"probability must be in (0, 1], got {probability!r}")
    squares = np.square(np.asarray(constants, dtype=np.float64)).sum(axis=0)
    return np.sqrt(2 * squares * np.log(2 / probability))


def lemma_1(samples: ArrayLike, thresholds: ArrayLike) -> tuple[float, float, float]:
    r"""Return the three shares that Lemma 1 (Eq. 6) orders, from the smallest to the largest.

    Args:
        samples: vectors A, (samples, dimensions).
        thresholds: lambda, (dimensions,).

    Returns:
        How often ``sum_i |A_i| >= sum_i lambda_i``; how often some ``|A_i| >= lambda_i``; and the sum
        over i of how often ``|A_i| >= lambda_i``.
    """
    sizes, limits = np.abs(np.asarray(samples, dtype=np.float64)), np.asarray(thresholds, dtype=np.float64)
    over = sizes >= limits
    # fsum-like rounding could let the sums disagree where every part is just below its threshold.
    total = (sizes - limits).sum(axis=1) >= 0
    return float(total.mean()), float(over.any(axis=1).mean()), float(over.mean(axis=0).sum())
