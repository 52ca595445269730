from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.draw.dos import TIE, default_weights, greedy, minima, objective
from pplscape.draw.options import Target


def brute_force(values, length, budget, target, weights):
    """At every step J of every unused chunk that fits, with the same running sums."""
    d, target_var = values - target.mean, target.std**2
    free, k, s1, s2, left, taken = np.ones(len(d), bool), 0, 0.0, 0.0, budget, []
    while len(rows := np.flatnonzero(free & (length <= left))):
        J = objective(d[rows], k, s1, s2, target_var, weights)
        row = rows[np.flatnonzero(J.min() * (1 + TIE) >= J)[0]]
        free[row] = False
        taken.append(row)
        k, s1, s2, left = k + 1, s1 + d[row], s2 + d[row] * d[row], left - length[row]
    return taken


def exact(values, budget, mean, variance, weights):
    """The definition of J in rational arithmetic, chunks of length one."""
    taken: list[int] = []
    while len(taken) < budget:
        scored = []
        for i in range(len(values)):
            if i not in taken:
                subset = [Fraction(int(values[j])) for j in [*taken, i]]
                m = sum(subset) / len(subset)
                v = sum((s - m) ** 2 for s in subset) / len(subset)
                scored.append((weights[0] * (m - mean) ** 2 + weights[1] * (v - variance) ** 2, i))
        taken.append(min(scored)[1])
    return taken


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_matches_brute_force_step_for_step(data):
    n = data.draw(st.integers(1, 60))
    numbers = st.one_of(st.integers(-4, 4).map(float), st.floats(-5, 5))
    values = np.asarray(data.draw(st.lists(numbers, min_size=n, max_size=n)))
    length = np.asarray(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), np.int64)
    target = Target(data.draw(st.floats(-4, 4)), data.draw(st.floats(0.01, 4)))
    weights = (data.draw(st.floats(1e-3, 1e3)), data.draw(st.floats(1e-3, 1e3)))
    budget = data.draw(st.integers(1, int(length.sum())))
    assert greedy(values, length, budget, target, weights).tolist() == brute_force(
        values, length, budget, target, weights
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(-2, 2), st.integers(0, 4), st.data())
def test_matches_the_definition_in_exact_arithmetic(values, mean, variance, data):
    weights, budget = (1, data.draw(st.integers(1, 3))), data.draw(st.integers(1, len(values)))
    ones = np.ones(len(values), np.int64)
    found = greedy(np.asarray(values, float), ones, budget, Target(mean, variance**0.5), weights)
    assert found.tolist() == exact(values, budget, mean, variance, weights)


def test_reaches_the_target_and_shows_its_two_spikes():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 20_000)
    rows = greedy(values, np.full(20_000, 1, np.int64), 1000, Target(0.5, 0.7), default_weights(values))
    assert abs(values[rows].mean() - 0.5) < 1e-3
    assert abs(values[rows].std() - 0.7) < 1e-3
    distance = np.minimum(abs(values[rows] - 1.2), abs(values[rows] + 0.2))
    assert np.mean(distance < 0.15) > 0.95


@settings(max_examples=100)
@given(st.integers(1, 50), st.floats(-3, 3), st.floats(0, 9), st.floats(0.01, 9), st.floats(1e-3, 1e3))
def test_minima_are_where_the_objective_is_lowest(k, mean, variance, target_var, w_s):
    s1, s2 = k * mean, k * (variance + mean * mean)
    grid = np.linspace(-200, 200, 40_001)
    lowest = objective(grid, k, s1, s2, target_var, (1.0, w_s)).min()
    found = min(objective(d, k, s1, s2, target_var, (1.0, w_s)) for d in minima(k, s1, s2, target_var, (1.0, w_s)))
    assert found <= lowest * (1 + 1e-9) + 1e-12


def test_default_weights_of_a_normal_pool():
    values = np.random.default_rng(0).normal(5, 2, 200_000)
    w_mu, w_s = default_weights(values)
    assert w_mu == pytest.approx(1 / 4, rel=0.02)
    assert w_s == pytest.approx(1 / (2 * 16), rel=0.04)
