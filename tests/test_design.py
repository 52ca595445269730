"""Regimes, sizes and depletion: feasibility and known answers."""

from __future__ import annotations

import numpy as np
import pytest

from pplscape.design import (
    Fine,
    Regime,
    capped,
    choose_regimes,
    choose_sizes,
    diagnose,
    draw_shares,
    draw_trunk,
    expected_error,
    tilt,
    trunk_tokens,
)
from pplscape.errors import UserError
from pplscape.statistics import make_bins


@pytest.fixture(scope="module")
def pool() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = 4000
    return {
        "x": rng.normal(5, 1, n),
        "length": rng.integers(64, 257, n),
        "order": rng.random(n),
        "member": rng.random(n),
    }


def _fine(pool: dict[str, np.ndarray], n: int = 20) -> tuple[Fine, np.ndarray, np.ndarray]:
    bins = make_bins(pool["x"], pool["length"], n)
    fine = Fine.of(bins, pool["x"], pool["length"])
    return fine, bins.of(pool["x"]), np.arange(n) * 5 // n


def test_capped_shares_sum_to_one_within_the_cap() -> None:
    shares = capped(np.array([0.9, 0.05, 0.05]), np.array([0.5, 0.5, 0.5]))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25])


def test_pool_shares_have_the_pools_moments(pool: dict[str, np.ndarray]) -> None:
    fine, _, _ = _fine(pool)
    mean = np.average(pool["x"], weights=pool["length"])
    std = np.sqrt(np.average((pool["x"] - mean) ** 2, weights=pool["length"]))
    np.testing.assert_allclose(fine.moments(fine.share), (mean, std))


def test_tilt_reaches_a_feasible_target(pool: dict[str, np.ndarray]) -> None:
    fine, _, _ = _fine(pool)
    shares = tilt(fine, 5.4, 0.8, np.full(20, 1.0))
    np.testing.assert_allclose(fine.moments(shares), (5.4, 0.8), atol=0.01)


def test_regimes_decorrelate_mean_and_spread(pool: dict[str, np.ndarray]) -> None:
    fine, _, coarse = _fine(pool)
    regimes = choose_regimes(fine, coarse, 0.1, 9, 3, 0)
    assert len(regimes) == 12
    assert len({r.group for r in regimes}) == 12
    assert sum(r.kind == "random" for r in regimes) == 3
    found = diagnose(regimes, [1000, 8000])
    assert abs(found["mean_std_correlation"]) < 0.5
    assert found["condition_number"] < 9  # windows of the sorted pool have about 50
    for r in regimes:
        if r.shares:
            assert sum(r.shares) == pytest.approx(1)
            assert np.all(np.array(r.shares) <= 0.8 * fine.share / 0.1 * 1.01)


def test_trunk_obeys_sizes_depletion_and_nesting(pool: dict[str, np.ndarray]) -> None:
    fine, index, coarse = _fine(pool)
    total = int(pool["length"].sum())
    sizes = [total // 80, total // 40, total // 20, total // 10]
    for regime in choose_regimes(fine, coarse, 0.1, 4, 1, 0):
        trunk = draw_trunk(regime, index, pool["length"], pool["order"], pool["member"], sizes, 0.15, 0.1)
        for i, size in enumerate(sizes):
            rows = trunk.of(i)
            assert len(np.unique(rows)) == len(rows), "a branch repeats what its trunk has seen"
            assert abs(int(pool["length"][rows].sum()) - size) <= 2 * 257
            assert np.all(pool["member"][rows] < size / 0.1 / total), "text from outside the sub-pool"
        assert trunk.pool_tokens == sorted(trunk.pool_tokens)


def test_draw_follows_shares(pool: dict[str, np.ndarray]) -> None:
    _, index, _ = _fine(pool)
    shares = np.zeros(20)
    shares[[3, 10]] = 0.25, 0.75
    rows = draw_shares(tuple(shares), index, pool["length"], pool["order"], np.ones(4000, bool), 20_000)
    tokens = np.bincount(index[rows], pool["length"][rows], 20)
    np.testing.assert_allclose(tokens[[3, 10]], [5000, 15000], atol=257)
    assert tokens.sum() == tokens[3] + tokens[10]


def test_random_regime_is_a_prefix_of_the_order(pool: dict[str, np.ndarray]) -> None:
    _, index, _ = _fine(pool)
    rows = draw_shares(None, index, pool["length"], pool["order"], np.ones(4000, bool), 10_000)
    assert np.array_equal(rows, np.argsort(pool["order"], kind="stable")[: len(rows)])


def test_sizes_spend_the_pilot_tokens() -> None:
    sizes = choose_sizes(700_000, 10, 0.15, 128_000, 2048)
    assert sizes[-1] / sizes[0] == pytest.approx(8, rel=1e-3)
    assert 0.99 * 700_000 <= 10 * trunk_tokens(sizes, 0.15) <= 700_000


def test_the_expected_error_is_what_least_squares_has() -> None:
    """Simulated trunks whose worths add up: the error of predicted gains, in noises of a run."""
    rng, n_sizes = np.random.default_rng(0), 4
    trunks, asked = rng.dirichlet(np.ones(5), 12), rng.dirichlet(np.ones(5), 30)
    random = np.full(5, 0.2)
    told = expected_error(trunks, asked, random, n_sizes)
    worth = rng.normal(0, 10, 5)
    noise = np.sqrt(0.5) * (rng.normal(size=(2000, 12, 1)) + rng.normal(size=(2000, 12, n_sizes)))
    measured = (trunks @ worth)[None] + noise.mean(-1)
    found = np.linalg.lstsq(trunks, measured.T, rcond=None)[0].T
    wrong = (found - worth) @ (asked - random).T
    assert told == pytest.approx(np.sqrt(np.mean(wrong**2)), rel=0.03)
    assert expected_error(np.tile(trunks, (4, 1)), asked, random, n_sizes) == pytest.approx(told / 2, rel=0.01)
    few = expected_error(np.tile(random, (3, 1)), asked, random, n_sizes)
    assert told < few < np.inf


def test_branches_save_tokens_over_separate_runs() -> None:
    sizes = [1, 2, 4, 8]
    assert sum(sizes) * 1000 / trunk_tokens([1000 * s for s in sizes], 0.15) > 1.5


def test_too_few_pilot_tokens_say_how_many_are_needed() -> None:
    with pytest.raises(UserError, match="--pilot-tokens"):
        choose_sizes(10_000, 10, 0.15, 128_000, 2048)


def test_group_names_the_trunk() -> None:
    assert Regime("random", "random", 2, None, 5.0, 1.0).group == "random-2"


def test_a_pool_of_equal_perplexities_is_refused() -> None:
    fine = Fine(np.array([1.0]), np.array([5.0]), np.array([0.0]))
    with pytest.raises(UserError, match="no landscape"):
        choose_regimes(fine, np.array([0]), 0.1, 5, 3, 0)
