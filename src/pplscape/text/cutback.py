"""Write the selected part of a corpus in the input's own format and schema: the file to train on.

Each input file is read again and a file of the same name, format and compression is written. Adjacent selected
chunks of a document become one row, which keeps the row's id and all its other fields; further pieces of the same
document get the id `id#chunk_index`. A chunk that is taken r times appears r times. Whole documents keep their bytes.

A text file holds one document, so its pieces are files: `name.txt`, `name#chunk_index.txt`, and for the r-th
repetition `name~r.txt`. A text file so large that it is a collection stays one file, its pieces are paragraphs. Rows of
a hub dataset are written as JSONL.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pplscape.errors import UserError
from pplscape.manifest import cannot_write, write_atomic
from pplscape.text.chosen import Chosen, selected_files
from pplscape.text.inputs import Form, form_of, location, name_of, open_input
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns, dataset_rows, decode, get_path, parse_line
from pplscape.text.stream import MAX_ROW_BYTES, Broken, read_lines, read_texts

ROWS_AT_ONCE = 1024
Rows = Iterator[tuple[int, tuple[bytes, Any]]]
"""(row, (its line, the line again or the row as an object))."""


@dataclass(frozen=True)
class Piece:
    """A run of adjacent chunks, characters [start, end) of a document; `copy` counts from 1."""

    start: int
    end: int
    chunk_index: int
    copy: int
    first: bool
    """The first piece of this copy: it keeps the document's id."""


@dataclass(frozen=True)
class Wanted:
    """What to take of one row of an input file."""

    path: str
    row: int
    text: str
    pieces: list[Piece]
    tokens: int
    """Of the selected chunks, repeats counted."""

    def is_whole(self, piece: Piece) -> bool:
        return piece.start == 0 and piece.end == len(self.text)


def write_subset(prepared: Prepared, selection: Path, folder: Path, columns: Columns | None = None) -> dict[str, Any]:
    """Write the chunks of selection/selected/ (schema.SELECTED, chunks of the pool) under `folder`; counts per file.

    `columns`: those the corpus was prepared with, unless given. Streams over documents and files (`text.chosen`); what
    that spools is written beside `folder` and removed.
    UserError if an input file has changed since `prepare`, or cannot be read.
    """
    columns, folder = columns or Columns(**prepared.facts["columns"]), Path(folder)
    limit = prepared.facts.get("max_row_bytes", MAX_ROW_BYTES)
    spool = folder.with_name(folder.name + ".spool")
    chosen = Chosen(selected_files(selection), prepared, spool)
    files: dict[str, dict[str, int]] = {}
    for path, group in groupby(_wanted(chosen), key=lambda w: w.path):
        counted = _Counted(group)
        name = _write_file(path, counted, folder, columns, limit)
        files[name] = {"documents": counted.documents, "rows": counted.rows, "tokens": counted.tokens}
    totals = {word: sum(f[word] for f in files.values()) for word in ("documents", "rows", "tokens")}
    del chosen
    shutil.rmtree(spool)
    return {"files": files, **totals}


class _Counted:
    """Passes wanted rows on and counts documents and the rows written for them."""

    def __init__(self, wanted: Iterator[Wanted]):
        self._wanted, self.documents, self.rows, self.tokens = wanted, 0, 0, 0

    def __iter__(self) -> Iterator[Wanted]:
        for w in self._wanted:
            self.documents += 1
            self.rows += len(w.pieces)
            self.tokens += w.tokens
            yield w


def pieces_of(chunks: Sequence[tuple[int, ...]]) -> list[Piece]:
    """Runs of adjacent chunks (chunk_index, start, end, repeats, ...); copy r joins those with r repeats or more."""
    pieces: list[Piece] = []
    ordered = sorted(chunks)
    for r in range(1, max(c[3] for c in ordered) + 1):
        runs: list[list[int]] = []
        for index, start, end, repeats, *_ in ordered:
            if repeats < r:
                continue
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end, index])
        pieces += [Piece(start, end, index, r, i == 0) for i, (start, end, index) in enumerate(runs)]
    return pieces


def _wanted(chosen: Chosen) -> Iterator[Wanted]:
    """Selected rows in corpus order, which is the order of files and rows."""
    for at, k in enumerate(chosen.parts):
        spans = chosen.of(at)
        if not spans:
            continue
        doc_ids = chosen.prepared.documents("pool", k, ["doc_id"])["doc_id"].to_pylist()
        here = [i for i, d in enumerate(doc_ids) if d in spans]
        table = chosen.prepared.documents("pool", k, ["path", "row", "text"]).take(pa.array(here))
        for row, i in enumerate(here):
            path, number, text = (table[c][row].as_py() for c in ("path", "row", "text"))
            of = spans[doc_ids[i]]
            yield Wanted(path, number, text, pieces_of(of), sum(s.length * s.repeats for s in of))


def _write_file(path: str, wanted: _Counted, folder: Path, columns: Columns, limit: int) -> str:
    """Write what is wanted of one input file; its name under `folder`."""
    kind, name = form_of(path).kind, name_of(path)
    if kind == "hf":
        name += ".jsonl"
    target = folder / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "text":
            _write_texts(path, wanted, target)
        elif kind == "parquet":
            _write_parquet(path, wanted, target, columns)
        else:
            rows = _read_dataset(path) if kind == "hf" else _read_jsonl(path, limit)
            _write_jsonl(path, rows, wanted, target, columns)
    except OSError as error:
        raise cannot_write(target, error) from error
    return name


def _changed(path: str, row: int) -> UserError:
    return UserError(
        f"{location(path)} has changed since the corpus was prepared (row {row} differs): "
        "restore the file, or run prepare, score and select again."
    )


# --- text files ---


def _write_texts(path: str, wanted: _Counted, target: Path) -> None:
    form, texts = form_of(path), read_texts(path)
    with ExitStack() as stack:
        collection: BinaryIO | None = None
        for w in wanted:
            row, raw = next((t for t in texts if (t[0] or 0) == w.row), (0, b""))
            if isinstance(raw, Broken) or decode(raw) != w.text:
                raise _changed(w.path, w.row)
            if row is None:
                _write_files(w, raw, target, form)
                continue
            collection = collection or stack.enter_context(_replacing(target, form.compression))
            for piece in w.pieces:
                data = w.text[piece.start : piece.end].encode()
                collection.write(data if data.endswith(b"\n") else data + b"\n\n")


def _write_files(w: Wanted, raw: bytes, target: Path, form: Form) -> None:
    for piece in w.pieces:
        data = raw if w.is_whole(piece) else w.text[piece.start : piece.end].encode()
        part = "" if piece.first else f"#{piece.chunk_index}"
        again = "" if piece.copy == 1 else f"~{piece.copy}"
        suffixes = target.name.removeprefix(form.stem)
        write_atomic(target.with_name(f"{form.stem}{part}{again}{suffixes}"), _compress(data, form.compression))


@contextmanager
def _replacing(target: Path, compression: str) -> Iterator[BinaryIO]:
    """A stream that becomes the target file when it is closed without an error."""
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "wb") as file, _compressor(file, compression) as out:
        yield out
    os.replace(temporary, target)


def _compress(data: bytes, compression: str) -> bytes:
    buffer = io.BytesIO()
    with _compressor(buffer, compression) as out:
        out.write(data)
    return buffer.getvalue()


@contextmanager
def _compressor(file: BinaryIO, compression: str) -> Iterator[BinaryIO]:
    """A stream that compresses into `file`; the same data give the same bytes."""
    if compression == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as out:
            yield out  # type: ignore[misc]
    elif compression == ".zst":
        import zstandard

        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as out:
            yield out
    else:
        yield file


# --- JSONL ---


def _write_jsonl(path: str, rows: Rows, wanted: _Counted, target: Path, columns: Columns) -> None:
    with _replacing(target, form_of(path).compression) as out:
        for w in wanted:
            line, value = _find(rows, w)
            if get_path(value, columns.text) != w.text:
                raise _changed(w.path, w.row)
            for piece in w.pieces:
                keep = w.is_whole(piece) and piece.first
                out.write((line if keep else _dump(_cut_row(value, w, piece, columns))) + b"\n")


def _read_jsonl(path: str, limit: int) -> Rows:
    for row, line in read_lines(path, limit):
        if not isinstance(line, Broken):
            yield row, (line.removeprefix(b"\xef\xbb\xbf"), line)


def _read_dataset(path: str) -> Rows:
    for row, value in dataset_rows(path):
        yield row, (_dump(value), value)


def _find(rows: Rows, w: Wanted) -> tuple[bytes, Mapping[str, Any]]:
    for row, (line, value) in rows:
        if row == w.row:
            parsed = parse_line(value) if isinstance(value, bytes) else value
            if isinstance(parsed, Broken):
                break
            return line, parsed
    raise _changed(w.path, w.row)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def _cut_row(row: Mapping[str, Any], w: Wanted, piece: Piece, columns: Columns) -> dict[str, Any]:
    """A copy of the row with the piece's text, and for a further piece its own id (if rows have ids)."""
    cut = copy.deepcopy(dict(row))
    _set_path(cut, columns.text, w.text[piece.start : piece.end])
    old = get_path(row, columns.id)
    if not piece.first and isinstance(old, str | int):
        _set_path(cut, columns.id, f"{old}#{piece.chunk_index}")
    return cut


def _set_path(row: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = [path] if path in row else path.split(".")
    for key in parents:
        row = row[key]
    row[last] = value


# --- Parquet ---


def _write_parquet(path: str, wanted: _Counted, target: Path, columns: Columns) -> None:
    import pyarrow.parquet as pq

    temporary = target.with_name(target.name + ".tmp")
    with open_input(path) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        codec = parquet.metadata.row_group(0).column(0).compression if parquet.num_row_groups else "SNAPPY"
        with pq.ParquetWriter(temporary, schema, compression=codec.lower().replace("uncompressed", "none")) as out:
            for table in _cut_batches(parquet, path, iter(wanted), columns):
                out.write_table(table)
    os.replace(temporary, target)


def _cut_batches(parquet: Any, path: str, wanted: Iterator[Wanted], columns: Columns) -> Iterator[pa.Table]:
    start = 0
    pending = next(wanted, None)
    for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
        here: list[Wanted] = []
        while pending is not None and pending.row < start + batch.num_rows:
            here.append(pending)
            pending = next(wanted, None)
        if here:
            yield _cut_table(pa.Table.from_batches([batch]), here, start, columns)
        start += batch.num_rows
    if pending is not None:
        raise _changed(path, pending.row)


def _cut_table(table: pa.Table, wanted: list[Wanted], start: int, columns: Columns) -> pa.Table:
    """Rows of `table` (which begins at row `start`), one per piece, with only text and id replaced."""
    pieces = [(w, p) for w in wanted for p in w.pieces]
    taken = table.take(pa.array([w.row - start for w, _ in pieces], pa.int64()))
    changed = [name for name in taken.column_names if _touches(name, columns)]
    rows = taken.select(changed).to_pylist()
    for i, (row, (w, piece)) in enumerate(zip(rows, pieces, strict=True)):
        if get_path(row, columns.text) != w.text:
            raise _changed(w.path, w.row)
        rows[i] = _cut_row(row, w, piece, columns)
    for name in changed:
        at = taken.schema.get_field_index(name)
        field = taken.schema.field(at)
        values = [row[name] for row in rows]
        try:
            taken = taken.set_column(at, field, pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            if name == columns.text.split(".")[0]:
                raise
            # an id column of numbers cannot hold `id#chunk_index`: pieces keep the document's id
    return taken


def _touches(name: str, columns: Columns) -> bool:
    return any(name in (path, path.split(".")[0]) for path in (columns.text, columns.id))
