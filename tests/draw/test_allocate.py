import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool, spent

from pplscape.draw.options import Options
from pplscape.draw.program import Utility
from pplscape.draw.strategies import draw
from pplscape.errors import UserError
from pplscape.statistics import make_bins

POOL = make_pool()
BINS = make_bins(POOL.x, POOL.length, 5)


def options(u, max_epochs=1.0):
    utility = Utility(np.asarray(u, float), np.asarray(BINS.share), "saturating", 0.5, POOL.tokens / 4)
    return Options(utility=utility, bins=BINS, max_epochs=max_epochs)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-2, 10), min_size=5, max_size=5), st.floats(0.01, 1), st.integers(0, 99))
def test_bins_get_what_the_program_asks(u, share, seed):
    budget = int(share * POOL.tokens)
    drawn = draw("allocate", POOL, budget, seed, options(u))
    tokens = BINS.tokens(POOL.x, drawn.times * POOL.length)
    left = budget - spent(POOL, drawn)
    assert left >= 0
    assert np.abs(tokens - drawn.facts["allocation"]).max() <= 2 * 256
    assert (tokens[np.asarray(u) <= 0] == 0).all()
    if drawn.facts["unspent"]:
        assert drawn.facts["unspent"] == left
        assert all(drawn.times[(BINS.of(POOL.x) == b)].all() for b in range(5) if u[b] > 0)
    else:
        assert left < 256
    assert drawn.facts["duality_gap"] < 1e-9


def test_equal_utility_is_proportional():
    tokens = BINS.tokens(POOL.x, draw("allocate", POOL, POOL.tokens // 3, 0, options([2] * 5)).times * POOL.length)
    assert np.abs(tokens / tokens.sum() - BINS.share).max() < 0.005


def test_repeats_are_whole_epochs_plus_a_random_part():
    drawn = draw("allocate", POOL, POOL.tokens // 2, 0, options([0, 0, 9, 0, 0], max_epochs=4))
    inside = BINS.of(POOL.x) == 2
    assert set(drawn.times[inside].tolist()) <= {2, 3}
    assert drawn.times[~inside].max() == 0
    assert 0 <= POOL.tokens // 2 - spent(POOL, drawn) < 256
    with pytest.raises(UserError, match="max-epochs"):
        draw("allocate", POOL, 1000, 0, options([1] * 5, max_epochs=0.5))


def test_nothing_helps():
    drawn = draw("allocate", POOL, 1000, 0, options([-1, 0, -3, -1, 0]))
    assert drawn.times.max() == 0
    assert drawn.facts["unspent"] == 1000
