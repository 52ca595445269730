"""Rows and tokens in = out + rejected, whatever the input; what breaks the tokenizer costs its own row."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import read_manifest
from pplscape.scoring import score_part
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.chunk import Chunk, Chunker
from pplscape.text.prepared import Prepared
from pplscape.text.tokenizer import Failed, attempt, load_tokenizer

OPTIONS: dict[str, Any] = {"chunk_tokens": 32, "min_tokens": 4, "valid": 0, "test": 0}
good = st.lists(st.sampled_from(["the", "dog", "court", "fox", "1998", "é", "心", "🫀"]), min_size=1, max_size=60).map(
    " ".join
)
row = st.one_of(
    good.map(lambda t: json.dumps({"text": t}).encode()),
    good.map(lambda t: json.dumps({"id": "same", "text": t}, ensure_ascii=False).encode()),
    st.sampled_from(
        [
            b'{"text": "cut', b"[]", b"3", b'{"body": "x"}', b'{"text": null}', b'{"text": {"a": 1}}',
            b'{"text": "\xff"}',
            b'{"text": "\\ud800"}', b'{"text": "a\\u0000b"}', b'{"text": " "}', b'{"text": ""}', b"\x00\x01", b"{",
            b'{"text": "' + b"long " * 100 + b'"}',
        ]
    ),
)  # fmt: skip


def parts(folder: Path, name: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(p) for p in sorted((folder / name).glob("part-*.parquet")))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=st.lists(row, min_size=1, max_size=30), cut=st.integers(0, 40), near=st.sampled_from(["remove", "keep"]))
def test_every_row_and_every_token_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, lines: list[bytes], cut: int, near: Any
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    plenty = b'{"text": "The quick brown fox jumps over the lazy dog, and the dog does not mind."}'
    (folder / "a.jsonl").write_bytes(b"\n".join([plenty, *lines]))
    packed = gzip.compress(b"\n".join(lines), 0)
    (folder / "b.jsonl.gz").write_bytes(packed[: len(packed) - cut])
    out = folder / "out"
    try:
        prepare(
            [str(folder)], model=str(tiny_tokenizer_dir), out=out, max_row_bytes=400, near_duplicates=near, **OPTIONS
        )
    except UserError as error:
        assert "no column 'text'" in str(error)  # noqa: PT017 - a file of nothing but other columns
        return
    counts = read_manifest(out)["counts"]
    rejected = parts(out, "rejected").to_pylist()
    whole = [r for r in rejected if r["chunk_index"] is None]
    lost = sum(r["reason"] in ("truncated", "corrupt") for r in rejected)
    assert lost == (cut > 0)
    n_rows = 1 + 2 * len(lines)
    assert counts["documents"]["in"] == counts["documents"]["out"] + len(whole)
    assert counts["documents"]["in"] == n_rows if not cut else counts["documents"]["in"] <= n_rows + 1
    assert Counter(counts["documents"]["rejected"]) == Counter(r["reason"] for r in whole)
    assert counts["tokens"]["in"] == counts["tokens"]["out"] + sum(r["length"] for r in rejected)
    chunks = parts(out, "chunks/pool")
    assert counts["tokens"]["out"] == sum(chunks["length"].to_pylist())
    scores = score(out, model=str(tiny_tokenizer_dir), engine="fake", out=folder / "scores")
    ledger = read_manifest(scores)["counts"]
    assert ledger["in"] == chunks.num_rows == ledger["out"] + sum(ledger["rejected"].values())
    assert ledger["tokens"]["in"] == counts["tokens"]["out"] == ledger["tokens"]["out"] + ledger["tokens"]["rejected"]


class PanicException(BaseException):
    """As PyO3 calls a panic of Rust code."""


def fails_on(word: str, error: type[BaseException], work: Any) -> Any:
    def wrapped(self: Any, texts: list[str]) -> Any:
        if any(word in t for t in texts):
            raise error(f"cannot read {word}")
        return work(self, texts)

    return wrapped


@pytest.mark.parametrize("error", [PanicException, ValueError])
def test_a_text_that_breaks_the_tokenizer_is_one_rejected_row(
    tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    plain = "the dog and the fox " * 5
    rows = [{"id": i, "text": f"number {i} " + ("BREAKS" if i in (3, 17) else plain)} for i in range(20)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {**OPTIONS, "near_duplicates": "keep"}
    everything = prepare([str(tmp_path / "x.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "all", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Chunker, "cut", fails_on("BREAKS", error, Chunker.cut))
        out = prepare([str(tmp_path / "x.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "out", **options)
    counts = read_manifest(out)["counts"]["documents"]
    assert counts == {"in": 20, "out": 18, "rejected": {"tokenizer_failed": 2}}
    lost = [r for r in parts(out, "rejected").to_pylist() if r["chunk_index"] is None]
    assert [(r["doc_id"], r["row"]) for r in lost] == [("3", 3), ("17", 17)]

    monkeypatch.setattr(FakeEngine, "encode", fails_on("BREAKS", error, FakeEngine.encode))
    chunks, texts = Prepared(everything).part("pool", 0)
    scores, rejected = score_part(FakeEngine(str(tiny_tokenizer_dir)), chunks, texts)
    assert set(rejected["reason"].to_pylist()) == {"tokenizer_failed"}
    assert set(rejected["doc_id"].to_pylist()) == {"3", "17"}
    assert scores.num_rows + rejected.num_rows == chunks.num_rows
    assert "cannot read BREAKS" in rejected["detail"][0].as_py()


def test_only_the_texts_to_blame_fail_and_interrupts_pass() -> None:
    def work(texts: list[str]) -> list[int]:
        if "bad" in texts:
            raise ValueError("bad")
        return [len(t) for t in texts]

    assert attempt(work, ["a", "bad", "ccc"]) == [1, Failed("ValueError: bad"), 3]
    assert attempt(work, []) == []
    for error in (KeyboardInterrupt, MemoryError):
        with pytest.raises(error):
            attempt(lambda texts, error=error: (_ for _ in ()).throw(error), ["a", "b"])


def test_a_character_larger_than_a_chunk_costs_its_document(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    from pplscape.text.read import Document

    def impossible(texts: list[str]) -> list[list[Chunk]]:
        raise UserError("the single character already has more tokens")

    chunker = Chunker(load_tokenizer(str(tiny_tokenizer_dir)), 32, 4)
    chunker.cut = impossible  # type: ignore[method-assign, assignment]
    from pplscape.text.ingest import _with_chunks

    ((rejected, chunks),) = _with_chunks([Document("a", "ab", "s", "p", 0)], chunker)
    assert (rejected.reason, chunks) == ("tokenizer_failed", [])  # type: ignore[union-attr]


def test_one_row_is_enough(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "the dog and the fox " * 5}))
    out = prepare([str(tmp_path / "x.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "out", **OPTIONS)
    assert read_manifest(out)["counts"]["documents"]["out"] == 1
    with pytest.raises(UserError, match="No document fits"):
        prepare(
            [str(tmp_path / "x.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "o", **OPTIONS | {"test": 20}
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no rows"), (b"\n\n", "no rows"), (b"{broken\n[]\n", "1 broken_json, 1 not_an_object")],
)
def test_nothing_usable_is_said_with_the_reasons(
    tmp_path: Path, tiny_tokenizer_dir: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"No usable document in .*x\.jsonl: {message}"):
        prepare([str(tmp_path / "x.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()
