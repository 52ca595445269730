import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool, spent

from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.strategies import BY_TEXT, STRATEGIES, draw
from pplscape.errors import UserError
from pplscape.statistics import make_bins, moments

POOL = make_pool()
BINS = make_bins(POOL.x, POOL.length, 5)
SHAPE = moments(POOL.values("ppl"), (-np.inf, np.inf))
OPTIONS = Options(
    band=(0.1, 0.9), target=Target(SHAPE.mean * 0.9, SHAPE.std * 0.9), bins=BINS,
    utility=Utility(np.array([1.0, 2, 3, 2, 1]), np.asarray(BINS.share), "saturating", 0.5, POOL.tokens / 4),
    toward=np.array([0.1, 0.2, 0.3, 0.3, 0.1]),
)  # fmt: skip


@pytest.mark.parametrize("name", [s for s in STRATEGIES if s not in ("full", *BY_TEXT)])
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0.01, 0.75), seed=st.integers(0, 2**31))
def test_budget_is_exact_and_draws_repeat(name, share, seed):
    budget = int(share * POOL.tokens)
    drawn = draw(name, POOL, budget, seed, OPTIONS)
    left = budget - spent(POOL, drawn)
    assert 0 <= left < 256
    assert drawn.times.max() == 1
    np.testing.assert_array_equal(drawn.times, draw(name, make_pool(), budget, seed, OPTIONS).times)


@pytest.mark.parametrize("name", [s for s in STRATEGIES if s not in BY_TEXT])
def test_the_whole_pool(name):
    options = Options(band=(0, 1), target=OPTIONS.target, bins=BINS, utility=OPTIONS.utility, toward=OPTIONS.toward)
    assert draw(name, POOL, POOL.tokens, 0, options).times.tolist() == [1] * len(POOL)


def test_known_answers():
    pool = Pool.of(["d"] * 10, range(10), [10] * 10, [5, 3, 9, 1, 7, 0, 8, 2, 6, 4])

    def taken(name, **options):
        return sorted(pool.x[draw(name, pool, 45, 0, Options(**options)).times > 0].tolist())

    assert taken("low") == [0, 1, 2, 3]
    assert taken("high") == [6, 7, 8, 9]
    assert taken("mid") == [3, 4, 5, 6]
    assert set(taken("band", band=(0.5, 1))) <= {5, 6, 7, 8, 9}
    assert taken("temperature", temperature=0.01) == [6, 7, 8, 9]
    assert taken("temperature", temperature=-0.01) == [0, 1, 2, 3]


def test_random_is_nested_and_seeds_differ():
    small, large = (draw("random", POOL, b, 0).times for b in (POOL.tokens // 10, POOL.tokens // 2))
    assert np.sum((small > 0) & (large == 0)) <= 1
    assert np.mean(draw("random", POOL, POOL.tokens // 2, 1).times == large) < 0.6


def test_stratified_keeps_every_share():
    drawn = draw("stratified", POOL, POOL.tokens // 4, 3)
    bins = make_bins(POOL.x, POOL.length, 10)
    for source in range(3):
        inside = POOL.source == source
        have = bins.tokens(POOL.x[inside], (drawn.times * POOL.length)[inside])
        want = bins.tokens(POOL.x[inside], POOL.length[inside]) / 4
        assert np.abs(have - want).max() <= 256


def test_bad_requests():
    with pytest.raises(UserError, match="Unknown strategy 'best'; there are auto, full"):
        draw("best", POOL, 100, 0)
    with pytest.raises(UserError, match="above the"):
        draw("random", POOL, POOL.tokens + 1, 0)
    with pytest.raises(UserError, match="takes the whole pool"):
        draw("full", POOL, 1000, 0)
    with pytest.raises(UserError, match="--band"):
        draw("band", POOL, 1000, 0)
    with pytest.raises(UserError, match="not a range"):
        draw("band", POOL, 1000, 0, Options(band=(0.8, 0.2)))
    with pytest.raises(UserError, match="less than the budget"):
        draw("band", POOL, POOL.tokens // 2, 0, Options(band=(0.1, 0.2)))
    with pytest.raises(UserError, match="needs a target"):
        draw("maxent", POOL, 1000, 0)
    with pytest.raises(UserError, match="a mean and a spread"):
        draw("dos", POOL, 1000, 0, Options(target=Target(3, None)))
    with pytest.raises(UserError, match="bin utilities"):
        draw("allocate", POOL, 1000, 0)
    with pytest.raises(UserError, match="--toward with scored text of the target"):
        draw("matched", POOL, 1000, 0, Options(bins=BINS))
    with pytest.raises(UserError, match="must not be 0"):
        draw("temperature", POOL, 1000, 0, Options(temperature=0))
