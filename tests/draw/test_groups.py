"""Quotas, forced and forbidden documents: exact budgets, the strategy's own draw inside each group."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool, score_table, spent

from pplscape.draw.census import take_census
from pplscape.draw.describe import frame_of
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import draw
from pplscape.draw.stream import carry_out, read_selected
from pplscape.errors import UserError
from pplscape.statistics import make_bins

POOL = make_pool(3000)
DOC = np.asarray(POOL.doc_names.to_pylist())[POOL.doc]
BINS = make_bins(POOL.x, POOL.length, 5)
NAMES = ("random", "stratified", "low", "mid", "band", "temperature", "maxent", "dos", "allocate")


def options(**asked):
    utility = Utility(np.array([1.0, 2, 3, 2, 1]), np.asarray(BINS.share), "saturating", 0.5, POOL.tokens / 4)
    return Options(
        target=Target(3.1, 0.6), scale="nll", band=(0.05, 0.95), bins=BINS, utility=utility, **asked
    )  # fmt: skip


def tokens_of(drawn, mask):
    return int((drawn.times * POOL.length)[mask].sum())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=3, deadline=None)
@given(share=st.floats(0.05, 0.2), a=st.floats(0.2, 0.4), b=st.floats(0.1, 0.3), seed=st.integers(0, 99))
def test_quotas_are_kept_and_the_budget_is_exact(name, share, a, b, seed):
    budget = int(share * POOL.tokens)
    drawn = draw(name, POOL, budget, seed, options(quotas={"a": a, "b": b}))
    assert 0 <= budget - spent(POOL, drawn) < 256
    for source, part in (("a", a), ("b", b)):
        inside = POOL.source == POOL.source_names.index(source)
        assert -256 < int(part * budget) - tokens_of(drawn, inside) < 256


def test_a_group_is_drawn_as_if_it_were_the_pool():
    inside = np.flatnonzero(POOL.source == 1)
    for name in ("random", "low", "mid"):
        budget = POOL.tokens // 10
        whole = draw(name, POOL, budget, 3, options(quotas={"b": 0.5}))
        alone = draw(name, POOL.subset(inside), budget // 2, 3, options())
        np.testing.assert_array_equal(whole.times[inside], alone.times)


@pytest.mark.parametrize("name", NAMES)
def test_forced_and_forbidden_documents(name):
    forced, forbidden = frozenset(DOC[[5, 900, 2000]]), frozenset(DOC[[50, 1000, 2500]])
    budget = POOL.tokens // 5
    drawn = draw(name, POOL, budget, 1, options(forced=forced, forbidden=forbidden, quotas={"c": 0.3}))
    assert (drawn.times[np.isin(DOC, list(forced))] == 1).all()
    assert (drawn.times[np.isin(DOC, list(forbidden))] == 0).all()
    assert 0 <= budget - spent(POOL, drawn) < 256
    taken = POOL.table(drawn)
    reasons = dict(zip(taken["doc_id"].to_pylist(), taken["reason"].to_pylist(), strict=True))
    assert {reasons[d] for d in forced} == {"forced"}


def test_bad_requests():
    def asked(**told):
        return draw("random", POOL, 10_000, 0, options(**told))

    with pytest.raises(UserError, match="no source 'z'; the scores have a, b, c"):
        asked(quotas={"z": 0.1})
    with pytest.raises(UserError, match="together at most 1"):
        asked(quotas={"a": 0.7, "b": 0.7})
    with pytest.raises(UserError, match="both forced and forbidden"):
        asked(forced=frozenset([DOC[0]]), forbidden=frozenset([DOC[0]]))
    with pytest.raises(UserError, match="1 forced documents are not in the pool, the first is 'x'"):
        asked(forced=frozenset([DOC[0], "x"]))
    with pytest.raises(UserError, match="more than the budget of 10000"):
        asked(forced=frozenset(DOC[:200]))
    with pytest.raises(UserError, match=r"a is to give .* tokens but holds"):
        draw("random", POOL, POOL.tokens // 2, 0, options(quotas={"a": 1.0}))


def test_streamed_groups_are_the_groups_in_memory(tmp_path):
    table = score_table(20_000)
    pool = Pool.from_table(table)
    for i in range(3):
        pq.write_table(table.slice(i * 7000, 7000), tmp_path / f"part-{i:05d}.parquet")
    ids = pool.doc_names.to_pylist()
    told = options(quotas={"a": 0.2, "c": 0.5}, forced=frozenset(ids[:4]), forbidden=frozenset(ids[4:8]))
    scores = replace(Scores.read(tmp_path, 2, 3000), reads_ids=True)
    census = take_census(scores, BINS.edges)
    for name in ("random", "maxent", "allocate"):
        out, budget = tmp_path / name, pool.tokens // 8
        carry_out(scores, census, name, budget, 5, told, frame_of(census), out)
        assert read_selected(out).equals(pool.table(draw(name, pool, budget, 5, told)))
