"""The maximum-entropy draw: the most diverse subset with given tokens, mean and spread.

    q_i = 1 / (1 + exp(-lambda . f_i)),   f_i = (length_i, v_i - mu*, (v_i - mu*)^2 - s*^2),   totals (D, 0, 0)

maximises the entropy of independent inclusions under the three totals. lambda minimises the smooth convex dual
g(lambda) = sum_i log(1 + exp(lambda . f_i)) - lambda . totals, by Newton on micro-bins. A chunk is taken when its
permanent uniform h_i < q_i, that is when its margin lambda . f_i - logit(h_i) is positive; lambda is then solved again
on the realised sums with h fixed, and the set is trimmed at the threshold to the exact budget. What whole chunks leave
of the two moments is removed by a few swaps among the chunks nearest the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.budget import fill
from pplscape.draw.feasible import nearest_feasible
from pplscape.draw.microbins import Cells, micro_bins
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Draw, Pool
from pplscape.errors import UserError
from pplscape.statistics import Floats, Moments, moments

MARGINS = (0.02, 0.05, 0.2)
"""An infeasible target moves to the feasible set without this outer share of it: on the boundary itself only one subset
is left, and the draw has nothing to choose. The next is tried where floating point cannot solve the dual."""
ENOUGH = 3.0
"""Residual of the scaled moments' sums, in chunks one spread away, that is left to the swaps."""


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


def maxent(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Most diverse draw with mean and standard deviation `options.target` on `options.scale`.

    A target no subset of this size can have is replaced by the feasible one with the lowest predicted loss
    (`options.loss`), without a law by the nearest; `facts` say so, and what was achieved.
    """
    if options.target is None:
        raise UserError("Strategy maxent needs a target: pass --law, or --target-mean and --target-std.")
    values = pool.values(options.scale, options.limits)
    cells = micro_bins(values, pool.length)
    used, solution, scaling = aim(cells, budget, options)
    if solution.lam is None:  # All values are equal, or only the whole pool fills the budget.
        rows, rounds = fill(pool.order(seed), pool.length, budget), 0
    else:
        features = scaling.features(pool.length, values, values**2, used)
        rows, rounds = realise(features, pool.length, pool.uniforms(seed), solution.lam, budget)
    reached = moments(values[rows], (-np.inf, np.inf)) if len(rows) else Moments(0.0, 0.0)
    achieved = Target(reached.mean, reached.std)
    facts = {
        "target": _named(used, options.scale),
        "asked": _named(options.target, options.scale),
        "feasible": used == options.target,
        "achieved": _named(achieved, options.scale),
        "relative_error": {
            "mean": abs(reached.mean / used.mean - 1) if used.mean else None,
            "std": abs(reached.std / used.std - 1) if used.std else None,
        },
        "newton_steps": solution.steps,
        "rounds": rounds,
    }
    return Draw.of_rows(pool, rows, "maxent", facts)


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


def realise(
    features: Floats, length: NDArray[np.int64], h: Floats, lam: Floats, budget: int, rounds: int = 12
) -> tuple[NDArray[np.intp], int]:
    """Rows taken after solving lambda again on the realised sums, and how many rounds that took.

    Newton with the expected Jacobian from the best lambda so far, halving the step when it does not help: realised
    sums move in steps of whole chunks. Each round trims to the budget first, so only the moments are left to solve.
    """
    threshold = np.log(h) - np.log1p(-h)
    best, least, pace, residual = np.empty(0, dtype=np.intp), np.inf, 1.0, np.zeros(len(lam) - 1)
    at, tried, move = lam, lam, np.zeros(len(lam))
    done = 0
    while done < rounds and least > ENOUGH:
        done += 1
        rows = trim(features @ tried - threshold, length, budget)
        now = features[rows, 1:].sum(axis=0)
        error = float(np.abs(now).max())
        if error < least:
            best, least, pace, residual, at = rows, error, 1.0, now, tried
            q = _logistic(features @ at)
            jacobian = (features * (q * (1 - q))[:, None]).T @ features
            ridge = 1e-9 * np.trace(jacobian) * np.eye(len(lam))
            move = -np.linalg.solve(jacobian + ridge, np.array([0.0, *residual]))
        else:
            pace /= 2
        tried = at + pace * move
    return swap(best, features, length, features @ at - threshold, budget), done


def swap(
    rows: NDArray[np.intp], features: Floats, length: NDArray[np.int64], margin: Floats, budget: int, near: int = 256
) -> NDArray[np.intp]:
    """`rows` after exchanging taken for untaken chunks among the `near` nearest the threshold on each side.

    Greedy on the squared residual of the two moments; the budget stays filled: tokens never fall and never exceed it.
    """
    taken = np.zeros(len(length), dtype=bool)
    taken[rows] = True
    inside, outside = (_nearest(np.flatnonzero(side), margin, near) for side in (taken, ~taken))
    residual, left = features[rows, 1:].sum(axis=0), budget - int(length[rows].sum())
    for _ in range(64):
        change = features[outside, 1:][:, None] - features[inside, 1:]
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


def trim(margin: Floats, length: NDArray[np.int64], budget: int) -> NDArray[np.intp]:
    """Rows with the largest margins that fill the budget; only margins near the threshold are sorted."""
    width = 0.05
    while True:
        sure = np.flatnonzero(margin > width)
        near = np.flatnonzero(np.abs(margin) <= width)
        left = budget - int(length[sure].sum())
        everything = len(near) == len(margin)
        if left >= 0 and (everything or int(length[near].sum()) > left + 8 * int(length.max())):
            taken = fill(near[np.argsort(-margin[near], kind="stable")], length, left)
            return np.sort(np.concatenate([sure, taken]))
        width = width * 4 if width < 1e6 else np.inf


def _dual(f: Floats, c: Floats, totals: Floats, lam: Floats) -> float:
    return float(c @ np.logaddexp(0, f @ lam) - lam @ totals)


def _logistic(a: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -a))


def _named(m: Target, scale: str) -> dict[str, Any]:
    return {"mean": m.mean, "std": m.std, "scale": scale}
