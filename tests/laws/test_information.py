"""Information about a law and the choice of runs: linear models whose answers are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from pplscape.laws.information import Knowledge, d_optimal, greedy, v_optimal
from pplscape.laws.noise import Noise

NOISE = Noise(trunk=0.02, run=0.01, freedom=10.0)
VAGUE = 1e-6 * np.eye(3)


def alone(*names: int) -> np.ndarray:
    return np.array(names).astype(str)


def line(x: np.ndarray) -> np.ndarray:
    """[1, n, 2]: a straight line at x [n]."""
    return np.stack([np.ones_like(x), x], axis=-1)[None]


def trunks_of(x: np.ndarray) -> np.ndarray:
    """Candidates [C, 1, 1, 2] of one run each."""
    return line(x)[0][:, None, None, :]


@pytest.fixture
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives [2, 9, 3] of nine runs in four trunks, and their weights."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 9, 3)), alone(0, 0, 0, 1, 1, 2, 2, 2, 3), rng.uniform(0.5, 2, 9)


def test_knowledge_is_generalised_least_squares(table: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    jacobian, groups, weight = table
    found = Knowledge.of(VAGUE, jacobian, groups, NOISE, weight)
    same = groups[:, None] == groups[None, :]
    v = NOISE.trunk**2 * same + np.diag(NOISE.run**2 / weight)
    for s in range(2):
        expected = np.linalg.inv(VAGUE + jacobian[s].T @ np.linalg.solve(v, jacobian[s]))
        np.testing.assert_allclose(found.covariance[s], expected, rtol=1e-9)


def test_a_weight_of_zero_leaves_a_run_out(table: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    jacobian, groups, _ = table
    weight = np.r_[np.ones(6), np.zeros(3)]
    found = Knowledge.of(VAGUE, jacobian, groups, NOISE, weight)
    fewer = Knowledge.of(VAGUE, jacobian[:, :6], groups[:6], NOISE)
    np.testing.assert_allclose(found.covariance, fewer.covariance, rtol=1e-9)


def test_one_more_trunk_equals_starting_over(table: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    jacobian, groups, _ = table
    question = np.random.default_rng(1).normal(size=(2, 4, 3))
    few = Knowledge.of(VAGUE, jacobian[:, :5], groups[:5], NOISE)
    more = Knowledge.of(VAGUE, jacobian[:, :8], groups[:8], NOISE)
    trunk = jacobian[:, 5:8]
    np.testing.assert_allclose(few.after(trunk).covariance, more.covariance, rtol=1e-9)
    np.testing.assert_allclose(
        few.reduction(trunk[None], question)[0], few.variance(question) - more.variance(question), rtol=1e-8
    )
    log_det = [np.linalg.slogdet(k.covariance)[1] for k in (few, more)]
    np.testing.assert_allclose(few.surprise(trunk[None])[0], log_det[0] - log_det[1], rtol=1e-9)


def test_branches_share_the_noise_of_their_trunk() -> None:
    """Four runs of one trunk tell the mean to trunk^2 + run^2 / 4; four trunks to (trunk^2 + run^2) / 4."""
    ones = np.ones((1, 4, 1))
    together = Knowledge.of(np.zeros((1, 1)), ones, alone(0, 0, 0, 0), NOISE).covariance[0, 0, 0]
    apart = Knowledge.of(np.zeros((1, 1)), ones, alone(0, 1, 2, 3), NOISE).covariance[0, 0, 0]
    assert together == pytest.approx(0.02**2 + 0.01**2 / 4)
    assert apart == pytest.approx((0.02**2 + 0.01**2) / 4)


def test_d_optimality_takes_the_ends_of_a_line() -> None:
    x = np.linspace(-1, 1, 11)
    known = Knowledge.of(1e-3 * np.eye(2), line(x[5:6]), alone(0), NOISE)
    taken, _ = greedy(known, trunks_of(x), np.ones(11), 20, d_optimal)
    assert np.bincount(taken, minlength=11).tolist() == [10, *[0] * 9, 10]


def test_v_optimality_extrapolates_with_elfvings_weights() -> None:
    """For a line known on [-1, 1] and asked at x0 > 1 the best share at +1 is (x0 + 1) / (2 x0) (Elfving 1952)."""
    x = np.linspace(-1, 1, 11)
    known = Knowledge.of(1e-3 * np.eye(2), line(x[5:6]), alone(0), NOISE)
    taken, then = greedy(known, trunks_of(x), np.ones(11), 80, v_optimal(line(np.array([2.0])), np.ones(1)))
    assert set(taken) == {0, 10}
    assert taken.count(10) / 80 == pytest.approx(3 / 4, abs=0.02)
    expected = (NOISE.total**2) * 2.0**2 / 80  # of the optimal design: noise^2 x0^2 / n
    assert then.variance(line(np.array([2.0])))[0, 0] == pytest.approx(expected, rel=0.02)


def test_worth_is_counted_per_cost() -> None:
    """A slope from x = 2 is four times as precise as from x = 1: worth it at twice the cost, not at ten times."""
    known = Knowledge.of(1e3 * np.eye(1), np.zeros((1, 1, 1)), alone(0), NOISE)
    x = np.array([1.0, 2.0])[:, None, None, None]
    score = v_optimal(np.ones((1, 1, 1)), np.ones(1))
    assert greedy(known, x, np.array([1.0, 2.0]), 2.0, score)[0] == [1]
    assert greedy(known, x, np.array([1.0, 10.0]), 10.0, score)[0] == [0] * 10
    assert greedy(known, x, np.array([1.0, 10.0]), 10.5, score, again=False)[0] == [0]
    assert greedy(known, x, np.array([1.0, 1.0]), 9.0, score, most=3)[0] == [1, 1, 1]


def test_a_draw_with_a_huge_variance_does_not_decide_alone() -> None:
    """Nine draws ask for the second parameter, one, a million times as uncertain, for the first."""
    covariance = np.stack([np.eye(2)] * 9 + [1e6 * np.eye(2)])
    known = Knowledge(covariance, NOISE)
    question = np.stack([np.array([[0.0, 1.0]])] * 9 + [np.array([[1.0, 0.0]])])
    candidates = np.broadcast_to(np.eye(2)[:, None, None, :], (2, 10, 1, 2))
    score = v_optimal(question, np.ones(1))
    assert greedy(known, candidates, np.ones(2), 1, score)[0] == [1]
