import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import cells_of, make_pool, spent

from pplscape.draw.feasible import feasible_polygon, nearest_feasible
from pplscape.draw.maxent import Scaling, solve
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.strategies import draw
from pplscape.statistics import kl_to_pool, moments

LARGE = make_pool(40_000)
SHAPES = {s: moments(LARGE.values(s), (-np.inf, np.inf)) for s in ("nll", "ppl")}


@pytest.mark.parametrize("scale", ["nll", "ppl"])
@pytest.mark.parametrize(("mean", "std"), [(0.85, 0.75), (1.05, 0.9), (1.1, 1.1), (0.95, 0.6)])
def test_moments_within_a_thousandth(scale, mean, std):
    target = Target(SHAPES[scale].mean * mean, SHAPES[scale].std * std)
    budget = LARGE.tokens * 3 // 10
    drawn = draw("maxent", LARGE, budget, 1, Options(scale=scale, target=target))
    assert drawn.times.sum() >= 10_000
    assert drawn.facts["feasible"]
    reached = moments(LARGE.values(scale)[drawn.times > 0], (-np.inf, np.inf))
    assert reached.mean == pytest.approx(target.mean, rel=1e-3)
    assert reached.std == pytest.approx(target.std, rel=1e-3)
    assert 0 <= budget - spent(LARGE, drawn) < 64


def test_random_is_what_the_pool_s_own_moments_give():
    """With the pool's moments as target lambda is (logit, 0, 0): every chunk is equally likely."""
    shape = SHAPES["nll"]
    drawn = draw("maxent", LARGE, LARGE.tokens // 4, 0, Options(scale="nll", target=Target(shape.mean, shape.std)))
    assert kl_to_pool(LARGE.x, LARGE.length, drawn.times) < 0.005


def test_more_diverse_than_greedy_with_the_same_moments():
    pool = make_pool(4000)
    shape = moments(pool.values("nll"), (-np.inf, np.inf))
    options = Options(scale="nll", target=Target(shape.mean, shape.std * 0.8))
    kl = [kl_to_pool(pool.x, pool.length, draw(s, pool, pool.tokens // 8, 0, options).times) for s in ("maxent", "dos")]
    assert kl[0] < 0.3
    assert kl[1] > 3 * kl[0]


def test_free_spread_tilts_the_mean_only():
    pool = make_pool(4000, noise=0)
    drawn = draw("maxent", pool, pool.tokens // 4, 0, Options(scale="nll", target=Target(3.3, None)))
    taken = pool.values("nll")[drawn.times > 0]
    assert taken.mean() == pytest.approx(3.3, rel=1e-3)
    assert drawn.facts["target"]["std"] is None


def test_equal_chunks_give_the_logistic_formula():
    """Two kinds of chunks, no spread constraint: q follows from the two totals alone."""
    values, length = np.repeat([0.0, 1.0], 500), np.full(1000, 10)
    cells = cells_of(values, length)
    scaling = Scaling(10.0, cells.spread)
    solution = solve(cells, scaling, Target(0.3, None), 2000)
    f = scaling.features(np.array([10, 10]), np.array([0.0, 1.0]), np.array([0.0, 1.0]), Target(0.3, None))
    q = 1 / (1 + np.exp(-f @ solution.lam))
    np.testing.assert_allclose(q, [0.28, 0.12], rtol=1e-8)


def test_an_infeasible_target_moves_to_the_lowest_loss():
    pool = make_pool(4000, noise=0)

    def loss(mean, std):
        return (mean - 3.0) ** 2 + (std - 0.6) ** 2

    options = Options(scale="nll", target=Target(9.0, 0.1), loss=loss)
    facts = draw("maxent", pool, pool.tokens // 10, 0, options).facts
    assert facts["feasible"] is False
    assert facts["asked"]["mean"] == 9.0
    assert facts["target"]["mean"] == pytest.approx(3.0, abs=0.02)
    assert facts["target"]["std"] == pytest.approx(0.6, abs=0.02)
    nearest = draw("maxent", pool, pool.tokens // 10, 0, Options(scale="nll", target=Target(9.0, 0.1))).facts["target"]
    assert nearest["mean"] > 3.8
    nowhere = Options(scale="nll", target=Target(9.0, 0.1), loss=lambda m, s: np.full(len(m), np.inf))
    assert draw("maxent", pool, pool.tokens // 10, 0, nowhere).facts["target"] == nearest


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.9))
def test_feasibility_certificate(seed, share):
    """Targets inside the hull of reachable moments have a solution, points beyond its support line have none."""
    rng = np.random.default_rng(seed)
    values, length = rng.normal(0, 1, 300), rng.integers(1, 5, 300)
    cells, budget = cells_of(values, length), share * length.sum()
    scaling = Scaling(float(length.mean()), cells.spread)
    polygon = feasible_polygon(cells, budget)
    inside, place = polygon.mean(axis=0), polygon[rng.integers(len(polygon))]

    def solvable(mean, square):
        mean, square = cells.mean + cells.spread * mean, cells.spread**2 * (square - mean**2)
        return solve(cells, scaling, Target(mean, float(np.sqrt(max(square, 0)))), budget).lam is not None

    assert solvable(*(inside + 0.95 * (place - inside)))
    beyond = inside + 1.1 * (place - inside)
    if beyond[1] > beyond[0] ** 2:
        assert not solvable(*beyond)


def test_nearest_feasible_is_the_target_when_it_can_be():
    cells = cells_of(LARGE.values("nll"), LARGE.length)
    found = nearest_feasible(cells, LARGE.tokens / 5, Target(3.4, 0.8))
    assert found.mean == pytest.approx(3.4, abs=0.01)
    assert found.std == pytest.approx(0.8, abs=0.01)


def test_a_budget_below_one_chunk_takes_nothing():
    pool = make_pool(200)
    assert draw("maxent", pool, 10, 0, Options(scale="nll", target=Target(3.0, 0.5))).times.sum() == 0


def test_targets_at_the_very_edge_are_met_from_inside():
    pool = make_pool(3000)
    for target in (Target(-50, 0), Target(50, 0), Target(3.2, 9.0), Target(3.2, 0.0)):
        facts = draw("maxent", pool, pool.tokens // 10, 0, Options(scale="nll", target=target)).facts
        assert not facts["feasible"]
        assert facts["relative_error"]["mean"] < 0.01


def test_all_chunks_equal():
    pool = Pool.of(["d"] * 50, range(50), [10] * 50, [2.0] * 50)
    drawn = draw("maxent", pool, 200, 0, Options(scale="nll", target=Target(3.0, 0.5)))
    assert drawn.times.sum() == 20
    assert drawn.facts["achieved"] == {"mean": 2.0, "std": 0.0, "scale": "nll"}
