"""Limits of the irreducible loss and of exponents: the values that the runs do not reject, by inverting a test.

E and the exponents lie along a valley of nearly equal fit that ends at bounds (E = 0, E = the smallest loss). How far
estimates scatter depends on where on the valley they are, so quantiles of refits held E in 69 to 98 % of simulated data
sets where 90 were asked for. A test of one value needs no such symmetry: with the parameter held there the others are
well identified, and the rise of the objective above its minimum is asymptotically what it is for any identified
parameter, whether or not the runs could have told this one.

    2 rise = (sum_i w_i g_i psi_i)^2 / (mean psi' sum_i w_i g_i^2)

to first order, g = derivative of ln L by the parameter less what the other parameters follow, psi = Huber's score of
the noise. Branches of a trunk share noise and its variances are drawn from their posterior
(`uncertainty.noise_posterior`), so the signed root is referred to a mixture of normals: Student's t where one variance
is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from pplscape.laws.fit import Fit, Setting, problem_of, setting_of
from pplscape.laws.forms.base import Floats
from pplscape.laws.polish import Problem, polish
from pplscape.laws.table import labels, noise_weights
from pplscape.laws.uncertainty import TRUST, fitted_space, noise_posterior
from pplscape.runs import RunTable

EXPONENTS = ("aD", "alpha", "beta")
"""Parameters that trade off with the irreducible loss E along a valley of equal fit."""
DRAWS = 300
"""Draws of the noise's posterior behind a quantile: its error is 0.2 points."""
LAST = 0.01
"""A bound nearer than this share of the parameter's range is tried at once."""
ROUNDS = 30
"""Most values tried on a side; a limit beyond the last is that value."""
CLOSE = 0.02
"""A value whose normal score is this near the wanted one is the limit."""
STIFFNESS = 1e2
"""Pull that holds a parameter, over the curvature that the objective has with all others at rest."""
HELD = (40, 1e-8)
FREE = (300, 1e-11)
"""Most steps of the polish, and the relative gain below which it stops: the free fit lies in a flat valley."""


def limits_of(fit: Fit, runs: RunTable, level: float = 0.9, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(low, high) at `level` of E and the exponents of one fit, in the units of `fit.params`.

    A side that the runs do not reject ends at the parameter's bound.
    """
    setting = setting_of(fit.form, runs, fit.delta)
    found = limits(
        setting, fit.theta[None], np.log(runs.loss)[None], noise_weights(runs), labels(runs, "group"), level, seed
    )
    return {name: (float(low[0]), float(high[0])) for name, (low, high) in found.items()}


def limits(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    level: float = 0.9,
    seed: int = 0,
    names: Sequence[str] = ("E", *EXPONENTS),
) -> Mapping[str, tuple[Floats, Floats]]:
    """(low [T], high [T]) of each of `names` that the form has, for T tables of the same compositions.

    theta [T, p] are the fits, log_loss [T, n], weight [n]. Empty for parameters that are not one coordinate of theta.
    """
    own = {name: i for name in names if (i := coordinate(setting, theta, name)) is not None}
    if not own:
        return {}
    problem = _unbelieving(setting, log_loss, weight, list(own.values()))
    valley = _Valley.of(problem, theta, groups, seed)
    found = {}
    for name, i in own.items():
        sides = [_limit(valley, i, sign, float(ndtri(0.5 + level / 2))) for sign in (-1.0, 1.0)]
        at = setting.form.names(setting.frame).index(name)
        ends = np.sort([setting.form.params(side, setting.frame)[:, at] for side in sides], axis=0)
        found[name] = (ends[0], ends[1])
    return found


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


def _unbelieving(setting: Setting, log_loss: Floats, weight: Floats, own: Sequence[int]) -> Problem:
    """The refits' problem (`uncertainty.refits`) without what is believed of the parameters in question."""
    penalty = setting.form.penalty(setting.frame)
    weakest = np.full(len(log_loss), min(penalty.strengths) if penalty else 0.0)
    loose = replace(setting, trust=TRUST)
    problem = problem_of(loose, log_loss, np.broadcast_to(weight, log_loss.shape), weakest)
    ridge = problem.ridge.copy()
    ridge[:, own, :] = 0.0
    ridge[:, :, own] = 0.0
    return replace(problem, ridge=ridge)


@dataclass(frozen=True)
class _Valley:
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
    def of(cls, problem: Problem, theta: Floats, groups: NDArray[np.str_], seed: int) -> _Valley:
        theta, least = polish(problem, np.clip(theta, *problem.bounds()), *FREE)
        predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
        assert jacobian is not None
        weight, residual = problem.weight, problem.log_loss - predicted
        even = np.exp(predicted - predicted.mean(1, keepdims=True))
        scale = np.sqrt(weight) if np.ptp(weight[0]) else even
        rng = np.random.default_rng(seed)
        drawn = []
        for t in range(len(theta)):
            space = fitted_space(problem.rows(slice(t, t + 1)), theta[t], jacobian[t], scale[t])
            drawn.append(noise_posterior(residual[t] * scale[t], space, groups, DRAWS, rng))
        trunk, run = (np.array(side) for side in zip(*drawn, strict=True))
        size = np.abs(residual)
        score = np.minimum(size, problem.delta)
        inside = np.broadcast_to(size <= problem.delta, size.shape).mean(1)
        bend = (score**2).sum(1) / np.maximum((size**2).sum(1), 1e-300) / np.maximum(inside, 0.1)
        return cls(problem, theta, least, scale, trunk, run, np.unique(groups, return_inverse=True)[1], bend)

    def look(self, rows: NDArray[np.intp], theta: Floats, i: int) -> tuple[Floats, Floats, Floats, Floats]:
        """At points theta [B, p] of tables `rows`, coordinate i held: normal score [B] of the test that rejects them,
        direction [B, p] of the profile, its curvature [B], and that with the others at rest [B]."""
        problem = self.problem.rows(rows)
        predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
        assert jacobian is not None
        rise = 2 * np.maximum(problem.value(predicted, theta) - self.least[rows], 0.0)
        alone, direction = _others_out(problem, theta, jacobian, i)
        information = (problem.weight * alone**2).sum(1)
        pushed = problem.weight * alone / self.scale[rows]
        sums = pushed @ np.eye(int(self.members.max()) + 1)[self.members]
        variance = self.trunk[rows] ** 2 * (sums**2).sum(1)[:, None]
        variance = variance + self.run[rows] ** 2 * (pushed**2).sum(1)[:, None]
        spread = np.sqrt(self.bend[rows][:, None] * variance / np.maximum(information, 1e-300)[:, None])
        root = np.sqrt(np.nan_to_num(rise, nan=np.inf, posinf=1e300))[:, None] / np.maximum(spread, 1e-300)
        own = (problem.weight * jacobian[..., i] ** 2).sum(1)
        return -ndtri(np.maximum(ndtr(-root).mean(1), 1e-300)), direction, information, own


def _others_out(problem: Problem, theta: Floats, jacobian: Floats, i: int) -> tuple[Floats, Floats]:
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


def _limit(valley: _Valley, i: int, sign: float, wanted: float) -> Floats:
    """theta [T, p] whose coordinate i is the limit on one side: outwards in growing steps, then by regula falsi."""
    low, high = (side[:, i] for side in valley.problem.bounds())
    start, edge, extent = valley.theta[:, i], low if sign < 0 else high, high - low
    room = np.abs(edge - start)
    n = len(start)
    _, direction, information, own = valley.look(np.arange(n), valley.theta, i)
    noise = np.median(np.hypot(valley.trunk, valley.run), axis=1)
    first = wanted * noise / np.sqrt(np.maximum(information, 1e-300))
    distance = np.minimum(first, _furthest(np.zeros(n), room, extent))
    inner, inner_score, inner_theta = np.zeros(n), np.zeros(n), valley.theta.copy()
    outer, outer_score = np.full(n, np.inf), np.full(n, np.inf)
    rows = np.flatnonzero(room > 0)
    for _ in range(ROUNDS):
        if not len(rows):
            break
        held = start[rows] + sign * distance[rows]
        ahead = (held - inner_theta[rows, i])[:, None] * direction[rows]
        theta = _hold(valley, rows, i, inner_theta[rows], ahead, held, own[rows])
        score, turned, _, steep = valley.look(rows, theta, i)
        beyond = score > wanted
        outside, inside = rows[beyond], rows[~beyond]
        outer[outside], outer_score[outside] = distance[outside], score[beyond]
        inner[inside], inner_score[inside], inner_theta[inside] = distance[inside], score[~beyond], theta[~beyond]
        direction[inside], own[inside] = turned[~beyond], steep[~beyond]
        near = (np.abs(score - wanted) < CLOSE) | (inner[rows] >= 0.999 * outer[rows])
        done = near | (~beyond & (distance[rows] >= room[rows]))
        distance[rows[done]] = np.where(near & beyond, outer[rows], inner[rows])[done]
        rows = rows[~done]
        distance[rows] = _next(
            inner[rows], inner_score[rows], outer[rows], outer_score[rows], wanted, room[rows], extent[rows]
        )
    found = valley.theta.copy()
    found[:, i] = np.where(inner >= room, edge, start + sign * distance)
    return found


def _hold(
    valley: _Valley, rows: NDArray[np.intp], i: int, theta: Floats, ahead: Floats, held: Floats, curvature: Floats
) -> Floats:
    """theta [B, p] fitted with coordinate i drawn to `held` [B], from the better of theta and theta + ahead."""
    problem = valley.problem.rows(np.tile(rows, 2))
    ridge, centre = problem.ridge.copy(), problem.centre.copy()
    ridge[:, i, i] += STIFFNESS * np.tile(np.maximum(curvature, 1e-300), 2)
    centre[:, i] = np.tile(held, 2)
    starts = np.concatenate([theta, theta + np.nan_to_num(ahead)])
    starts[:, i] = centre[:, i]
    ends, value = polish(replace(problem, ridge=ridge, centre=centre), np.clip(starts, *problem.bounds()), *HELD)
    best = np.nan_to_num(value, nan=np.inf).reshape(2, -1).argmin(0)
    return ends.reshape(2, *theta.shape)[best, np.arange(len(rows))]


def _furthest(distance: Floats, room: Floats, extent: Floats) -> Floats:
    """How far the next step may go [B]: near the bound the valley bends, and a fit that jumps would lose it."""
    left = room - distance
    return np.where(left < LAST * extent, room, distance + np.minimum(0.5 * left, extent / 6))


def _next(
    inner: Floats,
    inner_score: Floats,
    outer: Floats,
    outer_score: Floats,
    wanted: float,
    room: Floats,
    extent: Floats,
) -> Floats:
    """The next distance [B]: further out while nothing was rejected, else where the score would be the wanted one."""
    growth = np.clip(1.1 * wanted / np.maximum(inner_score, 1e-3), 1.3, 3.0)
    further = np.minimum(inner * growth, _furthest(inner, room, extent))
    share = (wanted - inner_score) / np.maximum(np.minimum(outer_score, wanted + 3.0) - inner_score, 1e-9)
    between = inner + np.clip(share, 0.1, 0.9) * (np.where(np.isfinite(outer), outer, inner) - inner)
    return np.where(np.isfinite(outer), between, further)
