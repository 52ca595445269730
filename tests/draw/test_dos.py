from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.draw.dos import TIE, Distance, default_weights, greedy
from pplscape.draw.options import Before, Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.strategies import draw
from pplscape.errors import UserError


def brute_force(values, length, budget, distance):
    """At every step J of every unused chunk that fits, with the same running sums."""
    d = values - distance.mean
    free, k, s1, s2, left, taken = np.ones(len(d), bool), 0, 0.0, 0.0, budget, []
    while len(rows := np.flatnonzero(free & (length <= left))):
        J = distance.after(d[rows], k, s1, s2)
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
    weights = (data.draw(st.floats(0, 1e3)), data.draw(st.floats(1e-3, 1e3)))
    spread = data.draw(st.sampled_from(["var", "std"]))
    distance = Distance(data.draw(st.floats(-4, 4)), data.draw(st.floats(0.01, 4)), weights, spread)
    budget = data.draw(st.integers(1, int(length.sum())))
    assert greedy(values, length, budget, distance)[0].tolist() == brute_force(values, length, budget, distance)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.integers(-2, 2), st.integers(0, 4), st.data())
def test_matches_the_definition_in_exact_arithmetic(values, mean, variance, data):
    weights, budget = (1, data.draw(st.integers(1, 3))), data.draw(st.integers(1, len(values)))
    ones = np.ones(len(values), np.int64)
    found, _ = greedy(np.asarray(values, float), ones, budget, Distance(mean, variance**0.5, weights))
    assert found.tolist() == exact(values, budget, mean, variance, weights)


def test_reaches_the_target_and_shows_its_two_spikes():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 20_000)
    rows, J = greedy(values, np.full(20_000, 1, np.int64), 1000, Distance(0.5, 0.7, default_weights(values)))
    assert J < 1e-6
    assert abs(values[rows].mean() - 0.5) < 1e-3
    assert abs(values[rows].std() - 0.7) < 1e-3
    distance = np.minimum(abs(values[rows] - 1.2), abs(values[rows] + 0.2))
    assert np.mean(distance < 0.15) > 0.95


@pytest.mark.parametrize("spread", ["var", "std"])
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.floats(-3, 3), st.floats(0, 9), st.floats(0.1, 3), st.floats(1e-3, 1e3))
def test_minima_are_where_the_objective_is_lowest(spread, k, mean, variance, std, w_s):
    s1, s2 = k * mean, k * (variance + mean * mean)
    distance = Distance(0.0, std, (1.0, w_s), spread)
    lowest = distance.after(np.linspace(-200, 200, 40_001), k, s1, s2).min()
    found = min(distance.after(d, k, s1, s2) for d in distance.minima(k, s1, s2))
    assert found <= lowest * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("spread", ["var", "std"])
def test_both_readings_reach_the_target_by_other_chunks(spread):
    values = np.random.default_rng(1).normal(0, 1, 5000)
    distance = Distance(0.3, 0.6, default_weights(values, spread), spread)
    rows, J = greedy(values, np.ones(5000, np.int64), 400, distance)
    assert (values[rows].mean(), values[rows].std()) == pytest.approx((0.3, 0.6), abs=2e-3)
    direct = distance.after(
        values[rows[-1]] - 0.3, 399, np.sum(values[rows[:-1]] - 0.3), np.sum((values[rows[:-1]] - 0.3) ** 2)
    )
    assert pytest.approx(direct, abs=1e-12) == J


def test_it_stops_where_told_and_goes_on_from_there():
    """Stopping, then going on with what was taken as `before`, is the draw in one piece."""
    values = np.random.default_rng(2).normal(0, 1, 3000)
    length, distance = np.ones(3000, np.int64), Distance(0.4, 0.7, (1.0, 1.0))
    whole, _ = greedy(values, length, 300, distance)
    first, J = greedy(values, length, 300, distance, Options(stop=1e-4))
    assert 2 < len(first) < 300
    assert J <= 1e-4
    assert first.tolist() == whole[: len(first)].tolist()
    before = Before(len(first), values[first].sum(), (values[first] ** 2).sum(), np.zeros(1))
    free = np.setdiff1d(np.arange(3000), first)
    then, _ = greedy(values[free], length[free], 300 - len(first), distance, Options(before=before))
    assert sorted([*first, *free[then]]) == sorted(whole)


def test_options_of_the_strategy():
    x = np.random.default_rng(3).normal(3, 0.5, 2000)
    pool = Pool.of([f"d{i:04d}" for i in range(2000)], [0] * 2000, [10] * 2000, x)
    aim = {"scale": "nll", "target": Target(3.2, 0.4)}
    plain = draw("dos", pool, 3000, 0, Options(**aim))
    values = pool.values("nll")
    assert tuple(plain.facts["weights"].values()) == default_weights(values)
    same = draw("dos", pool, 3000, 0, Options(**aim, weights=default_weights(values)))
    assert (same.times == plain.times).all()
    only_mean = draw("dos", pool, 3000, 0, Options(**aim, weights=(1.0, 0.0)))
    assert values[only_mean.times > 0].mean() == pytest.approx(3.2, abs=1e-3)
    assert values[only_mean.times > 0].std() < 0.2
    stopped = draw("dos", pool, 3000, 0, Options(**aim, stop=1e-3))
    assert stopped.facts["distance"] <= 1e-3
    assert stopped.facts["stopped"] == 3000 - 10 * stopped.times.sum() > 0
    with pytest.raises(UserError, match="not both 0"):
        draw("dos", pool, 3000, 0, Options(**aim, weights=(0.0, 0.0)))


def test_default_weights_of_a_normal_pool():
    values = np.random.default_rng(0).normal(5, 2, 200_000)
    w_mu, w_s = default_weights(values)
    assert w_mu == pytest.approx(1 / 4, rel=0.02)
    assert w_s == pytest.approx(1 / (2 * 16), rel=0.04)
