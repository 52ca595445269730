"""Draw what the utility law's convex program asks of each bin, by permanent uniforms within the bin."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.draw.budget import REACH, Wider, fill
from pplscape.draw.census import Census
from pplscape.draw.hedge import allocate
from pplscape.draw.options import Options
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.program import Allocation
from pplscape.draw.rule import Mask, Rule, Times, interval
from pplscape.draw.scores import Rows
from pplscape.errors import UserError
from pplscape.statistics import Bins, Floats


class Allocate(Rule):
    """Tokens per bin by the convex program (`hedge.allocate`), chunks within a bin at random.

    Every chunk of a bin is taken floor(quota / unique tokens) times and a random part once more. What rounding leaves
    of the budget goes to the bins furthest below their quota, one chunk each, so the total is short by less than one
    chunk unless every helpful bin is exhausted. Budget that only bins with utility <= 0 could fill is left unspent:
    `facts["unspent"]` tokens; a hedged allocation gives those bins a little instead.
    """

    name = "allocate"
    needs = "a law with bin utilities: pass --law of a fit with form utility"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.bins is None:
            raise self.lacking()
        if options.max_epochs < 1:
            raise UserError(f"--max-epochs must be at least 1, not {options.max_epochs}.")
        self.budget, self.seed, self.bins, self.max_epochs = budget, seed, options.bins, options.max_epochs
        unique = census.bin_tokens(self.bins)
        given = options.before.bin_tokens if options.before else np.zeros(self.bins.n)
        self.hedge, self.toward = options.hedge or 0.0, options.toward
        self.plan = self.planned(options, unique, given, budget)
        quota = np.clip(self.plan.tokens - given, 0.0, self.max_epochs * unique)
        share = np.divide(quota, unique, out=np.zeros_like(quota), where=unique > 0)
        self.epochs = np.floor(share + 1e-12).astype(np.int64)
        self.once_more = np.maximum(quota - self.epochs * unique, 0.0)
        chunks = np.repeat(
            np.bincount(self.bins.coarse.of(census.x), weights=census.count_at, minlength=self.bins.coarse.n)
            / self.bins.n_levels,
            self.bins.n_levels,
        )
        self.low, self.high = np.array(
            [interval(s, census, n, width) for s, n in zip(share - self.epochs, chunks, strict=True)]
        ).T
        self.low[~self.helpful] = self.high[~self.helpful] = -np.inf

    def planned(self, options: Options, unique: Floats, given: Floats, budget: int) -> Allocation:
        """Tokens per bin of all that is taken, `given` [K] included; says which bins are `helpful`. UserError where
        `options` lack what decides it."""
        if options.utility is None:
            raise self.lacking()
        if self.hedge < 0:
            raise UserError(f"--hedge must not be negative, not {self.hedge}: 0 is the law's own optimum.")
        self.helpful = (np.asarray(options.utility.u) > 0) | (self.hedge > 0)
        total = budget + float(given.sum())
        return allocate(
            options.utility, unique + given, total, self.hedge, options.max_epochs, given, options.toward
        )  # fmt: skip

    def lacking(self) -> UserError:
        return UserError(f"Strategy {self.name} needs {self.needs}.")

    def solved(self) -> dict[str, float]:
        """Of the program, for selection.json."""
        return {"price": self.plan.price, "duality_gap": self.plan.gap, "hedge": self.hedge}

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        b = _bin(rows, self.bins)
        low = rows.h < self.low[b]
        return (self.epochs[b] + low).astype(np.int16), ~low & (rows.h < self.high[b])

    def totals(self, rows: Rows, times: Times) -> NDArray[np.int64]:
        """Tokens of each bin: taken (repeats counted) and those of chunks that are taken once more, flat."""
        b = _bin(rows, self.bins)
        more = rows.length * (times > self.epochs[b])
        return np.concatenate(
            [np.bincount(b, weights=w, minlength=self.bins.n) for w in (rows.length * times, more)]
        ).astype(np.int64)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        k_bins = self.bins.n
        spent, more = int(sure[:k_bins].sum()), sure[k_bins:]
        bin_of = near.bin_of(self.bins)
        times = self.epochs[bin_of].astype(np.int16)
        order = near.order(self.seed)
        order = order[np.argsort(bin_of[order], kind="stable")]
        start = np.searchsorted(bin_of[order], np.arange(k_bins + 1))
        next_chunks: list[tuple[int, float, NDArray[np.intp]]] = []
        for b in np.flatnonzero(self.helpful):
            rows = order[start[b] : start[b + 1]]
            left = self.once_more[b] - more[b]
            cumulative = np.cumsum(near.length[rows])
            k = int(np.searchsorted(cumulative, left + 1e-6, side="right"))
            if left < -1e-6 or (self.high[b] < 1 and len(rows) - k < REACH):
                raise Wider
            times[rows[:k]] += 1
            below = left - (cumulative[k - 1] if k else 0)
            if self.epochs[b] + 1 <= math.ceil(self.max_epochs):
                next_chunks += [(0, -below, rows[k : k + 1]), (1, -below, rows[k + 1 : k + REACH])]
        rest = self.budget - spent - int((times * near.length).sum())
        candidates = [rows for _, _, rows in sorted(next_chunks, key=lambda c: c[:2])]
        if rest > 0 and candidates:
            times[fill(np.concatenate(candidates), near.length, rest)] += 1
        facts = {
            "allocation": self.plan.tokens.tolist(),
            **self.solved(),
            "unspent": self.budget - spent - int((times * near.length).sum()) if self.plan.unspent >= 1 else 0,
            "toward": None if self.toward is None else self.toward.tolist(),
            "max_epochs": self.max_epochs,
        }
        return Draw(times, self.name, facts)

    def reasons(self, rows: Rows) -> pa.Array:
        names = pa.array([f"bin {b}" for b in range(self.bins.n)], pa.string())
        return names.take(pa.array(_bin(rows, self.bins)))


def _bin(rows: Rows, bins: Bins) -> NDArray[np.uint8] | NDArray[np.intp]:
    """`Bins.of`, faster for few edges."""
    if len(bins.edges) > 64 or bins.levels:
        return bins.of(rows.x, rows.second)
    b = np.zeros(len(rows), dtype=np.uint8)
    for edge in bins.edges:
        b += rows.x >= edge
    return b
