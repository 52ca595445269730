"""The maximum-entropy draw: the most diverse subset with given tokens, mean and spread.

    q_i = 1 / (1 + exp(-lambda . f_i)),   f_i = (length_i, v_i - mu*, (v_i - mu*)^2 - s*^2),   totals (D, 0, 0)

maximises the entropy of independent inclusions under the three totals. lambda minimises the smooth convex dual
g(lambda) = sum_i log(1 + exp(lambda . f_i)) - lambda . totals, by Newton on micro-bins. A chunk is taken when its
permanent uniform h_i < q_i, that is when its margin lambda . f_i - logit(h_i) is positive; lambda is then solved again
on the realised sums with h fixed, and the set is trimmed at the threshold to the exact budget. What whole chunks leave
of the two moments is removed by a few swaps among the chunks nearest the threshold.

All but the chunks near the threshold are decided by the first lambda, so solving again needs only those: about
sqrt(n) of n, and no further pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.budget import REACH, Wider, fill
from pplscape.draw.census import Census
from pplscape.draw.feasible import nearest_feasible
from pplscape.draw.microbins import Cells
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import SIGMAS, Mask, Rule, Times
from pplscape.draw.scores import Rows
from pplscape.draw.uniform import Random
from pplscape.errors import UserError
from pplscape.statistics import Floats, on_scale

MARGINS = (0.02, 0.05, 0.2)
"""An infeasible target moves to the feasible set without this outer share of it: on the boundary itself only one subset
is left, and the draw has nothing to choose. The next is tried where floating point cannot solve the dual."""
ENOUGH = 3.0
"""Residual of the scaled moments' sums, in chunks one spread away, that is left to the swaps."""


STEPS = 1 << 20
"""Sums of moments over decided chunks are kept in whole steps of 1 / STEPS: exact in any order."""


@dataclass(frozen=True)
class Solution:
    """Where Newton ended: `lam` [F] for features scaled by `Scaling`; None if no subset has the totals."""

    lam: Floats | None
    steps: int


@dataclass(frozen=True)
class Scaling:
    """Makes features of order one: they are divided by (mean length, spread, spread^2)."""

    length: float
    spread: float

    def features(self, length: NDArray, value: Floats, square: Floats, target: Target) -> Floats:
        """[n, F] of lengths [n], values [n] and squares [n] (a cell's mean square is not its mean squared).

        F is 3, or 2 when the target leaves the spread free.
        """
        columns = [length / self.length, (value - target.mean) / self.spread]
        if target.std is not None:
            columns.append((square - 2 * target.mean * value + target.mean**2 - target.std**2) / self.spread**2)
        return np.column_stack(columns)


class MaxEnt(Rule):
    """Most diverse draw with mean and standard deviation `options.target` on `options.scale`.

    A target no subset of this size can have is replaced by the feasible one with the lowest predicted loss
    (`options.loss`), without a law by the nearest; `facts` say so, and what was achieved.

    Undecided is a chunk whose margin is below `reach` |root . f| + `least`: by Cauchy-Schwarz no lambda within `reach`
    standard errors of the first (in the metric of the dual's Hessian), with a threshold within `least`, decides
    another one differently.
    """

    name = "maxent"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        if options.target is None:
            raise UserError("Strategy maxent needs a target: pass --law, or --target-mean and --target-std.")
        self.budget, self.seed, self.options, self.width = budget, seed, options, width
        self.limits = options.limits or census.limits(options.scale)
        self.cells = census.cells(options.scale, self.limits)
        self.used, self.solution, self.scaling = aim(self.cells, budget, options)
        self.plain = Random(census, budget, seed, options, width)
        if self.solution.lam is None:  # All values are equal, or only the whole pool fills the budget.
            return
        self.lam = self.solution.lam
        features = self.scaling.features(self.cells.length, self.cells.value, self.cells.square, self.used)
        hessian, moving = self.hessian(self.lam)
        self.metric, self.root = hessian, np.linalg.cholesky(np.linalg.inv(hessian))
        self.reach = width * SIGMAS
        spread = np.sqrt(census.longest * moving)
        self.least = width * (SIGMAS * spread + 2 * REACH * census.longest) / moving if moving > 0 else np.inf
        value = np.linspace(*self.limits, 4096)
        ends = [self.scaling.features(np.full(4096, n), value, value**2, self.used) for n in (0, census.longest)]
        self.most = 1.01 * float(self._stretch(np.concatenate([features, *ends]).T).max())

    def hessian(self, lam: Floats) -> tuple[Floats, float]:
        """Hessian [F, F] of the dual at `lam`, and tokens that a unit of margin moves."""
        f = self.scaling.features(self.cells.length, self.cells.value, self.cells.square, self.used)
        q = _logistic(f @ lam)
        weight = self.cells.count * q * (1 - q)
        full = (f * weight[:, None]).T @ f
        return full + 1e-9 * np.trace(full) * np.eye(len(lam)), float(weight @ self.cells.length)

    def features(self, rows: Rows | Pool) -> list[Floats]:
        """F columns [n]; element by element, so that they do not depend on how rows are cut into batches."""
        value = np.clip(on_scale(rows.x, self.options.scale), *self.limits)
        away = (value - self.used.mean) / self.scaling.spread
        columns = [rows.length / self.scaling.length, away]
        return columns if self.used.std is None else [*columns, away**2 - (self.used.std / self.scaling.spread) ** 2]

    def _stretch(self, columns: Any) -> Floats:
        """How far from zero a margin is still undecided [n]."""
        if not np.isfinite(self.width):
            return np.full(len(columns[0]), np.inf)
        turned = [sum(r * c for r, c in zip(row, columns, strict=True)) for row in self.root.T]
        return self.reach * np.sqrt(sum(t**2 for t in turned)) + self.least

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        if self.solution.lam is None:
            return self.plain.sides(rows)
        columns = self.features(rows)
        margin = _margin(columns, self.lam, rows.h)
        near = np.abs(margin) <= self.most
        maybe = np.flatnonzero(near)
        near[maybe] = np.abs(margin[maybe]) <= self._stretch([c[maybe] for c in columns])
        return (margin > 0).astype(np.int16), near

    def totals(self, rows: Rows, times: Times) -> NDArray[np.int64]:
        """Tokens, chunks, and sums of the standardised distance from the target's mean and its square, fixed point."""
        at = np.flatnonzero(times)
        value = np.clip(on_scale(rows.x[at], self.options.scale), *self.limits)
        away = (value - self.used.mean) / self.scaling.spread
        sums = [np.rint(w * STEPS).astype(np.int64).sum() for w in (away, away**2)]
        return np.array([rows.length[at].sum(), len(at), *sums])

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        left = self.budget - int(sure[0])
        if self.solution.lam is None:
            rows, rounds = fill(near.order(self.seed), near.length, left, self.plain.high >= 1), 0
        else:
            if left < 0:
                raise Wider
            rows, rounds = self._realise(near, sure, left)
        every = sure + self.totals(near.subset(rows).rows(self.seed), np.ones(len(rows), np.int16))
        n, (first, second) = max(int(every[1]), 1), every[2:] / STEPS
        reached = Target(
            self.used.mean + self.scaling.spread * first / n if every[1] else 0.0,
            self.scaling.spread * float(np.sqrt(max(second / n - (first / n) ** 2, 0.0))),
        )
        used, asked = self.used, self.options.target
        facts = {
            "target": _named(used, self.options.scale),
            "asked": _named(asked, self.options.scale),  # type: ignore[arg-type]
            "feasible": used == asked,
            "achieved": _named(reached, self.options.scale),
            "relative_error": {
                "mean": abs(reached.mean / used.mean - 1) if used.mean else None,
                "std": abs(reached.std / used.std - 1) if used.std and reached.std is not None else None,
            },
            "newton_steps": self.solution.steps,
            "rounds": rounds,
        }
        return Draw.of_rows(near, rows, self.name, facts)

    def _realise(
        self, near: Pool, sure: NDArray[np.int64], left: int, rounds: int = 12
    ) -> tuple[NDArray[np.intp], int]:
        """Undecided rows taken after solving lambda again on the realised sums, and how many rounds that took.

        Newton with the expected Jacobian from the best lambda so far, halving the step when it does not help: realised
        sums move in steps of whole chunks. Each round trims to the budget first, so only the moments are left to solve.
        """
        columns, h = self.features(near), near.uniforms(self.seed)
        moments_of = np.column_stack(columns[1:])
        base = sure[2:] / STEPS
        if self.used.std is not None:
            base[1] -= sure[1] * (self.used.std / self.scaling.spread) ** 2
        base = base[: len(columns) - 1]
        best, least, pace, residual = np.empty(0, dtype=np.intp), np.inf, 1.0, base
        at, tried, move = self.lam, self.lam, np.zeros(len(self.lam))
        done = 0
        while done < rounds and least > ENOUGH:
            done += 1
            margin = _margin(columns, tried, h)
            rows, threshold = trim(margin, near.length, left)
            self._check(tried, threshold, len(near) - len(rows))
            now = base + moments_of[rows].sum(axis=0)
            error = float(np.abs(now).max())
            if error < least:
                best, least, pace, residual, at = rows, error, 1.0, now, tried
                move = -np.linalg.solve(self.hessian(at)[0], np.array([0.0, *residual]))
            else:
                pace /= 2
            tried = at + pace * move
        return swap(best, moments_of, near.length, _margin(columns, at, h), residual, left), done

    def _check(self, lam: Floats, threshold: float, beyond: int) -> None:
        """Wider if another chunk than the undecided could be decided differently."""
        away = lam - self.lam
        if np.isfinite(self.width) and (
            away @ self.metric @ away > self.reach**2 or abs(threshold) > self.least or beyond < REACH
        ):
            raise Wider


def aim(cells: Cells, budget: float, options: Options) -> tuple[Target, Solution, Scaling]:
    """The target if a subset can have it, else its replacement, with the dual solution."""
    assert options.target is not None
    scaling = Scaling(cells.tokens / cells.count.sum(), cells.spread or 1.0)
    solution = solve(cells, scaling, options.target, budget)
    if solution.lam is not None:
        return options.target, solution, scaling
    for margin in MARGINS:
        used = nearest_feasible(cells, budget, options.target, options.loss, margin)
        solution = solve(cells, scaling, used, budget)
        if solution.lam is not None:
            return used, solution, scaling
    return Target(cells.mean, cells.spread), solution, scaling


def solve(cells: Cells, scaling: Scaling, target: Target, budget: float) -> Solution:
    """Minimise the dual by damped Newton.

    The dual is bounded below by the entropy of any q with the totals, so a negative value proves that there is none.
    """
    f = scaling.features(cells.length, cells.value, cells.square, target)
    c, totals = cells.count, np.zeros(f.shape[1])
    totals[0] = budget / scaling.length
    share = min(max(budget / cells.tokens, 1e-12), 1 - 1e-12)
    lam = np.zeros(f.shape[1])
    lam[0] = np.log(share / (1 - share))
    value = _dual(f, c, totals, lam)
    for step in range(100):
        q = _logistic(f @ lam)
        gradient = (c * q) @ f - totals
        if np.abs(gradient).max() <= 1e-9 * totals[0]:
            return Solution(lam, step)
        hessian = (f * (c * q * (1 - q))[:, None]).T @ f
        move = -np.linalg.solve(hessian + 1e-12 * np.trace(hessian) * np.eye(len(lam)), gradient)
        slope, pace = float(gradient @ move), 1.0
        while (new := _dual(f, c, totals, lam + pace * move)) > value + 1e-4 * pace * slope and pace > 1e-8:
            pace /= 2
        lam, value = lam + pace * move, new
        if value < 0 or not np.isfinite(value):
            return Solution(None, step + 1)
    return Solution(None, 100)


def swap(
    rows: NDArray[np.intp],
    features: Floats,
    length: NDArray[np.int64],
    margin: Floats,
    residual: Floats,
    budget: int,
    near: int = 256,
) -> NDArray[np.intp]:
    """`rows` after exchanging taken for untaken chunks among the `near` nearest the threshold on each side.

    Greedy on the squared `residual` of the moments' `features` [n, 1 or 2]; the budget stays filled: tokens never fall
    and never exceed it.
    """
    taken = np.zeros(len(length), dtype=bool)
    taken[rows] = True
    inside, outside = (_nearest(np.flatnonzero(side), margin, near) for side in (taken, ~taken))
    left = budget - int(length[rows].sum())
    for _ in range(64):
        change = features[outside][:, None] - features[inside]
        longer = length[outside][:, None] - length[inside]
        fits = (longer >= 0) & (longer <= left) & (length[inside] > left)
        size = np.where(fits, ((residual + change) ** 2).sum(axis=2), np.inf)
        if not size.size or size.min() >= residual @ residual:
            break
        o, i = np.unravel_index(np.argmin(size), size.shape)
        residual, left = residual + change[o, i], left - int(longer[o, i])
        inside[i], outside[o] = outside[o], inside[i]
        taken[inside[i]], taken[outside[o]] = True, False
    return np.flatnonzero(taken)


def _nearest(rows: NDArray[np.intp], margin: Floats, near: int) -> NDArray[np.intp]:
    if len(rows) > near:
        rows = rows[np.argpartition(np.abs(margin[rows]), near)[:near]]
    return np.sort(rows)


def trim(margin: Floats, length: NDArray[np.int64], budget: int) -> tuple[NDArray[np.intp], float]:
    """Rows with the largest margins that fill the budget, ascending, and the margin of the first that does not fit."""
    order = np.argsort(-margin, kind="stable")
    k = int(np.searchsorted(np.cumsum(length[order]), budget, side="right"))
    return np.sort(fill(order, length, budget)), float(margin[order[k]]) if k < len(order) else 0.0


def _margin(columns: list[Floats], lam: Floats, h: Floats) -> Floats:
    """lambda . f - logit(h) [n]: a chunk is taken where it is positive."""
    margin = np.log1p(-h) - np.log(h)
    for weight, column in zip(lam, columns, strict=True):
        margin += weight * column
    return margin


def _dual(f: Floats, c: Floats, totals: Floats, lam: Floats) -> float:
    return float(c @ np.logaddexp(0, f @ lam) - lam @ totals)


def _logistic(a: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -a))


def _named(m: Target, scale: str) -> dict[str, Any]:
    return {"mean": m.mean, "std": m.std, "scale": scale}
