"""Whole documents: all or nothing, budgets exact to a document, the definition in memory, whatever the parts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pools import score_table

from pplscape.draw import scores as scores_module
from pplscape.draw.census import take_census
from pplscape.draw.describe import frame_of
from pplscape.draw.documents import by_document, write_documents
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import draw
from pplscape.draw.stream import carry_out_whole, read_selected
from pplscape.errors import UserError
from pplscape.schema import SCORES
from pplscape.statistics import make_bins


def ragged(n: int, seed: int = 0) -> pa.Table:
    """n chunks in documents of 1 to 30, n_tokens = length - 1."""
    table, rng = score_table(n, seed), np.random.default_rng(seed)
    doc = np.repeat(np.arange(n), rng.integers(1, 31, n))[:n]
    index = np.arange(n) - np.searchsorted(doc, doc)
    length = table["length"].to_numpy()
    columns = {
        "doc_id": [f"d{i:05d}" for i in doc], "chunk_index": index, "n_tokens": length - 1,
        "nll_sum": table["nll_sum"].to_numpy() * (length - 1), "source": [("a", "b")[i % 2] for i in doc],
    }  # fmt: skip
    return pa.table({f.name: columns.get(f.name, table[f.name]) for f in SCORES}).cast(SCORES)


def by_hand(table: pa.Table) -> Pool:
    """The pool of documents, by pyarrow's group_by."""
    sums = table.group_by("doc_id", use_threads=False).aggregate(
        [("length", "sum"), ("n_tokens", "sum"), ("nll_sum", "sum"), ("source", "first"), ("char_start", "min"),
         ("char_end", "max")]
    )  # fmt: skip
    rows = {name: sums[f"{name}_{how}"] for name, how in (
        ("length", "sum"), ("n_tokens", "sum"), ("nll_sum", "sum"), ("source", "first"), ("char_start", "min"),
        ("char_end", "max"))}  # fmt: skip
    zeros = np.zeros(len(sums), np.int32)
    return Pool.from_table(pa.table(rows | {"doc_id": sums["doc_id"], "chunk_index": zeros}))


TABLE = ragged(6000)
POOL = by_hand(TABLE)


def write(folder, table, parts, rows=500):
    folder.mkdir()
    size = -(-len(table) // parts)
    for i in range(parts):
        pq.write_table(table.slice(i * size, size), folder / f"part-{i:05d}.parquet", row_group_size=rows)
    return folder


def options():
    shape = (POOL.values("nll").mean(), POOL.values("nll").std())
    bins = make_bins(POOL.x, POOL.length, 5)
    utility = Utility(np.array([1.0, 2, 3, 2, -1]), np.asarray(bins.share), "saturating", 0.5, POOL.tokens / 4)
    return Options(
        scale="nll", target=Target(shape[0] * 0.95, shape[1] * 0.9), band=(0.2, 0.8), temperature=-0.5, bins=bins,
        utility=utility,
    )  # fmt: skip


@pytest.mark.parametrize("parts", [1, 7])
def test_documents_are_the_sums_of_their_chunks(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 700)
    scores = Scores.read(write(tmp_path / "s", TABLE, parts), 2, 333)
    found = Pool.read(write_documents(scores, tmp_path / "d").units[0].file.rpartition("/")[0])
    assert found.doc_names.to_pylist() == POOL.doc_names.to_pylist()
    for name in ("length", "char_start", "char_end"):
        assert getattr(found, name).tolist() == getattr(POOL, name).tolist()
    np.testing.assert_allclose(found.x, POOL.x, rtol=1e-8)
    assert found.source_names == POOL.source_names
    assert found.source.tolist() == POOL.source.tolist()


@pytest.mark.parametrize("name", ["random", "stratified", "low", "band", "dos", "maxent", "allocate"])
def test_whole_or_not_at_all_and_exact_to_a_document(name, tmp_path, monkeypatch):
    monkeypatch.setattr(scores_module, "UNIT_ROWS", 2500)
    found, told = [], options()
    for parts, workers in ((1, 1), (2, 2)):
        scores = Scores.read(write(tmp_path / f"s{parts}", TABLE, parts), workers, 700)
        documents = write_documents(scores, tmp_path / f"d{parts}")
        census, of_documents = (take_census(s, told.bins.edges) for s in (scores, documents))
        budget, out = POOL.tokens // 6, tmp_path / f"o{parts}"
        frame = frame_of(census)
        taken = carry_out_whole(
            scores, census, documents, of_documents, name, budget, 3, told, frame, out, tmp_path / f"d{parts}"
        )
        table = read_selected(out)
        assert 0 <= budget - taken.tally.tokens < POOL.longest
        assert taken.tally.tokens == sum(table["length"].to_pylist())
        chosen = set(table["doc_id"].to_pylist())
        assert len(table) == sum(d in chosen for d in TABLE["doc_id"].to_pylist())
        found.append(table)
    assert found[0].equals(found[1])
    drawn = draw(name, POOL, budget, 3, told)
    assert set(POOL.doc_names.take(pa.array(POOL.doc[drawn.times > 0])).to_pylist()) == chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99))
def test_by_document_in_memory(n, seed):
    chunks = Pool.from_table(ragged(n, seed))
    documents, of = by_document(chunks)
    assert documents.tokens == chunks.tokens
    assert documents.doc[of].tolist() == chunks.doc.tolist()
    for d in range(len(documents)):
        inside = of == d
        assert documents.length[d] == chunks.length[inside].sum()
        assert documents.x[d] == pytest.approx(np.average(chunks.x[inside], weights=chunks.length[inside]))


def test_unusable_chunks_are_left_out_of_their_document(tmp_path):
    rows = TABLE.slice(0, 300).to_pydict()
    rows["nll_sum"][5] = float("nan")
    table = pa.table(rows, schema=SCORES)
    found = write_documents(Scores.read(write(tmp_path / "s", table, 2)), tmp_path / "d")
    kept = by_hand(table.filter(pa.array(np.arange(300) != 5)))
    assert Pool.read(tmp_path / "d").length.tolist() == kept.length.tolist()
    assert found.rows == len(kept)


def test_scattered_chunks_are_refused(tmp_path):
    order = np.argsort(np.arange(600) % 7, kind="stable")
    scores = Scores.read(write(tmp_path / "s", TABLE.slice(0, 600).take(order), 1), 1)
    documents = write_documents(scores, tmp_path / "d")
    census, of_documents = take_census(scores), take_census(documents)
    with pytest.raises(UserError, match=r"do not stand together in the scores.*sort the scores by doc_id"):
        carry_out_whole(
            scores, census, documents, of_documents, "random", 10_000, 0, Options(), frame_of(census), tmp_path / "o",
            tmp_path / "d",
        )  # fmt: skip
