"""Strategies that look at text: the chunks that the definition says, however scores and text are cut."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import score_table, spent
from reference import walk
from scipy.stats import rankdata

from pplscape.draw import dsir, prior
from pplscape.draw import keys as keys_module
from pplscape.draw import scores as scores_module
from pplscape.draw.census import take_census
from pplscape.draw.describe import frame_of
from pplscape.draw.documents import by_document, write_documents
from pplscape.draw.keys import Keys, names_of
from pplscape.draw.options import Options
from pplscape.draw.permanent import hash_documents
from pplscape.draw.pool import Pool
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import BY_TEXT, draw
from pplscape.draw.stream import carry_out, carry_out_whole, read_selected
from pplscape.errors import UserError

N = 12_000


def keyed_table(n: int = N, seed: int = 0, spread: float = 40.0) -> pa.Table:
    """A score table with a key a chunk: a third of them equal, a few far away."""
    rng = np.random.default_rng(seed)
    key = np.where(rng.random(n) < 0.3, 1.5, rng.normal(0, spread, n)) - 900 * (rng.random(n) < 0.01)
    return score_table(n, seed).append_column("key", pa.array(key))


def names(table: pa.Table) -> np.ndarray:
    return names_of(hash_documents(table["doc_id"].combine_chunks()), table["chunk_index"].to_numpy())


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return keyed_table()


@pytest.fixture(scope="module")
def pool(table: pa.Table) -> Pool:
    return Pool.from_table(table)


def expected(name: str, pool: Pool, budget: int, seed: int) -> np.ndarray:
    h, times = pool.uniforms(seed), np.zeros(len(pool), int)
    order = np.lexsort((h, pool.key)) if name == "unigram" else np.argsort(-(pool.key - np.log(-np.log(h))))
    times[walk(order, pool.length, budget)] = 1
    return times


@pytest.mark.parametrize("name", BY_TEXT)
@settings(max_examples=8, deadline=None)
@given(share=st.floats(0.005, 1.0), seed=st.integers(0, 2**31), spread=st.sampled_from([1e-6, 1.0, 300.0]))
def test_draws_follow_the_definition(name: str, share: float, seed: int, spread: float) -> None:
    for n in (200, 8_000):
        pool = Pool.from_table(keyed_table(n, 1, spread))
        budget = int(share * pool.tokens)
        drawn = draw(name, pool, budget, seed)
        np.testing.assert_array_equal(drawn.times, expected(name, pool, budget, seed))
        assert 0 <= budget - spent(pool, drawn) < 256


def write(folder: Path, table: pa.Table, parts: int, shuffled: bool) -> Path:
    folder.mkdir()
    table = table.take(np.random.default_rng(1).permutation(len(table))) if shuffled else table
    size = -(-len(table) // parts)
    for i in range(parts):
        part = table.slice(i * size, size).drop_columns(["key"])
        pq.write_table(part, folder / f"part-{i:05d}.parquet", row_group_size=1500)
    return folder


def keys_of(folder: Path, table: pa.Table, parts: int = 3) -> Keys:
    folder.mkdir()
    cut = np.array_split(np.arange(len(table)), parts)
    bits, key = names(table), table["key"].to_numpy()
    return Keys.write(folder, len(table), ((bits[c], key[c]) for c in cut))


@pytest.mark.parametrize("name", BY_TEXT)
def test_same_chunks_whatever_parts_batches_and_workers(
    name: str, table: pa.Table, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 3000)
    monkeypatch.setattr(keys_module, "BUCKET_ROWS", 1024)
    budget = pool.tokens // 8
    told = Options(quotas={"a": 0.5}, forbidden=frozenset([pool.doc_names[0].as_py()]))
    for options in (Options(), told):
        drawn = draw(name, pool, budget, 5, options)
        for parts, workers, batch in ((1, 1, 10**6), (7, 2, 777)):
            folder = tmp_path / f"{parts}-{len(options.quotas)}"
            scores = Scores.read(write(folder, table, parts, parts > 1), workers, batch)
            scores = scores.keyed(keys_of(tmp_path / f"keys-{folder.name}", table, parts))
            census = take_census(scores)
            taken = carry_out(
                scores, census, name, budget, 5, options, frame_of(census), tmp_path / f"out-{folder.name}"
            )
            assert read_selected(tmp_path / f"out-{folder.name}").equals(pool.table(drawn))
            assert taken.draw.facts == drawn.facts
            if not options.quotas:
                assert len(taken.draw.times) < 0.8 * N, "most chunks are decided while they stream by"
    reasons = set(pool.table(drawn)["reason"].to_pylist())
    assert reasons == {name}


@pytest.mark.parametrize("name", BY_TEXT)
def test_whole_documents_by_the_mean_of_their_keys(
    name: str, table: pa.Table, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 3000)
    means = [np.average(pool.key[pool.doc == d], weights=pool.length[pool.doc == d]) for d in range(pool.doc[-1] + 1)]
    documents, of = by_document(pool)
    np.testing.assert_allclose(documents.key, means, rtol=1e-6, atol=1e-6)
    budget, found = pool.tokens // 7, []
    wanted = draw(name, documents, budget, 5)
    for parts, workers, batch in ((1, 1, 10**6), (7, 2, 777)):
        scores = Scores.read(write(tmp_path / f"s{parts}", table, parts, False), workers, batch)
        scores = scores.keyed(keys_of(tmp_path / f"keys{parts}", table, parts))
        scratch, out = tmp_path / f"d{parts}", tmp_path / f"o{parts}"
        census, whole = take_census(scores), write_documents(scores, scratch)
        taken = carry_out_whole(
            scores, census, whole, take_census(whole), name, budget, 5, Options(), frame_of(census), out, scratch
        )
        found.append(read_selected(out))
        assert taken.tally.tokens == spent(documents, wanted)
        assert 0 <= budget - taken.tally.tokens < documents.longest
    assert found[0].equals(found[1])
    rows = wanted.times[of] > 0
    names = pool.doc_names.take(pa.array(pool.doc[rows]))
    chosen = list(zip(names.to_pylist(), pool.chunk_index[rows].tolist(), strict=True))
    assert list(zip(*(found[0][c].to_pylist() for c in ("doc_id", "chunk_index")), strict=True)) == chosen


@pytest.mark.parametrize("name", BY_TEXT)
def test_without_keys_it_says_what_is_missing(name: str) -> None:
    with pytest.raises(UserError, match=f"Strategy {name} reads the text: pass --corpus"):
        draw(name, Pool.from_table(score_table(50)), 1000, 0)


def test_keys_are_found_by_name(table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "BUCKET_ROWS", 512)
    keys = keys_of(tmp_path / "k", table)
    assert (np.diff(keys.records["bits"].astype(object)) > 0).all()
    doc, index = hash_documents(table["doc_id"].combine_chunks()), table["chunk_index"].to_numpy()
    np.testing.assert_array_equal(keys.of(doc, index), table["key"].to_numpy())
    assert np.isnan(keys.of(hash_documents(["another"]), [0])).all()
    assert [p.name for p in (tmp_path / "k").iterdir()] == ["keys"]


def test_a_chunk_without_a_key_is_of_another_corpus(table: pa.Table, tmp_path: Path) -> None:
    scores = Scores.read(write(tmp_path / "s", table.slice(0, 50), 1, False), 1)
    keys = keys_of(tmp_path / "k", table.slice(0, 49))
    name = f"{table['doc_id'][49].as_py()}#{table['chunk_index'][49].as_py()}"
    with pytest.raises(UserError, match=f"does not hold the scored chunk {name}"):
        take_census(scores.keyed(keys))


def test_memory_of_writing_keys_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "BUCKET_ROWS", 1 << 12)
    rng, peaks = np.random.default_rng(0), []
    for n in (20, 160):
        (tmp_path / str(n)).mkdir()
        parts = ((rng.integers(0, 2**63, 1000).astype(np.uint64) * 2, rng.random(1000)) for _ in range(n))
        tracemalloc.start()
        Keys.write(tmp_path / str(n), 1000 * n, parts)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0] + 2**20 < 160_000 * keys_module.RECORD.itemsize


# ---- token priors ----


def test_prior_by_hand() -> None:
    """Token 0 three times in two chunks, 1 once in one, 2 never: tf df = 6, 1, 0."""
    p = prior.token_prior(np.array([3, 1, 0]), np.array([2, 1, 0]))
    np.testing.assert_allclose(p, [6 / 7, 1 / 7, 0])
    mean, spread = prior.mean_and_spread(p, np.array([0, 0, 1, 0], np.int32), np.array([3, 1]))
    np.testing.assert_allclose(mean, [(2 * np.log(6 / 7) + np.log(1 / 7)) / 3, np.log(6 / 7)])
    np.testing.assert_allclose(spread, [np.std([6 / 7, 6 / 7, 1 / 7], ddof=1), 0])


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), cut=st.integers(0, 200),
)  # fmt: skip
def test_ranks_are_the_shares_below(values: list[float], cut: int) -> None:
    x = np.array(values)
    ranks = prior.Ranks.of([x[:cut], x[cut:]], x.min(), x.max())
    assert ranks.below[-1] == len(x)
    found, width = ranks(x), np.ptp(x) / prior.RANK_CELLS or 1.0
    for v, r in zip(x, found, strict=True):  # a cell's width around the exact share
        assert np.mean(x < v - 1.01 * width) - 1e-12 <= r <= np.mean(x <= v + 1.01 * width) + 1e-12


def test_ranks_of_a_smooth_pool_are_exact_ranks() -> None:
    x = np.random.default_rng(0).normal(size=5000)
    ranks = prior.Ranks.of([x], x.min(), x.max())
    np.testing.assert_allclose(ranks(x), (rankdata(x) - 0.5) / len(x), atol=2e-3)


def test_key_is_the_distance_from_both_medians() -> None:
    np.testing.assert_allclose(prior.key(np.array([0.5, 0.1, 0.5]), np.array([0.5, 0.5, 0.9])), [0, 0.4, 0.4])


# ---- DSIR ----


def test_words_and_pairs() -> None:
    assert len(dsir.buckets("")) == 0
    assert len(dsir.buckets("One")) == 1
    assert dsir.buckets("One, two").tolist() == [*dsir.buckets("ONE"), *dsir.buckets(","), *dsir.buckets("two"),
                                                dsir._BUCKETS["one ,"], dsir._BUCKETS[", two"]]  # fmt: skip


def test_weights_favour_the_target_and_short_chunks_come_last() -> None:
    target, other = "patients were treated", "the court dismissed the appeal"
    ratio = dsir.log_ratio(dsir.count([target]), dsir.count([target, other]))
    features = [dsir.buckets(t) for t in (target, other)]
    weight = dsir.log_weights(ratio, np.concatenate(features), np.array([len(f) for f in features]))
    assert weight[0] > 0 > weight[1]
    late = dsir.short_last(weight, np.array([3, 100]), 100, least=weight[1])
    np.testing.assert_allclose(late, [weight[1] - dsir.BEHIND, weight[1]])
