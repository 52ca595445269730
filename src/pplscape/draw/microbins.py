"""The pool squeezed into a few thousand cells: all that the dual and the feasible set need of it.

`census.Census.cells` makes them; everything else then costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pplscape.statistics import Floats

VALUE_BINS = 2048


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
