"""Whole documents as the unit of selection: each becomes one row, and what is drawn is carried back to its chunks.

A document's score is the token-weighted mean of its chunks' log-perplexities: sum of nll over sum of scored tokens, as
if it were one long chunk. Every strategy then works on documents as it does on chunks; moments, bins and losses are
counted over the chunks that are taken. What the text gave the chunks (`keys`) is averaged over their tokens. Sums of
nll and keys are kept in whole steps of 2^-20, exact in any order.

The chunks of a document must stand together in the score files, as `score` writes them: a document that occurs again
further on is refused as one that occurs twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.keys import Keys
from pplscape.draw.permanent import hash_documents, names_of
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Rule, Times
from pplscape.draw.scores import Rows, Scores, Unit
from pplscape.errors import UserError
from pplscape.manifest import cannot_write
from pplscape.schema import SCORES
from pplscape.statistics import Floats

STEP = 2.0**-20
"""Nats; a chunk's sum is rounded to whole steps, an error below 1e-8 nats/token."""
Columns = dict[str, Any]
Named = tuple[NDArray[np.uint64], Floats]
"""Bits of documents' names, and their keys."""


def write_documents(scores: Scores, folder: Path) -> Scores:
    """One row a document (schema.SCORES, chunk_index 0) as part-*.parquet under `folder`, as scores of their own.

    In memory: one unit's documents. Chunks without a usable score are left out of their document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("part-*"):
        path.unlink()
    keys, written = None, _write_all(scores, folder)
    if scores.keys is not None:
        keys = Keys.write(folder, scores.rows, written)
    deque(written, maxlen=0)
    try:
        documents = Scores.read(folder, scores.workers)
    except UserError as error:
        raise UserError("None of the scored chunks has a finite score; nothing can be selected.") from error
    return replace(documents, manifest=scores.manifest, reads_ids=scores.reads_ids, documents=True, keys=keys)


def _write_all(scores: Scores, folder: Path) -> Iterator[Named]:
    """Write part after part; yields what is known of the keys of each."""
    pending: Columns | None = None
    for number, found in enumerate(scores.map(_documents_of)):
        if pending is not None:
            found = _joined(pending, found)
        pending, done = _last(found), _all_but_last(found)
        yield _write(done, folder / f"part-{number:05d}.parquet")
    yield _write(pending, folder / f"part-{len(scores.units):05d}.parquet")


def _documents_of(scores: Scores, unit: Unit) -> Columns | None:
    """Columns [m] of the unit's documents, in order; None if it has no usable chunk."""
    found: Columns | None = None
    parts = []
    for batch, rows, _ in scores.chunks(unit, 0):
        if len(rows):
            parts.append(_runs(_columns(batch, rows)))
    if parts:
        found = _runs({name: _concatenate([p[name] for p in parts]) for name in parts[0]})
    return found


def _columns(batch: pa.RecordBatch, rows: Rows) -> Columns:
    return {
        "doc": rows.doc, "doc_id": batch["doc_id"].cast(pa.string()),
        "source": pa.array(rows.names, pa.string()).take(pa.array(rows.source)),
        "char_start": _numbers(batch, "char_start"), "char_end": _numbers(batch, "char_end"),
        "length": rows.length, "n_tokens": _numbers(batch, "n_tokens"), "steps": _steps(np.asarray(batch["nll_sum"])),
        **({"key_steps": _steps(rows.key * rows.length)} if len(rows.key) else {}),
    }  # fmt: skip


def _steps(sums: Floats) -> NDArray[np.int64]:
    return np.rint(sums / STEP).astype(np.int64)


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    return batch[name].to_numpy(zero_copy_only=False).astype(np.int64)


def _concatenate(parts: list[Any]) -> Any:
    return pa.concat_arrays(parts) if isinstance(parts[0], pa.Array) else np.concatenate(parts)


SUMS = ("length", "n_tokens", "steps", "key_steps")


def _runs(columns: Columns) -> Columns:
    """Adjacent rows of one document as one row."""
    doc = columns["doc"]
    first = np.flatnonzero(np.concatenate([[True], doc[1:] != doc[:-1]]))
    last = np.append(first[1:], len(doc)) - 1
    at = pa.array(first)
    return {
        "doc": doc[first], "doc_id": columns["doc_id"].take(at), "source": columns["source"].take(at),
        "char_start": np.minimum.reduceat(columns["char_start"], first),
        "char_end": np.maximum.reduceat(columns["char_end"], first),
        **{name: np.add.reduceat(columns[name], first) for name in SUMS if name in columns},
    } if len(last) < len(doc) else columns  # fmt: skip


def _joined(pending: Columns, found: Columns | None) -> Columns:
    """The document that is still open and what follows it."""
    if found is None:
        return pending
    return _runs({name: _concatenate([pending[name], found[name]]) for name in found})


def _last(found: Columns | None) -> Columns | None:
    return None if found is None else {name: c[len(c) - 1 :] for name, c in found.items()}


def _all_but_last(found: Columns | None) -> Columns | None:
    return None if found is None else {name: c[: len(c) - 1] for name, c in found.items()}


def _write(columns: Columns | None, path: Path) -> Named:
    if columns is None or not len(columns["doc"]):
        return np.empty(0, np.uint64), np.empty(0)
    zeros = np.zeros(len(columns["doc"]), dtype=np.int32)
    of: Mapping[str, Any] = {
        **columns, "chunk_index": zeros, "n_bytes": zeros, "nll_sum": columns["steps"] * STEP,
    }  # fmt: skip
    table = pa.table([pa.array(of[f.name]).cast(f.type) for f in SCORES], schema=SCORES)
    try:
        pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise cannot_write(path, error) from error
    key = columns["key_steps"] * STEP / columns["length"] if "key_steps" in columns else np.empty(0)
    return names_of(columns["doc"], zeros), key


class OfDocuments(Rule):
    """The chunks of the documents in `drawn` (files of schema.SELECTED), each as often as its document.

    In memory: 14 bytes a drawn document.
    """

    whole_documents = True

    def __init__(self, name: str, drawn: Sequence[Path], facts: dict[str, Any]):
        self.name, self.facts = name, facts
        doc, times, reason = [np.empty(0, np.uint64)], [np.empty(0, np.int16)], [np.empty(0, np.int32)]
        words: dict[str, int] = {}
        for path in drawn:
            table = pq.read_table(path, columns=["doc_id", "repeats", "reason"]).combine_chunks()
            doc.append(hash_documents(table["doc_id"].combine_chunks()))
            times.append(table["repeats"].to_numpy())
            encoded = table["reason"].combine_chunks().dictionary_encode()
            known = [words.setdefault(word, len(words)) for word in encoded.dictionary.to_pylist()]
            reason.append(np.asarray(known, dtype=np.int32)[encoded.indices.to_numpy()])
        found = np.concatenate(doc)
        order = np.argsort(found)
        self.doc, self.times, self.reason = found[order], np.concatenate(times)[order], np.concatenate(reason)[order]
        self.words = pa.array(list(words), pa.string())

    def _place(self, rows: Rows) -> tuple[NDArray[np.intp], Mask]:
        at = np.minimum(np.searchsorted(self.doc, rows.doc), max(len(self.doc) - 1, 0))
        return at, self.doc[at] == rows.doc if len(self.doc) else np.zeros(len(rows), dtype=bool)

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        at, there = self._place(rows)
        times = np.zeros(len(rows), dtype=np.int16)
        times[there] = self.times[at[there]]
        return times, np.zeros(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        return Draw(np.zeros(len(near), dtype=np.int16), self.name, self.facts)

    def reasons(self, rows: Rows) -> pa.Array | None:
        at, there = self._place(rows)
        if not there.all():  # the undecided, of which there are none
            return pa.repeat(self.name, len(rows))
        return self.words.take(pa.array(self.reason[at]))


def by_document(pool: Pool) -> tuple[Pool, NDArray[np.intp]]:
    """A pool with documents as its rows, and for each chunk [n] the row of its document."""
    first = np.flatnonzero(np.diff(pool.doc, prepend=-1))
    of = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(pool))))
    tokens = np.add.reduceat(pool.length, first)
    x = np.add.reduceat(pool.x * pool.length, first) / tokens
    documents = replace(
        pool.subset(first), chunk_index=np.zeros(len(first), dtype=np.int64), length=tokens, x=x,
        char_end=np.maximum.reduceat(pool.char_end, first),
    )  # fmt: skip
    if len(pool.key):
        key = np.add.reduceat(_steps(pool.key * pool.length), first) * STEP / tokens
        documents = replace(documents, key=key)
    return documents, of
