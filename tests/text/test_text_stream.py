"""Streams: lines and texts of any size in bounded memory, whole where they are cut, counted where they are damaged."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pplscape.text import read, stream
from pplscape.text.read import Document, Rejected, read_documents, resolve_inputs
from pplscape.text.stream import Broken, read_lines, read_texts

ROWS = st.lists(st.binary(max_size=150).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")))
PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and pieces so small that every test crosses their borders."""
    monkeypatch.setattr(stream, "READ_BYTES", 64)
    monkeypatch.setattr(stream, "SLICE", 16)
    monkeypatch.setattr(stream, "WHOLE_TEXT", 400)
    monkeypatch.setattr(stream, "TEXT_PIECE", 100)


@given(lines=ROWS, end=st.booleans())
def test_lines_are_those_of_the_file(lines: list[bytes], end: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes(b"\r\n".join(lines) + b"\n" * end)
    wanted = [(i, line) for i, line in enumerate(lines) if line.strip()]
    assert list(read_lines(str(path))) == wanted
    short = [(i, line if len(line) + 1 <= 60 else "too_large") for i, line in wanted]
    found = [(i, line.reason if isinstance(line, Broken) else line) for i, line in read_lines(str(path), 60)]
    assert [f for f in found if len(lines[f[0]]) != 60] == [f for f in short if len(lines[f[0]]) != 60]


@pytest.mark.parametrize("suffix", PACK)
def test_a_row_above_the_limit_is_rejected_without_being_held(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = tmp_path / f"x.jsonl{suffix}"
    rows = [b'{"text": "before"}', b'{"text": "' + os.urandom(15_000_000).hex().encode() + b'"}', b'{"text": "after"}']
    path.write_bytes(PACK[suffix](b"\n".join(rows)))
    paths = resolve_inputs([str(path)])
    tracemalloc.start()
    found = list(read_documents(paths, max_row_bytes=1_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [f.text for f in found if isinstance(f, Document)] == ["before", "after"]
    (rejected,) = (f for f in found if isinstance(f, Rejected))
    assert (rejected.row, rejected.reason) == (1, "too_large")
    assert "30,000,012 bytes" in rejected.detail
    assert peak < 12_000_000, f"{peak / 1e6:.0f} MB were held"


def test_a_compressed_bomb_is_not_unpacked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(100_000_000), 9))
    assert path.stat().st_size < stream.READ_BYTES  # one block of input
    tracemalloc.start()
    (row,) = read_lines(str(path), 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(row[1], Broken)
    assert peak < 40_000_000


@pytest.mark.parametrize("suffix", PACK)
@given(text=st.text(st.sampled_from("aé心🫀 \n"), max_size=900))
def test_pieces_tile_a_collection(text: str, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("texts") / f"x.txt{suffix}"
    path.write_bytes(PACK[suffix](text.encode()))
    pieces = list(read_texts(str(path)))
    assert b"".join(p for _, p in pieces if isinstance(p, bytes)).decode() == text
    if len(text.encode()) <= 400:
        assert [row for row, _ in pieces] == [None]
    else:
        assert [row for row, _ in pieces] == list(range(len(pieces)))
        assert all(isinstance(p, bytes) and 50 <= len(p) <= 100 and p.decode() for _, p in pieces[:-1])


def test_paragraphs_before_lines_before_words(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("word " * 11 + "\n\n" + "word " * 4 + "\n" + "word " * 100)
    first, second, *_ = (piece for _, piece in read_texts(str(path)))
    assert isinstance(first, bytes)
    assert first.endswith(b"\n\n")
    assert isinstance(second, bytes)
    assert second.endswith(b" ")
    assert len(second) > 50


def test_one_paragraph_of_many_megabytes_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tmp_path / "x.txt"
    path.write_bytes("心脏病".encode() * 4_000_000)  # neither a space nor a line end: 36 MB
    tracemalloc.start()
    n = sum(1 for d in read_documents(resolve_inputs([str(path)])) if isinstance(d, Document))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == -(-36_000_000 // (stream.TEXT_PIECE - 1))
    assert peak < 30_000_000  # WHOLE_TEXT is held until the file proves to be a collection


def test_damage_in_a_collection_costs_what_is_damaged(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {i} of the collection.\n\n" for i in range(40)).encode()
    path = tmp_path / "x.txt"
    path.write_bytes(text[:700] + b"\xff" + text[701:])
    found = list(read_documents(resolve_inputs([str(path)])))
    assert [f.reason for f in found if isinstance(f, Rejected)] == ["invalid_utf8"]
    assert [f.doc_id for f in found] == [f"x.txt/{i}" for i in range(len(found))]
    packed = tmp_path / "y.txt.gz"
    packed.write_bytes(gzip.compress(text, 0)[:-300])
    *good, last = read_documents(resolve_inputs([str(packed)]))
    assert isinstance(last, Rejected)
    assert (last.reason, last.row) == ("truncated", len(good))
    assert text.decode().startswith("".join(d.text for d in good if isinstance(d, Document)))
    assert len(good) > 5


def test_a_damaged_parquet_file_keeps_the_rows_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BATCH_BYTES", 2000)
    path = tmp_path / "x.parquet"
    texts = [f"row {i} " + "x" * 50 for i in range(400)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, compression="none", use_dictionary=False)
    offset = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(data)
    *good, last = read_documents(resolve_inputs([str(path)]))
    assert [d.text for d in good if isinstance(d, Document)] == texts[:200]
    assert isinstance(last, Rejected)
    assert (last.reason, last.row) == ("corrupt", 200)
