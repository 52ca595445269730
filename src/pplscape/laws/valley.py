"""The valley of nearly equal fit that E and the exponents lie along: fits with one parameter held, and how strongly the
runs object to each.

    2 rise = (sum_i w_i g_i psi_i)^2 / (mean psi' sum_i w_i g_i^2)

to first order, g = derivative of ln L by the parameter less what the other parameters follow, psi = Huber's score of
the noise. Branches of a trunk share noise and its variances are drawn from their posterior (`noise.noise_posterior`),
so the signed root is referred to a mixture of normals: Student's t where one variance is all there is. `limits` inverts
that test at one level, refits take their E from all of its levels (`Valley.path`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pplscape.laws.fit import Setting, problem_of
from pplscape.laws.forms.base import Floats
from pplscape.laws.identified import EXPONENTS
from pplscape.laws.noise import Noise, fitted_space, noise_posterior
from pplscape.laws.polish import Problem, polish
from pplscape.laws.shrinkage import likeliest

TRUST = 0.25
"""Weight of a form's prior where intervals are made: its spread is twice as wide as in the fit. An estimate may lean on
a belief; an interval that did would hold the truth only where the belief is right."""
DRAWS = 300
"""Draws of the noise's posterior behind a quantile: its error is 0.2 points."""
LAST = 0.01
"""A bound nearer than this share of the parameter's range is tried at once."""
STIFFNESS = 1e2
"""Pull that holds a parameter, over the curvature that the objective has with all others at rest."""
HELD = (40, 1e-8)
FREE = (300, 1e-11)
"""Most steps of the polish, and the relative gain below which it stops: the free fit lies in a flat valley."""
KNOT, WIDEST_KNOT = 0.5, 1.0
"""Normal scores that knots of a path should be, and may at most be, apart."""
FURTHEST = 2.6
"""Normal score at which a path ends: one draw in 200 would lie beyond."""
ROUNDS = 40
"""Most values tried on a side of a path."""


def coordinate(setting: Setting, theta: Floats, name: str) -> int | None:
    """Index of the only coordinate of theta that moves parameter `name`; None if the form has no such parameter."""
    form, frame = setting.form, setting.frame
    if name not in form.names(frame):
        return None
    at, first = form.names(frame).index(name), theta[:1]
    moved = first + np.diag(1e-4 * np.maximum(np.abs(first[0]), 1e-2))
    with np.errstate(all="ignore"):
        changed = form.params(moved, frame)[:, at] != form.params(first, frame)[:, at]
    return int(np.flatnonzero(changed)[0]) if changed.sum() == 1 else None


@dataclass(frozen=True)
class Path:
    """The valley of one table: K fits with one parameter held, by the normal score of the test that rejects them."""

    score: Floats
    """[K] rising; negative below the free fit."""
    theta: Floats
    """[K, p]"""
    predicted: Floats
    """[K, n] ln L."""

    def at(self, score: Floats) -> tuple[Floats, Floats]:
        """(theta [B, p], ln L [B, n]) at scores [B], straight between knots; beyond the last the last."""
        right = np.clip(np.searchsorted(self.score, score), 1, len(self.score) - 1) if len(self.score) > 1 else 0
        left = np.maximum(np.asarray(right) - 1, 0)
        gap = np.maximum(self.score[right] - self.score[left], 1e-12)
        share = np.clip((score - self.score[left]) / gap, 0.0, 1.0)[:, None]
        return tuple(v[left] + share * (v[right] - v[left]) for v in (self.theta, self.predicted))  # type: ignore[return-value]


@dataclass(frozen=True)
class Valley:
    """T free fits and what their residuals say of the noise."""

    problem: Problem
    theta: Floats
    """[T, p] lowest points known."""
    least: Floats
    """[T] objective there."""
    scale: Floats
    """[T, n] ln L x scale has the same noise in every run."""
    trunk: Floats
    """[T, R] standard deviations of that noise shared by a trunk, drawn."""
    run: Floats
    """[T, R] of one run given its trunk."""
    members: NDArray[np.intp]
    """[n] trunk of each run."""
    bend: Floats
    """[T] variance of Huber's score over the noise's, over its mean slope."""

    @classmethod
    def of(
        cls, problem: Problem, theta: Floats, groups: NDArray[np.str_], seed: int, known: Noise | None = None
    ) -> Valley:
        """`known` noise takes the place of its posterior."""
        theta, least = polish(problem, np.clip(theta, *problem.bounds()), *FREE)
        predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
        assert jacobian is not None
        weight, residual = problem.weight, problem.log_loss - predicted
        even = np.exp(predicted - predicted.mean(1, keepdims=True))
        scale = np.sqrt(weight) if np.ptp(weight[0]) else even
        if known is None:
            rng = np.random.default_rng(seed)
            drawn = []
            for t in range(len(theta)):
                space = fitted_space(problem.rows(slice(t, t + 1)), theta[t], jacobian[t], scale[t])
                drawn.append(noise_posterior(residual[t] * scale[t], space, groups, DRAWS, rng))
            trunk, run = (np.array(side) for side in zip(*drawn, strict=True))
        else:
            trunk, run = np.full((len(theta), 1), known.trunk), np.full((len(theta), 1), known.run)
        size = np.abs(residual)
        score = np.minimum(size, problem.delta)
        inside = np.broadcast_to(size <= problem.delta, size.shape).mean(1)
        squares = (size**2).sum(1)
        kept = np.divide((score**2).sum(1), squares, out=np.ones_like(squares), where=squares > 0)
        bend = kept / np.maximum(inside, 0.1)
        return cls(problem, theta, least, scale, trunk, run, np.unique(groups, return_inverse=True)[1], bend)

    def rows(self, rows: NDArray[np.intp]) -> Valley:
        """The same valleys for tables `rows`."""
        theta, least, scale, trunk, run, bend = (
            part[rows] for part in (self.theta, self.least, self.scale, self.trunk, self.run, self.bend)
        )
        return Valley(self.problem.rows(rows), theta, least, scale, trunk, run, self.members, bend)

    def without_residuals(self, rows: NDArray[np.intp], theta: Floats) -> Valley:
        """The valley of runs [B] that lie on the law at theta [B, p] and have the noise of tables `rows`."""
        there = self.rows(rows)
        exact = there.problem.form.evaluate(theta, there.problem.data, there.problem.frame, jacobian=False)[0]
        problem = replace(there.problem, log_loss=exact)
        best, least = polish(problem, np.clip(theta, *problem.bounds()), *FREE)
        return replace(there, problem=problem, theta=best, least=least)

    def look(self, rows: NDArray[np.intp], theta: Floats, i: int) -> tuple[Floats, Floats, Floats, Floats]:
        """At points theta [B, p] of tables `rows`, coordinate i held: normal score [B] of the test that rejects them,
        direction [B, p] of the profile, its curvature [B], and that with the others at rest [B]."""
        problem = self.problem.rows(rows)
        predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
        assert jacobian is not None
        rise = 2 * np.maximum(problem.value(predicted, theta) - self.least[rows], 0.0)
        alone, direction = others_out(problem, theta, jacobian, i)
        information = np.maximum((problem.weight * alone**2).sum(1), 1e-300)
        spread = np.sqrt(self.bend[rows] / information)[:, None] * self._spread(rows, problem.weight * alone)
        root = np.sqrt(np.nan_to_num(rise, nan=np.inf, posinf=1e300))[:, None]
        own = (problem.weight * jacobian[..., i] ** 2).sum(1)
        return _normal(root, spread), direction, information, own

    def _spread(self, rows: NDArray[np.intp], pushed: Floats) -> Floats:
        """Standard deviations [B, R] of sum_i pushed_i noise_i, for pushed [B, n], under each draw of the noise."""
        pushed = pushed / self.scale[rows]
        sums = pushed @ np.eye(int(self.members.max()) + 1)[self.members]
        variance = self.trunk[rows] ** 2 * (sums**2).sum(1)[:, None]
        return np.sqrt(variance + self.run[rows] ** 2 * (pushed**2).sum(1)[:, None])

    def scores(self, t: int, error: Floats, i: int) -> tuple[Floats, Floats]:
        """(normal scores [B] of where errors [B, n] of ln L move coordinate i of table t, to first order; the errors
        without the part that moves it)."""
        row = np.array([t])
        problem = self.problem.rows(row)
        jacobian = problem.form.evaluate(self.theta[row], problem.data, problem.frame)[1]
        assert jacobian is not None
        alone = others_out(problem, self.theta[row], jacobian, i)[0]
        pushed = problem.weight * alone
        moved = error @ pushed[0]
        scores = np.sign(moved) * _normal(np.abs(moved)[:, None], self._spread(row, pushed))
        return scores, error - np.outer(moved / max(float(np.sum(pushed * alone)), 1e-300), alone[0])

    def curvature(self, i: int) -> Floats:
        """Curvature [T] of the objective along coordinate i with all others at rest."""
        jacobian = self.problem.form.evaluate(self.theta, self.problem.data, self.problem.frame)[1]
        assert jacobian is not None
        return np.asarray((self.problem.weight * jacobian[..., i] ** 2).sum(1))

    def hold(self, rows: NDArray[np.intp], i: int, theta: Floats, ahead: Floats, held: Floats, own: Floats) -> Floats:
        """theta [B, p] fitted with coordinate i drawn to `held` [B], from the better of theta and theta + ahead; `own`
        [B] as `look` gives it."""
        problem = self.problem.rows(np.tile(rows, 2))
        ridge, centre = problem.ridge.copy(), problem.centre.copy()
        ridge[:, i, i] += STIFFNESS * np.tile(np.maximum(own, 1e-300), 2)
        centre[:, i] = np.tile(held, 2)
        starts = np.concatenate([theta, theta + np.nan_to_num(ahead)])
        starts[:, i] = centre[:, i]
        ends, value = polish(replace(problem, ridge=ridge, centre=centre), np.clip(starts, *problem.bounds()), *HELD)
        best = np.nan_to_num(value, nan=np.inf).reshape(2, -1).argmin(0)
        return ends.reshape(2, *theta.shape)[best, np.arange(len(rows))]

    def paths(self, i: int) -> list[Path]:
        """The valley along coordinate i of every table."""
        zero = np.zeros(len(self.theta))
        knots = [(np.arange(len(self.theta)), zero, self.theta)]
        for sign in (-1.0, 1.0):
            knots += self._walk(i, sign)
        rows, score, theta = (np.concatenate(column) for column in zip(*knots, strict=True))
        problem = self.problem
        found = []
        for t in range(len(self.theta)):
            of = np.flatnonzero(rows == t)
            of = of[np.argsort(score[of], kind="stable")]
            predicted = problem.form.evaluate(theta[of], problem.data, problem.frame, jacobian=False)[0]
            found.append(Path(score[of], theta[of], predicted))
        return found

    def _walk(self, i: int, sign: float) -> list[tuple[NDArray[np.intp], Floats, Floats]]:
        """(tables, signed scores, theta) of the knots on one side, from the free fit to FURTHEST or the bound."""
        low, high = (side[:, i] for side in self.problem.bounds())
        start, edge, extent = self.theta[:, i], low if sign < 0 else high, high - low
        room = np.abs(edge - start)
        theta, score, at = self.theta.copy(), np.zeros(len(start)), np.zeros(len(start))
        _, direction, information, own = self.look(np.arange(len(start)), theta, i)
        noise = np.median(np.hypot(self.trunk, self.run), axis=1)
        step = KNOT * noise / np.sqrt(information)
        least = 1e-3 * np.where(np.isfinite(extent), extent, step)
        rows = np.flatnonzero(room > 0)
        knots = []
        for _ in range(ROUNDS):
            if not len(rows):
                break
            distance = np.minimum(at[rows] + step[rows], furthest(at[rows], room[rows], extent[rows]))
            held = start[rows] + sign * distance
            ahead = (held - theta[rows, i])[:, None] * direction[rows]
            found = self.hold(rows, i, theta[rows], ahead, held, own[rows])
            reached, turned, _, steep = self.look(rows, found, i)
            gain, went = reached - score[rows], distance - at[rows]
            near = (gain <= WIDEST_KNOT) | (went < least[rows])
            step[rows] = went * np.clip(KNOT / np.maximum(gain, 1e-3), 0.2, 3.0)
            to = rows[near]
            score[to] = np.maximum(reached, score[rows])[near]  # a fit that found a lower place further out: flat
            theta[to], at[to], direction[to], own[to] = found[near], distance[near], turned[near], steep[near]
            knots.append((to, sign * score[to], theta[to]))
            rows = rows[~(near & ((score[rows] >= FURTHEST) | (at[rows] >= room[rows])))]
        return knots


def _normal(root: Floats, spread: Floats) -> Floats:
    """Normal score [B] of the chance that normals of spreads [B, R], mixed, exceed root [B, 1]."""
    return -ndtri(np.maximum(ndtr(-root / np.maximum(spread, 1e-300)).mean(1), 1e-300))


def others_out(problem: Problem, theta: Floats, jacobian: Floats, i: int) -> tuple[Floats, Floats]:
    """(derivative [B, n] of ln L by coordinate i less what the others follow, d theta / d theta_i [B, p])."""
    low, high = problem.bounds()
    basis = problem.form.basis(problem.data, problem.frame)
    others = np.arange(theta.shape[1]) != i
    free = ((theta > low) & (theta < high) & others).astype(float)
    moved = (jacobian @ basis) * free[:, None, :]
    curvature = np.swapaxes(moved, 1, 2) @ (moved * problem.weight[..., None])
    curvature = curvature + (basis.T @ problem.ridge @ basis) * free[:, :, None] * free[:, None, :]
    size = np.sqrt(np.einsum("bpp->bp", curvature))
    inverse = np.where(size > 0, 1 / np.maximum(size, 1e-300), 0.0)
    scaled = np.nan_to_num(curvature * inverse[:, :, None] * inverse[:, None, :])
    slope = jacobian[..., i]
    pushed = (np.swapaxes(moved, 1, 2) @ (problem.weight * slope)[..., None])[..., 0] * inverse
    follow = (np.linalg.pinv(scaled, rcond=1e-10, hermitian=True) @ pushed[..., None])[..., 0] * inverse
    direction = -follow @ basis.T
    direction[:, i] = 1.0
    return slope - (moved @ follow[..., None])[..., 0], direction


def furthest(distance: Floats, room: Floats, extent: Floats) -> Floats:
    """How far the next step may go [B]: near the bound the valley bends, and a fit that jumps would lose it."""
    left = room - distance
    return np.where(left < LAST * extent, room, distance + np.minimum(0.5 * left, extent / 6))


def valley_of(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    seed: int = 0,
    known: Noise | None = None,
    names: Sequence[str] = ("E", *EXPONENTS),
) -> tuple[Valley, Mapping[str, int]]:
    """The valley of T tables [T, n] near fits theta [T, p], and the coordinates of those of `names` that are one."""
    own = {name: i for name in names if (i := coordinate(setting, theta, name)) is not None}
    loose = replace(setting, trust=TRUST)
    strength = likeliest(loose, theta, log_loss, weight, groups, seed, known)
    return Valley.of(
        _unbelieving(loose, log_loss, weight, strength, list(own.values())), theta, groups, seed, known
    ), own


def _unbelieving(loose: Setting, log_loss: Floats, weight: Floats, strength: Floats, own: Sequence[int]) -> Problem:
    """The refits' problem (`uncertainty.refits`) without what is believed of the parameters in question."""
    problem = problem_of(loose, log_loss, np.broadcast_to(weight, log_loss.shape), strength)
    ridge = problem.ridge.copy()
    ridge[:, own, :] = 0.0
    ridge[:, :, own] = 0.0
    return replace(problem, ridge=ridge)
