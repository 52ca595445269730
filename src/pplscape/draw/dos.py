"""Distance-to-optimum selection: the exact greedy of arXiv 2512.21515, O(log N) a step.

    J(S) = w_mu (mean(S) - mu*)^2 + w_s (var(S) - s*^2)^2        spread "var", the default
    J(S) = w_mu (mean(S) - mu*)^2 + w_s (std(S) - s*)^2          spread "std"

Adding a chunk at distance u from the mean of k chunks gives mean' = mean + u/(k+1) and
var' = k var/(k+1) + k u^2/(k+1)^2, so J has at most two local minima in u: of "var" real roots of a depressed cubic,
of "std" roots of a convex piece of dJ/du on either side of zero. Between stationary points J is monotone, so the best
chunk is a nearest unused value on one of the two sides of a minimum: no other is ever looked at.
Note: the greedy degenerates into two spikes at mean +- s*; `maxent` reaches the same moments with the pool's diversity.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.census import Census
from pplscape.draw.options import Before, Options
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Rule, Times
from pplscape.draw.scores import Rows
from pplscape.errors import UserError
from pplscape.statistics import Floats

TIE = 1e-12
"""Relative differences of J below this are ties, broken by (doc_id, chunk_index)."""


class Dos(Rule):
    """Greedy towards `options.target` (mean, standard deviation on `options.scale`); stops at the budget.

    With `options.stop` it ends earlier, as soon as J is no larger than that. Every step depends on all before it, so
    the whole pool is held in memory.
    """

    name = "dos"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.target is None or options.target.std is None:
            raise UserError("Strategy dos needs a mean and a spread: pass --law, or --target-mean and --target-std.")
        if options.weights is not None and not (min(options.weights) >= 0 and max(options.weights) > 0):
            raise UserError(f"--dos-weights {options.weights} must be two numbers from 0 on, not both 0.")
        self.budget, self.options = budget, options

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return np.zeros(len(rows), dtype=np.int16), np.ones(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        options = self.options
        aim = options.target
        assert aim is not None
        assert aim.std is not None
        values = near.values(options.scale, options.limits)
        weights = options.weights or default_weights(values, options.spread)
        distance = Distance(aim.mean, aim.std, weights, options.spread)
        rows, reached = greedy(values, near.length, self.budget, distance, options)
        facts = {
            "target": {"mean": aim.mean, "std": aim.std, "scale": options.scale},
            "weights": {"mu": weights[0], "s": weights[1]}, "spread": options.spread, "distance": reached,
        }  # fmt: skip
        if options.stop is not None and reached is not None and reached <= options.stop:
            facts["stopped"] = self.budget - int(near.length[rows].sum())
        return Draw.of_rows(near, rows, self.name, facts)


def default_weights(values: Floats, spread: Literal["var", "std"] = "var") -> tuple[float, float]:
    """w_mu = n / sigma^2, w_s = n / ((kurtosis - 1) sigma^4) of the winsorised pool: both terms in standard errors.

    Of a standard deviation the standard error is that of the variance over 2 sigma: w_s = 4 n / ((kurtosis - 1)
    sigma^2). n is dropped (a common factor). A pool of two values has kurtosis 1; the excess is floored at 1e-6.
    """
    deviation = values - values.mean()
    variance = float(np.mean(deviation**2)) or 1.0
    kurtosis = float(np.mean(deviation**4)) / variance**2
    w_s = 1 / (max(kurtosis - 1, 1e-6) * variance**2)
    return 1 / variance, w_s if spread == "var" else 4 * variance * w_s


@dataclass(frozen=True)
class Distance:
    """J; `weights` (w_mu, w_s)."""

    mean: float
    std: float
    weights: tuple[float, float]
    spread: Literal["var", "std"] = "var"

    def after(self, d, k, s1, s2):  # type: ignore[no-untyped-def]
        """J of k chunks (sums s1 of d, s2 of d^2; d = value - mu*) after one more at d; scalars or arrays alike."""
        mean = (s1 + d) / (k + 1)
        var = (s2 + d * d) / (k + 1) - mean * mean
        if self.spread == "var":
            excess = var - self.std * self.std
        elif isinstance(var, float):
            excess = math.sqrt(var if var > 0 else 0.0) - self.std
        else:
            excess = np.sqrt(np.maximum(var, 0.0)) - self.std
        return self.weights[0] * (mean * mean) + self.weights[1] * (excess * excess)

    def minima(self, k: int, s1: float, s2: float) -> tuple[float, ...]:
        """The one or two values d at which J is a local minimum."""
        if k == 0:
            return (0.0,)
        mean = s1 / k
        variance = max(s2 / k - mean * mean, 0.0)
        if self.weights[1] == 0:
            return (mean - mean * (k + 1),)
        if self.spread == "var":
            return self._of_cubic(k, mean, variance)
        return self._of_root(k, mean, variance)

    def _of_cubic(self, k: int, mean: float, variance: float) -> tuple[float, ...]:
        """dJ/du = 0 is u^3 + p u + q = 0; three real roots are minimum, maximum, minimum."""
        r = 1 / (k + 1)
        lead = 2 * self.weights[1] * k * k * r**3
        p = (self.weights[0] * r + 2 * self.weights[1] * k * r * (k * r * variance - self.std**2)) / lead
        q = self.weights[0] * mean / lead
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

    def _of_root(self, k: int, mean: float, variance: float) -> tuple[float, ...]:
        """dJ/du is, up to a factor, f(u) = a + b u - c u / sqrt(p + q u^2).

        f is convex and rises for u > u0, is concave and rises for u < -u0 and falls between, where
        p + q u0^2 = (c p / b)^(2/3); so each rising piece holds at most one root, a minimum of J. Newton from beyond
        the root, where u / sqrt(p + q u^2) has its limit, comes down to it monotonically.
        """
        r = 1 / (k + 1)
        a = self.weights[0] * mean
        b = self.weights[0] * r + self.weights[1] * k * r
        c = self.weights[1] * k * r * self.std
        p, q = k * r * variance, k * r * r
        turn = math.sqrt(max(((c * p / b) ** (2 / 3) - p) / q, 0.0))
        found = []
        for side in (1.0, -1.0):  # mirrored, the left piece is the right one of -a
            at = side * a
            if at + b * turn - (c * turn / math.sqrt(p + q * turn * turn) if turn or p else c / math.sqrt(q)) <= 0:
                u = (c / math.sqrt(q) - at) / b
                for _ in range(100):
                    w = p + q * u * u
                    if w <= 0:
                        break
                    root = math.sqrt(w)
                    slope = b - c * p / (w * root)
                    step = (at + b * u - c * u / root) / slope if slope > 0 else 0.0
                    if not step > 1e-15 * u:
                        break
                    u -= step
                found.append(mean + side * u)
        return tuple(found)


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

    def best(self, k: int, s1: float, s2: float, distance: Distance) -> int:
        """Position of the unused value with the lowest J, ties to the lowest row; there must be one."""
        values, size = self.values, len(self.values)
        found: list[tuple[float, int, int]] = []
        least = math.inf
        for point in distance.minima(k, s1, s2):
            at = bisect_left(values, point)
            for j, step in ((self.left(at - 1), -1), (self.right(at), 1)):
                while 0 <= j < size:
                    J = distance.after(values[j], k, s1, s2)
                    if least * (1 + TIE) < J:
                        break
                    least = min(least, J)
                    found.append((J, self.row(j), j))
                    j = self.left(j - 1) if step < 0 else self.right(j + 1)
        return min((row, j) for J, row, j in found if least * (1 + TIE) >= J)[1]


def greedy(
    values: Floats, length: NDArray[np.int64], budget: int, distance: Distance, options: Options | None = None
) -> tuple[NDArray[np.intp], float | None]:
    """Rows in the order taken, and J of them all: at every step the chunk that fits the budget and minimises J.

    Of `options`: `before` (chunks that count as taken), `stop`, and `nested`, which ends at the first best chunk that
    does not fit.
    """
    options = options or Options()
    stop = -1.0 if options.stop is None else options.stop
    d, now = values - distance.mean, math.inf
    unused, lengths = Unused(d), length.tolist()
    longest, left = int(length.max(initial=0)), int(budget)
    taken: list[int] = []
    k, s1, s2 = _start(options.before, distance.mean)
    end = k + len(lengths)
    while left >= longest and k < end and now > stop:
        j = unused.best(k, s1, s2, distance)
        row, value = unused.row(j), unused.values[j]
        unused.use(j)
        taken.append(row)
        if stop >= 0:
            now = float(distance.after(value, k, s1, s2))
        k, s1, s2, left = k + 1, s1 + value, s2 + value * value, left - lengths[row]
    free = np.ones(len(d), dtype=bool)
    free[taken] = False
    while now > stop:  # The last few steps, where not every chunk fits any more.
        rows = np.flatnonzero(free & ((length <= left) | options.nested))
        if not len(rows):
            break
        each = distance.after(d[rows], k, s1, s2)
        row = int(rows[np.argmax(each.min() * (1 + TIE) >= each)])
        if length[row] > left:
            break
        free[row], now = False, float(each.min())
        taken.append(row)
        k, s1, s2, left = k + 1, s1 + float(d[row]), s2 + float(d[row]) ** 2, left - lengths[row]
    return np.asarray(taken, dtype=np.intp), _reached(distance, k, s1, s2)


def _start(before: Before | None, mean: float) -> tuple[int, float, float]:
    """k, s1, s2 of chunks that count as taken."""
    if before is None:
        return 0, 0.0, 0.0
    k = before.chunks
    return int(k), before.first - k * mean, before.second - 2 * mean * before.first + k * mean * mean


def _reached(distance: Distance, k: int, s1: float, s2: float) -> float | None:
    """J of k chunks."""
    if not k:
        return None
    mean, var = s1 / k, max(s2 / k - (s1 / k) ** 2, 0.0)
    excess = var - distance.std**2 if distance.spread == "var" else math.sqrt(var) - distance.std
    return distance.weights[0] * mean**2 + distance.weights[1] * excess**2
