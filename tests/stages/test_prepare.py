"""prepare: counts add up, nothing straddles the split, kills leave no trace, bad input gets one sentence."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.errors import StaleOutput, UserError
from pplscape.manifest import StageFolder, sha256_file
from pplscape.schema import CHUNKS, DOCUMENTS, REJECTED
from pplscape.stages import prepare as stage
from pplscape.stages.prepare import prepare
from pplscape.text import ingest
from pplscape.text.clean import GRAM, hash_words, sequences
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns
from pplscape.text.tokenizer import load_tokenizer

VOCABULARY = [f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("n", "rs", "lt")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=words)).capitalize() + "."


def corpus(n: int, seed: int = 0, words: int = 60) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"id": f"{seed}-{i}", "text": sentence(rng, words)} for i in range(n)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    data = b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


def run(tmp_path: Path, model: Path, rows: list[dict[str, Any]], name: str = "out", **options: Any) -> Prepared:
    source = write(tmp_path / f"{name}.jsonl.gz", rows)
    defaults: dict[str, Any] = {"chunk_tokens": 64, "min_tokens": 16, "valid": 0.1, "test": 0.1}
    return Prepared(prepare([source], model=str(model), out=tmp_path / name, **{**defaults, **options}))


def data_hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.parquet"))}


def rejected(prepared: Prepared) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(p) for p in sorted((prepared.path / "rejected").iterdir())).to_pylist()


def doc_ids(prepared: Prepared, split: str) -> set[str]:
    return set(prepared.chunks(split)["doc_id"].to_pylist())


def check(prepared: Prepared, tokenizer: Any) -> None:
    """The invariants of every prepared corpus."""
    counts = prepared.manifest["counts"]
    seen: list[str] = []
    total = 0
    for split in ("pool", "valid", "test"):
        tokens = n_bytes = 0
        for k in prepared.parts(split):
            chunks, texts = prepared.part(split, k)
            documents = prepared.documents(split, k)
            assert documents.schema.equals(DOCUMENTS, check_metadata=True)
            assert pq.read_schema(prepared.file("chunks", split, k)).equals(CHUNKS, check_metadata=True)
            seen += documents["doc_id"].to_pylist()
            assert list(dict.fromkeys(chunks["doc_id"].to_pylist())) == documents["doc_id"].to_pylist()
            for row, text in zip(chunks.to_pylist(), texts, strict=True):
                n = len(tokenizer.encode(text, add_special_tokens=False))
                assert prepared.facts["min_tokens"] <= n == row["length"] <= prepared.facts["chunk_tokens"]
                assert row["n_bytes"] == len(text.encode())
                tokens, n_bytes = tokens + n, n_bytes + row["n_bytes"]
        assert counts["splits"][split]["tokens"] == tokens == sum(counts["splits"][split]["sources"].values())
        assert counts["splits"][split]["bytes"] == n_bytes
        total += tokens
    assert len(seen) == len(set(seen)) == counts["documents"]["out"]
    rows = rejected(prepared)
    assert pq.read_schema(prepared.path / "rejected/part-00000.parquet").equals(REJECTED, check_metadata=True)
    assert counts["tokens"]["out"] == total
    assert counts["tokens"]["in"] == total + sum(r["length"] for r in rows)
    whole = [r for r in rows if r["chunk_index"] is None]
    assert counts["documents"]["in"] == len(seen) + len(whole)
    assert sum(counts["documents"]["rejected"].values()) == len(whole)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(str(tiny_tokenizer_dir))


def test_counts_add_up_on_a_dirty_corpus(tmp_path: Path, tiny_tokenizer_dir: Path, tokenizer: Any) -> None:
    rows = corpus(60)
    rows[5]["text"] = "\0"
    rows[6]["text"] = ""
    rows[7]["text"] = "Hi."
    rows[8]["id"] = rows[9]["id"] = rows[10]["id"]
    rows[11]["text"] = "🫀 心脏 naïve. " * 40
    del rows[12]["id"]
    prepared = run(tmp_path, tiny_tokenizer_dir, rows)
    check(prepared, tokenizer)
    counts = prepared.manifest["counts"]
    assert counts["documents"]["in"] == 60
    assert counts["documents"]["rejected"] == {"empty": 1, "nul_bytes": 1, "too_short": 1}
    everything = doc_ids(prepared, "pool") | doc_ids(prepared, "valid") | doc_ids(prepared, "test")
    assert {"0-10", "0-10~2", "0-10~3", "out.jsonl.gz/12"} <= everything
    for split in ("valid", "test"):
        assert 0 < counts["splits"][split]["tokens"] <= 0.1 * counts["tokens"]["in"]


def test_repeats_are_removed_and_the_first_is_kept(tmp_path: Path, tiny_tokenizer_dir: Path, tokenizer: Any) -> None:
    rows = corpus(40, words=120)
    near = rows[3]["text"].replace(".", " and so on.")
    block = sentence(random.Random(9), 300)
    rows += [{"id": "near", "text": near}, {"id": "block-1", "text": block + " One."}]
    rows += [{"id": "again", "text": rows[4]["text"]}, {"id": "spaces", "text": block.replace(" ", "  ") + " " + block}]
    kept = {}
    for option in ("remove", "keep", 2):
        prepared = run(tmp_path, tiny_tokenizer_dir, rows, f"out-{option}", near_duplicates=option)
        check(prepared, tokenizer)
        by_id = {r["doc_id"]: r["reason"] for r in rejected(prepared) if r["chunk_index"] is None}
        kept[option] = by_id
    pool = doc_ids(Prepared(tmp_path / "out-remove"), "pool")
    held = not {"0-3", "0-4"} <= pool
    assert held or kept["remove"]["near"] == kept["remove"]["again"] == "near_duplicate"
    assert "near" not in kept["keep"]
    assert "near" not in kept[2]
    assert kept["keep"].get("again") == "duplicate_chunk"


def test_nothing_of_the_pool_is_in_held_out_or_evaluation_text(
    tmp_path: Path, tiny_tokenizer_dir: Path, tokenizer: Any
) -> None:
    held, bench = corpus(20, seed=1, words=100), corpus(10, seed=2, words=20)
    rows = corpus(40, words=100)
    rows[0]["text"] = rows[0]["text"][:300] + held[0]["text"][:300]
    rows[1]["text"] = held[1]["text"] + " Indeed."
    rows[2]["text"] += " " + bench[0]["text"] + " " + rows[2]["text"][::-1]
    rows[3]["text"] = rows[3]["text"] + bench[1]["text"][:40]
    files: dict[str, Any] = {
        "heldout": [write(tmp_path / "held.jsonl", held)],
        "eval": [write(tmp_path / "bench.jsonl", [{"question": r["text"]} for r in bench] + [{"question": ""}])],
        "eval_columns": Columns("question"),
    }
    prepared = run(tmp_path, tiny_tokenizer_dir, rows, **files)
    check(prepared, tokenizer)
    assert doc_ids(prepared, "valid") | doc_ids(prepared, "test") == {r["id"] for r in held}
    why = {r["doc_id"]: r["reason"] for r in rejected(prepared) if r["chunk_index"] is None}
    assert why == {"0-0": "overlap_heldout", "0-1": "overlap_heldout", "0-2": "overlap_eval"}
    assert prepared.manifest["counts"]["eval"] == {"documents": 10, "rejected": {"empty": 1}}
    tokens = prepared.manifest["counts"]["splits"]
    assert abs(tokens["valid"]["tokens"] - tokens["test"]["tokens"]) < 0.2 * tokens["valid"]["tokens"]


def test_overlap_is_measured_against_all_held_out_text(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    rng = random.Random(3)
    shared = [sentence(rng, 30) for _ in range(12)]
    rows = [{"id": str(i), "text": f"{sentence(rng, 40)} {rng.choice(shared)}"} for i in range(60)]
    rows += [{"id": str(i), "text": f"{sentence(rng, 40)} {sentence(rng, 30)}"} for i in range(60, 120)]
    prepared = run(tmp_path, tiny_tokenizer_dir, rows, near_duplicates="keep")
    grams = [
        set(sequences(hash_words(t), GRAM).tolist())
        for split in ("valid", "test")
        for k in prepared.parts(split)
        for t in prepared.documents(split, k)["text"].to_pylist()
    ]
    protected = set().union(*grams)
    assert prepared.manifest["counts"]["documents"]["rejected"]["overlap_heldout"] > 5
    for k in prepared.parts("pool"):
        for text in prepared.documents("pool", k)["text"].to_pylist():
            own = set(sequences(hash_words(text), GRAM).tolist())
            assert len(own & protected) < 0.2 * len(own)


def test_the_same_bytes_after_a_kill_at_any_write(
    tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "PART_CHARS", 3000)
    rows = corpus(40)
    names: list[str] = []
    written = StageFolder.write_table

    def counting(self: StageFolder, name: str, table: pa.Table) -> None:
        names.append(name)
        written(self, name, table)

    monkeypatch.setattr(StageFolder, "write_table", counting)
    whole = run(tmp_path, tiny_tokenizer_dir, rows, "whole")
    assert len(names) > 12
    source = str(tmp_path / "whole.jsonl.gz")
    options: dict[str, Any] = {"chunk_tokens": 64, "min_tokens": 16, "valid": 0.1, "test": 0.1}
    for survive in range(0, len(names), 2):
        left = [survive]

        def dying(self: StageFolder, name: str, table: pa.Table, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            written(self, name, table)

        monkeypatch.setattr(StageFolder, "write_table", dying)
        out = tmp_path / f"killed-{survive}"
        with pytest.raises(KeyboardInterrupt):
            prepare([source], model=str(tiny_tokenizer_dir), out=out, **options)
        monkeypatch.setattr(StageFolder, "write_table", written)
        prepare([source], model=str(tiny_tokenizer_dir), out=out, **options)
        assert data_hashes(out) == data_hashes(whole.path)
        assert not (out / "spool").exists()


def test_a_finished_run_is_skipped_and_another_configuration_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    rows = corpus(30)
    first = run(tmp_path, tiny_tokenizer_dir, rows)
    before = (first.path / "manifest.json").stat().st_mtime_ns
    run(tmp_path, tiny_tokenizer_dir, rows)
    assert (first.path / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(StaleOutput, match="config"):
        run(tmp_path, tiny_tokenizer_dir, rows, chunk_tokens=32)
    again = run(tmp_path, tiny_tokenizer_dir, rows, chunk_tokens=32, overwrite=True)
    assert again.facts["chunk_tokens"] == 32


def test_limits(tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "PART_CHARS", 3000)
    rows = corpus(60)
    assert run(tmp_path, tiny_tokenizer_dir, rows, "a", limit=20).manifest["counts"]["documents"]["in"] == 20
    full = run(tmp_path, tiny_tokenizer_dir, rows, "b").manifest["counts"]["tokens"]["in"]
    wanted = full // 2
    some = run(tmp_path, tiny_tokenizer_dir, rows, "c", limit_tokens=wanted).manifest["counts"]
    assert 0.9 * wanted < some["tokens"]["out"] <= wanted


def test_parts_of_bounded_size(
    tmp_path: Path, tiny_tokenizer_dir: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pplscape.text.write.PART_BYTES", 2000)
    prepared = run(tmp_path, tiny_tokenizer_dir, corpus(40))
    check(prepared, tokenizer)
    assert len(prepared.parts("pool")) > 3
    chunks = prepared.chunks("pool")
    order = [7, 0, chunks.num_rows - 1, 7, 3]
    texts = {(r["doc_id"], r["chunk_index"]): t for k in prepared.parts("pool") for r, t in _rows(prepared, k)}
    wanted = [(chunks["doc_id"][i].as_py(), chunks["chunk_index"][i].as_py()) for i in order]
    assert prepared.texts("pool", chunks.take(order)) == [texts[w] for w in wanted]
    with pytest.raises(UserError, match="no document"):
        prepared.texts("valid", chunks.take(order))
    with pytest.raises(UserError, match="no split"):
        prepared.chunks("train")


def _rows(prepared: Prepared, k: int) -> list[tuple[dict[str, Any], str]]:
    chunks, texts = prepared.part("pool", k)
    return list(zip(chunks.to_pylist(), texts, strict=True))


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "x.jsonl", corpus(10))
    prepare([source], model="not-loaded", out=tmp_path / "out", dry_run=True)
    assert capsys.readouterr().out.startswith("prepare would read 1 files, 0.0 MB, about 0.0 M tokens")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.jsonl"]
    assert stage.survey([source])["bytes"] == Path(source).stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near_duplicates": "drop"}, "near_duplicates"),
        ({"near_duplicates": 0}, "near_duplicates"),
        ({"overlap_share": 0}, "overlap_share"),
        ({"limit_tokens": 0}, "limit_tokens"),
        ({"valid": -1}, "held-out size"),
        ({"test": 5}, "No document fits"),
        ({"test": 1e9, "valid": 0}, "held out"),
        ({"min_tokens": 60}, "half of chunk_tokens"),
    ],
)
def test_bad_options_get_a_sentence(
    tmp_path: Path, tiny_tokenizer_dir: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, tiny_tokenizer_dir, corpus(5), **options)


def test_a_corpus_of_nothing_usable_says_why(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match=r"No usable document in .*: 3 too_short"):
        run(tmp_path, tiny_tokenizer_dir, [{"text": "Hi."}] * 3)


def test_a_pool_that_is_all_held_out_says_so(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    held = [write(tmp_path / "held.jsonl", corpus(10))]
    with pytest.raises(UserError, match=r"Nothing is left in pool: 10 overlap_heldout"):
        run(tmp_path, tiny_tokenizer_dir, corpus(10), heldout=held)


def test_prepared_refuses_other_folders(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Prepared(tmp_path)
    prepared = run(tmp_path, tiny_tokenizer_dir, corpus(30))
    prepared.check_tokenizer(prepared.facts["tokenizer_hash"], "the same")
    with pytest.raises(UserError, match="prepare the corpus again"):
        prepared.check_tokenizer("0" * 64, "another")
