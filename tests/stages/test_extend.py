"""Files added to a corpus: what was there stays byte for byte, and the whole is what preparing everything gives."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.engines.fake import FakeEngine
from pplscape.errors import StaleOutput
from pplscape.manifest import StageFolder, read_manifest, sha256_file
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text import ingest
from pplscape.text.chunk import Chunker
from pplscape.text.prepared import Prepared

CHUNKING: dict[str, Any] = {"chunk_tokens": 64, "min_tokens": 16}
WORDS = [f"{a}{b}{c}" for a in "bcdfglmnprst" for b in "aeiou" for c in ("n", "rs", "lt")]


def dirty(n: int, seed: int) -> list[str]:
    """Lines of JSON: texts, repeats of earlier ones whole and in part, the same ids again, defects."""
    rng = random.Random(seed)
    texts: list[str] = []
    lines = []
    for i in range(n):
        kind = rng.random()
        if kind < 0.1 and texts:
            text = rng.choice(texts) + " and so on"
        elif kind < 0.2 and texts:
            text = rng.choice(texts)
        else:
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 120)))
        texts.append(text)
        lines.append("{broken" if kind > 0.95 else json.dumps({"id": f"d{i % 30}", "text": text if kind < 0.9 else ""}))
    return lines


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two corpora, the second with repeats of the first, and held-out text that both repeat."""
    first, second = dirty(70, 1), dirty(50, 2)
    held = [line for line in dirty(15, 3) if line.startswith('{"')]
    found = {"a": first + held[3:5], "b": second + first[10:30] + held[5:8], "held": held}
    paths = {}
    for name, lines in found.items():
        paths[name] = tmp_path / "in" / f"{name}.jsonl"
        paths[name].parent.mkdir(exist_ok=True)
        paths[name].write_text("\n".join(lines) + "\n")
    return paths


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(p) for p in sorted((folder / name).glob("part-*.parquet"))).to_pylist()


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """sha256 and inode of every part."""
    parts = sorted(folder.rglob("part-*.parquet"))
    return {str(p.relative_to(folder)): (sha256_file(p), p.stat().st_ino) for p in parts}


@pytest.mark.parametrize("near", ["remove", "keep", 2])
def test_an_extended_corpus_is_what_preparing_everything_gives(
    files: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path, near: Any
) -> None:
    eval = tmp_path / "eval.jsonl"
    eval.write_text("\n".join(line for line in dirty(70, 1)[40:43]))
    options: dict[str, Any] = {
        **CHUNKING, "model": str(tiny_tokenizer_dir), "heldout": [str(files["held"])], "near_duplicates": near,
        "eval": [str(eval)], "heldout_chunks": 2,
    }  # fmt: skip
    whole = prepare([str(files["a"]), str(files["b"])], out=tmp_path / "whole", **options)
    grown = prepare([str(files["a"])], out=tmp_path / "grown", **options)
    before = state(grown)
    prepare([str(files["a"]), str(files["b"])], out=grown, **options)
    assert before.items() <= state(grown).items()
    for name in ("documents/pool", "documents/valid", "documents/test", "chunks/pool", "chunks/valid", "chunks/test"):
        assert table(grown, name) == table(whole, name)

    def row_key(row: dict[str, Any]) -> str:
        return json.dumps(row, sort_keys=True)

    assert sorted(table(grown, "rejected"), key=row_key) == sorted(table(whole, "rejected"), key=row_key)
    ours, theirs = read_manifest(grown)["counts"], read_manifest(whole)["counts"]
    (added,) = ours.pop("added")
    assert ours == theirs
    assert added["files"] == ["b.jsonl"]
    assert 0 < added["documents"]["out"] < added["documents"]["in"] == sum(1 for _ in files["b"].open())
    assert added["first_part"] == 1
    reasons = {r["reason"] for r in table(grown, "rejected")}
    assert {"near_duplicate", "duplicate_chunk"} & reasons
    assert "overlap_heldout" in reasons


def test_only_new_text_is_cut_and_scored(
    files: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**CHUNKING, "model": str(tiny_tokenizer_dir), "valid": 0.1, "test": 0.1}
    corpus = prepare([str(files["a"])], out=tmp_path / "prepared", **options)
    scores = score(corpus, model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "scores")
    before, scored_before = state(corpus), state(scores)
    held = {s: Prepared(corpus).chunks(s) for s in ("valid", "test")}

    cut: list[str] = []
    scored: list[int] = []
    cut_texts, nll = Chunker.cut, FakeEngine.nll

    def cutting(self: Chunker, texts: list[str]) -> Any:
        cut.extend(texts)
        return cut_texts(self, texts)

    def scoring(self: FakeEngine, chunks: list[Any], *contexts: Any) -> Any:
        scored.append(len(chunks))
        return nll(self, chunks, *contexts)

    monkeypatch.setattr(Chunker, "cut", cutting)
    monkeypatch.setattr(FakeEngine, "nll", scoring)
    prepare([str(files["a"]), str(files["b"])], out=corpus, **options)
    score(corpus, model=str(tiny_tokenizer_dir), engine="fake", out=scores)
    after = Prepared(corpus)
    held_out = {t for s in held for t in after.documents(s, 0)["text"].to_pylist()}
    lines = [line for line in files["b"].read_text().splitlines() if line.startswith('{"')]
    assert set(cut) <= held_out | {json.loads(line)["text"] for line in lines}
    assert before.items() <= state(corpus).items()
    assert scored_before.items() <= state(scores).items()
    assert all(after.chunks(s).equals(held[s]) for s in held)
    assert sum(scored) == after.part("pool", 1)[0].num_rows == pq.read_table(scores / "part-00001.parquet").num_rows
    assert read_manifest(scores)["counts"]["out"] == after.chunks("pool").num_rows
    mtime = (corpus / "manifest.json").stat().st_mtime_ns
    prepare([str(files["a"]), str(files["b"])], out=corpus, **options)
    assert (corpus / "manifest.json").stat().st_mtime_ns == mtime
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.replaced"))


def test_killed_anywhere_an_extension_ends_the_same(
    files: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "PART_CHARS", 3000)
    monkeypatch.setattr("pplscape.text.write.PART_BYTES", 3000)
    options: dict[str, Any] = {**CHUNKING, "model": str(tiny_tokenizer_dir), "valid": 0.1, "test": 0.1}
    both = [str(files["a"]), str(files["b"])]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        prepare(both[:1], out=out, **options)
    prepare(both, out=whole, **options)
    written = StageFolder.write_table
    kills = 0
    while not (killed / "documents/pool").exists() or state(killed).keys() != state(whole).keys():
        left = [3]

        def dying(self: StageFolder, name: str, table: pa.Table, left: list[int] = left) -> None:
            left[0] -= not self.has(name)
            if left[0] < 0:
                raise KeyboardInterrupt
            written(self, name, table)

        monkeypatch.setattr(StageFolder, "write_table", dying)
        try:
            prepare(both, out=killed, **options)
        except KeyboardInterrupt:
            kills += 1
    assert kills > 5
    assert {k: v[0] for k, v in state(killed).items()} == {k: v[0] for k, v in state(whole).items()}


def test_a_changed_or_missing_file_is_refused(files: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    options: dict[str, Any] = {**CHUNKING, "model": str(tiny_tokenizer_dir), "valid": 0, "test": 0}
    a, b = str(files["a"]), str(files["b"])
    prepare([a, b], out=tmp_path / "out", **options)
    new = files["a"].parent / "c.jsonl"
    new.write_text("\n".join(dirty(9, 9)))
    with pytest.raises(StaleOutput, match=r"b\.jsonl was prepared into .* and is not among the inputs now"):
        prepare([a, str(new)], out=tmp_path / "out", **options)
    with pytest.raises(StaleOutput, match="in another order"):
        prepare([b, a, str(new)], out=tmp_path / "out", **options)
    with pytest.raises(StaleOutput, match="other held-out or evaluation text"):
        prepare([a, b], out=tmp_path / "out", eval=[str(new)], **options)
    with pytest.raises(StaleOutput, match=r"is called .*in/a\.jsonl now: write FOLDER/\./a\.jsonl"):
        prepare([a, b, __file__], out=tmp_path / "out", **options)
    with files["a"].open("a") as handle:
        handle.write("\n")
    with pytest.raises(StaleOutput, match=r"a\.jsonl has changed since it was prepared"):
        prepare([a, b], out=tmp_path / "out", **options)
    prepare([a, b], out=tmp_path / "out", overwrite=True, **options)
    prepare([a], out=tmp_path / "limited", limit=20, **options)
    with pytest.raises(StaleOutput, match="read up to a limit"):
        prepare([a, b], out=tmp_path / "limited", limit=20, **options)


def test_overwrite_keeps_what_is_only_added_to(
    files: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    options: dict[str, Any] = {**CHUNKING, "model": str(tiny_tokenizer_dir), "valid": 0, "test": 0, "overwrite": True}
    out = prepare([str(files["a"])], out=tmp_path / "out", **options)
    before = state(out)
    prepare([str(files["a"]), str(files["b"])], out=out, **options)
    assert before.items() <= state(out).items()
