"""What the first pass learns of a pool of any size: totals in a fixed grid of log-perplexity and length.

The grid has GRID cells a nat from 0 to REACH nats (its end cells are open) times LENGTHS equal classes of length. All
sums are sums of whole numbers below 2^53, so they do not depend on batches, order or workers. A second pass over the
numbers looks into the few cells that hold quantiles or bin edges chunk by chunk; bins, winsor limits and tokens per bin
are therefore exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.microbins import VALUE_BINS, Cells
from pplscape.draw.scores import Rows, Source
from pplscape.errors import UserError
from pplscape.statistics import WINSOR_SHARE, Bins, Floats, Moments, Scale, make_bins, moments, on_scale

GRID, REACH, LENGTHS = 2048, 16, 8
CELLS = GRID * REACH
FINENESS = 65_536
"""Steps in a cell that its mean is rounded to."""
KL_BINS = 50


@dataclass(frozen=True)
class Census:
    """Totals of a pool. Arrays [CELLS, LENGTHS]; `x`, `tokens_at`, `count_at` [m] are the pool lumped for quantiles."""

    count: Floats
    tokens: Floats
    offset: Floats
    """Sum of the distances from the cell's lower edge, in steps of 1 / (GRID * FINENESS) nats."""
    longest: int
    source_tokens: dict[str, int]
    """By name of the source, in the order of names."""
    x: Floats
    """[m] ascending: the chunks of the cells that were looked into, and the mean of every other cell."""
    tokens_at: Floats
    count_at: Floats
    source: Source
    """For a pass more."""

    @cached_property
    def n(self) -> int:
        return int(self.count.sum())

    @cached_property
    def total(self) -> int:
        """Tokens of the pool."""
        return int(self.tokens.sum())

    @cached_property
    def cell_tokens(self) -> Floats:
        """[CELLS]"""
        return self.tokens.sum(axis=1)

    @cached_property
    def below(self) -> Floats:
        """[CELLS + 1] tokens below each cell, the last entry all tokens."""
        return np.concatenate([[0.0], np.cumsum(self.cell_tokens)])

    @cached_property
    def rows_below(self) -> Floats:
        """[CELLS + 1] chunks below each cell."""
        return np.concatenate([[0.0], np.cumsum(self.count.sum(axis=1))])

    def limits(self, scale: Scale) -> tuple[float, float]:
        """The pool's winsor limits, as `statistics.winsor_limits` of all its values."""
        values, ends = on_scale(self.x, scale), np.cumsum(self.count_at)
        low, high = (_quantile(values, ends, share) for share in (WINSOR_SHARE, 1 - WINSOR_SHARE))
        return low, high

    def make_bins(self, n: int) -> Bins:
        """`statistics.make_bins` of the pool, for n dividing KL_BINS."""
        assert KL_BINS % n == 0
        return make_bins(self.x, self.tokens_at, n)

    def bin_tokens(self, bins: Bins) -> Floats:
        """Tokens [K] per bin: of `make_bins`, or of the law that the census was told; levels take one more pass."""
        if bins.levels:
            return sum(self.source.map(_count_cells, bins))  # type: ignore[return-value]
        return bins.tokens(self.x, self.tokens_at)

    def moments(self, scale: Scale, limits: tuple[float, float]) -> Moments:
        """Moments of all chunks; a cell's width of 1 / GRID nats costs less than 1e-6 of them."""
        return moments(on_scale(self.x, scale), limits, self.count_at)

    def cells(self, scale: Scale, limits: tuple[float, float]) -> Cells:
        """Cells of about equal count in value (at most VALUE_BINS) for the dual and the feasible set."""
        used = np.flatnonzero(self.count.ravel())
        count, tokens = self.count.ravel()[used], self.tokens.ravel()[used]
        value = np.clip(on_scale(self._mean(used), scale), *limits)
        row = used // LENGTHS
        group = (self.rows_below[row] * VALUE_BINS // self.n).astype(np.int64) * LENGTHS + used % LENGTHS
        names, place = np.unique(group, return_inverse=True)
        sums = [_by(place, w, len(names)) for w in (count, tokens, count * value, count * value**2)]
        return Cells(sums[0], *(s / sums[0] for s in sums[1:]))

    def strata(self, bins: Bins) -> Floats:
        """Chunks of every (source, bin), flat, in the order of `source_tokens`: one more pass over the numbers."""
        return sum(self.source.map(_count_strata, bins, tuple(self.source_tokens)))  # type: ignore[return-value]

    def _mean(self, used: NDArray[np.intp]) -> Floats:
        return (used // LENGTHS + self.offset.ravel()[used] / self.count.ravel()[used] / FINENESS) / GRID


def cell_of(x: Floats) -> NDArray[np.int64]:
    """Cell [n] of log-perplexities."""
    return np.clip(x * GRID, 0, CELLS - 1).astype(np.int64)


def take_census(source: Source, edges: Iterable[float] = ()) -> Census:
    """Two passes over the numbers. `edges`: of the law's bins, which bin_tokens may be asked for.

    UserError if there is no usable chunk.
    """
    totals, by_source = np.zeros((3, CELLS * LENGTHS)), dict[str, int]()
    for found, of_unit in source.map(_count):
        totals += found
        for name, n in of_unit.items():
            by_source[name] = by_source.get(name, 0) + n
    count, tokens, offset = (a.reshape(CELLS, LENGTHS) for a in totals)
    if not count.any():
        raise UserError("None of the scored chunks has a finite score; nothing can be selected.")
    inside = _looked_into(count.sum(axis=1), tokens.sum(axis=1), np.asarray(list(edges), dtype=np.float64))
    parts = list(source.map(_look, inside))
    single, length = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    lumps = np.flatnonzero(count.sum(axis=1) * ~inside)
    lumped = (lumps + offset.sum(axis=1)[lumps] / count.sum(axis=1)[lumps] / FINENESS) / GRID
    x = np.concatenate([single, lumped])
    order = np.argsort(x, kind="stable")
    tokens_at = np.concatenate([length, tokens.sum(axis=1)[lumps]])[order]
    count_at = np.concatenate([np.ones(len(single)), count.sum(axis=1)[lumps]])[order]
    return Census(
        count, tokens, offset, source.longest, dict(sorted(by_source.items())), x[order], tokens_at, count_at, source
    )


def _count(source: Source, unit: Any) -> tuple[Floats, dict[str, int]]:
    """Count, tokens, offset [3, CELLS * LENGTHS] and tokens by source of one unit."""
    totals, by_source = np.zeros((3, CELLS * LENGTHS)), dict[str, int]()
    width = source.longest // LENGTHS + 1
    for rows in _joined(source.numbers(unit)):
        cell = cell_of(rows.x)
        place = cell * LENGTHS + rows.length // width
        offset = np.floor((rows.x * GRID - cell) * FINENESS)
        for total, weights in zip(totals, (None, rows.length, offset), strict=True):
            total += np.bincount(place, weights=weights, minlength=CELLS * LENGTHS)
        for name, tokens in zip(rows.names, _by(rows.source, rows.length, len(rows.names)), strict=True):
            if tokens:
                by_source[name] = by_source.get(name, 0) + int(tokens)
    return totals, by_source


def _count_strata(source: Source, unit: Any, bins: Bins, names: tuple[str, ...]) -> Floats:
    size = len(names) * bins.n
    found = np.zeros(size)
    for rows in source.numbers(unit):
        found += np.bincount(rows.source_in(names) * bins.n + bins.of(rows.x), minlength=size)
    return found


def _count_cells(source: Source, unit: Any, bins: Bins) -> Floats:
    found = np.zeros(bins.n)
    for rows in source.numbers(unit):
        found += bins.tokens(rows.x, rows.length, rows.second)
    return found


def _joined(parts: Iterator[Rows], size: int = 1 << 19) -> Iterator[Rows]:
    """Rows in larger pieces: a piece costs one walk over the grid."""
    waiting: list[Rows] = []
    for rows in parts:
        waiting.append(rows)
        if sum(len(r) for r in waiting) >= size:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)


def join(parts: list[Rows]) -> Rows:
    """One Rows of several, without documents and permanent bits."""
    if len(parts) == 1:
        return parts[0]
    names = tuple(sorted({name for rows in parts for name in rows.names}))
    return Rows(
        np.concatenate([r.x for r in parts]), np.concatenate([r.length for r in parts]),
        np.concatenate([r.source_in(names) for r in parts]), names,
    )  # fmt: skip


def _by(group: NDArray, weights: NDArray, n: int) -> Floats:
    return np.bincount(group, weights=weights, minlength=n).astype(np.float64)


def _looked_into(count: Floats, tokens: Floats, edges: Floats) -> NDArray[np.bool_]:
    """[CELLS] cells with a winsor limit, an edge of KL_BINS equal-token bins, an edge of `edges`, or the smallest x."""
    inside = np.zeros(CELLS, dtype=bool)
    rank = (count.sum() - 1) * np.array([WINSOR_SHARE, 1 - WINSOR_SHARE])
    ranks = np.concatenate([[0.0], np.floor(rank), np.minimum(np.floor(rank) + 1, count.sum() - 1)])
    inside[np.searchsorted(np.cumsum(count), ranks, side="right")] = True
    inside[np.searchsorted(np.cumsum(tokens), tokens.sum() * np.arange(1, KL_BINS) / KL_BINS)] = True
    inside[cell_of(edges)] = True
    return inside


def _look(source: Source, unit: Any, inside: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Log-perplexity and length of the unit's chunks in the cells `inside`."""
    found = []
    for rows in source.numbers(unit):
        at = np.flatnonzero(inside[cell_of(rows.x)])
        found.append((rows.x[at], rows.length[at].astype(np.float64)))
    if not found:
        return np.empty(0), np.empty(0)
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _quantile(values: Floats, ends: Floats, share: float) -> float:
    """`np.quantile` of values [m] where values[i] occurs until rank ends[i]."""
    position = (ends[-1] - 1) * share
    low, high = (
        values[np.searchsorted(ends, rank, side="right")]
        for rank in (np.floor(position), min(np.floor(position) + 1, ends[-1] - 1))
    )
    return float(np.quantile([low, high], position - np.floor(position)))
