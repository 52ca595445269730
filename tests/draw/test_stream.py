"""Streaming: the same chunks as the definition in memory, whatever the parts, batches and workers."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import make_pool, score_table
from reference import expected

from pplscape.draw import scores as scores_module
from pplscape.draw import stream
from pplscape.draw.census import take_census
from pplscape.draw.describe import Tally, frame_of
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import BY_TEXT, STRATEGIES, draw
from pplscape.draw.stream import carry_out, read_selected
from pplscape.errors import UserError
from pplscape.statistics import kl_to_pool, make_bins, moments

N = 40_000
DEFINED = [s for s in STRATEGIES if s not in ("full", "dos", "maxent", *BY_TEXT)]


def options_for(pool):
    shape, bins = moments(pool.values("ppl"), (-np.inf, np.inf)), make_bins(pool.x, pool.length, 5)
    utility = Utility(np.array([1.0, 2, 3, 2, -1]), np.asarray(bins.share), "saturating", 0.5, pool.tokens / 4)
    return Options(
        band=(0.2, 0.7), temperature=-0.7, target=Target(shape.mean * 0.9, shape.std * 0.9), bins=bins, utility=utility,
        max_epochs=2.0, toward=np.array([0.1, 0.25, 0.4, 0.25, 0.0]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return score_table(N)


@pytest.fixture(scope="module")
def pool(table):
    return Pool.from_table(table)


@pytest.fixture(scope="module")
def options(pool):
    return options_for(pool)


def write(folder, table, parts, shuffled=False):
    folder.mkdir()
    if shuffled:
        table = table.take(np.random.default_rng(1).permutation(len(table)))
    size = -(-len(table) // parts)
    for i in range(parts):
        pq.write_table(table.slice(i * size, size), folder / f"part-{i:05d}.parquet", row_group_size=3000)
    return folder


@pytest.fixture(scope="module")
def folders(table, tmp_path_factory):
    base = tmp_path_factory.mktemp("scores")
    return write(base / "one", table, 1), write(base / "many", table, 7, shuffled=True)


def ids(table):
    return list(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True))


def streamed(scores, name, budget, seed, options, out):
    census = take_census(scores, options.bins.edges)
    taken = carry_out(scores, census, name, budget, seed, options, frame_of(census), out)
    return taken, read_selected(out)


@pytest.mark.parametrize("name", DEFINED)
@settings(max_examples=6, deadline=None)
@given(share=st.floats(0.005, 0.45), seed=st.integers(0, 2**31))
def test_draws_follow_the_definition(name, share, seed):
    """In a small pool (everything undecided) and in a larger one (most chunks decided by the census)."""
    for pool in (make_pool(300), LARGER):
        told = options_for(pool)
        budget = int(share * pool.tokens)
        np.testing.assert_array_equal(
            draw(name, pool, budget, seed, told).times, expected(name, pool, budget, seed, told)
        )


LARGER = make_pool(20_000)


@pytest.mark.parametrize("name", [s for s in STRATEGIES if s not in BY_TEXT])
def test_same_chunks_whatever_parts_batches_and_workers(name, folders, pool, options, tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 6000)
    budget = pool.tokens if name == "full" else pool.tokens // 8
    drawn = draw(name, pool, budget, 5, options)
    whole = pool.table(drawn)
    for folder, workers, batch in ((folders[0], 1, 10**6), (folders[0], 3, 1000), (folders[1], 2, 1777)):
        scores = Scores.read(folder, workers, batch)
        assert len(scores.units) > 5
        out = tmp_path / f"{folder.name}-{batch}"
        taken, table = streamed(scores, name, budget, 5, options, out)
        assert table.equals(whole)
        assert taken.draw.facts == drawn.facts
        assert taken.tally.tokens == int((drawn.times * pool.length).sum())
        assert len(taken.draw.times) == N if name == "dos" else len(taken.draw.times) < 0.8 * N


def test_deciding_early_is_deciding_all_in_memory(pool, options):
    """maxent with the undecided alone solved again, against everything undecided."""
    strategy, census, budget = STRATEGIES["maxent"], pool.census(), pool.tokens // 8
    for scale, seed in (("ppl", 0), ("nll", 1), ("nll", 2)):
        shape = moments(pool.values(scale), (-np.inf, np.inf))
        told = dataclasses.replace(options, scale=scale, target=Target(shape.mean * 0.95, shape.std * 0.9))
        narrow, wide = (strategy(census, budget, seed, told, width) for width in (1.0, np.inf))
        rows = pool.rows(seed)
        assert narrow.sides(rows)[1].mean() < 0.4
        whole = wide.settle(pool, wide.totals(rows.take(np.zeros(0, int)), np.zeros(0, np.int16)))
        early = draw("maxent", pool, budget, seed, told)
        assert np.sum(whole.times != early.times) <= 4
        assert early.facts["relative_error"]["mean"] < 1e-4


def test_the_tally_is_what_was_selected(folders, pool, tmp_path, options):
    scores = Scores.read(folders[1], 2)
    taken, table = streamed(scores, "stratified", pool.tokens // 3, 0, options, tmp_path / "o")
    census = take_census(scores)
    frame, times = frame_of(census), np.zeros(N)
    key = {k: i for i, k in enumerate(ids(pool.spans(np.arange(N))))}
    times[[key[k] for k in ids(table)]] = 1
    again = Tally.of(frame, pool.rows(0), times)
    assert (taken.tally.tokens, taken.tally.chunks) == (again.tokens, again.chunks)
    for scale in ("nll", "ppl"):
        found = taken.tally.shape(frame)[scale]
        by_hand = moments(pool.values(scale), (-np.inf, np.inf), times)
        assert found.mean == pytest.approx(by_hand.mean, rel=1e-12)
        assert found.std == pytest.approx(by_hand.std, rel=1e-9)
    assert taken.tally.kl_to_pool(frame) == pytest.approx(kl_to_pool(pool.x, pool.length, times), rel=1e-12)
    assert len(taken.sample) == N
    assert taken.sample_times.sum() == len(table)


def test_the_sample_of_a_larger_pool_is_fair(folders, pool, tmp_path, options, monkeypatch):
    monkeypatch.setattr(stream, "SAMPLE_CHUNKS", N // 10)
    taken, table = streamed(Scores.read(folders[1], 2), "low", pool.tokens // 4, 0, options, tmp_path / "o")
    assert len(taken.sample) == pytest.approx(N / 10, rel=0.1)
    chosen = set(ids(table))
    sampled = ids(taken.sample.spans(np.arange(len(taken.sample))))
    assert [k in chosen for k in sampled] == (taken.sample_times > 0).tolist()
    assert np.mean(taken.sample_times) == pytest.approx(len(table) / N, abs=0.03)


@pytest.mark.parametrize("shift", [0.0, -3.0, 30.0])
def test_the_census_is_exact(shift, tmp_path, monkeypatch):
    """Also outside the grid, where everything lies in its end cells."""
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 2000)
    table = score_table(8000, shift=shift)
    pool, edges = Pool.from_table(table), (2.9 + shift, 3.4 + shift)
    census = take_census(Scores.read(write(tmp_path / "s", table, 3), 2, 700), edges)
    assert (census.n, census.total, census.longest) == (len(pool), pool.tokens, 256)
    for n in (10, 50):
        assert census.make_bins(n) == make_bins(pool.x, pool.length, n)
    bins = dataclasses.replace(make_bins(pool.x, pool.length, 3), edges=edges)
    assert census.bin_tokens(bins).tolist() == bins.tokens(pool.x, pool.length).tolist()
    assert census.limits("nll") == pytest.approx(pool.limits("nll"), rel=1e-14)
    assert census.limits("ppl") == pytest.approx(pool.limits("ppl"), rel=1e-14)
    names, sums = pool.source_names, np.bincount(pool.source, weights=pool.length)
    assert census.source_tokens == dict(zip(names, sums.astype(int).tolist(), strict=True))
    if not shift:
        for scale in ("nll", "ppl"):
            exact, limits = moments(pool.values(scale), (-np.inf, np.inf)), census.limits(scale)
            assert vars(census.moments(scale, limits)) == pytest.approx(vars(exact), rel=1e-6)
            cells = census.cells(scale, limits)
            assert (cells.mean, cells.spread) == pytest.approx((exact.mean, exact.std), rel=1e-6)
            assert cells.tokens == pytest.approx(pool.tokens)


def test_ties_and_tiny_pools(tmp_path):
    """All chunks alike: the uniforms decide; one chunk: taken or not."""
    alike = Pool.of([f"d{i}" for i in range(3000)], [0] * 3000, [10] * 3000, [2.0] * 3000)
    for name in ("low", "high", "mid", "random"):
        drawn = draw(name, alike, 10_000, 3)
        assert drawn.times.sum() == 1000
        if name in ("low", "high"):
            np.testing.assert_array_equal(drawn.times, draw("random", alike, 10_000, 3).times)
    one = dataclasses.replace(Pool.of(["d"], [0], [10], [2.0]), second=np.zeros(1))
    for name in DEFINED:
        if name not in ("allocate", "matched"):
            assert draw(name, one, 10, 0, Options(band=(0, 1))).times.tolist() == [1]
            assert draw(name, one, 9, 0, Options(band=(0, 1))).times.tolist() == [0]


def test_doubles_are_refused_across_parts(table, tmp_path, monkeypatch, options):
    folder = write(tmp_path / "s", pa.concat_tables([table, table.slice(77, 1)]), 5)
    scores = Scores.read(folder, 1)
    name = f"{table['doc_id'][77].as_py()}#{table['chunk_index'][77].as_py()}"
    with pytest.raises(UserError, match=f"1 chunks occur twice in the scores, the first is {name}"):
        streamed(scores, "low", 10**6, 0, options, tmp_path / "o")


def test_a_full_disk_is_said_so(folders, pool, options, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream.pq, "write_table", full)
    with pytest.raises(UserError, match=r"Cannot write .*part-00000.parquet: No space left on device. Free some"):
        streamed(Scores.read(folders[0], 1), "random", pool.tokens // 2, 0, options, tmp_path / "o")


def test_without_statistics_in_the_footer(table, pool, tmp_path, options):
    nulls = table.set_column(0, "doc_id", pa.array([None, *table["doc_id"].to_pylist()[1:]]))
    pq.write_table(nulls, tmp_path / "part-00000.parquet", write_statistics=False)
    scores = Scores.read(tmp_path)
    assert (scores.longest, scores.reads_ids) == (pool.longest, True)
    taken, selected = streamed(
        scores, "full", pool.tokens - int(table["length"][0].as_py()), 0, options, tmp_path / "o"
    )
    assert len(selected) == N - 1
    assert taken.rejected == {"no_id": 1}
