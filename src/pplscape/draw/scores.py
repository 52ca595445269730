"""Score files read as a stream: in units of row groups, batch by batch, only the columns that are asked for.

A unit is the piece of work one worker does. Units follow from the files alone, and whatever is made of them is summed
exactly, so the number of workers and the size of batches change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.columns import AXES, axis_of_files, log_perplexity, second, whole
from pplscape.draw.permanent import bits_of_hashes, hash_documents, names_of, uniforms_of_bits
from pplscape.errors import UserError
from pplscape.executors.base import Executor, Tell, in_order
from pplscape.manifest import MANIFEST, read_manifest
from pplscape.schema import REJECTED
from pplscape.statistics import Floats

NEEDED = ("doc_id", "chunk_index", "char_start", "char_end", "length", "n_tokens", "nll_sum", "source")
"""Columns of the score table (schema.SCORES) that selection reads."""
KEY = "key"
"""Column of batches that were given keys."""
NUMBERS = ("length", "n_tokens", "nll_sum", "source")
"""Those the first pass reads."""
LARGEST_NLL = 700.0
"""Nats per token above which exp(x) overflows: a failed score, not a chunk."""
UNIT_ROWS = 1 << 20
BATCH_ROWS = 1 << 15
"""Rows at once: arrays of this length stay in a core's cache (twice as fast to read as four times as many)."""
_NONE, _NO_KEYS = np.empty(0, dtype=np.uint64), np.empty(0)
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Some chunks as arrays [n]."""

    x: Floats
    """Log-perplexity, nats per token."""
    length: NDArray[np.int64]
    source: NDArray[np.int64]
    """Index into `names`."""
    names: tuple[str, ...]
    doc: NDArray[np.uint64] = field(default_factory=lambda: _NONE)
    """Hash of the document's id; empty where the first pass need not know it."""
    bits: NDArray[np.uint64] = field(default_factory=lambda: _NONE)
    """Permanent bits of one seed; empty in the first pass."""
    key: Floats = field(default_factory=lambda: _NO_KEYS)
    """What the text gave each chunk (`draw.keys`); empty where no strategy asks for it."""
    name: NDArray[np.uint64] = field(default_factory=lambda: _NONE)
    """`permanent.names_of` of the chunks; empty unless ids are asked for."""
    second: Floats = field(default_factory=lambda: _NO_KEYS)
    """Learnability or likeness (`columns.AXES`); empty of scores without."""

    def __len__(self) -> int:
        return len(self.x)

    def take(self, at: NDArray[np.intp]) -> Rows:
        """Some of the rows, by position or mask."""
        doc, bits, name = (a[at] if len(a) else a for a in (self.doc, self.bits, self.name))
        key, second = (a[at] if len(a) else a for a in (self.key, self.second))
        return Rows(self.x[at], self.length[at], self.source[at], self.names, doc, bits, key, name, second)

    @cached_property
    def h(self) -> Floats:
        """Permanent uniforms."""
        return uniforms_of_bits(self.bits)

    def source_in(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Index [n] into another list of names, which must hold all that occur."""
        place = {name: i for i, name in enumerate(names)}
        return np.array([place.get(name, -1) for name in self.names], dtype=np.int64)[self.source]


class Keyed(Protocol):
    """Finds the keys of chunks: `draw.keys.Keys`."""

    def of(self, doc_hash: NDArray[np.uint64], chunk_index: Any) -> Floats:
        """Keys [n]; NaN for a chunk that has none."""
        ...


class Source(Protocol):
    """Where chunks come from; `Scores` reads files."""

    @property
    def longest(self) -> int:
        """Tokens of the longest chunk."""
        ...

    def numbers(self, unit: Any) -> Iterator[Rows]:
        """The chunks of a unit, without permanent bits."""
        ...

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        """task(self, unit, *args) for every unit, in the order of units."""
        ...


@dataclass(frozen=True)
class Unit:
    """Row groups of one file; `number` counts from 0 over all files."""

    number: int
    file: str
    row_groups: tuple[int, ...]
    first_row: int


@dataclass(frozen=True)
class Scores:
    """Score files of one model; see `read`."""

    units: tuple[Unit, ...]
    rows: int
    longest: int
    reads_ids: bool
    """The first pass must read ids too: they may be null, or documents are asked for by name."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The scores' manifest, empty for bare files."""
    workers: int = 1
    batch_rows: int = BATCH_ROWS
    keys: Keyed | None = None
    axis: str | None = None
    """The second axis that chunks have (`columns.AXES`)."""
    documents: bool = False
    """A row is a whole document (see `draw/documents.py`)."""
    executor: Executor | None = None
    """Who works on units; None: `workers` threads of this process."""

    def __getstate__(self) -> dict[str, Any]:
        """An executor stays where it is: workers ask for one unit at a time."""
        return self.__dict__ | {"executor": None}

    def keyed(self, keys: Keyed) -> Scores:
        """The same scores, every chunk with its key."""
        return replace(self, keys=keys, reads_ids=True)

    @classmethod
    def read(cls, path: str | Path, workers: int | None = None, batch_rows: int = BATCH_ROWS) -> Scores:
        """A stage folder (part-*.parquet) or one Parquet file; UserError for what is not a score table."""
        path = Path(path)
        units: list[Unit] = []
        rows, longest, reads_ids = 0, 0, False
        files = score_files(path)
        axis = axis_of_files(files)
        for file in files:
            footer = check_columns(file, NEEDED)
            units += _units_of(file, footer, len(units))
            rows += footer.num_rows
            longest = max(longest, _longest(file, footer))
            reads_ids = reads_ids or _may_be_null(footer, ("doc_id", "chunk_index"))
        manifest = read_manifest(path) if (path / MANIFEST).exists() else {}
        workers = workers or min(len(os.sched_getaffinity(0)), max(len(units), 1))
        return cls(tuple(units), rows, longest, reads_ids, manifest, workers, batch_rows, axis=axis)

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        """task(self, unit, *args) for every unit, in the order of units."""
        if self.executor is not None:
            done = self.executor.map(
                UnitJob(task, self, args), self.units, name=lambda u: f"Reading {u.file}", ahead=2 * self.executor.size
            )
            return in_order(done)
        if self.workers == 1 or len(self.units) == 1:
            return (task(self, unit, *args) for unit in self.units)
        return self._in_threads(ThreadPoolExecutor(self.workers), task, *args)

    def _in_threads(self, pool: ThreadPoolExecutor, task: Callable[..., T], *args: Any) -> Iterator[T]:
        with pool:
            at_once = 2 * self.workers  # so that none waits while the oldest is not done
            ahead = [pool.submit(task, self, unit, *args) for unit in self.units[:at_once]]
            for following in [*self.units[at_once:], *[None] * len(ahead)]:
                done = ahead.pop(0).result()
                if following is not None:
                    ahead.append(pool.submit(task, self, following, *args))
                yield done

    def batches(self, unit: Unit, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Batches of a unit with the row of the file each begins at."""
        try:
            with pq.ParquetFile(unit.file, read_dictionary=["source"]) as parquet:
                row = unit.first_row
                for batch in parquet.iter_batches(
                    self.batch_rows, row_groups=list(unit.row_groups), columns=list(columns), use_threads=False
                ):
                    yield batch, row
                    row += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{unit.file} cannot be read as Parquet: {error}") from error

    @property
    def _more(self) -> tuple[str, ...]:
        return (AXES[self.axis],) if self.axis else ()

    def numbers(self, unit: Unit) -> Iterator[Rows]:
        columns = (*NUMBERS, *self._more, *(("doc_id", "chunk_index") if self.reads_ids else ()))
        for batch, _ in self.batches(unit, columns):
            kept, rows, _ = checked(batch)
            yield self._with_ids(rows, kept) if self.reads_ids else rows

    def chunks(self, unit: Unit, seed: int) -> Iterator[tuple[pa.RecordBatch, Rows, pa.Table | None]]:
        """Usable rows of a unit with all columns, as arrays with permanent bits, and the rejected (None if none)."""
        for batch, row in self.batches(unit, (*NEEDED, *self._more)):
            kept, rows, bad = checked(batch)
            rejected = None if bad is None else rejected_rows(batch, bad, unit.file, row)
            rows = self._with_ids(rows, kept)
            if self.keys is not None:
                kept = pa.record_batch([*kept.columns, pa.array(rows.key)], [*kept.schema.names, KEY])
            yield kept, replace(rows, bits=bits_of_hashes(seed, rows.doc, kept["chunk_index"].to_numpy())), rejected

    def _with_ids(self, rows: Rows, kept: pa.RecordBatch) -> Rows:
        doc = hash_documents(kept["doc_id"])
        names = names_of(doc, kept["chunk_index"].to_numpy()) if self.reads_ids else _NONE
        return replace(rows, doc=doc, key=self._keys_of(kept, doc), name=names)

    def _keys_of(self, kept: pa.RecordBatch, doc: NDArray[np.uint64]) -> Floats:
        """Keys [n] of usable rows; UserError for a chunk that has none."""
        if self.keys is None:
            return _NO_KEYS
        key = self.keys.of(doc, kept["chunk_index"].to_numpy())
        missing = np.flatnonzero(np.isnan(key))
        if len(missing):
            name = f"{kept['doc_id'][int(missing[0])]}#{kept['chunk_index'][int(missing[0])]}"
            raise UserError(f"The corpus does not hold the scored chunk {name}; pass the --corpus that was scored.")
        return key


def check_whole(scores: Scores) -> None:
    """UserError if the files hold other rows than the scores' manifest counted: one is missing, or was replaced."""
    counted = scores.manifest.get("counts", {}).get("out")
    if counted is not None and counted != scores.rows:
        raise UserError(
            f"The score files hold {scores.rows} chunks, their manifest counted {counted}: a file is missing or has "
            "changed; score again."
        )


@dataclass(frozen=True)
class UnitJob:
    """`Scores.map` as a job: task(scores, unit, *args) by other processes, which must find the files."""

    task: Callable[..., Any]
    scores: Scores
    args: tuple[Any, ...]

    def __call__(self, tell: Tell) -> Callable[[Unit], Any]:
        return lambda unit: self.task(self.scores, unit, *self.args)


def score_files(path: Path) -> list[Path]:
    """The Parquet files of a score folder, or the one file given; UserError if there are none."""
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"There are no scores at {path}: expected a folder with part-*.parquet or a Parquet file.")
    return files


def check_columns(file: Path, columns: Sequence[str]) -> Any:
    """The file's Parquet footer; UserError if it is not Parquet or lacks columns."""
    try:
        with pq.ParquetFile(file) as parquet:
            names, footer = parquet.schema_arrow.names, parquet.metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error
    missing = [c for c in columns if c not in names]
    if missing:
        raise UserError(f"{file} is not a score table: it lacks {', '.join(missing)}; it has {', '.join(names)}.")
    return footer


def _units_of(file: Path, footer: Any, number: int) -> list[Unit]:
    units: list[Unit] = []
    groups: list[int] = []
    rows, first = 0, 0
    for g in range(footer.num_row_groups):
        groups.append(g)
        rows += footer.row_group(g).num_rows
        if rows >= UNIT_ROWS or (rows and g == footer.num_row_groups - 1):
            units.append(Unit(number + len(units), str(file), tuple(groups), first))
            groups, first, rows = [], first + rows, 0
    return units


def _statistics(footer: Any, name: str) -> list[Any]:
    at = [footer.schema.column(i).path for i in range(footer.num_columns)].index(name)
    return [footer.row_group(g).column(at).statistics for g in range(footer.num_row_groups)]


def _longest(file: Path, footer: Any) -> int:
    found = _statistics(footer, "length")
    if all(s is not None and s.has_min_max for s in found):
        return max([int(s.max) for s in found], default=0)
    return int(pc.max(pq.read_table(file, columns=["length"])["length"]).as_py() or 0)


def _may_be_null(footer: Any, names: Sequence[str]) -> bool:
    found = [s for name in names for s in _statistics(footer, name)]
    return any(s is None or not s.has_null_count or s.null_count > 0 for s in found)


def checked(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Rows, NDArray[np.str_] | None]:
    """The usable rows of a batch, the same as arrays, and the reason [n] against each row (None if all are usable)."""
    kept, x, bad = usable(batch)
    column = kept["source"]
    if not pa.types.is_dictionary(column.type) or column.null_count:
        column = column.cast(pa.string()).fill_null("").dictionary_encode()
    source, names = column.indices.to_numpy().astype(np.int64), tuple(column.dictionary.to_pylist())
    rows = Rows(x, whole(kept, "length"), source, names, second=second(kept))
    return kept, rows, bad


def usable(batch: pa.RecordBatch | pa.Table) -> tuple[Any, Floats, NDArray[np.str_] | None]:
    """Rows with a finite score, tokens and an id, their log-perplexities, and the reason [n] against each row of the
    batch (None if all are usable)."""
    x, no_tokens = log_perplexity(batch), whole(batch, "length") <= 0
    infinite = ~(np.abs(x) < LARGEST_NLL)  # true for NaN
    if len(axis := second(batch)):
        infinite |= ~np.isfinite(axis)
    ids = [name for name in ("doc_id", "chunk_index") if name in batch.schema.names and batch[name].null_count]
    if not (infinite.any() or no_tokens.any() or ids):
        return batch, x, None
    bad = np.full(len(x), "", dtype="<U16")
    bad[infinite] = "score_not_finite"
    bad[no_tokens] = "no_tokens"
    for name in ids:
        bad[np.asarray(batch[name].is_null())] = "no_id"
    good = bad == ""
    return batch.filter(pa.array(good)), x[good], bad


def rejected_rows(batch: pa.RecordBatch, bad: NDArray[np.str_], file: str, first_row: int) -> pa.Table:
    """Rows with a reason against them as schema.REJECTED."""
    rows = np.flatnonzero(bad != "")
    some = batch.take(pa.array(rows))
    columns = {
        "doc_id": some["doc_id"].cast(pa.string()),
        "chunk_index": some["chunk_index"].cast(pa.int32()),
        "path": pa.array([file] * len(rows), pa.string()),
        "row": pa.array(rows + first_row, pa.int64()),
        "reason": pa.array(bad[rows].tolist(), pa.string()),
        "detail": pa.array([f"nll_sum / n_tokens = {v}" for v in log_perplexity(some)], pa.string()),
        "length": pa.array(whole(some, "length"), pa.int64()),
    }
    return pa.table(list(columns.values()), schema=REJECTED)
