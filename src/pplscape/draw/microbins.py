"""The pool squeezed into a few thousand cells: all that the dual and the feasible set need of it.

One pass makes the cells (counts and sums, so parts can be added up); everything else then costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pplscape.statistics import Floats

VALUE_BINS, LENGTH_BINS = 2048, 8


@dataclass(frozen=True)
class Cells:
    """C non-empty cells of (value, length); means are over the chunks of a cell."""

    count: Floats
    length: Floats
    """[C] mean tokens."""
    value: Floats
    """[C] mean winsorised value."""
    square: Floats
    """[C] mean squared value."""

    @property
    def tokens(self) -> float:
        return float(self.count @ self.length)

    @property
    def mean(self) -> float:
        return float(np.average(self.value, weights=self.count))

    @property
    def spread(self) -> float:
        """Standard deviation of all chunks."""
        return float(np.sqrt(max(np.average(self.square, weights=self.count) - self.mean**2, 0.0)))


def micro_bins(values: Floats, length: NDArray[np.int64]) -> Cells:
    """Cells of about equal count in value (at most VALUE_BINS), equal width in length (at most LENGTH_BINS)."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, VALUE_BINS + 1)[1:-1]))
    shortest, longest = int(length.min()), int(length.max())
    step = (longest - shortest) // LENGTH_BINS + 1
    cell = np.searchsorted(edges, values, side="right") * LENGTH_BINS + (length - shortest) // step
    count = np.bincount(cell)
    used = np.flatnonzero(count)
    c = count[used].astype(np.float64)
    sums = [np.bincount(cell, weights=w)[used] / c for w in (length, values, values**2)]
    return Cells(c, *sums)
