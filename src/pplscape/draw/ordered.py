"""Strategies that follow the order of log-perplexity: low, high, mid, band.

The census says in which cells of its grid the ends of the wanted range lie. Chunks of those cells, and at least REACH
more on either side, stay undecided; as all chunks of a cell are there, their exact token ranks are known. Chunks of
equal log-perplexity are ordered by their permanent uniforms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.budget import REACH, Wider, fill
from pplscape.draw.census import CELLS, Census, cell_of
from pplscape.draw.options import Options
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Rule, Times, interval
from pplscape.draw.scores import Rows
from pplscape.errors import UserError
from pplscape.statistics import Floats


def around(census: Census, position: float) -> tuple[int, int]:
    """First and last cell of a stretch around `position` tokens from below, with REACH chunks on either side."""
    cell = min(int(np.searchsorted(census.below[1:], position, side="right")), CELLS - 1)
    low, high = census.rows_below[cell] - REACH, census.rows_below[cell + 1] + REACH
    first = int(np.searchsorted(census.rows_below[1:], max(low, 0), side="right"))
    last = int(np.searchsorted(census.rows_below[1:], min(high, census.n), side="left"))
    return min(first, cell), max(min(last, CELLS - 1), cell)


def token_rank(census: Census, pool: Pool, seed: int) -> Floats:
    """[n] share of all tokens below the middle of each chunk; `pool` holds all chunks of each of its cells."""
    order = np.lexsort((pool.uniforms(seed), pool.x))
    cell, length = cell_of(pool.x[order]), pool.length[order]
    cumulative = np.cumsum(length)
    before = np.concatenate([[0], cumulative])[np.searchsorted(cell, cell)]
    rank = np.empty(len(pool))
    rank[order] = (census.below[cell] + (cumulative - before) - length / 2) / census.total
    return rank


class Ordered(Rule):
    """Chunks strictly between two stretches of cells are certain, those in a stretch undecided."""

    def __init__(
        self, name: str, census: Census, budget: int, seed: int, options: Options, stretches: list[tuple[int, int]]
    ):
        self.name, self.census, self.budget, self.seed, self.nested = name, census, budget, seed, options.nested
        (_, self.below), (self.above, _) = stretches[0], stretches[-1]
        self.undecided = np.zeros(CELLS, dtype=bool)
        for first, last in stretches:
            self.undecided[max(first, 0) : last + 1] = True
        cells = np.arange(CELLS)
        self.certain = (cells > self.below) & (cells < self.above) & ~self.undecided

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        cell = cell_of(rows.x)
        return self.certain[cell].astype(np.int16), self.undecided[cell]

    def key(self, near: Pool) -> Floats:
        """[n] what the undecided are sorted by."""
        return {"low": near.x, "high": -near.x}[self.name]

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        order = np.lexsort((near.uniforms(self.seed), self.key(near)))
        rows = fill(order, near.length, self.budget - int(sure[0]), prefix=self.nested)
        return Draw.of_rows(near, rows, self.name)


def low(census: Census, budget: int, seed: int, options: Options, width: float) -> Rule:
    """The lowest perplexities."""
    return Ordered("low", census, budget, seed, options, [(-1, -1), around(census, budget)])


def high(census: Census, budget: int, seed: int, options: Options, width: float) -> Rule:
    """The highest perplexities."""
    return Ordered("high", census, budget, seed, options, [around(census, census.total - budget), (CELLS, CELLS)])


class Mid(Ordered):
    """Token ranks 50 % +- half the budget's share."""

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        half = census.total / 2
        ends = [around(census, half - budget / 2), around(census, half + budget / 2)]
        super().__init__("mid", census, budget, seed, options, ends)

    def key(self, near: Pool) -> Floats:
        return np.abs(token_rank(self.census, near, self.seed) - 0.5)


class Band(Ordered):
    """Random among the chunks whose token rank lies in `options.band` = (low, high) quantiles."""

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.band is None:
            raise UserError("Strategy band needs --band LOW,HIGH: two quantiles of log-perplexity, such as 0.2,0.8.")
        self.band = lo, hi = options.band
        if not 0 <= lo < hi <= 1:
            raise UserError(f"The band {lo},{hi} is not a range of quantiles: 0 <= LOW < HIGH <= 1.")
        super().__init__("band", census, budget, seed, options, [around(census, q * census.total) for q in (lo, hi)])
        self.inside = int(census.cell_tokens[self.certain].sum())
        n = census.count.sum(axis=1)[self.certain].sum()
        share = budget / (self.inside + census.cell_tokens[self.undecided].sum() / 2)
        edge = census.cell_tokens[self.undecided].sum() / max(self.inside, 1)  # how far the share may be wrong
        self.low, self.high = interval(min(share, 1.0), census, n, width)
        self.low, self.high = self.low - edge, self.high + edge

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        certain, undecided = super().sides(rows)
        times = certain * (rows.h < self.low)
        return times, undecided | ((certain > 0) & (rows.h >= self.low) & (rows.h < self.high))

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        member, (lo, hi) = np.ones(len(near), dtype=bool), self.band
        edges = np.flatnonzero(self.undecided[cell_of(near.x)])
        rank = token_rank(self.census, near.subset(edges), self.seed)
        member[edges] = (rank >= lo) & (rank <= hi)
        tokens = self.inside + int(near.length[edges[member[edges]]].sum())
        if tokens < self.budget:
            raise UserError(
                f"The band {lo},{hi} holds {tokens} tokens, less than the budget of {self.budget}; widen it."
            )
        order = near.order(self.seed)
        h = near.uniforms(self.seed)
        order = order[member[order] & (h[order] < self.high)]
        left = self.budget - int(sure[0])
        if left < near.length[order[h[order] < self.low]].sum():
            raise Wider
        rows = fill(order, near.length, left, self.high >= 1, self.nested)
        return Draw.of_rows(near, rows, self.name, {"band": [lo, hi], "band_tokens": tokens})
