"""Engine ngram: batches change nothing, counts are kept and reused, the output contract is that of every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pplscape import schema
from pplscape.engines import load_engine
from pplscape.engines.base import encode
from pplscape.engines.kneser_ney import KneserNey, ngrams, tally
from pplscape.engines.ngram import COUNTS, ORDER, NgramEngine
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.prepared import Prepared

WORDS = ["patients", "court", "fox", "the", "treated", "1998", "é", "dog", "loss", "twelve", "<|endoftext|>"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(WORDS, rng.integers(20, 200)))} for i in range(60)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "other.txt").write_text("the fox and the dog were treated " * 60)
    return prepare(
        [str(folder / "c.jsonl")], model=str(tiny_tokenizer_dir), out=folder / "prepared",
        chunk_tokens=64, min_tokens=16, valid=0.1, test=0.1, near_duplicates="keep",
    )  # fmt: skip


@pytest.fixture(scope="module")
def engine(corpus: Path, tiny_tokenizer_dir: Path) -> NgramEngine:
    return NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus)])


def test_encodes_as_the_tokenizer(engine: NgramEngine) -> None:
    texts = ["The quick é fox  12\n\n", "", "a <|endoftext|> b", "日本 \u2028 ﷽ x", "don't 'll 3.14  "]
    for ours, theirs in zip(engine.encode(texts), encode(engine.tokenizer, texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int32


def test_counts_every_chunk_of_the_pool(engine: NgramEngine, corpus: Path) -> None:
    chunks, texts = Prepared(corpus).part("pool", 0)
    ids = encode(engine.tokenizer, texts)
    vocabulary = len(engine.tokenizer)
    slow = KneserNey(tally([ngrams(ids, None, vocabulary, ORDER)]), vocabulary, ORDER)
    np.testing.assert_array_equal(engine.counts.counted.keys, slow.counted.keys)
    assert engine.counts.counted.counts.sum() == sum(chunks["length"].to_pylist())


def test_batches_and_order_change_nothing(engine: NgramEngine, corpus: Path) -> None:
    _, texts = Prepared(corpus).part("pool", 0)
    ids = engine.encode(texts[:40])
    together = engine.nll(ids)
    for i in (0, 7, 39):
        np.testing.assert_array_equal(engine.nll([ids[i]])[0], together[i])
        assert len(together[i]) == len(ids[i])
    for values, again in zip(together, engine.nll(ids[::-1])[::-1], strict=True):
        np.testing.assert_array_equal(values, again)
    assert engine.nll([]) == []


def test_a_context_is_what_stands_before(engine: NgramEngine) -> None:
    (ids,) = engine.encode(["the quick brown fox jumps over the dog"])
    (whole,), (rest,) = engine.nll([ids]), engine.nll([ids[4:]], [ids[:4]])
    np.testing.assert_array_equal(rest, whole[4:])


def test_what_is_written(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path, engine: NgramEngine) -> None:
    out = score(corpus, model=str(tiny_tokenizer_dir), engine="ngram", out=tmp_path / "scores", order=3)
    table = pq.read_table(out / "part-00000.parquet")
    assert table.schema.equals(schema.SCORES, check_metadata=True)
    assert table["n_tokens"].equals(table["length"])
    facts = read_manifest(out)["counts"]["facts"]
    assert (facts["engine"], facts["weights"], facts["bos"]) == ("ngram", engine.facts.weights, "start")
    texts = Prepared(corpus).texts("pool", table)
    expected = [float(v.astype(np.float64).sum()) for v in engine.nll(engine.encode(texts))]
    assert table["nll_sum"].to_pylist() == expected
    again = score(
        corpus, model=str(tiny_tokenizer_dir), engine="ngram", out=tmp_path / "again", reference=[str(out / COUNTS)]
    )
    assert (again / "part-00000.parquet").read_bytes() == (out / "part-00000.parquet").read_bytes()
    assert (again / COUNTS).read_bytes() == (out / COUNTS).read_bytes()


def test_of_the_pool_itself_single_tokens_are_counted(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    model = str(tiny_tokenizer_dir)
    out = score(corpus, model=model, engine="ngram", out=tmp_path / "scores")
    weights = read_manifest(out)["counts"]["facts"]["weights"]
    assert weights == NgramEngine(model, reference=[str(corpus)], order=1).facts.weights
    given = score(corpus, model=model, engine="ngram", out=tmp_path / "given", reference=[str(corpus)])
    assert read_manifest(given)["counts"]["facts"]["weights"] != weights


def test_another_reference_is_another_model(corpus: Path, tiny_tokenizer_dir: Path, engine: NgramEngine) -> None:
    other = NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus.parent / "other.txt")])
    bigram = NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus)], order=2)
    assert len({other.facts.weights, bigram.facts.weights, engine.facts.weights}) == 3
    known, unknown = other.encode(["the fox and the dog", "patients in court lost"])
    a, b = other.nll([known, unknown])
    assert a.mean() < 1 < 4 < b.mean()


def test_a_killed_run_keeps_its_counts(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    def folder() -> StageFolder:
        return StageFolder(tmp_path / "s", stage="score", version=1, config={}, inputs={})

    first = NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus)])
    with folder() as opened:
        first.keep(opened)
    second = NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus)])
    second._keys = None  # type: ignore[assignment]  # counting again would fail
    with folder() as opened:
        second.keep(opened)
    np.testing.assert_array_equal(second.counts.counted.counts, first.counts.counted.counts)


def test_a_large_pool_is_thinned_evenly(
    corpus: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Prepared(corpus).manifest["counts"]["splits"]["pool"]
    monkeypatch.setattr("pplscape.engines.ngram.MOST_TOKENS", int(counts["tokens"] / 2.5))
    thinned = NgramEngine(str(tiny_tokenizer_dir), reference=[str(corpus)]).counts.counted.counts.sum()
    assert thinned == pytest.approx(counts["tokens"] / 3, rel=0.2)


def test_bad_requests(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path, engine: NgramEngine) -> None:
    model = str(tiny_tokenizer_dir)
    with pytest.raises(UserError, match="--order 9 must lie between 1 and 7"):
        NgramEngine(model, reference=[str(corpus)], order=9)
    with pytest.raises(UserError, match="pass --reference"):
        load_engine("ngram", model)
    with pytest.raises(UserError, match="cannot be trained"):
        load_engine("ngram", model, train=True)
    with pytest.raises(UserError, match="belong to --engine ngram"):
        score(corpus, model=model, engine="fake", out=tmp_path / "s", order=2)
    (tmp_path / COUNTS).write_text("nothing")
    with pytest.raises(UserError, match="cannot be read as counts"):
        NgramEngine(model, reference=[str(tmp_path / COUNTS)])
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": " "}) + "\n")
    with pytest.raises(UserError, match="no text in the reference"):
        NgramEngine(model, reference=[str(tmp_path / "empty.jsonl")]).nll(engine.encode(["a"]))
    with pytest.raises(UserError, match="writes no text"):
        engine.sample(1, 8, 0)


def test_imports_no_torch() -> None:
    code = "import sys, pplscape.engines.ngram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
