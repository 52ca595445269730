import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pplscape.draw.program import Utility, solve


def instance(data, least=-2.0):
    k = data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    share = rng.dirichlet(np.full(k, 3.0))
    u = rng.uniform(least, 10, k)
    phi = data.draw(st.sampled_from(["saturating", "power"]))
    shape = data.draw(st.floats(0.05, 3)) if phi == "saturating" else data.draw(st.floats(0.05, 1))
    pool = rng.uniform(1, 20)
    return Utility(u, share, phi, shape, 1000.0), share * pool * 1000, data.draw(st.floats(0.02, 1.2)) * pool * 1000


def value(utility, tokens):
    z = tokens / utility.unit / utility.share
    if utility.phi == "saturating":
        phi = utility.shape * (1 - np.exp(-z / utility.shape))
    else:
        phi = np.maximum(z, 0) ** utility.shape
    return float(np.sum(utility.u * utility.share * phi))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_certificate_and_constraints(data):
    utility, unique, budget = instance(data)
    found = solve(utility, unique, budget)
    assert (found.tokens >= 0).all()
    assert (found.tokens <= unique * (1 + 1e-12)).all()
    assert found.tokens.sum() <= budget * (1 + 1e-12)
    assert (found.tokens[utility.u <= 0] == 0).all()
    assert found.gap < 1e-9
    assert found.value == pytest.approx(value(utility, found.tokens), rel=1e-9)
    could = unique[utility.u > 0].sum()
    assert found.unspent == pytest.approx(max(budget - could, 0), abs=1e-6 * budget)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_worse_than_a_general_solver(data):
    utility, unique, budget = instance(data)
    found = solve(utility, unique, budget)
    start = np.where(utility.u > 0, unique * min(budget / unique.sum(), 1) * 0.9, 0)
    other = minimize(
        lambda n: -value(utility, n * 1000),
        start / 1000,
        bounds=[(0, c / 1000) for c in unique],
        constraints={"type": "ineq", "fun": lambda n: budget / 1000 - n.sum()},
        method="SLSQP",
        options={"maxiter": 300},
    )
    if other.x.sum() <= budget / 1000 * (1 + 1e-9):
        assert found.value >= -other.fun - 1e-7 * abs(other.fun)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.floats(0.01, 0.99))
def test_equal_utility_is_proportional_to_the_pool(data, part):
    utility, unique, _ = instance(data)
    equal = Utility(np.full(len(unique), 3.0), utility.share, utility.phi, utility.shape, utility.unit)
    np.testing.assert_allclose(solve(equal, unique, part * unique.sum()).tokens, part * unique, rtol=1e-6)


def test_saturating_closed_form_and_power_one():
    utility = Utility(np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.3, 0.5]), "saturating", 0.7, 1000.0)
    found = solve(utility, [1e9] * 3, 500.0)
    expected = np.maximum(0.7 * utility.share * np.log(utility.u / found.price), 0) * 1000
    np.testing.assert_allclose(found.tokens, expected, rtol=1e-9, atol=1e-9)
    linear = Utility(np.array([1.0, 3.0, 2.0]), np.full(3, 1 / 3), "power", 1.0, 1000.0)
    np.testing.assert_allclose(solve(linear, [100.0, 100, 100], 150).tokens, [0, 100, 50], atol=1e-6)


def test_repeats_only_where_they_pay():
    utility = Utility(np.array([10.0, 1.0]), np.array([0.5, 0.5]), "saturating", 3.0, 1000.0)
    unique = np.array([100.0, 1000.0])
    once, four = (solve(utility, unique, 600, e) for e in (1.0, 4.0))
    assert once.tokens[0] == pytest.approx(100)
    assert four.tokens[0] == pytest.approx(400)
    assert four.value > once.value
    assert four.gap < 1e-9


def test_only_harmful_bins():
    found = solve(Utility(np.array([-1.0, 0.0]), np.array([0.5, 0.5]), "power", 0.5, 1.0), [10.0, 10], 5)
    assert found.tokens.tolist() == [0, 0]
    assert found.unspent == 5
    assert found.gap == 0
