"""Token priors: how ordinary a chunk's words are, without a model (Seo et al. 2509.18577, as in the authors' code).

    prior(v)  = tf(v) df(v) / sum over the vocabulary    tf: occurrences in the pool, df: chunks that hold the token
    mean      = mean over a chunk's tokens of ln prior        low: rare tokens; high: few, frequent ones
    spread    = standard deviation over its tokens of prior   low: lists without function words; high: repetitions
    key       = max(|rank(mean) - 1/2|, |rank(spread) - 1/2|),  ranks among the pool's chunks, in [0, 1]

The chunks with the smallest keys are kept: those within the same distance of both medians, as in the authors' filter,
whose distance follows from the share that is kept. Ranks are read off a histogram of RANK_CELLS cells, straight inside
a cell, so that memory does not grow with the pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pplscape.statistics import Floats

RANK_CELLS = 1 << 16


def token_prior(tf: NDArray[np.int64], df: NDArray[np.int64]) -> Floats:
    """[V]"""
    weight = tf.astype(np.float64) * df
    return weight / weight.sum()


def mean_and_spread(prior: Floats, flat: NDArray[np.int32], sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """[n] mean ln prior, and standard deviation (n - 1) of prior, of chunks with `sizes` [n] > 0 of all ids `flat`."""
    of, p = np.repeat(np.arange(len(sizes)), sizes), prior[flat]
    mean = np.bincount(of, weights=np.log(p), minlength=len(sizes)) / sizes
    centre = np.bincount(of, weights=p, minlength=len(sizes)) / sizes
    squares = np.bincount(of, weights=(p - centre[of]) ** 2, minlength=len(sizes))
    return mean, np.sqrt(squares / np.maximum(sizes - 1, 1))


@dataclass(frozen=True)
class Ranks:
    """The distribution of a number over the pool's chunks."""

    low: float
    width: float
    """Of a cell."""
    below: NDArray[np.int64]
    """[RANK_CELLS + 1] values below each cell, the last entry all."""

    @classmethod
    def of(cls, parts: Iterable[Floats], low: float, high: float) -> Ranks:
        """Of the values of all parts, which lie in [low, high]."""
        width = (high - low) / RANK_CELLS or 1.0
        count = np.zeros(RANK_CELLS, dtype=np.int64)
        for values in parts:
            count += np.bincount(_cell(values, low, width), minlength=RANK_CELLS)
        return cls(low, width, np.concatenate([[0], np.cumsum(count)]))

    def __call__(self, values: Floats) -> Floats:
        """[n] share of the pool's values below each."""
        cell = _cell(values, self.low, self.width)
        inside = np.clip((values - self.low) / self.width - cell, 0.0, 1.0)
        return (self.below[cell] + inside * (self.below[cell + 1] - self.below[cell])) / self.below[-1]


def _cell(values: Floats, low: float, width: float) -> NDArray[np.int64]:
    return np.clip((values - low) / width, 0, RANK_CELLS - 1).astype(np.int64)


def key(mean_rank: Floats, spread_rank: Floats) -> Floats:
    """[n] distance from the middle of both, in [0, 1/2]."""
    return np.maximum(np.abs(mean_rank - 0.5), np.abs(spread_rank - 0.5))
