"""Distance-to-optimum selection: the exact greedy of arXiv 2512.21515, O(log N) a step.

    J(S) = w_mu (mean(S) - mu*)^2 + w_s (var(S) - s*^2)^2

Adding a chunk at distance u from the mean of k chunks gives mean' = mean + u/(k+1) and
var' = k var/(k+1) + k u^2/(k+1)^2, so J is a quartic in u whose minima are real roots of a depressed cubic. The best
chunk is therefore a nearest unused value on one of the two sides of a minimum: no other is ever looked at.
Note: the greedy degenerates into two spikes at mean +- s*; `maxent` reaches the same moments with the pool's diversity.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.census import Census
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Rule, Times
from pplscape.draw.scores import Rows
from pplscape.errors import UserError
from pplscape.statistics import Floats

TIE = 1e-12
"""Relative differences of J below this are ties, broken by (doc_id, chunk_index)."""


class Dos(Rule):
    """Greedy towards `options.target` (mean, standard deviation on `options.scale`); stops at the budget.

    Every step depends on all before it, so the whole pool is held in memory.
    """

    name = "dos"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.target is None or options.target.std is None:
            raise UserError("Strategy dos needs a mean and a spread: pass --law, or --target-mean and --target-std.")
        self.budget, self.options = budget, options

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return np.zeros(len(rows), dtype=np.int16), np.ones(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        scale, aim = self.options.scale, self.options.target
        assert aim is not None
        values = near.values(scale, self.options.limits)
        weights = default_weights(values)
        rows = greedy(values, near.length, self.budget, aim, weights)
        facts = {"target": {**vars(aim), "scale": scale}, "weights": {"mu": weights[0], "s": weights[1]}}
        return Draw.of_rows(near, rows, self.name, facts)


def default_weights(values: Floats) -> tuple[float, float]:
    """w_mu = n / sigma^2, w_s = n / ((kurtosis - 1) sigma^4) of the winsorised pool: both terms in standard errors.

    n is dropped (a common factor). A pool of two values has kurtosis 1; the excess is floored at 1e-6.
    """
    deviation = values - values.mean()
    variance = float(np.mean(deviation**2)) or 1.0
    kurtosis = float(np.mean(deviation**4)) / variance**2
    return 1 / variance, 1 / (max(kurtosis - 1, 1e-6) * variance**2)


def objective(d, k, s1, s2, target_var, weights):  # type: ignore[no-untyped-def]
    """J of k chunks (sums s1 of d, s2 of d^2, with d = value - mu*) after adding one at d; scalars or arrays alike."""
    mean = (s1 + d) / (k + 1)
    excess = (s2 + d * d) / (k + 1) - mean * mean - target_var
    return weights[0] * (mean * mean) + weights[1] * (excess * excess)


def minima(k: int, s1: float, s2: float, target_var: float, weights: tuple[float, float]) -> tuple[float, ...]:
    """The one or two values d at which J is a local minimum.

    dJ/du = 0 is u^3 + p u + q = 0; three real roots are minimum, maximum, minimum.
    """
    if k == 0:
        return (0.0,)
    mean, r = s1 / k, 1 / (k + 1)
    variance = s2 / k - mean * mean
    lead = 2 * weights[1] * k * k * r**3
    p = (weights[0] * r + 2 * weights[1] * k * r * (k * r * variance - target_var)) / lead
    q = weights[0] * mean / lead
    if p > 0:
        root = -2 * math.sqrt(p / 3) * math.sinh(math.asinh(1.5 * q / p * math.sqrt(3 / p)) / 3)
        return (mean + root,)
    if p == 0:
        return (mean - math.cbrt(q),)
    scale, c = 2 * math.sqrt(-p / 3), 1.5 * q / p * math.sqrt(-3 / p)
    if abs(c) >= 1:
        return (mean - math.copysign(scale * math.cosh(math.acosh(abs(c)) / 3), q),)
    angle = math.acos(c) / 3
    return (mean + scale * math.cos(angle), mean + scale * math.cos(angle - 4 * math.pi / 3))


class Unused:
    """Distinct values in order, each with its unused rows in order; nearest value with unused rows on either side."""

    def __init__(self, d: Floats):
        order = np.argsort(d, kind="stable")
        values, first = np.unique(d[order], return_index=True)
        self.values: list[float] = values.tolist()
        self._rows: list[int] = order.tolist()
        self._next: list[int] = first.tolist()
        self._end: list[int] = [*first[1:].tolist(), len(order)]
        # Position j lives at j + 1, between two sentinels. A used-up value points past itself; paths are halved.
        self._left = list(range(len(values) + 2))
        self._right = list(range(len(values) + 2))

    def left(self, j: int) -> int:
        """Largest unused position <= j, or -1."""
        links, j = self._left, j + 1
        while links[j] != j:
            links[j] = j = links[links[j]]
        return j - 1

    def right(self, j: int) -> int:
        """Smallest unused position >= j, or len(values)."""
        links, j = self._right, j + 1
        while links[j] != j:
            links[j] = j = links[links[j]]
        return j - 1

    def row(self, j: int) -> int:
        """First unused row at position j."""
        return self._rows[self._next[j]]

    def use(self, j: int) -> None:
        self._next[j] += 1
        if self._next[j] == self._end[j]:
            self._left[j + 1] = j
            self._right[j + 1] = j + 2

    def best(self, k: int, s1: float, s2: float, target_var: float, weights: tuple[float, float]) -> int:
        """Position of the unused value with the lowest J, ties to the lowest row; there must be one."""
        values, size = self.values, len(self.values)
        found: list[tuple[float, int, int]] = []
        least = math.inf
        for point in minima(k, s1, s2, target_var, weights):
            at = bisect_left(values, point)
            for j, step in ((self.left(at - 1), -1), (self.right(at), 1)):
                while 0 <= j < size:
                    J = objective(values[j], k, s1, s2, target_var, weights)
                    if least * (1 + TIE) < J:
                        break
                    least = min(least, J)
                    found.append((J, self.row(j), j))
                    j = self.left(j - 1) if step < 0 else self.right(j + 1)
        return min((row, j) for J, row, j in found if least * (1 + TIE) >= J)[1]


def greedy(
    values: Floats, length: NDArray[np.int64], budget: int, target: Target, weights: tuple[float, float]
) -> NDArray[np.intp]:
    """Rows in the order taken: at every step the chunk that fits the budget and minimises J."""
    assert target.std is not None
    d, target_var = values - target.mean, target.std**2
    unused, lengths = Unused(d), length.tolist()
    longest, left = int(length.max()), int(budget)
    k, s1, s2, taken = 0, 0.0, 0.0, []
    while left >= longest and k < len(lengths):
        j = unused.best(k, s1, s2, target_var, weights)
        row, value = unused.row(j), unused.values[j]
        unused.use(j)
        taken.append(row)
        k, s1, s2, left = k + 1, s1 + value, s2 + value * value, left - lengths[row]
    free = np.ones(len(d), dtype=bool)
    free[taken] = False
    while True:  # The last few steps, where not every chunk fits any more.
        rows = np.flatnonzero(free & (length <= left))
        if not len(rows):
            return np.asarray(taken, dtype=np.intp)
        J = objective(d[rows], k, s1, s2, target_var, weights)
        row = int(rows[np.argmax(J.min() * (1 + TIE) >= J)])
        free[row] = False
        taken.append(row)
        k, s1, s2, left = k + 1, s1 + float(d[row]), s2 + float(d[row]) ** 2, left - lengths[row]
