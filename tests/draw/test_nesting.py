"""Nested subsets: a larger budget holds all that a smaller one took, exactly; or an earlier selection by name."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool, score_table, spent

from pplscape.draw.census import take_census
from pplscape.draw.describe import frame_of
from pplscape.draw.options import Contained, Options, Target
from pplscape.draw.permanent import names_of
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility, solve
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import NESTED, STRATEGIES, draw
from pplscape.draw.stream import carry_out, read_contained, read_selected
from pplscape.errors import UserError
from pplscape.statistics import make_bins

POOL = replace(make_pool(2500), key=np.random.default_rng(8).normal(size=2500))
DOC = np.asarray(POOL.doc_names.to_pylist())[POOL.doc]
BINS = make_bins(POOL.x, POOL.length, 5)
UTILITY = Utility(np.array([1.0, 2, 3, 2, -1]), np.asarray(BINS.share), "saturating", 0.5, POOL.tokens / 4)


def options(**asked):
    return Options(
        scale="nll", target=Target(3.1, 0.6), band=(0.05, 0.95), temperature=-0.6, bins=BINS, utility=UTILITY,
        max_epochs=2.0, toward=np.array([0.1, 0.2, 0.3, 0.3, 0.1]), **asked,
    )  # fmt: skip


def contained(drawn, pool=POOL):
    keys = names_of(pool._doc_hash[pool.doc], pool.chunk_index)[drawn.times > 0]
    order = np.argsort(keys)
    return Contained(keys[order], drawn.times[drawn.times > 0][order])


@pytest.mark.parametrize("name", [n for n in NESTED if n != "full"])
@settings(max_examples=12, deadline=None)
@given(share=st.floats(0.01, 0.5), more=st.floats(1.0, 1.6), seed=st.integers(0, 99), extra=st.integers(0, 300))
def test_a_larger_budget_holds_the_smaller(name, share, more, seed, extra):
    small, told = int(share * POOL.tokens), options(nested=True, forbidden=frozenset([DOC[40]]))
    large = min(int(more * small) + extra, int(0.85 * POOL.tokens))
    first, second = (draw(name, POOL, budget, seed, told) for budget in (small, large))
    assert (second.times >= first.times).all()
    for drawn, budget in ((first, small), (second, large)):
        assert 0 <= budget - spent(POOL, drawn) < 256


@pytest.mark.parametrize("name", ["maxent", "allocate"])
def test_what_cannot_be_nested_says_what_can(name):
    with pytest.raises(UserError, match=f"strategy {name} at different budgets are not nested.*--contains"):
        draw(name, POOL, 10_000, 0, options(nested=True))
    with pytest.raises(UserError, match="with quotas"):
        draw("random", POOL, 10_000, 0, options(nested=True, quotas={"a": 0.5}))


@pytest.mark.parametrize("name", [s for s in STRATEGIES if s not in ("full",)])
@settings(max_examples=3, deadline=None)
@given(share=st.floats(0.02, 0.3), seed=st.integers(0, 99), quota=st.sampled_from([{}, {"b": 0.4}]))
def test_an_earlier_selection_is_contained_exactly(name, share, seed, quota):
    told = options()
    small = int(share * POOL.tokens)
    first = draw("random" if seed % 2 else name, POOL, small, seed, told)
    large = int(1.5 * small)
    second = draw(name, POOL, large, seed + 1, replace(told, contained=contained(first), quotas=quota))
    assert (second.times[first.times > 0] == first.times[first.times > 0]).all()
    assert 0 <= large - spent(POOL, second) < 256
    if quota:
        inside = POOL.source == 1
        took, had = (int((d.times * POOL.length)[inside].sum()) for d in (second, first))
        assert abs(took - max(int(0.4 * large), had)) < 256


def test_allocate_goes_on_where_it_was():
    """Growing in two steps gives each bin what one step gives, up to a chunk."""
    told = replace(options(), max_epochs=1.0)
    small, large = POOL.tokens // 10, POOL.tokens // 4
    first, whole = (draw("allocate", POOL, b, 0, told) for b in (small, large))
    second = draw("allocate", POOL, large, 5, replace(told, contained=contained(first)))
    direct, grown = (POOL.bin_tokens(BINS, d.times) for d in (whole, second))
    assert np.abs(direct - grown).max() < 3 * 256
    assert grown[4] == 0


def test_a_floor_of_the_program():
    unique = BINS.tokens(POOL.x, POOL.length)
    floor = np.array([0.5 * unique[0], 0, 0, 0, 0.1 * unique[4]])
    budget = 0.4 * unique.sum()
    found, free = solve(UTILITY, unique, budget, 1.0, floor), solve(UTILITY, unique, budget)
    assert found.tokens.sum() == pytest.approx(budget)
    assert found.tokens[4] == floor[4]
    assert found.tokens[0] == pytest.approx(
        max(floor[0], solve(UTILITY, unique, budget - floor[4]).tokens[0]), rel=0.01
    )
    assert (found.tokens >= floor - 1e-9).all()
    assert found.gap < 1e-9
    assert found.value <= free.value
    same = solve(UTILITY, unique, budget, 1.0, 0.5 * free.tokens)
    np.testing.assert_allclose(same.tokens, free.tokens, rtol=1e-9)


def test_dos_goes_on_where_it_was():
    fixed = {"weights": (1.0, 0.2), "limits": POOL.limits("nll")}
    told, small, large = options(nested=True, **fixed), POOL.tokens // 10, POOL.tokens // 5
    first, whole = (draw("dos", POOL, b, 0, told) for b in (small, large))
    second = draw("dos", POOL, large, 0, replace(told, nested=False, contained=contained(first)))
    assert np.sum(second.times != whole.times) <= 4


def test_streamed_from_a_folder_and_bad_requests(tmp_path):
    table = score_table(9000)
    pool = Pool.from_table(table)
    (tmp_path / "s").mkdir()
    for i in range(3):
        pq.write_table(table.slice(i * 3000, 3000), tmp_path / f"s/part-{i:05d}.parquet")
    scores = replace(Scores.read(tmp_path / "s", 2, 1000), reads_ids=True)
    census, told = take_census(scores, BINS.edges), options()
    first = tmp_path / "first"
    carry_out(scores, census, "maxent", pool.tokens // 10, 0, told, frame_of(census), first)
    again = read_contained(first, False)
    budget = pool.tokens // 6
    for name in ("maxent", "allocate", "random"):
        told = replace(told, contained=again)
        carry_out(scores, census, name, budget, 1, told, frame_of(census), tmp_path / name)
        second = read_selected(tmp_path / name)
        assert second.equals(pool.table(draw(name, pool, budget, 1, told)))
        ids = [set(zip(t["doc_id"].to_pylist(), t["chunk_index"].to_pylist(), strict=True))
               for t in (read_selected(first), second)]  # fmt: skip
        assert ids[0] < ids[1]
        assert set(second["reason"].to_pylist()) >= {"contained"}
    with pytest.raises(UserError, match="more than the budget"):
        draw("random", pool, pool.tokens // 20, 1, told)
    with pytest.raises(UserError, match="are not in this pool, or are forbidden"):
        draw("random", POOL, POOL.tokens // 2, 1, told)
    with pytest.raises(UserError, match="are not in this pool, or are forbidden"):
        draw("random", pool, budget, 1, replace(told, forbidden=frozenset([read_selected(first)["doc_id"][0].as_py()])))
    with pytest.raises(UserError, match="is not a selection"):
        read_contained(tmp_path / "nowhere", False)
