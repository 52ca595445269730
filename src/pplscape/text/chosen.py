"""The selected chunks of a corpus, document by document in the corpus' order, in memory that does not grow with them.

The rows of selected/ may stand in any order: they are sorted by part into memory-mapped runs first. In memory: 12 bytes
a document of the pool, one part's chunks, one run (a million rows) while it is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.manifest import cannot_write
from pplscape.text.prepared import Prepared

RUN_ROWS = 1_000_000
CHUNK = ("doc_id", "chunk_index", "char_start", "char_end", "length")
"""What identifies a chunk, here and in the corpus."""


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


class Chosen:
    """The chunks listed in `files` (schema.SELECTED), of the pool of `prepared`; scratch files go to `spool`.

    UserError for a document that is not the corpus'.
    """

    def __init__(self, files: Sequence[Path], prepared: Prepared, spool: Path):
        self.prepared, self.parts = prepared, prepared.parts("pool")
        spool.mkdir(parents=True, exist_ok=True)
        self._runs: list[_Run] = []
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(RUN_ROWS, columns=[*CHUNK, "repeats"]):
                if batch.num_rows:
                    path = spool / f"run-{len(self._runs):05d}.arrow"
                    self._runs.append(_Run.write(path, pa.Table.from_batches([batch]), self._locate(batch["doc_id"])))

    def _locate(self, doc_ids: pa.Array) -> NDArray[np.int32]:
        """Position of the part of each document id [n]."""
        encoded = doc_ids.dictionary_encode()
        at = self.prepared.index("pool").locate(encoded.dictionary)
        missing = np.flatnonzero(at < 0)
        if len(missing):
            raise self._foreign(encoded.dictionary[int(missing[0])].as_py())
        return at[encoded.indices.to_numpy()]

    def _foreign(self, doc_id: str) -> UserError:
        return UserError(
            f"{self.prepared.path} does not hold the selected chunks of document {doc_id!r} in its pool: "
            "give the corpus that this selection was drawn from."
        )

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """[copies, parts] selected tokens."""
        totals = np.zeros((max((r.copies for r in self._runs), default=0), len(self.parts)), dtype=np.int64)
        for run in self._runs:
            for copy in range(1, run.copies + 1):
                totals[copy - 1] += run.tokens(copy, len(self.parts))
        return totals

    def of(self, at: int) -> dict[str, list[Span]]:
        """The selected chunks of the part at position `at`, by document.

        UserError for one that is not the corpus', as it was cut, or is listed twice.
        """
        tables = [table for run in self._runs if len(table := run.of(at))]
        if not tables:
            return {}
        cut = pq.read_table(self.prepared.file("chunks", "pool", self.parts[at]), columns=list(CHUNK))
        known = set(zip(*(cut[name].to_pylist() for name in CHUNK), strict=True))
        seen: set[tuple[str, int]] = set()
        chosen: dict[str, list[Span]] = {}
        for table in tables:
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
