"""Draws in a target's mix: the proportions asked for, what happens where the pool lacks them, and the hedge's limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool

from pplscape.draw.hedge import allocate
from pplscape.draw.matched import in_mix
from pplscape.draw.options import Options
from pplscape.draw.program import Utility
from pplscape.draw.strategies import draw
from pplscape.statistics import make_bins

POOL = make_pool()
BINS = make_bins(POOL.x, POOL.length, 5)
UNIQUE = BINS.tokens(POOL.x, POOL.length).astype(float)


def test_known_answers() -> None:
    assert in_mix([0.2, 0.3, 0.5], [0, 0, 0], [100, 100, 100], 50).tolist() == pytest.approx([10, 15, 25])
    # the third holds 20: what it lacks goes to the others, 2 to 3
    assert in_mix([0.2, 0.3, 0.5], [0, 0, 0], [100, 100, 20], 50).tolist() == pytest.approx([12, 18, 20])
    # the first has 30 already: 20 are left for the others, 3 to 5
    assert in_mix([0.2, 0.3, 0.5], [30, 0, 0], [100, 100, 100], 50).tolist() == pytest.approx([30, 7.5, 12.5])
    assert in_mix([0.0, 1.0], [0, 0], [100, 40], 60).tolist() == pytest.approx([0, 40])  # more is not there


shares = st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shares, st.floats(0.02, 0.98))
def test_tokens_are_spent_in_proportion_or_a_bin_is_empty(mix: list[float], share: float) -> None:
    q, budget = np.asarray(mix) / sum(mix), share * UNIQUE.sum()
    tokens = in_mix(q, np.zeros(5), UNIQUE, budget)
    assert tokens.sum() == pytest.approx(budget, rel=1e-9)
    free = tokens < UNIQUE * (1 - 1e-9)
    assert np.ptp((tokens / q)[free]) <= 1e-6 * budget if free.any() else True
    assert (tokens[~free] / q[~free] <= (tokens / q)[free].max(initial=np.inf) * (1 + 1e-9)).all()


def test_it_is_where_a_hedge_without_end_ends() -> None:
    utility = Utility(np.array([1.0, 5, -2, 2, 3]), np.asarray(BINS.share), "saturating", 0.5, POOL.tokens / 4)
    q, budget = np.array([0.1, 0.2, 0.4, 0.2, 0.1]), POOL.tokens / 4
    hedged = allocate(utility, UNIQUE, budget, 1e5, toward=q).tokens
    assert in_mix(q, np.zeros(5), UNIQUE, budget) == pytest.approx(hedged, rel=1e-3)


def test_the_draw_has_the_mix_and_no_chunk_twice() -> None:
    q = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    drawn = draw("matched", POOL, POOL.tokens // 4, 0, Options(bins=BINS, toward=q, max_epochs=3.0))
    tokens = BINS.tokens(POOL.x, drawn.times * POOL.length)
    assert np.abs(tokens / tokens.sum() - q).max() < 0.01
    assert drawn.times.max() == 1
    assert drawn.facts["toward"] == q.tolist()
    assert "duality_gap" not in drawn.facts
