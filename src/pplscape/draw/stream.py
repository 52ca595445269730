"""The drawing pass: every score file once, chunks taken for certain written at once, the undecided settled at the end.

Memory holds a batch, one unit's taken chunks, the undecided chunks (about sqrt(n) of n) and a sample. What is written
follows from scores, budget, seed and options alone: a pass that was killed is repeated and gives the same bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.budget import Wider
from pplscape.draw.census import Census
from pplscape.draw.describe import Frame, Tally
from pplscape.draw.options import Options
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
    taken: list[pa.Table] = []
    bad: list[pa.Table] = []
    near: list[pa.Table] = []
    near_in_sample: list[NDArray[np.bool_]] = []
    sampled: list[pa.Table] = []
    sample_times: list[Times] = []
    watched: list[NDArray[np.uint64]] = []
    for batch, rows, rejected in scores.chunks(unit, seed):
        times, undecided = rule.sides(rows)
        times[undecided] = 0
        decided = np.flatnonzero(~undecided)
        sure = sure + rule.totals(rows.take(decided), times[decided])
        tally += Tally.of(frame, rows, times)
        if out is not None:
            taken.append(selected_rows(batch, rows, times, rule))
        slice_of = rows.bits & np.uint64(_SLICES - 1)
        inside, known = slice_of < slices[0], ~undecided
        near.append(_some(batch, undecided))
        near_in_sample.append(inside[undecided])
        sampled.append(_some(batch, inside & known))
        sample_times.append(times[inside & known])
        watched.append(rows.bits[slice_of < slices[1]])
        if rejected is not None:
            bad.append(rejected)
    if out is not None:
        table = pa.concat_tables(taken) if taken else SELECTED.empty_table()
        if len(table):
            _write(table, out / "selected" / f"part-{unit.number:05d}.parquet")
        if bad:
            _write(pa.concat_tables(bad), out / "rejected" / f"part-{unit.number:05d}.parquet")
    reasons = Counter(r for table in bad for r in table["reason"].to_pylist())
    return _Part(
        sure, tally, pa.concat_tables(near), np.concatenate(near_in_sample), pa.concat_tables(sampled),
        np.concatenate(sample_times), reasons, np.concatenate(watched),
    )  # fmt: skip


_NONE = Rows(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), ())


def _some(batch: pa.RecordBatch, mask: NDArray[np.bool_]) -> pa.Table:
    """Rows of a batch as a table of their own, so that the batch can be forgotten."""
    names = [*NEEDED, KEY] if KEY in batch.schema.names else list(NEEDED)
    some = batch.select(names).take(pa.array(np.flatnonzero(mask)))
    return pa.table({n: some[n] if n == KEY else some[n].cast(SCORES.field(n).type) for n in names})


def selected_rows(batch: pa.RecordBatch, rows: Rows, times: Times, rule: Rule) -> pa.Table:
    """The taken rows of a batch as schema.SELECTED."""
    at = np.flatnonzero(times)
    some, reasons = batch.take(pa.array(at)), rule.reasons(rows.take(at))
    reasons = pa.repeat(rule.name, len(at)) if reasons is None else reasons
    columns = {"nll": pa.array(rows.x[at]), "repeats": pa.array(times[at]), "reason": reasons}
    return pa.table(
        [(columns[f.name] if f.name in columns else some[f.name]).cast(f.type) for f in SELECTED], schema=SELECTED
    )


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


def read_selected(folder: Path) -> pa.Table:
    """The selected chunks of a finished or unfinished selection folder, as one table in canonical order."""
    parts = [pq.read_table(p) for p in sorted((folder / "selected").glob("part-*.parquet"))]
    table = pa.concat_tables(parts)
    return table.take(pc.sort_indices(table, [("doc_id", "ascending"), ("chunk_index", "ascending")]))
