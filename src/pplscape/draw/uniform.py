"""Strategies that compare the permanent uniforms with a threshold: random, stratified, temperature; and full."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.budget import REACH, Wider, fill
from pplscape.draw.census import Census
from pplscape.draw.microbins import VALUE_BINS, Cells
from pplscape.draw.options import Options
from pplscape.draw.permanent import uniforms
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import SIGMAS, Mask, Rule, Times, interval
from pplscape.draw.scores import Rows
from pplscape.errors import UserError
from pplscape.statistics import Floats

STRATA = 10
"""Equal-token log-perplexity bins of `stratified`."""


class Full(Rule):
    """Every chunk once; the budget must be the pool."""

    name = "full"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if budget < census.total:
            raise UserError(
                f"Strategy full takes the whole pool of {census.total} tokens, more than the budget of {budget}; "
                "use --budget 100% or strategy random."
            )

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return np.ones(len(rows), dtype=np.int16), np.zeros(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        return Draw(np.ones(len(near), dtype=np.int16), self.name)


class Random(Rule):
    """In order of the permanent uniforms: every chunk is as likely as any other."""

    name = "random"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        self.budget, self.seed, self.nested = budget, seed, options.nested
        self.low, self.high = interval(budget / census.total, census, census.n, width)

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return (rows.h < self.low).astype(np.int16), (rows.h >= self.low) & (rows.h < self.high)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        left = self.budget - int(sure[0])
        rows = fill(near.order(self.seed), near.length, left, self.high >= 1, self.nested)
        return Draw.of_rows(near, rows, self.name)


class Stratified(Rule):
    """Tokens proportional to the pool in every (log-perplexity bin, source), random inside.

    Systematic sampling: chunks of a stratum are laid end to end in random order on [0, 1), shifted by a random part
    of a chunk, and the chunks with the lowest positions are taken over all strata.
    """

    name = "stratified"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        self.budget, self.seed, self.nested = budget, seed, options.nested
        self.bins, self.names = census.make_bins(STRATA), tuple(census.source_tokens)
        share, n = budget / census.total, census.strata(self.bins)
        self.low, self.high = np.array([interval(share, census, k, width) for k in n]).T

    def of(self, rows: Rows) -> NDArray[np.int64]:
        """Stratum [n] = source * bins + bin."""
        return rows.source_in(self.names) * self.bins.n + self.bins.of(rows.x)

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        stratum = self.of(rows)
        low = rows.h < self.low[stratum]
        return low.astype(np.int16), ~low & (rows.h < self.high[stratum])

    def totals(self, rows: Rows, times: Times) -> NDArray[np.int64]:
        """Tokens taken and tokens left of each stratum, flat."""
        place = 2 * self.of(rows) + (times == 0)
        return np.bincount(place, weights=rows.length, minlength=2 * len(self.low)).astype(np.int64)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        rows = near.rows(self.seed)
        stratum, taken, left = self.of(rows), sure[0::2], sure[1::2]
        order = np.lexsort((rows.h, stratum))
        label, first, of = np.unique(stratum[order], return_index=True, return_inverse=True)
        length = near.length[order]
        ends = np.cumsum(length)
        before = ends - length
        inside = np.add.reduceat(length, first) if len(first) else length
        total = taken[label] + inside + left[label]
        names = [self.names[s // self.bins.n] for s in label]
        shift = uniforms(self.seed, names, label % self.bins.n)
        position = (taken[label][of] + before - before[first][of] + shift[of] * length) / total[of]
        walk = np.argsort(position, kind="stable")
        budget = self.budget - int(taken.sum())
        found = fill(order[walk], near.length, budget, not left.any(), self.nested)
        if len(walk):  # the walk may not leave the undecided stretch of any stratum
            k = int(np.searchsorted(np.cumsum(length[walk]), budget, side="right"))
            start, end = position[walk[np.minimum([k, k + REACH - 1], len(walk) - 1)]]
            if (taken[label] / total > start).any() or ((total - left[label]) / total < end)[left[label] > 0].any():
                raise Wider
        return Draw.of_rows(near, found, self.name)


class GumbelTop(Rule):
    """Without replacement with weights exp(level): Gumbel top-k on the permanent uniforms."""

    seed: int
    nested = False
    low: float
    high: float
    """Where the threshold on the key may lie."""

    @abstractmethod
    def level(self, chunks: Rows | Pool) -> Floats:
        """[n] the logarithms of the weights."""

    def stretch(self, level: Floats, cells: Cells, longest: int, width: float) -> tuple[float, float]:
        """Where the threshold on the key may lie: bisection on the tokens expected above it. `level` [C] of `cells`."""
        tokens = cells.count * cells.length

        def chance(key: float) -> NDArray:
            return -np.expm1(-np.exp(np.minimum(level - key, 700.0)))

        low, high = float(level.min()) - 40, float(level.max()) + 40
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if float(tokens @ chance(middle)) > self.budget else (low, middle)
        step = 0.1 + np.ptp(level) / VALUE_BINS
        p, slope = chance(low), float(tokens @ (chance(low - step) - chance(low + step))) / (2 * step)
        spread = SIGMAS * np.sqrt(longest * float(tokens @ (p * (1 - p)))) + 2 * REACH * longest
        half = width * (spread / slope + step) if slope > 0 and np.isfinite(width) else np.inf
        return low - half, low + half

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        key = self.level(rows) - np.log(-np.log(rows.h))
        return (key >= self.high).astype(np.int16), (key < self.high) & (key >= self.low)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        key = self.level(near) - np.log(-np.log(near.uniforms(self.seed)))
        whole = not np.isfinite(self.low)
        rows = fill(np.argsort(-key, kind="stable"), near.length, self.budget - int(sure[0]), whole, self.nested)
        return Draw.of_rows(near, rows, self.name, self.facts())

    def facts(self) -> dict[str, Any]:
        """For selection.json."""
        return {}


class Temperature(GumbelTop):
    """Weights exp(z / temperature), z the standardised winsorised log-perplexity.

    Large |temperature| is near random, small positive near `high`, small negative near `low`.
    """

    name = "temperature"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.temperature == 0:
            raise UserError("The temperature must not be 0: use strategy high or low.")
        self.budget, self.seed, self.temperature, self.nested = budget, seed, options.temperature, options.nested
        self.limits = census.limits("nll")
        shape = census.moments("nll", self.limits)
        self.mean, self.scale = shape.mean, (shape.std or 1.0) * self.temperature
        cells = census.cells("nll", self.limits)
        self.low, self.high = self.stretch((cells.value - self.mean) / self.scale, cells, census.longest, width)

    def level(self, chunks: Rows | Pool) -> Floats:
        return (np.clip(chunks.x, *self.limits) - self.mean) / self.scale

    def facts(self) -> dict[str, Any]:
        return {"temperature": self.temperature}
