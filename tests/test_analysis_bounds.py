"""Lemma 1, Lemma 3 and the theorem on martingales whose law is known."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
import torch

from ccnn_zoo.analysis import (
    Trajectory,
    compare_with_theorem,
    lemma_1,
    lipschitz_constants,
    mean_tail_bound,
    tail_bound,
    threshold,
)
from ccnn_zoo.errors import ConfigurationError

STEP = 0.3


def walks(runs: int, steps: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Random walks of steps +-STEP from 0, (runs, steps + 1, dimensions)."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(runs, steps, dimensions))
    return STEP * np.concatenate([np.zeros((runs, 1, dimensions)), signs.cumsum(axis=1)], axis=1)


def exact_tail_of_the_end(steps: int, distance: int) -> Fraction:
    """P(|S_n| >= distance) of a walk of n steps +-1: S_n = 2 B - n with B binomial."""
    return Fraction(sum(comb(steps, b) for b in range(steps + 1) if abs(2 * b - steps) >= distance), 2**steps)


def exact_averages(steps: int) -> np.ndarray:
    """The average of x_1, ..., x_n for each of the 2**n equally likely walks of steps +-1."""
    signs = np.array(list(product((-1, 1), repeat=steps)))
    return signs.cumsum(axis=1).mean(axis=1)


# Lemma 1


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_lemma_1_holds_and_its_outer_shares_are_those_counted_by_hand(correlation: float) -> None:
    generator = np.random.default_rng(1)
    common = generator.standard_normal((4000, 1))
    samples = correlation * common + np.sqrt(1 - correlation**2) * generator.standard_normal((4000, 3))
    limits = np.array([0.4, 0.8, 1.2])
    together, union, total = lemma_1(samples, limits)
    assert 0 < together <= union <= total
    assert together == sum(abs(a) + abs(b) + abs(c) >= limits.sum() for a, b, c in samples) / 4000
    assert total == pytest.approx(sum(np.mean([abs(row[i]) >= limits[i] for row in samples]) for i in range(3)))


def test_lemma_1_is_sharp_where_one_coordinate_alone_moves() -> None:
    samples = np.zeros((10, 2))
    samples[:3, 0] = [1.0, -1.0, 2.0]
    assert lemma_1(samples, np.array([1.0, 0.0 + 1e-9]))[1:] == (0.3, 0.3)


def test_lemma_1_in_three_equally_likely_cases() -> None:
    samples = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert lemma_1(samples, [1.0, 1.0]) == pytest.approx((1.0, 1.0, 4 / 3))
    assert lemma_1(samples, [1.5, 1.5]) == pytest.approx((0.0, 2 / 3, 2 / 3))


# Lemma 3, as Eq. 16


@pytest.mark.parametrize("steps", [1, 2, 10, 101, 400])
def test_eq_16_bounds_the_binomial_tail_of_a_random_walk_at_every_distance(steps: int) -> None:
    constants = np.full((steps, 1), STEP)
    for distance in range(steps + 1):
        bound = tail_bound([STEP * distance], constants)[0]
        assert float(exact_tail_of_the_end(steps, distance)) <= bound + 1e-12, distance


def test_eq_16_is_within_a_factor_of_ten_of_the_binomial_tail() -> None:
    """So that a bound that is merely large could not pass: at three standard deviations of 400 steps."""
    exact = float(exact_tail_of_the_end(400, 60))
    bound = tail_bound([60.0], np.ones((400, 1)))[0]
    assert bound == pytest.approx(2 * np.exp(-4.5))
    assert exact < bound < 10 * exact


@pytest.mark.parametrize("steps", [1, 3, 8, 14])
def test_both_bounds_hold_for_the_average_of_every_possible_walk(steps: int) -> None:
    averages, constants = np.abs(exact_averages(steps)), np.ones((steps, 1))
    for deviation in np.unique(averages):
        share = (averages >= deviation).mean()
        sharp, plain = mean_tail_bound([deviation], constants)[0], tail_bound([deviation], constants)[0]
        assert share <= sharp <= plain


def test_the_bound_of_the_average_is_three_times_as_sharp_in_the_limit() -> None:
    """The shares' squares sum to n / 3: the variance of the average of Brownian motion is a third of the end's."""
    constants = np.ones((3000, 1))
    ratio = np.log(mean_tail_bound([200.0], constants) / 2) / np.log(tail_bound([200.0], constants) / 2)
    assert ratio[0] == pytest.approx(3, rel=1e-2)


def test_eq_13_as_printed_is_no_bound_which_is_why_it_is_not_offered() -> None:
    """It has no 2 below lambda**2, and is about deviations of lambda / n of the average."""
    steps = 14
    averages = np.abs(exact_averages(steps))
    violated = [a for a in np.unique(averages) if (averages >= a).mean() > 2 * np.exp(-((steps * a) ** 2) / steps)]
    assert violated, "for the average of a walk"
    tail = float(exact_tail_of_the_end(400, 60))
    assert tail > 2 * np.exp(-(60**2) / 400), "nor for its end"


def test_uneven_constants_count_by_their_squares() -> None:
    generator = np.random.default_rng(2)
    constants = generator.uniform(0.1, 2.0, size=(30, 1))
    ends = (constants * generator.choice([-1, 1], size=(30, 20000))).sum(axis=0)
    for deviation in (2.0, 6.0, 10.0):
        share = (np.abs(ends) >= deviation).mean()
        assert share <= tail_bound([deviation], constants)[0] + 4 * np.sqrt(share / 20000)
    assert tail_bound([10.0], constants)[0] == pytest.approx(2 * np.exp(-100 / (2 * (constants**2).sum())))


def test_the_threshold_inverts_the_bound() -> None:
    constants = np.random.default_rng(3).uniform(0.1, 1, size=(20, 5))
    np.testing.assert_allclose(tail_bound(threshold(0.07, constants), constants), 0.07)
    with pytest.raises(ConfigurationError, match="probability must be in"):
        threshold(0.0, constants)


def test_what_never_moves_deviates_by_nothing() -> None:
    assert tail_bound([0.0, 1e-3], np.zeros((4, 2))).tolist() == [1.0, 0.0]
    assert mean_tail_bound([0.0, 1e-3], np.zeros((4, 2))).tolist() == [1.0, 0.0]


# Eq. 15 and the theorem


def test_the_constants_are_the_largest_steps_over_the_runs() -> None:
    values = np.array([[[0.0, 0.0], [1.0, -2.0], [1.5, -2.0]], [[0.0, 0.0], [-3.0, 0.5], [-2.0, 0.5]]])
    assert lipschitz_constants(values).tolist() == [[3.0, 2.0], [1.0, 0.0]]
    with pytest.raises(ConfigurationError, match=r"got shape \(1, 1, 2\)"):
        lipschitz_constants(np.zeros((1, 1, 2)))


def test_the_theorem_holds_for_independent_random_walks() -> None:
    runs, steps, dimensions = 3000, 12, 4
    values = walks(runs, steps, dimensions)
    report = compare_with_theorem([Trajectory(torch.from_numpy(run), {}) for run in values])
    assert report.constants == pytest.approx([STEP] * steps)
    expected = np.abs(values[:, 1:].mean(axis=1)).sum(axis=1)  # E of the average is 0 here
    assert np.mean(report.measured_sums) == pytest.approx(expected.mean(), rel=0.01)
    for row, total in enumerate(report.totals):
        limit = STEP * np.sqrt(2 * steps * np.log(2 * dimensions / total))
        assert report.threshold_sums[row] == pytest.approx(dimensions * limit)
        assert report.largest_threshold[row] == pytest.approx(limit)
        assert report.measured_shares[row] == pytest.approx((expected >= dimensions * limit).mean(), abs=0.01)
        assert report.measured_shares[row] <= total
        assert report.coordinate_shares[row] <= report.coordinate_mean_bounds[row] <= report.coordinate_bounds[row]
        assert report.coordinate_bounds[row] == pytest.approx(total / dimensions)


def test_a_single_coordinate_shows_the_tail_that_its_law_has() -> None:
    """One dimension and one step: the average is the end, +-STEP, so every run deviates by exactly STEP."""
    report = compare_with_theorem([Trajectory(torch.from_numpy(run), {}) for run in walks(2000, 1, 1)])
    assert min(report.measured_sums) == pytest.approx(STEP, rel=0.1)
    assert max(report.measured_sums) == pytest.approx(STEP, rel=0.1)
