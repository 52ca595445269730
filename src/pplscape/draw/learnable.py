"""Strategy learnable: the chunks of a band of log-perplexity that a probe learned most about without seeing them.

The band guards against what is learnable but worthless: shuffled or garbled text has a high perplexity, and a probe
that has met some of it predicts the rest much better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.census import Census, take_census
from pplscape.draw.keys import ByKey
from pplscape.draw.options import Options
from pplscape.draw.ordered import Ordered, around
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Times
from pplscape.draw.scores import Rows, Source
from pplscape.errors import UserError
from pplscape.statistics import Floats

T = TypeVar("T")
BAND = (0.1, 0.9)
"""Quantiles of log-perplexity, unless `--band` says others."""


@dataclass(frozen=True)
class Within:
    """A source's chunks between two log-perplexities; the most learnable have the smallest keys."""

    whole: Source
    low: float
    high: float

    @property
    def longest(self) -> int:
        return self.whole.longest

    def inside(self, rows: Rows) -> NDArray[np.bool_]:
        return (rows.x >= self.low) & (rows.x <= self.high)

    def keyed(self, rows: Rows) -> Rows:
        if len(rows) and not len(rows.second):
            raise UserError("Strategy learnable needs the scores that `pplscape probe` wrote.")
        return replace(rows, key=-rows.second)

    def numbers(self, unit: Any) -> Iterator[Rows]:
        for rows in self.whole.numbers(unit):
            keyed = self.keyed(rows)
            yield keyed.take(np.flatnonzero(self.inside(keyed)))

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        return self.whole.map(lambda _, unit, *rest: task(self, unit, *rest), *args)


class Learnable(Ordered):
    """The highest learnability among chunks whose log-perplexity lies between two quantiles (by tokens)."""

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        lo, hi = options.band or BAND
        if not 0 <= lo < hi <= 1:
            raise UserError(f"The band {lo},{hi} is not a range of quantiles: 0 <= LOW < HIGH <= 1.")
        exact = take_census(census.source, _ends(census, lo, hi))  # looks into the cells that hold the ends
        self.within = Within(census.source, *_ends(exact, lo, hi))
        by = ByKey.of(self.within)
        assert by is not None, "the chunk at either end is inside"
        self.by = by
        keyed = take_census(by)
        if keyed.total < budget:
            raise UserError(
                f"The band {lo},{hi} holds {keyed.total} tokens, less than the budget of {budget}; widen it."
            )
        self.facts = {"band": [lo, hi], "band_tokens": keyed.total}
        super().__init__("learnable", keyed, budget, seed, options, [(-1, -1), around(keyed, budget)])

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        times, undecided = super().sides(self.by.laid(self.within.keyed(rows)))
        inside = self.within.inside(rows)
        return times * inside, undecided & inside

    def key(self, near: Pool) -> Floats:
        return -near.second

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        return replace(super().settle(near, sure), facts=self.facts)


def _ends(census: Census, lo: float, hi: float) -> tuple[float, float]:
    """Log-perplexity of the chunks at two token ranks; exact where the census looked into their cells."""
    at = np.searchsorted(np.cumsum(census.tokens_at), np.array([lo, hi]) * census.total)
    low, high = census.x[np.minimum(at, len(census.x) - 1)]
    return float(low), float(high)
