"""Hedged allocations: closed forms, a general solver, and the choice of the strength."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pplscape.draw.hedge import TO_POOL, allocate, choose
from pplscape.draw.options import Options
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility, solve
from pplscape.draw.strategies import draw
from pplscape.errors import UserError
from pplscape.statistics import make_bins

LINEAR = Utility(np.array([3.0, 1.0, -1.0, 5.0]), np.array([0.4, 0.3, 0.2, 0.1]), "power", 1.0, 1000.0)


def test_linear_utilities_are_weighted_by_their_exponential():
    found = allocate(LINEAR, LINEAR.share * 1e9, 500.0, 0.7)
    value_of_random = LINEAR.share @ LINEAR.u
    expected = LINEAR.share * np.exp(LINEAR.u / (0.7 * value_of_random))
    np.testing.assert_allclose(found.tokens, 500 * expected / expected.sum(), rtol=1e-9)
    assert found.value == pytest.approx(LINEAR.u @ found.tokens / 1000)
    assert found.gap < 1e-9


@pytest.mark.parametrize(("phi", "shape"), [("saturating", 0.4), ("power", 0.6)])
def test_from_the_optimum_to_random(phi, shape):
    utility = Utility(np.array([3.0, 1.0, 5.0]), np.array([0.5, 0.3, 0.2]), phi, shape, 1000.0)
    unique = utility.share * 4000
    optimum, random = solve(utility, unique, 800.0).tokens, utility.share * 800
    np.testing.assert_allclose(allocate(utility, unique, 800.0, 0.0).tokens, optimum)
    np.testing.assert_allclose(allocate(utility, unique, 800.0, 1e-7).tokens, optimum, rtol=1e-3, atol=1.0)
    np.testing.assert_allclose(allocate(utility, unique, 800.0, 1e7).tokens, random, rtol=1e-5)
    away = [np.abs(allocate(utility, unique, 800.0, t).tokens - random).sum() for t in TO_POOL]
    assert away == sorted(away, reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 3), st.sampled_from([("saturating", 0.5), ("power", 0.7)]))
def test_no_worse_than_a_general_solver(seed, hedge, form):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 7))
    share = rng.dirichlet(np.full(k, 3.0))
    utility = Utility(rng.uniform(0.2, 10, k), share, *form, 1.0)
    unique, budget = share * 5 * rng.uniform(0.3, 1, k), 1.0
    found = allocate(utility, unique, budget, hedge).tokens
    assert found.sum() == pytest.approx(budget)
    assert (found <= unique * (1 + 1e-9)).all()
    phi = {"saturating": lambda z: form[1] * (1 - np.exp(-z / form[1])), "power": lambda z: z ** form[1]}[form[0]]
    slope = {"saturating": lambda z: np.exp(-z / form[1]), "power": lambda z: form[1] * z ** (form[1] - 1)}[form[0]]
    pull = hedge * float(share @ (utility.u * slope(np.full(k, budget))))

    def cost(n):
        n = np.maximum(n, 1e-12)
        return -float(utility.u * share @ phi(n / share)) + pull * float(n @ np.log(n / share / budget))

    start = unique * (budget / unique.sum())
    other = minimize(
        cost, start, bounds=[(1e-9, c) for c in unique], method="SLSQP", options={"maxiter": 300, "ftol": 1e-12},
        constraints={"type": "eq", "fun": lambda n: n.sum() - budget},
    )  # fmt: skip
    assert cost(found) <= cost(np.clip(other.x, 1e-9, unique)) + 1e-6 + abs(other.x.sum() - budget) * 100


def test_equal_utilities_stay_random_at_every_strength():
    equal = Utility(np.full(3, 2.0), np.array([0.5, 0.3, 0.2]), "power", 0.8, 1.0)
    for hedge in TO_POOL:
        np.testing.assert_allclose(allocate(equal, equal.share * 9, 3.0, hedge).tokens, equal.share * 3, rtol=1e-6)


def test_what_is_taken_already_stays():
    found = allocate(LINEAR, LINEAR.share * 4000, 1000.0, 0.5, floor=[0, 0, 300.0, 0])
    assert found.tokens[2] == pytest.approx(300)
    assert found.tokens.sum() == pytest.approx(1000)


def test_no_stronger_than_doubt_asks_for():
    """10th percentile = mean - 1.28 spreads: below 0 for the first strength, above for the others."""
    rng = np.random.default_rng(0)
    mean, spread = np.array([0.06, 0.03, 0.05]), np.array([0.08, 0.02, 0.01])
    gains = mean + spread * rng.normal(size=(2000, 1))
    assert choose(gains, (0.3, 0.6, 1.0)) == 0.6  # surer to gain than the first, though 1.0 has the better bound
    assert choose(gains[:, [2, 1, 0]], (0.3, 0.6, 1.0)) == 0.3
    assert choose(gains[:, [0, 0, 0]] * [1, 0.5, 0.7], (0.3, 0.6, 1.0)) == 0.6  # nothing is sure: the smallest loss
    assert choose(np.zeros((50, 3)), (0.3, 0.6, 1.0)) == 0.3
    lost = gains.copy()
    lost[:300, 1] = np.nan
    assert choose(lost, (0.3, 0.6, 1.0)) == 1.0


def test_a_negative_hedge_is_refused():
    pool = Pool.of(["a", "b", "c", "d"], np.zeros(4, int), np.full(4, 100), np.array([3.0, 3.5, 4.0, 4.5]))
    options = Options(utility=LINEAR, bins=make_bins(pool.x, pool.length, 4), hedge=-0.1)
    with pytest.raises(UserError, match="--hedge must not be negative"):
        draw("allocate", pool, 200, 0, options)


def test_towards_a_mix_that_is_not_the_pools():
    """Linear utilities: q exp(u / (T v)), v of the pool's mix; with all the hedge there is, q itself."""
    q = np.array([0.1, 0.2, 0.3, 0.4])
    value_of_random = LINEAR.share @ LINEAR.u
    expected = q * np.exp(LINEAR.u / (0.7 * value_of_random))
    found = allocate(LINEAR, LINEAR.share * 1e9, 500.0, 0.7, toward=q)
    np.testing.assert_allclose(found.tokens, 500 * expected / expected.sum(), rtol=1e-9)
    assert found.gap < 1e-9
    np.testing.assert_allclose(
        allocate(LINEAR, LINEAR.share * 1e9, 500.0, 1e9, toward=9 * q).tokens, 500 * q, rtol=1e-6
    )
    np.testing.assert_allclose(
        allocate(LINEAR, LINEAR.share * 4000, 500.0, 0.7, toward=LINEAR.share).tokens,
        allocate(LINEAR, LINEAR.share * 4000, 500.0, 0.7).tokens,
    )


def test_a_bin_that_the_mix_asks_for_gives_no_more_than_it_has():
    found = allocate(LINEAR, np.array([900.0, 900.0, 900.0, 50.0]), 500.0, 2.0, toward=[0.1, 0.1, 0.1, 0.7])
    assert found.tokens[3] == pytest.approx(50)
    assert found.tokens.sum() == pytest.approx(500)
