"""The drawing pass: every score file once, chunks taken for certain written at once, the undecided settled at the end.

Memory holds a batch, one unit's taken chunks, the undecided chunks (about sqrt(n) of n) and a sample. What is written
follows from scores, budget, seed and options alone: a pass that was killed is repeated and gives the same bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.budget import Wider
from pplscape.draw.census import Census
from pplscape.draw.columns import AXES
from pplscape.draw.describe import Frame, Tally
from pplscape.draw.documents import OfDocuments
from pplscape.draw.options import Contained, Options
from pplscape.draw.permanent import bits_of_hashes, hash_documents, names_of
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import WIDTHS, Rule, Times
from pplscape.draw.scores import KEY, NEEDED, Rows, Scores, Unit
from pplscape.draw.strategies import strategy_of
from pplscape.errors import UserError
from pplscape.manifest import cannot_write
from pplscape.schema import SCORES, SELECTED

SAMPLE_CHUNKS = 100_000
"""About as many chunks are kept, at random, for the budget curve and the sample texts; of smaller pools all."""
WATCHED_CHUNKS = 1_000_000
"""Among about as many chunks repeated ids are looked for; in smaller pools among all."""
_SLICES = 4096


@dataclass(frozen=True)
class Taken:
    """What a drawing pass found."""

    tally: Tally
    draw: Draw
    """Of the undecided chunks, with the facts of the whole draw."""
    sample: Pool
    sample_times: Times
    rejected: Counter[str]


@dataclass(frozen=True)
class _Part:
    """What one unit gives: decided sums, undecided chunks, sampled chunks."""

    sure: NDArray[np.int64]
    tally: Tally
    near: pa.Table
    near_in_sample: NDArray[np.bool_]
    sample: pa.Table
    sample_times: Times
    rejected: Counter[str]
    watched: NDArray[np.uint64]


def carry_out(
    scores: Scores, census: Census, name: str, budget: int, seed: int, options: Options, frame: Frame,
    out: Path | None = None,
) -> Taken:  # fmt: skip
    """Draw at most `budget` tokens from files; with `out` write selected/ and rejected/ under it.

    Parts of selected/ follow the score files; the last holds the chunks near the threshold. Errors as in
    `strategy_of`; UserError for ids that occur twice, and when the disk is full.
    """
    strategy = strategy_of(name, census, budget, options)
    for width in WIDTHS:
        try:
            rule = strategy(census, budget, seed, options, width)
            return _pass(scores, census, rule, seed, frame, out)
        except Wider:
            continue
    raise AssertionError("the widest stretch is the whole pool")


def carry_out_whole(
    scores: Scores, census: Census, documents: Scores, census_of_documents: Census, name: str, budget: int, seed: int,
    options: Options, frame: Frame, out: Path, scratch: Path,
) -> Taken:  # fmt: skip
    """`carry_out` with whole documents as the unit: short of the budget by less than one document.

    `documents`: what `documents.write_documents` made of the scores. The drawn documents are written under `scratch`,
    then one more pass over the scores writes their chunks. What is found is counted in chunks.
    """
    drawn = carry_out(documents, census_of_documents, name, budget, seed, options, frame, scratch)
    parts = sorted((scratch / "selected").glob("part-*.parquet"))
    return _pass(scores, census, OfDocuments(name, parts, drawn.draw.facts), seed, frame, out)


def _pass(scores: Scores, census: Census, rule: Rule, seed: int, frame: Frame, out: Path | None) -> Taken:
    slices = [min(-(-_SLICES * size // census.n), _SLICES) for size in (SAMPLE_CHUNKS, WATCHED_CHUNKS)]
    _clear(out)
    parts = list(scores.map(_draw_unit, rule, seed, frame, slices, out))
    _refuse_doubles(scores, np.concatenate([p.watched for p in parts]), seed)
    sure = np.sum([p.sure for p in parts], axis=0)
    tally, rejected = sum((p.tally for p in parts[1:]), parts[0].tally), sum((p.rejected for p in parts), Counter())
    undecided = pa.concat_tables([p.near for p in parts])
    pool = Pool.of_usable(undecided)
    draw = rule.settle(pool, sure)
    rows = pool.rows(seed)
    reasons = rule.reasons(rows)
    draw = draw if reasons is None else Draw(draw.times, reasons, draw.facts)
    if out is not None and (draw.times.any() or not list((out / "selected").glob("part-*"))):
        _write(pool.table(draw), out / "selected" / f"part-{len(scores.units):05d}.parquet")
    also = np.concatenate([p.near_in_sample for p in parts])[pool.origin]
    times = np.concatenate([*(p.sample_times for p in parts), draw.times[also]])
    table = pa.concat_tables([*(p.sample for p in parts), undecided.take(pa.array(pool.origin[also]))])
    sample = Pool.of_usable(table)
    return Taken(tally + Tally.of(frame, rows, draw.times), draw, sample, times[sample.origin], rejected)


def _clear(out: Path | None) -> None:
    """Remove what another rule or an unfinished pass wrote."""
    for folder in ("selected", "rejected"):
        for path in (out / folder).glob("part-*") if out is not None else ():
            path.unlink()


def _draw_unit(
    scores: Scores, unit: Unit, rule: Rule, seed: int, frame: Frame, slices: list[int], out: Path | None
) -> _Part:
    """One unit: what is certain is written and summed, the rest handed back."""
    sure, tally = np.zeros(1, dtype=np.int64), Tally.of(frame, _NONE, np.zeros(0, dtype=np.int16))
    taken, kept = _Collected(), _Collected()
    bad: list[pa.Table] = []
    watched: list[NDArray[np.uint64]] = []
    for batch, rows, rejected in scores.chunks(unit, seed):
        times, undecided = rule.sides(rows)
        times[undecided] = 0
        decided = np.flatnonzero(~undecided)
        sure = sure + rule.totals(rows.take(decided), times[decided])
        tally += Tally.of(frame, rows, times)
        if out is not None:
            at = np.flatnonzero(times)
            reasons = rule.reasons(rows.take(at))
            taken.add(batch, at, rows.x[at], times[at], pa.repeat(rule.name, len(at)) if reasons is None else reasons)
        slice_of = rows.bits & np.uint64(_SLICES - 1)
        inside = (_slice_of_documents(rows, seed) if rule.whole_documents else slice_of) < slices[0]
        at = np.flatnonzero(undecided | inside)
        kept.add(batch, at, undecided[at], inside[at], times[at])
        watched.append(rows.bits[slice_of < slices[1]])
        if rejected is not None:
            bad.append(rejected)
    if out is not None:
        written = taken.table(SELECTED, ("nll", "repeats", "reason"))
        if len(written):
            _write(written, out / "selected" / f"part-{unit.number:05d}.parquet")
        if bad:
            _write(pa.concat_tables(bad), out / "rejected" / f"part-{unit.number:05d}.parquet")
    lost = Counter(r for of_batch in bad for r in of_batch["reason"].to_pylist())
    table = kept.table(_kept_columns(scores))
    near, inside, times = kept.arrays() or (np.zeros(0, np.bool_), np.zeros(0, np.bool_), np.zeros(0, np.int16))
    return _Part(
        sure, tally, _rows(table, near), inside[near], _rows(table, inside & ~near), times[inside & ~near], lost,
        np.concatenate(watched),
    )  # fmt: skip


def _slice_of_documents(rows: Rows, seed: int) -> NDArray[np.uint64]:
    return bits_of_hashes(seed, rows.doc, np.zeros(len(rows), dtype=np.int64)) & np.uint64(_SLICES - 1)


_NONE = Rows(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), ())
_NEEDED = pa.schema([SCORES.field(name) for name in NEEDED])


def _kept_columns(scores: Scores) -> pa.Schema:
    """Of the chunks that a pass hands back."""
    schema = _NEEDED.append(pa.field(AXES[scores.axis], pa.float64())) if scores.axis else _NEEDED
    return schema if scores.keys is None else schema.append(pa.field(KEY, pa.float64()))


class _Collected:
    """Some rows of every batch, copied so that the batch can be forgotten; one table of them at the end."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.columns: list[tuple[Any, ...]] = []

    def add(self, batch: pa.RecordBatch, at: NDArray[np.intp], *columns: Any) -> None:
        """Rows `at` [m], and values [m] of columns that belong to them."""
        if len(at):
            self.batches.append(batch.take(pa.array(at)))
            self.columns.append(columns)

    def table(self, schema: pa.Schema, names: Sequence[str] = ()) -> pa.Table:
        """The rows as `schema`; `names` are the added columns."""
        if not self.batches:
            return schema.empty_table()
        table = pa.Table.from_batches(self.batches)
        added = {name: pa.chunked_array([pa.array(c[i]) for c in self.columns]) for i, name in enumerate(names)}
        columns = [(added[f.name] if f.name in added else table[f.name]).cast(f.type) for f in schema]
        return pa.table(columns, schema=schema)

    def arrays(self) -> list[NDArray[Any]]:
        """The added columns, each as one array."""
        return [np.concatenate(c) for c in zip(*self.columns, strict=True)]


def _rows(table: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
    return table.filter(pa.array(mask))


def _write(table: pa.Table, path: Path) -> None:
    """Parquet, zstd, complete or not there; UserError when the disk is full."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        few = [f.name for f in table.schema if f.name in ("length", "repeats", "reason", "source", "chunk_index")]
        pq.write_table(table, temporary, compression="zstd", use_dictionary=few)
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _refuse_doubles(scores: Scores, bits: NDArray[np.uint64], seed: int) -> None:
    """UserError if watched chunks share their 64 permanent bits because they share their ids."""
    bits = np.sort(bits)
    twice = np.unique(bits[1:][bits[1:] == bits[:-1]])
    if not len(twice):
        return
    found = Counter(name for names in scores.map(_named, twice, seed) for name in names)
    doubles = sorted(name for name, n in found.items() if n > 1)
    if doubles and scores.documents:
        raise UserError(
            f"The chunks of document {doubles[0].rpartition('#')[0]!r} do not stand together in the scores, as whole "
            "documents need them to: sort the scores by doc_id and chunk_index."
        )
    if doubles:
        raise UserError(
            f"At least {len(doubles)} chunks occur twice in the scores, the first is {doubles[0]} "
            "(doc_id#chunk_index); give every document its own id and score it once."
        )


def _named(scores: Scores, unit: Unit, bits: NDArray[np.uint64], seed: int) -> list[str]:
    """doc_id#chunk_index of the unit's chunks with these permanent bits."""
    found = []
    for batch, rows, _ in scores.chunks(unit, seed):
        some = batch.filter(pa.array(np.isin(rows.bits, bits)))
        found += [f"{d}#{i}" for d, i in zip(some["doc_id"].to_pylist(), some["chunk_index"].to_pylist(), strict=True)]
    return found


def read_contained(folder: Path, whole_documents: bool) -> Contained:
    """The chunks of a finished selection folder, or with `whole_documents` its documents, to be taken again.

    UserError if it is not one. In memory: 10 bytes a chunk.
    """
    files = sorted((folder / "selected").glob("part-*.parquet"))
    if not files:
        raise UserError(f"{folder} is not a selection: it holds no selected/part-*.parquet.")
    names, times = [], []
    for file in files:
        table = pq.read_table(file, columns=["doc_id", "chunk_index", "repeats"])
        for batch in table.to_batches():
            index = batch["chunk_index"].to_numpy()
            names.append(names_of(hash_documents(batch["doc_id"]), np.zeros_like(index) if whole_documents else index))
            times.append(batch["repeats"].to_numpy())
    every, often = np.concatenate(names), np.concatenate(times)
    order = np.lexsort((often, every))
    every, often = every[order], often[order]
    last = np.append(every[1:] != every[:-1], len(every) > 0)[: len(every)]  # the most often of each
    return Contained(every[last], often[last])


def read_selected(folder: Path) -> pa.Table:
    """The selected chunks of a finished or unfinished selection folder, as one table in canonical order."""
    parts = [pq.read_table(p) for p in sorted((folder / "selected").glob("part-*.parquet"))]
    table = pa.concat_tables(parts)
    return table.take(pc.sort_indices(table, [("doc_id", "ascending"), ("chunk_index", "ascending")]))
