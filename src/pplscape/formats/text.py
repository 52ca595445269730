"""Rows of text as Parquet and JSONL, with where each came from and where its chunks end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.formats.content import Files, Format, Row, Shard


def _field(name: str, type_: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, type_, metadata={"unit": unit})


ROWS = pa.schema(
    [
        _field("id", pa.string(), "id, of a further piece of a document `id#chunk_index`"),
        _field("text", pa.string(), "unicode text"),
        _field("source", pa.string(), "name of the input file without its suffixes"),
        _field("file", pa.string(), "name of the input file"),
        _field("row", pa.int64(), "row of the input file, from 0"),
        _field("copy", pa.int16(), "1, or which repetition"),
        _field("chunk_index", pa.int32(), "first chunk, position in its document, from 0"),
        _field("char_start", pa.int64(), "where the text begins in its document, code points"),
        _field("cuts", pa.list_(pa.int64()), "where each chunk ends in the text, code points"),
        _field("tokens", pa.int64(), "tokens of all its chunks, each encoded alone, without BOS"),
        _field("replay", pa.bool_(), "general text to replay, not part of the selection"),
    ]
)


def record(row: Row) -> dict[str, Any]:
    """A row as plain values, in the order of ROWS."""
    return {n: list(row.cuts) if n == "cuts" else getattr(row, n) for n in ROWS.names}


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table of schema ROWS."""
    columns = [[getattr(row, name) for row in rows] for name in ROWS.names]
    arrays = [pa.array(values, f.type) for values, f in zip(columns, ROWS, strict=True)]
    return pa.table(arrays, schema=ROWS)


def _parquet(shard: Shard) -> Files:
    sink = pa.BufferOutputStream()
    pq.write_table(table_of(shard.rows), sink, compression="zstd")
    return {f"part-{shard.number}.parquet": sink.getvalue().to_pybytes()}


def _jsonl(shard: Shard) -> Files:
    lines = (json.dumps(record(row), ensure_ascii=False).encode() + b"\n" for row in shard.rows)
    return {f"part-{shard.number}.jsonl": b"".join(lines)}


PARQUET = Format("parquet", has_tokens=False, shard=_parquet)
JSONL = Format("jsonl", has_tokens=False, shard=_jsonl)
