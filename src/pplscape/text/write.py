"""Write a prepared corpus: documents and chunks side by side in parts of bounded size, and count what is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pplscape.manifest import StageFolder
from pplscape.schema import CHUNKS, DOCUMENTS
from pplscape.text.chunk import Chunk
from pplscape.text.ingest import rejected_table
from pplscape.text.read import Document, Rejected

PART_BYTES = 8_000_000
"""UTF-8 bytes of text in a part of documents."""
REJECTED_ROWS = 200_000


class SplitWriter:
    """Collects the documents of one split and writes a part whenever it is full.

    Parts are numbered from `first`. Those that a killed run has written already are kept.
    """

    def __init__(self, folder: StageFolder, split: str, first: int = 0):
        self._folder, self._split = folder, split
        self._rows: list[tuple[Document, list[Chunk]]] = []
        self._bytes, self._part = 0, first
        self.counts: Counter[str] = Counter(documents=0, chunks=0, tokens=0, bytes=0)
        self.sources: Counter[str] = Counter()

    def add(self, document: Document, chunks: list[Chunk]) -> None:
        self._rows.append((document, chunks))
        self._bytes += len(document.text.encode())
        tokens = sum(c.length for c in chunks)
        self.counts.update(documents=1, chunks=len(chunks), tokens=tokens, bytes=sum(c.n_bytes for c in chunks))
        self.sources[document.source] += tokens
        if self._bytes >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is left, if anything."""
        if not self._rows:
            return
        name = f"{self._split}/part-{self._part:05d}.parquet"
        if not self._folder.has(f"documents/{name}"):
            self._folder.write_table(f"documents/{name}", _documents([d for d, _ in self._rows]))
        if not self._folder.has(f"chunks/{name}"):
            self._folder.write_table(f"chunks/{name}", _chunks(self._rows))
        self._rows, self._bytes, self._part = [], 0, self._part + 1


class RejectedWriter:
    """Writes rejected rows and counts them: documents by reason (rows without a chunk), tokens by reason."""

    def __init__(self, folder: StageFolder, first: int = 0) -> None:
        self._folder, self._rows, self._part = folder, list[Rejected](), first
        self.documents: Counter[str] = Counter()
        self.chunks: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def add(self, rows: Iterable[Rejected]) -> None:
        for row in rows:
            (self.documents if row.chunk_index is None else self.chunks)[row.reason] += 1
            self.tokens[row.reason] += row.length
            self._rows.append(row)
            if len(self._rows) >= REJECTED_ROWS:
                self.flush()

    def flush(self) -> None:
        """Write what is left; an empty first part is written too, so that readers always find one."""
        if self._rows or not self._part:
            name = f"rejected/part-{self._part:05d}.parquet"
            if not self._folder.has(name):
                self._folder.write_table(name, rejected_table(self._rows))
            self._rows, self._part = [], self._part + 1


def _table(columns: Sequence[list[Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([pa.array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)


def _documents(rows: list[Document]) -> pa.Table:
    return _table([[getattr(d, n) for d in rows] for n in DOCUMENTS.names], DOCUMENTS)


def _chunks(rows: list[tuple[Document, list[Chunk]]]) -> pa.Table:
    flat = [(d, c) for d, chunks in rows for c in chunks]
    inner = ("chunk_index", "char_start", "char_end", "length", "n_bytes")
    columns = [[d.doc_id for d, _ in flat], *([getattr(c, n) for _, c in flat] for n in inner)]
    return _table([*columns, [d.source for d, _ in flat]], CHUNKS)
