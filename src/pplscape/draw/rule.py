"""How a strategy decides: most chunks at once, by what the census knows; the few near its threshold at the end.

A rule sees chunks in any order and number (`sides`), sums up those that are certain (`totals`, whole numbers, so that
any order of summing gives the same), and settles the rest in memory (`settle`). Drawing from a pool in memory and
streaming over files are the same three calls. If the stretch around the threshold, six standard errors of where the
threshold may be, was too narrow after all, `settle` raises `budget.Wider`, and the draw is repeated with a wider one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.draw.budget import REACH
from pplscape.draw.census import Census
from pplscape.draw.options import Options
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.scores import Rows

SIGMAS = 6.0
WIDTHS = (1.0, 8.0, np.inf)
"""Tried in turn; the last decides everything in memory."""
Times = NDArray[np.int16]
Mask = NDArray[np.bool_]


class Rule(ABC):
    """One draw: pool, budget, seed and options are fixed."""

    name: str
    """The reason of a chunk that is taken, unless `reasons` says another."""
    budget: int
    """Tokens; before `settle` it may still grow by a few chunks."""
    whole_documents = False
    """Documents are taken whole, so samples of the pool must be of whole documents."""

    @abstractmethod
    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        """Times [n] each chunk is taken for certain, and which [n] are undecided (whose times do not count)."""

    def totals(self, rows: Rows, times: Times) -> NDArray[np.int64]:
        """What `settle` must know of the decided `rows`; tokens taken, unless overridden."""
        return np.array([int((times * rows.length).sum())])

    @abstractmethod
    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        """The draw from the undecided chunks; `sure` is the sum of `totals`. Wider if they are too few."""

    def reasons(self, rows: Rows) -> pa.Array | None:
        """Why each of `rows` [n] is taken; None: the reason of the draw."""
        return None


Strategy = Callable[[Census, int, int, Options, float], Rule]
"""(census, budget in tokens, seed, options, width) -> rule"""


def interval(share: float, census: Census, n: float, width: float) -> tuple[float, float]:
    """Where the threshold on h may lie when `share` of the tokens of `n` chunks are to be below it."""
    if not np.isfinite(width):
        return -np.inf, np.inf
    lump = census.longest * census.n / census.total  # at least E[length^2] / E[length]^2
    half = width * (SIGMAS * np.sqrt(max(share * (1 - share), 0) * lump / n) + 2 * REACH / n) if n else np.inf
    return share - half, share + half


def decide(rule: Rule, pool: Pool, seed: int) -> Draw:
    """Draw from a pool in memory. Wider as in `Rule.settle`."""
    rows = pool.rows(seed)
    times, near = rule.sides(rows)
    at, decided = np.flatnonzero(near), np.flatnonzero(~near)
    settled = rule.settle(pool.subset(at), rule.totals(rows.take(decided), times[decided]))
    times[at] = settled.times
    reasons = rule.reasons(rows)
    return Draw(times, settled.reason if reasons is None else reasons, settled.facts)
