"""A selection as a stream of rows in a fixed order, cut into shards of bounded size.

Order: first every selected chunk once, in the corpus' order, then those with repeats left once more, and so on - as
training takes them (`training.texts.with_repeats`) but for the shuffle, which trainers do themselves. The unit of work
is (copy, part of the prepared corpus), a pure function of the inputs, so that an export resumes at any shard.

The rows of selected/ may stand in any order: they are sorted by part into memory-mapped runs first. In memory: 12 bytes
a document of the pool, one part of text, one run (a million rows) while it is sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.permanent import hash_documents
from pplscape.errors import UserError
from pplscape.formats.content import Row
from pplscape.manifest import cannot_write
from pplscape.text.cutback import Piece, pieces_of
from pplscape.text.inputs import name_of
from pplscape.text.prepared import Prepared

RUN_ROWS = 1_000_000
CHUNK = ("doc_id", "chunk_index", "char_start", "char_end", "length")
"""What identifies a chunk, here and in the corpus."""
Unit = tuple[int, int]
"""(copy, position of the part): copy 1 is the first time."""


class Span(NamedTuple):
    """One selected chunk of a document."""

    chunk_index: int
    start: int
    end: int
    repeats: int
    length: int


def selected_files(selection: Path) -> list[Path]:
    """The Parquet files of a selection, in order. UserError if there are none."""
    files = sorted((selection / "selected").glob("part-*.parquet"))
    if not files:
        raise UserError(f"{selection} holds no selected/part-*.parquet; make a selection with: pplscape select")
    return files


class Source:
    """The rows of a selection folder, with the text of `prepared`; scratch files go to `spool`.

    UserError: a chunk that is not the corpus', or is listed twice; nothing selected.
    """

    def __init__(self, selection: Path, prepared: Prepared, spool: Path):
        self.prepared = prepared
        self._parts = prepared.parts("pool")
        self._hashes, self._part_of = self._index_documents()
        spool.mkdir(parents=True, exist_ok=True)
        self._runs: list[_Run] = []
        for file in selected_files(selection):
            for batch in pq.ParquetFile(file).iter_batches(RUN_ROWS, columns=[*CHUNK, "repeats"]):
                if batch.num_rows:
                    path = spool / f"run-{len(self._runs):05d}.arrow"
                    self._runs.append(_Run.write(path, pa.Table.from_batches([batch]), self._locate(batch["doc_id"])))
        if not self.tokens.any():
            raise UserError(f"{selection} selects nothing: there is nothing to export.")

    def _index_documents(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """Hashes of the pool's document ids, ascending, and the position of each one's part."""
        hashes, parts = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
        for at, k in enumerate(self._parts):
            ids = self.prepared.documents("pool", k, ["doc_id"])["doc_id"].to_pylist()
            hashes.append(hash_documents(ids))
            parts.append(np.full(len(ids), at, dtype=np.int32))
        found, part_of = np.concatenate(hashes), np.concatenate(parts)
        order = np.argsort(found, kind="stable")
        return found[order], part_of[order]

    def _locate(self, doc_ids: pa.Array) -> NDArray[np.int32]:
        """Position of the part of each document id [n]."""
        encoded = doc_ids.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        hashes = hash_documents(names)
        at = np.minimum(np.searchsorted(self._hashes, hashes), max(len(self._hashes) - 1, 0))
        missing = self._hashes[at] != hashes if len(self._hashes) else np.ones(len(names), bool)
        if missing.any():
            raise self._foreign(names[int(np.flatnonzero(missing)[0])])
        return self._part_of[at][encoded.indices.to_numpy()]

    def _foreign(self, doc_id: str) -> UserError:
        return UserError(
            f"{self.prepared.path} does not hold the selected chunks of document {doc_id!r} in its pool: "
            "give the corpus that this selection was drawn from."
        )

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """[copies, parts] selected tokens."""
        totals = np.zeros((max((r.copies for r in self._runs), default=0), len(self._parts)), dtype=np.int64)
        for run in self._runs:
            for copy in range(1, run.copies + 1):
                totals[copy - 1] += run.tokens(copy, len(self._parts))
        return totals

    def shards(self, shard_tokens: int) -> list[list[Unit]]:
        """Consecutive units in shards that end as soon as they hold `shard_tokens`; a unit is never split."""
        shards: list[list[Unit]] = []
        held = shard_tokens
        for copy, at in np.argwhere(self.tokens):
            if held >= shard_tokens:
                shards.append([])
                held = 0
            shards[-1].append((int(copy) + 1, int(at)))
            held += int(self.tokens[copy, at])
        return shards

    def rows(self, unit: Unit) -> Iterator[Row]:
        """The rows of one unit, documents in corpus order."""
        copy, at = unit
        chosen = self._chosen(at)
        table = self.prepared.documents("pool", self._parts[at])
        for i, doc_id in enumerate(table["doc_id"].to_pylist()):
            if doc_id in chosen:
                document = {name: table[name][i].as_py() for name in table.column_names}
                yield from _rows(document, sorted(chosen[doc_id]), copy)

    def _chosen(self, at: int) -> dict[str, list[Span]]:
        """The selected chunks of a part, by document; each must be one of the corpus', as it was cut."""
        cut = pq.read_table(self.prepared.file("chunks", "pool", self._parts[at]), columns=list(CHUNK))
        known = set(zip(*(cut[name].to_pylist() for name in CHUNK), strict=True))
        seen: set[tuple[str, int]] = set()
        chosen: dict[str, list[Span]] = {}
        for table in (run.of(at) for run in self._runs):
            for *chunk, repeats in zip(*(table[name].to_pylist() for name in (*CHUNK, "repeats")), strict=True):
                doc_id, index, start, end, length = chunk
                if tuple(chunk) not in known:
                    raise self._foreign(doc_id)
                if (doc_id, index) in seen:
                    raise UserError(f"Chunk {index} of document {doc_id!r} is selected twice: give it repeats instead.")
                seen.add((doc_id, index))
                if repeats > 0:
                    chosen.setdefault(doc_id, []).append(Span(index, start, end, repeats, length))
        return chosen


def _rows(document: dict[str, Any], spans: list[Span], copy: int) -> Iterator[Row]:
    for piece in pieces_of([s[:4] for s in spans]):
        if piece.copy == copy:
            yield _row(document, piece, [s for s in spans if piece.start <= s.start < piece.end and s.repeats >= copy])


def _row(document: dict[str, Any], piece: Piece, spans: list[Span]) -> Row:
    doc_id = document["doc_id"]
    return Row(
        id=doc_id if piece.first else f"{doc_id}#{piece.chunk_index}",
        source=document["source"],
        file=name_of(document["path"]),
        row=document["row"],
        copy=piece.copy,
        chunk_index=piece.chunk_index,
        char_start=piece.start,
        text=document["text"][piece.start : piece.end],
        cuts=tuple(s.end - piece.start for s in spans),
        lengths=tuple(s.length for s in spans),
    )


@dataclass(frozen=True)
class _Run:
    """Selected rows sorted by part, memory-mapped."""

    table: pa.Table
    part: NDArray[np.int32]
    """[n] ascending."""
    copies: int

    @classmethod
    def write(cls, path: Path, table: pa.Table, part: NDArray[np.int32]) -> _Run:
        order = np.argsort(part, kind="stable")
        table = table.append_column("part", pa.array(part)).take(pa.array(order)).combine_chunks()
        try:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        except OSError as error:
            raise cannot_write(path, error) from error
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        copies = max(mapped["repeats"].to_numpy().max(), 0)
        return cls(mapped, mapped["part"].chunk(0).to_numpy(), int(copies))

    def of(self, part: int) -> pa.Table:
        start, end = np.searchsorted(self.part, [part, part + 1])
        return self.table.slice(start, end - start)

    def tokens(self, copy: int, parts: int) -> NDArray[np.int64]:
        """[parts] tokens of the chunks that are taken at least `copy` times."""
        weight = self.table["length"].to_numpy() * (self.table["repeats"].to_numpy() >= copy)
        return np.bincount(self.part, weights=weight, minlength=parts).astype(np.int64)
