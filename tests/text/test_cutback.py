"""The subset comes back in the input's own format: same schema, same compression, every other field kept."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.schema import SELECTED
from pplscape.stages.prepare import prepare
from pplscape.text.cutback import Piece, pieces_of, write_subset
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns, Document, read_documents, resolve_inputs

LETTERS = [f"{a}{b}" for a in "bcdfgklmnprst" for b in ("an", "eu", "ier", "öst", "ülp")]


def text(i: int, words: int) -> str:
    return " ".join(random.Random(i).choices(LETTERS, k=words))


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"key": {"id": f"d{i}"}, "body": text(i, 14 if i % 3 else 100), "meta": {"year": 1990 + i, "tags": ["ä", None]}}
        for i in range(n)
    ]


def prepared_from(tmp_path: Path, model: Path, inputs: list[Path], columns: Columns) -> Prepared:
    held = tmp_path / "held.jsonl"
    held.write_text(
        "".join(json.dumps({"text": text(1000 + i, 60), "body": text(1000 + i, 60)}) + "\n" for i in range(4))
    )
    options: dict[str, Any] = {"chunk_tokens": 96, "min_tokens": 8, "columns": columns, "heldout": [str(held)]}
    return Prepared(prepare([str(p) for p in inputs], model=str(model), out=tmp_path / "prepared", **options))


def select(prepared: Prepared, repeats: dict[tuple[str, int], int] | None = None) -> pa.Table:
    """All chunks of the pool once, or those given with their repeats."""
    picked = []
    for row in prepared.chunks("pool").to_pylist():
        times = 1 if repeats is None else repeats.get((row["doc_id"], row["chunk_index"]), 0)
        picked.append({**row, "nll": 1.0, "repeats": times, "reason": "test"})
    return pa.Table.from_pylist([{k: r[k] for k in SELECTED.names} for r in picked if r["repeats"]], SELECTED)


def as_selection(tmp_path: Path, selected: pa.Table, parts: int = 1) -> Path:
    """A selection folder that holds these rows."""
    folder = tmp_path / "selection"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "selected").mkdir(parents=True)
    size = -(-len(selected) // parts)
    for i in range(parts):
        pq.write_table(selected.slice(i * size, size), folder / f"selected/part-{i:05d}.parquet")
    return folder


def write(path: Path, data: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(data), path, compression="gzip")
        return
    raw = b"".join(json.dumps(r, indent=None, separators=(", ", " : ")).encode() + b"\n" for r in data)
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(raw))


def load(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if path.suffix == ".zst":
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    return [json.loads(line) for line in raw.splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_pieces_rows_and_repeats(tmp_path: Path, tiny_tokenizer_dir: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.{suffix}"
    data = rows(9)
    write(path, data)
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [path], Columns("body", "key.id"))
    spans = {
        (r["doc_id"], r["chunk_index"]): (r["char_start"], r["char_end"]) for r in prepared.chunks("pool").to_pylist()
    }
    assert ("d0", 3) in spans
    wanted = {("d0", 0): 1, ("d0", 1): 2, ("d0", 3): 1, ("d4", 0): 3} | {k: 1 for k in spans if k[0] == "d1"}
    counts = write_subset(prepared, as_selection(tmp_path, select(prepared, wanted)), tmp_path / "subset")
    found = load(tmp_path / "subset" / path.name)
    body = data[0]["body"]
    expected = [
        ("d0", body[: spans["d0", 1][1]]),
        ("d0#3", body[slice(*spans["d0", 3])]),
        ("d0", body[slice(*spans["d0", 1])]),
        ("d1", data[1]["body"]),
        *[("d4", data[4]["body"])] * 3,
    ]
    assert [(r["key"]["id"], r["body"]) for r in found] == expected
    assert [r["meta"] for r in found] == [data[int(i[1])]["meta"] for i, _ in expected]
    tokens = sum(r["length"] * r["repeats"] for r in select(prepared, wanted).to_pylist())
    of_file = {"documents": 3, "rows": 7, "tokens": tokens}
    assert counts == {"files": {path.name: of_file}, **of_file}
    assert {p.name for p in tmp_path.iterdir()} >= {"subset"}
    assert not (tmp_path / "subset.spool").exists()
    if suffix == "parquet":
        before, after = pq.ParquetFile(path), pq.ParquetFile(tmp_path / "subset" / path.name)
        assert after.schema_arrow.equals(before.schema_arrow)
        assert after.metadata.row_group(0).column(0).compression == "GZIP"
    else:
        assert path.read_bytes() != b""


def test_whole_rows_keep_their_bytes(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write(path, rows(6))
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [path], Columns("body", "key.id"))
    write_subset(prepared, as_selection(tmp_path, select(prepared)), tmp_path / "subset")
    lines, kept = path.read_bytes().splitlines(), (tmp_path / "subset/corpus.jsonl").read_bytes().splitlines()
    dropped_tail = {r["doc_id"] for r in _remainders(prepared)}
    for i, line in enumerate(lines):
        assert (line in kept) == (f"d{i}" not in dropped_tail)


def _remainders(prepared: Prepared) -> list[dict[str, Any]]:
    return [r for r in pq.read_table(prepared.path / "rejected").to_pylist() if r["chunk_index"] is not None]


def test_the_subset_is_read_again_as_the_selected_text(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    for name, part in (("a.jsonl.gz", rows(12)[:5]), ("b.parquet", rows(12)[5:])):
        write(tmp_path / name, part)
    inputs = [tmp_path / "a.jsonl.gz", tmp_path / "b.parquet"]
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, inputs, Columns("body", "key.id"))
    selected = select(prepared).slice(3, 20)
    write_subset(prepared, as_selection(tmp_path, selected), tmp_path / "subset")
    again = read_documents(resolve_inputs([str(tmp_path / "subset")]), Columns("body", "key.id"))
    joined = "".join(d.text for d in again if isinstance(d, Document))
    assert joined == "".join(prepared.texts("pool", selected))


def test_text_files(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf" + text(1, 14).encode())
    (folder / "deep/b.md").write_text(text(2, 100))
    (folder / "deep/c.txt.gz").write_bytes(gzip.compress(text(3, 14).encode()))
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [folder], Columns())
    repeats = {("a.txt", 0): 2, ("deep/b.md", 0): 1, ("deep/b.md", 2): 1, ("deep/c.txt.gz", 0): 1}
    write_subset(prepared, as_selection(tmp_path, select(prepared, repeats)), tmp_path / "subset")
    files = {str(p.relative_to(tmp_path / "subset")) for p in (tmp_path / "subset").rglob("*") if p.is_file()}
    assert files == {"a.txt", "a~2.txt", "deep/b.md", "deep/b#2.md", "deep/c.txt.gz"}
    assert (tmp_path / "subset/a.txt").read_bytes() == (folder / "a.txt").read_bytes()
    assert gzip.decompress((tmp_path / "subset/deep/c.txt.gz").read_bytes()).decode() == text(3, 14)
    assert (tmp_path / "subset/deep/b#2.md").read_text() in text(2, 100)


def test_a_collection_stays_one_file(tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pplscape.text.stream.WHOLE_TEXT", 2000)
    monkeypatch.setattr("pplscape.text.stream.TEXT_PIECE", 700)
    path = tmp_path / "corpus.txt.gz"
    whole = "\n\n".join(text(i, 60) for i in range(12)) + "\n"
    path.write_bytes(gzip.compress(whole.encode()))
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [path], Columns())
    ids = prepared.documents("pool", 0)["doc_id"].to_pylist()
    assert ids[:3] == ["corpus.txt.gz/0", "corpus.txt.gz/1", "corpus.txt.gz/2"]
    selected = select(prepared)
    write_subset(prepared, as_selection(tmp_path, selected), tmp_path / "subset")
    (only,) = (p for p in (tmp_path / "subset").rglob("*") if p.is_file())
    assert only.name == path.name
    lines = [line for line in gzip.decompress(only.read_bytes()).decode().split("\n") if line]
    assert all(line in whole for line in lines)
    assert "".join(lines) == "".join(prepared.texts("pool", selected)).replace("\n", "")
    path.write_bytes(gzip.compress(whole.upper().encode()))
    with pytest.raises(UserError, match="has changed"):
        write_subset(prepared, as_selection(tmp_path, selected), tmp_path / "subset")


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet", "txt"])
def test_a_changed_input_is_refused(tmp_path: Path, tiny_tokenizer_dir: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "txt":
        path.write_text(text(0, 60))
    else:
        write(path, rows(6))
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [path], Columns() if suffix == "txt" else Columns("body"))
    if suffix == "txt":
        path.write_text(text(1, 60))
    else:
        write(path, rows(6)[::-1])
    with pytest.raises(UserError, match=rf"corpus\.{suffix} has changed"):
        write_subset(prepared, as_selection(tmp_path, select(prepared)), tmp_path / "subset")
    if suffix != "txt":
        write(path, rows(2))
        with pytest.raises(UserError, match="has changed"):
            write_subset(prepared, as_selection(tmp_path, select(prepared)), tmp_path / "subset")
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        write_subset(prepared, as_selection(tmp_path, select(prepared)), tmp_path / "subset")


def test_numeric_ids_of_parquet_stay_numbers(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": [7, 8], "text": [text(0, 100), text(1, 14)]}), path)
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [path], Columns())
    write_subset(prepared, as_selection(tmp_path, select(prepared, {("7", 0): 1, ("7", 2): 1})), tmp_path / "subset")
    assert pq.read_table(tmp_path / "subset/corpus.parquet")["id"].to_pylist() == [7, 7]


def test_chunks_of_another_corpus_are_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    write(tmp_path / "corpus.jsonl", rows(6))
    prepared = prepared_from(tmp_path, tiny_tokenizer_dir, [tmp_path / "corpus.jsonl"], Columns("body", "key.id"))
    selected = select(prepared).set_column(0, SELECTED.field(0), pa.array(["other"] * select(prepared).num_rows))
    with pytest.raises(UserError, match="chunks of document 'other'"):
        write_subset(prepared, as_selection(tmp_path, selected), tmp_path / "subset")


def test_pieces_by_hand() -> None:
    chunks = [(2, 20, 30, 1), (0, 0, 10, 1), (1, 10, 20, 2), (4, 40, 45, 3)]
    assert pieces_of(chunks) == [
        Piece(0, 30, 0, 1, True),
        Piece(40, 45, 4, 1, False),
        Piece(10, 20, 1, 2, True),
        Piece(40, 45, 4, 2, False),
        Piece(40, 45, 4, 3, True),
    ]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12).filter(any))
def test_pieces_hold_every_chunk_as_often_as_it_repeats(repeats: list[int]) -> None:
    chunks = [(i, 10 * i, 10 * i + 10, r) for i, r in enumerate(repeats) if r]
    held = [0] * len(repeats)
    for piece in pieces_of(chunks):
        for i in range(piece.start // 10, piece.end // 10):
            held[i] += 1
    assert held == repeats
