"""Documents from files: JSONL (plain, .gz, .zst), Parquet, text files, datasets of the hub.

A text file is one document. One above WHOLE_TEXT bytes is taken for a collection: it is cut at paragraphs into
documents of at most TEXT_PIECE bytes, with ids `name/0`, `name/1` ... Nothing is held but the row, the piece or the
batch being read, and never more than `max_row_bytes` of a row.

What cannot be read is yielded as `Rejected` with a reason, in its place, and reading goes on:

    broken_json not_an_object   the line is no JSON, or no JSON object
    missing_text not_text       the row has no text column, or something else than a string in it
    invalid_utf8                bytes that are no UTF-8, or a lone surrogate (which has no UTF-8 form)
    nul_bytes                   the text holds U+0000: binary data, cut by many tools downstream
    empty                       nothing but white space
    too_large                   a JSON line or a text above `max_row_bytes`
    truncated corrupt           the file ends early or is damaged; all rows that came before are kept
    unreadable                  the file is no Parquet (for example cut before its footer)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pplscape.errors import UserError
from pplscape.text.inputs import (
    cannot_read,
    dataset_query,
    failures,
    form_of,
    name_of,
    open_input,
    resolve_inputs,
    source_of,
)
from pplscape.text.stream import MAX_ROW_BYTES, READ_BYTES, Broken, read_lines, read_texts, too_large

__all__ = ["MAX_ROW_BYTES", "Columns", "Document", "Rejected", "get_path", "read_documents", "resolve_inputs"]

BATCH_ROWS, BATCH_BYTES = 1024, 16_000_000
"""Of a Parquet file, read at a time."""
ROWS_WITHOUT_TEXT = 100
"""So many well-formed rows at the start of a file, none with text: the column's name must be wrong."""


@dataclass(frozen=True)
class Columns:
    """Names of the input's columns; a dotted name leads into nested objects. Columns not named here are kept as is."""

    text: str = "text"
    id: str = "id"


@dataclass(frozen=True)
class Document:
    doc_id: str
    text: str
    source: str
    path: str
    row: int


@dataclass(frozen=True)
class Rejected:
    """A document or (with `chunk_index`) a chunk that is left out, and why; `length` in tokens, 0 if not tokenised."""

    doc_id: str | None
    path: str
    row: int
    reason: str
    detail: str
    chunk_index: int | None = None
    length: int = 0


def read_documents(
    paths: Sequence[str], columns: Columns = Columns(), max_row_bytes: int = MAX_ROW_BYTES
) -> Iterator[Document | Rejected]:
    """Documents and rejected rows of resolved inputs (see `resolve_inputs`), in input order.

    A row without an id gets `name/row` (text files: `name`), with `name` as in `inputs.name_of`.
    UserError: a file that cannot be opened, or that has no text column (lists the columns there are).
    """
    for path in paths:
        name, source = name_of(path), source_of(path)
        if form_of(path).kind == "text":
            for row, raw in read_texts(path):
                text = raw if isinstance(raw, Broken) else decode(raw)
                yield _document(text, name if row is None else f"{name}/{row}", source, path, row or 0, max_row_bytes)
        else:
            yield from _from_rows(path, name, source, columns, max_row_bytes)


def _from_rows(
    path: str, name: str, source: str, columns: Columns, max_row_bytes: int
) -> Iterator[Document | Rejected]:
    seen: dict[str, None] = {}
    without, with_text = 0, 0
    for row, value in _rows(path, columns, max_row_bytes):
        if isinstance(value, Broken):
            yield Rejected(None, path, row, value.reason, value.detail)
            continue
        doc_id = _doc_id(get_path(value, columns.id)) or f"{name}/{row}"
        text = get_path(value, columns.text, _ABSENT)
        if text is _ABSENT:
            without += 1
            seen.update(dict.fromkeys(_keys(value)))
            if not with_text and without >= ROWS_WITHOUT_TEXT:
                raise no_column(path, columns.text, seen)
            yield Rejected(doc_id, path, row, "missing_text", f"no column {columns.text!r}")
            continue
        with_text += 1
        yield _document(text, doc_id, source, path, row, max_row_bytes)
    if without and not with_text:
        raise no_column(path, columns.text, seen)


_ABSENT = object()


def _document(
    text: Any, doc_id: str, source: str, path: str, row: int, max_row_bytes: int
) -> Document | Rejected:  # fmt: skip
    broken = text if isinstance(text, Broken) else _defect(text, max_row_bytes)
    if broken is not None:
        return Rejected(doc_id, path, row, broken.reason, broken.detail)
    return Document(doc_id, text, source, path, row)


def _defect(text: Any, max_row_bytes: int) -> Broken | None:
    """What makes a text unusable."""
    if not isinstance(text, str):
        return Broken("not_text", f"the text column holds {type(text).__name__}, not a string")
    if len(text) > max_row_bytes:
        return too_large(len(text), max_row_bytes)
    if "\0" in text:
        return Broken("nul_bytes", f"{text.count(chr(0))} NUL characters")
    if not text or text.isspace():
        return Broken("empty", "no text but white space")
    if not text.isascii() and not _encodable(text):
        return Broken("invalid_utf8", "a lone surrogate, which has no UTF-8 form")
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _doc_id(value: Any) -> str | None:
    """Strings and integers are ids; anything else, or an empty string, counts as missing."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).encode("utf-8", "replace").decode() or None


def get_path(row: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path; a key that itself holds the dots comes first."""
    if path in row:
        return row[path]
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def _keys(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def no_column(path: str, column: str, keys: Sequence[str] | Mapping[str, Any]) -> UserError:
    listed = ", ".join(list(keys)[:20]) or "none"
    return UserError(
        f"{path} has no column {column!r}. Available columns: {listed}. Name the right one as text column."
    )


def decode(raw: bytes) -> str | Broken:
    """UTF-8, a byte-order mark removed."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Broken("invalid_utf8", f"byte {error.start}: {error.reason}")


def _rows(path: str, columns: Columns, max_row_bytes: int) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    kind = form_of(path).kind
    if kind == "jsonl":
        return _json_rows(path, max_row_bytes)
    return _parquet_rows(path, columns) if kind == "parquet" else dataset_rows(path)


def _json_rows(path: str, max_row_bytes: int) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    for row, line in read_lines(path, max_row_bytes):
        yield row, line if isinstance(line, Broken) else parse_line(line)


def parse_line(line: bytes) -> dict[str, Any] | Broken:
    """One line of a JSONL file."""
    text = decode(line)
    if isinstance(text, Broken):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Broken("broken_json", str(error))
    return value if isinstance(value, dict) else Broken("not_an_object", f"a JSON {type(value).__name__}")


def _parquet_rows(path: str, columns: Columns) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_input(path) as file:
        try:
            parquet = pq.ParquetFile(file, buffer_size=READ_BYTES)
        except (pa.ArrowInvalid, OSError) as error:
            yield 0, Broken("unreadable", str(error))
            return
        wanted = _parquet_columns(parquet.schema_arrow, path, columns)
        row = 0
        try:
            for group in range(parquet.num_row_groups):
                size = _batch_size(parquet.metadata.row_group(group), wanted)
                for batch in parquet.iter_batches(size, row_groups=[group], columns=wanted):
                    for value in _batch_rows(batch):
                        yield row, value
                        row += 1
        except (pa.ArrowException, OSError) as error:  # a failing disk or network is a UserError of the file
            yield row, Broken("corrupt", f"{error}; the rest of the file is lost")


def _batch_size(group: Any, wanted: Sequence[str]) -> int:
    """Rows of a row group to read at a time."""
    columns = [group.column(i) for i in range(group.num_columns)]
    size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema in wanted)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))


def _parquet_columns(schema: Any, path: str, columns: Columns) -> list[str]:
    """The columns to read: text, and id if there. UserError if the text column is not in the schema."""
    leaves = _leaves(schema)
    if columns.text not in leaves:
        raise no_column(path, columns.text, leaves)
    return [c for c in (columns.text, columns.id) if c in leaves]


def _leaves(fields: Any, prefix: str = "") -> list[str]:
    import pyarrow as pa

    found: list[str] = []
    for field in fields:
        name = f"{prefix}{field.name}"
        found += _leaves(list(field.type), f"{name}.") if pa.types.is_struct(field.type) else [name]
    return found


def _batch_rows(batch: Any) -> Iterator[Mapping[str, Any] | Broken]:
    try:
        yield from cast("list[dict[str, Any]]", batch.to_pylist())
        return
    except UnicodeDecodeError:
        pass  # find the row to blame
    for i in range(batch.num_rows):
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Broken("invalid_utf8", f"byte {error.start}: {error.reason}")


def dataset_rows(path: str) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"Reading {path} needs the datasets library: pip install 'pplscape[datasets]'.") from None
    name, options = dataset_query(path)
    try:
        rows = datasets.load_dataset(name, streaming=True, **options)
    except (OSError, ValueError) as error:  # DatasetNotFoundError is a FileNotFoundError, a wrong split a ValueError
        raise UserError(f"Cannot load {path}: {error}") from None
    try:
        yield from enumerate(rows)
    except failures(path) as error:
        raise cannot_read(path, error) from error
