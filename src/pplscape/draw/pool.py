"""The pool a subset is drawn from, as arrays in one canonical order, and what a draw is.

Chunks are sorted by (doc_id, chunk_index), so a row number is also the tie-breaker, and nothing downstream depends on
the order of rows or on how the scores were split into parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.census import Census, take_census
from pplscape.draw.columns import AXES, axis_of, axis_of_files, log_perplexity, second, whole
from pplscape.draw.permanent import bits_of_hashes, hash_documents, names_of, uniforms_of_bits
from pplscape.draw.scores import (
    KEY,
    NEEDED,
    Rows,
    check_columns,
    rejected_rows,
    score_files,
    usable,
)  # fmt: skip
from pplscape.errors import UserError
from pplscape.manifest import MANIFEST, read_manifest
from pplscape.schema import REJECTED, SELECTED
from pplscape.statistics import Bins, Floats, Scale, on_scale, winsor_limits

T = TypeVar("T")


@dataclass(frozen=True)
class Draw:
    """A strategy's answer: `times` [n] each chunk is taken, why, and facts for selection.json."""

    times: NDArray[np.int16]
    reason: str | pa.Array
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, pool: Pool, rows: NDArray[np.intp], reason: str, facts: dict[str, Any] | None = None) -> Draw:
        """Each of `rows` once."""
        times = np.zeros(len(pool), dtype=np.int16)
        times[rows] = 1
        return cls(times, reason, facts or {})


@dataclass(frozen=True)
class Pool:
    """n scored chunks of m documents, sorted by (doc_id, chunk_index)."""

    doc_names: pa.Array
    """[m] distinct document ids, ascending in UTF-8 byte order."""
    doc: NDArray[np.int64]
    """[n] index into doc_names."""
    chunk_index: NDArray[np.int64]
    length: NDArray[np.int64]
    """[n] tokens, without BOS."""
    x: Floats
    """[n] log-perplexity, nats per token."""
    source_names: tuple[str, ...]
    source: NDArray[np.int64]
    """[n] index into source_names."""
    char_start: NDArray[np.int64]
    char_end: NDArray[np.int64]
    origin: NDArray[np.intp]
    """[n] row of the table the pool was made of."""
    key: Floats = field(default_factory=lambda: np.empty(0))
    """[n] what the text gave each chunk (`draw.keys`), or empty."""
    second: Floats = field(default_factory=lambda: np.empty(0))
    """[n] learnability or likeness (`columns.AXES`), or empty of scores without."""
    axis: str | None = None
    """Which of them."""
    rejected: pa.Table = field(default_factory=REJECTED.empty_table)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The scores' manifest, empty for a bare table."""

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def tokens(self) -> int:
        return int(self.length.sum())

    @cached_property
    def _doc_hash(self) -> NDArray[np.uint64]:
        return hash_documents(self.doc_names)

    @cached_property
    def _kept(self) -> dict[Any, Any]:
        return {}

    def bits(self, seed: int) -> NDArray[np.uint64]:
        """Permanent bits [n] of this seed."""
        if ("bits", seed) not in self._kept:
            self._kept["bits", seed] = bits_of_hashes(seed, self._doc_hash[self.doc], self.chunk_index)
        return self._kept["bits", seed]

    def uniforms(self, seed: int) -> Floats:
        """Permanent uniforms h [n] of this seed."""
        if ("h", seed) not in self._kept:
            self._kept["h", seed] = uniforms_of_bits(self.bits(seed))
        return self._kept["h", seed]

    def rows(self, seed: int) -> Rows:
        """The chunks as a rule sees them."""
        return replace(next(self.numbers(None)), bits=self.bits(seed))

    @property
    def longest(self) -> int:
        return int(self.length.max(initial=0))

    def numbers(self, unit: None) -> Iterator[Rows]:
        """The pool as one unit of a `scores.Source`."""
        doc = self._doc_hash[self.doc]
        names = names_of(doc, self.chunk_index)
        yield Rows(
            self.x,
            self.length,
            self.source,
            self.source_names,
            doc,
            key=self.key,
            name=names,
            second=self.second,
        )

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        """The pool as a `scores.Source`."""
        yield task(self, None, *args)

    def census(self, edges: tuple[float, ...] = ()) -> Census:
        """The census of this pool, kept."""
        if ("census", edges) not in self._kept:
            self._kept["census", edges] = take_census(self, edges)
        return self._kept["census", edges]

    def order(self, seed: int) -> NDArray[np.intp]:
        """Rows [n] in ascending order of the permanent uniforms."""
        if ("order", seed) not in self._kept:
            self._kept["order", seed] = np.argsort(self.uniforms(seed), kind="stable")
        return self._kept["order", seed]

    def bin_of(self, bins: Bins) -> NDArray[np.int16]:
        """Bin [n] of each chunk."""
        if ("bin", bins.hash) not in self._kept:
            self._kept["bin", bins.hash] = bins.of(self.x, self.second).astype(np.int16)
        return self._kept["bin", bins.hash]

    def bin_tokens(self, bins: Bins, times: NDArray | None = None) -> Floats:
        """Tokens [K] per bin, each chunk counted `times` [n] (default once)."""
        weights = np.asarray(self.length if times is None else self.length * times, dtype=np.float64)
        return np.bincount(self.bin_of(bins), weights=weights, minlength=bins.n).astype(np.float64)

    def subset(self, rows: NDArray[np.intp]) -> Pool:
        """The pool of these rows, given in ascending order."""
        names = ("doc", "chunk_index", "length", "x", "source", "char_start", "char_end", "origin")
        found = replace(self, **{name: getattr(self, name)[rows] for name in names}, rejected=REJECTED.empty_table())
        if len(self.key):
            found = replace(found, key=self.key[rows])
        if len(self.second):
            found = replace(found, second=self.second[rows])
        found.__dict__["_doc_hash"] = self._doc_hash  # cached: the documents are the same
        return found

    def limits(self, scale: Scale) -> tuple[float, float]:
        """This pool's winsor limits on `scale`."""
        if scale not in self._kept:
            self._kept[scale] = winsor_limits(on_scale(self.x, scale))
        return self._kept[scale]

    def values(self, scale: Scale, limits: tuple[float, float] | None = None) -> Floats:
        """Winsorised values [n] on `scale`; `limits` default to the pool's own."""
        limits = limits or self.limits(scale)
        if (scale, limits) not in self._kept:
            self._kept[scale, limits] = np.clip(on_scale(self.x, scale), *limits)
        return self._kept[scale, limits]

    def table(self, draw: Draw) -> pa.Table:
        """The taken chunks as schema.SELECTED, in canonical order."""
        rows = np.flatnonzero(draw.times)
        reason = draw.reason
        columns = {
            "doc_id": self.doc_names.take(pa.array(self.doc[rows])),
            "chunk_index": self.chunk_index[rows],
            "char_start": self.char_start[rows],
            "char_end": self.char_end[rows],
            "length": self.length[rows],
            "nll": self.x[rows],
            "repeats": draw.times[rows],
            "reason": pa.repeat(reason, len(rows)) if isinstance(reason, str) else reason.take(pa.array(rows)),
            "source": pa.array(self.source_names, pa.string()).take(pa.array(self.source[rows])),
        }
        return pa.table([pa.array(columns[f.name]).cast(f.type) for f in SELECTED], schema=SELECTED)

    def spans(self, rows: NDArray[np.intp]) -> pa.Table:
        """Where the text of these chunks stands (doc_id, chunk_index, char_start, char_end), in the given order."""
        return pa.table(
            {
                "doc_id": self.doc_names.take(pa.array(self.doc[rows])),
                "chunk_index": pa.array(self.chunk_index[rows], pa.int32()),
                "char_start": self.char_start[rows],
                "char_end": self.char_end[rows],
            }
        )

    @classmethod
    def read(cls, path: str | Path) -> Pool:
        """Scores from a stage folder (part-*.parquet) or one Parquet file; UserError for what cannot be used."""
        path = Path(path)
        tables, origin = [], []
        files = score_files(path)
        axis = axis_of_files(files)
        more = (AXES[axis],) if axis else ()
        for file in files:
            check_columns(file, NEEDED)
            try:
                tables.append(pq.read_table(file, columns=[*NEEDED, *more]))
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{file} cannot be read as Parquet: {error}") from error
            origin.append((str(file), len(tables[-1])))
        manifest = read_manifest(path) if (path / MANIFEST).exists() else {}
        return cls.from_table(pa.concat_tables(tables), origin, manifest)

    @classmethod
    def from_table(
        cls, table: pa.Table, origin: Sequence[tuple[str, int]] = (), manifest: Mapping[str, Any] | None = None
    ) -> Pool:
        """Pool of a score table; rows without a finite score are set aside in `rejected`. `origin`: (file, rows)."""
        kept, _, bad = usable(table)
        rejected = REJECTED.empty_table() if bad is None else _rejected(table, bad, origin or [("scores", len(table))])
        if not len(kept):
            raise UserError(f"None of the {len(table)} scored chunks has a finite score; nothing can be selected.")
        return cls.of_usable(kept, rejected, manifest)

    @classmethod
    def of_usable(
        cls, table: pa.Table, rejected: pa.Table | None = None, manifest: Mapping[str, Any] | None = None
    ) -> Pool:
        """Pool of a score table, of any length, whose rows are all usable."""
        encoded = table["doc_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        by_name = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(by_name), dtype=np.int64)
        rank[by_name] = np.arange(len(by_name))
        doc, index = rank[encoded.indices.to_numpy()], whole(table, "chunk_index")
        order = np.lexsort((index, doc))
        doc, index = doc[order], index[order]
        doc_names = encoded.dictionary.take(pa.array(by_name))
        _refuse_duplicates(doc_names, doc, index)
        sources = table["source"].cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
        names = sources.dictionary.to_pylist()
        position = {name: i for i, name in enumerate(sorted(names))}
        source = np.asarray([position[name] for name in names], dtype=np.int64)[sources.indices.to_numpy()]
        return cls(
            doc_names=doc_names,
            doc=doc,
            chunk_index=index,
            length=whole(table, "length")[order],
            x=log_perplexity(table)[order],
            source_names=tuple(sorted(names)),
            source=source[order],
            char_start=whole(table, "char_start")[order],
            char_end=whole(table, "char_end")[order],
            origin=order,
            key=table[KEY].to_numpy()[order] if KEY in table.schema.names else np.empty(0),
            second=second(table)[order] if axis_of(table.schema.names) else np.empty(0),
            axis=axis_of(table.schema.names),
            rejected=rejected if rejected is not None else REJECTED.empty_table(),
            manifest=manifest or {},
        )

    @classmethod
    def of(
        cls, doc_id: Sequence[str], chunk_index: Any, length: Any, x: Any, source: Sequence[str] | None = None
    ) -> Pool:
        """Pool from bare arrays, for use without files: log-perplexity `x` [n] in nats per token."""
        length, zeros = np.asarray(length, np.int64), np.zeros(len(doc_id), np.int64)
        columns = {
            "doc_id": pa.array(doc_id, pa.string()),
            "chunk_index": np.asarray(chunk_index, np.int64),
            "char_start": zeros,
            "char_end": zeros,
            "length": length,
            "n_tokens": np.ones(len(doc_id), np.int64),
            "nll_sum": np.asarray(x, np.float64),
            "source": pa.array(source if source is not None else [""] * len(doc_id), pa.string()),
        }
        return cls.from_table(pa.table(columns))


def _rejected(table: pa.Table, bad: NDArray[np.str_], origin: Sequence[tuple[str, int]]) -> pa.Table:
    found, start = [], 0
    for file, n in origin:
        found.append(rejected_rows(table.slice(start, n), bad[start : start + n], file, 0))
        start += n
    return pa.concat_tables(found)


def _refuse_duplicates(doc_names: pa.Array, doc: NDArray[np.int64], index: NDArray[np.int64]) -> None:
    twice = np.flatnonzero((doc[1:] == doc[:-1]) & (index[1:] == index[:-1]))
    if len(twice):
        name = f"{doc_names[int(doc[twice[0]])].as_py()}#{index[twice[0]]}"
        raise UserError(
            f"{len(twice)} chunks occur twice in the scores, the first is {name} (doc_id#chunk_index); "
            "give every document its own id and score it once."
        )
