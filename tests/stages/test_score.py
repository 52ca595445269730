"""score: the ledger adds up, nothing is lost, a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape import schema
from pplscape.engines.base import Ids, Nll
from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import read_manifest
from pplscape.scoring import score_part
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.prepared import Prepared
from pplscape.text.tokenizer import Failed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "é", "dog", "loss", "twelve"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, rng.integers(20, 200)))} for i in range(60)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(
        [str(folder / "c.jsonl")], model=str(tiny_tokenizer_dir), out=folder / "prepared",
        chunk_tokens=64, min_tokens=16, valid=0.1, test=0.1, near_duplicates="keep",
    )  # fmt: skip


def test_scores_follow_the_schema_and_add_up(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    out = score(corpus, model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "scores")
    table = pq.read_table(out / "part-00000.parquet")
    assert table.schema.equals(schema.SCORES, check_metadata=True)
    chunks = Prepared(corpus).chunks("pool")
    counts = read_manifest(out)["counts"]
    assert counts["in"] == counts["out"] == table.num_rows == chunks.num_rows
    assert counts["tokens"]["in"] == counts["tokens"]["out"] == sum(chunks["length"].to_pylist())
    np.testing.assert_allclose(
        np.asarray(table["nll_sum"]), np.asarray(table["n_tokens"]) * np.log(400), rtol=1e-6
    )  # a fresh fake model is uniform over its 400 tokens


def test_equals_scoring_each_text_alone(corpus: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = score(corpus, model=str(tiny_model_dir), out=tmp_path / "scores")
    table = pq.read_table(out / "part-00000.parquet")
    batches = read_manifest(out)["run"]["batches"]
    assert batches["inputs"] >= sum(table["length"].to_pylist())
    assert batches["padding"] < 0.03 * batches["inputs"]
    assert batches["batch_tokens"] > 0
    from pplscape.engines.transformers import TransformersEngine

    engine = TransformersEngine(str(tiny_model_dir))
    texts = Prepared(corpus).texts("pool", table)
    for i in (0, 5, table.num_rows - 1):
        (alone,) = engine.nll(engine.encode([texts[i]]))
        assert table["nll_sum"][i].as_py() == pytest.approx(
            float(alone.astype(np.float64).sum()), abs=1e-4 * len(alone)
        )
        assert table["n_tokens"][i].as_py() == len(alone)


class Faulty(FakeEngine):
    """Cuts one text differently, and returns a NaN for another."""

    def encode(self, texts: list[str]) -> list[Ids]:  # type: ignore[override]
        found = super().encode(texts)
        return [found[0][:-1], *found[1:]]

    def nll(self, chunks: list[Ids], contexts: list[Ids] | None = None) -> list[Nll]:  # type: ignore[override]
        found = super().nll(chunks, contexts)
        found[1] = np.full_like(found[1], np.nan)
        return found


def test_rows_that_cannot_be_scored_are_rejected_with_a_reason(corpus: Path, tiny_tokenizer_dir: Path) -> None:
    chunks, texts = Prepared(corpus).part("pool", 0)
    scores, rejected = score_part(Faulty(str(tiny_tokenizer_dir)), chunks, texts)
    assert rejected["reason"].to_pylist() == ["token_count_changed", "not_finite"]
    assert rejected.schema.equals(schema.REJECTED)
    assert scores.num_rows + rejected.num_rows == chunks.num_rows
    kept = set(zip(scores["doc_id"].to_pylist(), scores["chunk_index"].to_pylist(), strict=True))
    lost = set(zip(rejected["doc_id"].to_pylist(), rejected["chunk_index"].to_pylist(), strict=True))
    assert not kept & lost


def test_a_chunk_whose_context_cannot_be_tokenised_is_rejected(corpus: Path, tiny_tokenizer_dir: Path) -> None:
    chunks, texts = Prepared(corpus).part("pool", 0)
    contexts: list[Ids | Failed] = [np.arange(3, dtype=np.int32)] * len(texts)
    contexts[2] = Failed("ValueError: cannot")
    scores, rejected = score_part(FakeEngine(str(tiny_tokenizer_dir)), chunks, texts, contexts)
    assert rejected.to_pylist()[0]["reason"] == "tokenizer_failed"
    assert "the text before it: ValueError: cannot" in rejected["detail"].to_pylist()[0]
    assert (scores.num_rows, rejected.num_rows) == (chunks.num_rows - 1, 1)


def test_another_tokenizer_is_refused(corpus: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    other = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="prepare the corpus again"):
        score(corpus, model=str(tmp_path / "other"), engine="fake", out=tmp_path / "scores")


def test_empty_part(tiny_tokenizer_dir: Path) -> None:
    scores, rejected = score_part(FakeEngine(str(tiny_tokenizer_dir)), schema.CHUNKS.empty_table(), [])
    assert scores.num_rows == rejected.num_rows == 0
    assert isinstance(scores, pa.Table)


def test_plain_inputs_are_prepared_first(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    out = score(
        [str(corpus.parent / "c.jsonl")], model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "scores",
        chunk_tokens=64, min_tokens=16,
    )  # fmt: skip
    everything = Prepared(tmp_path / "scores-prepared")
    assert everything.parts("valid") == everything.parts("test") == []
    assert read_manifest(out)["counts"]["out"] == everything.chunks("pool").num_rows > 60


def test_context_is_the_text_before_and_is_never_counted(corpus: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plain = pq.read_table(score(corpus, model=str(tiny_model_dir), out=tmp_path / "plain") / "part-00000.parquet")
    table = pq.read_table(
        score(corpus, model=str(tiny_model_dir), out=tmp_path / "context", context=20) / "part-00000.parquet"
    )
    for name in ("doc_id", "chunk_index", "length", "n_tokens", "n_bytes"):
        assert table[name].equals(plain[name])
    from pplscape.engines.transformers import TransformersEngine

    engine, prepared = TransformersEngine(str(tiny_model_dir)), Prepared(corpus)
    texts = prepared.texts("pool", table)
    whole = dict(zip(*(prepared.documents("pool", 0)[c].to_pylist() for c in ("doc_id", "text")), strict=True))
    followed = 0
    for i in range(0, table.num_rows, 7):
        before = whole[table["doc_id"][i].as_py()][: table["char_start"][i].as_py()]
        context, chunk = engine.encode([before])[0][-20:], engine.encode([texts[i]])[0]
        (alone,) = engine.nll([chunk], [context])
        assert table["nll_sum"][i].as_py() == pytest.approx(float(alone.astype(np.float64).sum()), abs=1e-3)
        followed += len(context) > 0
    assert followed, "some chunk follows another"


def test_limits_belong_to_prepare(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepared already"):
        score(corpus, model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "s", limit=3)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": i, "text": "the dog " * 40}) + "\n" for i in range(9)))
    out = score(
        [str(tmp_path / "in.jsonl")], model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "s", limit=3,
        min_tokens=8,
    )  # fmt: skip
    assert {r["doc_id"] for r in pq.read_table(out / "part-00000.parquet").to_pylist()} <= {"0", "1", "2"}
