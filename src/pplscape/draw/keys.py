"""Keys: one number a chunk that its text gave it, found again by the chunk's name; and pools seen by their keys.

Strategies that look at text (`bytext`) rank chunks by such a key instead of log-perplexity. Keys lie in a file sorted
by 64 bits of the chunk's name and are mapped into memory, so scores in any order and number of parts find theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.permanent import names_of
from pplscape.draw.scores import Rows, Source
from pplscape.statistics import Floats

T = TypeVar("T")
RECORD = np.dtype([("bits", np.uint64), ("key", np.float64)])
BUCKET_ROWS = 1 << 20
"""About as many keys are sorted at once."""
GRID_END = 15.999
"""Keys are laid on [0, GRID_END], inside the census' grid."""


@dataclass(frozen=True)
class Keys:
    """n keys, ascending by the bits of the name."""

    records: NDArray[Any]
    """[n] RECORD, in memory or mapped."""

    def of(self, doc_hash: NDArray[np.uint64], chunk_index: Any) -> Floats:
        """Keys [n] of these chunks; NaN for one that has none."""
        asked = names_of(doc_hash, chunk_index)
        if not len(self.records):
            return np.full(len(asked), np.nan)
        bits = self.records["bits"]
        at = np.minimum(np.searchsorted(bits, asked), len(bits) - 1)
        return np.where(bits[at] == asked, self.records["key"][at], np.nan)

    @classmethod
    def write(cls, folder: Path, n: int, parts: Iterable[tuple[NDArray[np.uint64], Floats]]) -> Keys:
        """Keys of `n` chunks from (bits of the name [m], key [m]) of each part, sorted through files in `folder`.

        Memory: one part, and BUCKET_ROWS rows while they are sorted.
        """
        digits = max(0, (max(n, 1) - 1).bit_length() - (BUCKET_ROWS - 1).bit_length())
        paths = [folder / f"bucket-{b:05d}" for b in range(1 << digits)]
        with ExitStack() as stack:
            files = [stack.enter_context(open(p, "wb")) for p in paths]
            for bits, key in parts:
                records = np.empty(len(bits), RECORD)
                records["bits"], records["key"] = bits, key
                bucket = (bits >> np.uint64(64 - digits)).astype(np.int64) if digits else np.zeros(len(bits), np.int64)
                order = np.argsort(bucket, kind="stable")
                ends = np.searchsorted(bucket[order], np.arange(len(paths)), side="right")
                for file, some in zip(files, np.split(records[order], ends[:-1]), strict=True):
                    some.tofile(file)
        target = folder / "keys"
        with open(target, "wb") as out:
            for path in paths:
                records = np.fromfile(path, RECORD)
                records[np.argsort(records["bits"], kind="stable")].tofile(out)
                path.unlink()
        return cls(np.memmap(target, RECORD, "r") if target.stat().st_size else np.empty(0, RECORD))


@dataclass(frozen=True)
class ByKey:
    """A source whose chunks have their keys, laid on the census' grid, in place of log-perplexity."""

    whole: Source
    low: float
    high: float

    @classmethod
    def of(cls, source: Source) -> ByKey | None:
        """None if the chunks have no keys. Their range takes a pass over the numbers."""
        ends = [e for e in source.map(_ends) if e is not None]
        return cls(source, min(low for low, _ in ends), max(high for _, high in ends)) if ends else None

    @property
    def longest(self) -> int:
        return self.whole.longest

    @property
    def unit(self) -> float:
        """Keys per step of 1 on the grid."""
        return (self.high - self.low or 1.0) / GRID_END

    def laid(self, rows: Rows) -> Rows:
        return replace(rows, x=np.clip((rows.key - self.low) / self.unit, 0.0, GRID_END))

    def numbers(self, unit: Any) -> Iterator[Rows]:
        for rows in self.whole.numbers(unit):
            yield self.laid(rows)

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        return self.whole.map(lambda _, unit, *rest: task(self, unit, *rest), *args)


def _ends(source: Source, unit: Any) -> tuple[float, float] | None:
    """Smallest and largest key of a unit."""
    found = [(float(rows.key.min()), float(rows.key.max())) for rows in source.numbers(unit) if len(rows.key)]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None
