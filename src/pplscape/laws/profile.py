"""Profile of a fit's objective over each parameter: how far it can go before the runs object, all else fitted again.

A parameter is drawn towards a value w by adding K (h - w)^2 / 2 to the objective, h(theta) = the parameter or, where it
lives on that scale, its logarithm. Whatever K, the minimum is a point of the profile at the h it reaches, and a mild K
keeps the fit well conditioned. To the fitter this is one more run: a form that also "predicts" its own parameters
(`_Watched`). Profiles are followed from the estimate outwards, both sides of all parameters in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.laws.fit import Fit, problem_of, setting_of
from pplscape.laws.forms.base import Data, Floats, Form, Frame
from pplscape.laws.polish import Problem, polish
from pplscape.laws.table import noise_weights
from pplscape.runs import RunTable

HALF = 7
"""Values a parameter on each side of its estimate."""
REACH = 2.3
"""Rise at the ends in units of the threshold, were the objective a parabola."""
STIFFNESS = 4.0
"""K over the objective's own curvature along the profile: were it a parabola, h would go K / (1 + K) of the way."""
MOST_FACTOR = 1e3
"""No positive parameter is followed further than this factor from its estimate."""
MOST_PARAMETERS = 20
"""Laws with more have no profiles: the weights of a kernel mean nothing one by one."""
OFFSET = 50.0
"""Added to the parameters' "ln L", so that none of them is taken for the smallest loss."""


def profiles(fit: Fit, runs: RunTable, level: float = 0.9) -> dict[str, Any]:
    """Per parameter `value` [k] and `rise` [k] of -2 ln likelihood above the fit, and the `threshold` that a
    likelihood-ratio interval at `level` would have if runs were independent (t quantile, squared). Empty for laws of
    more than MOST_PARAMETERS.

    The noise variance is 2 objective / (runs - effective parameters), as for a Huber sum of small residuals. A
    parameter held at a bound, or that moves nothing, has one point.
    """
    if len(fit.params) > MOST_PARAMETERS:
        return {}
    setting = setting_of(fit.form, runs, fit.delta)
    strength = np.array([fit.strength])
    problem = problem_of(setting, np.log(runs.loss)[None], noise_weights(runs)[None], strength)
    freedom = max(len(runs) - fit.n_effective, 1.0)
    least = float(problem.objective(fit.theta[None])[0])
    variance = 2 * max(least, 1e-14) / freedom
    threshold = float(stats.t.ppf(0.5 + level / 2, freedom)) ** 2
    with np.errstate(all="ignore"):  # where nothing moves the loss, anything may be asked of a parameter
        theta, which = _followed(fit, problem, float(np.sqrt(REACH * threshold * variance)))
        rise = 2 * (problem.rows(np.zeros(len(theta), int)).objective(theta) - least) / variance
        value = fit.form.params(theta, fit.frame)[np.arange(len(theta)), which]
    curves: dict[str, Any] = {"level": level, "threshold": threshold, "parameters": {}}
    for j, (name, estimate) in enumerate(fit.params.items()):
        x, y = _outline(value[which == j], rise[which == j], estimate)
        curves["parameters"][name] = {"value": x.tolist(), "rise": y.tolist()}
    return curves


@dataclass(frozen=True)
class _Path:
    """First-order profile of one parameter: theta [2 HALF + 1, p], where to draw h [2 HALF + 1], and how strongly."""

    theta: Floats
    wanted: Floats
    log: bool
    pull: float


class _Watched:
    """A form that predicts, after ln L of the n runs, h of its own q parameters times `scale` [q]: [B, n + q]."""

    def __init__(self, form: Form, log: NDArray[np.bool_], scale: Floats):
        self.form, self.log, self.scale = form, log, scale
        self.basis, self.bounds = form.basis, form.bounds

    def values(self, theta: Floats, frame: Frame) -> Floats:
        found = self.form.params(theta, frame)
        return np.where(self.log, np.log(np.where(self.log, np.maximum(found, 1e-300), 1.0)), found)

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        predicted, slope = self.form.evaluate(theta, data, frame, jacobian)
        found = np.concatenate([predicted, OFFSET + self.scale * self.values(theta, frame)], axis=-1)
        if slope is None:
            return found, None
        own = _gradients(lambda t: self.values(t, frame), theta) * self.scale[:, None]
        return found, np.concatenate([slope, own], axis=-2)


def _gradients(values: Any, theta: Floats) -> Floats:
    """d values / d theta [B, q, p] by central differences; `values` maps [B, p] to [B, q]."""
    columns = []
    for i in range(theta.shape[-1]):
        step = np.zeros_like(theta)
        step[..., i] = 1e-6 * np.maximum(np.abs(theta[..., i]), 1e-3)
        columns.append((values(theta + step) - values(theta - step)) / (2 * step[..., i : i + 1]))
    return np.stack(columns, axis=-1)


def _followed(fit: Fit, problem: Problem, reach: float) -> tuple[Floats, NDArray[np.intp]]:
    """(theta [B, p] on the profiles, index [B] of the parameter profiled); `reach`: root of the rise at the ends."""
    curve = _inverse_curvature(problem, fit.theta)
    slopes = _gradients(lambda t: fit.form.params(t, fit.frame), fit.theta[None])[0]
    paths = {j: path for j in range(len(slopes)) if (path := _path(fit, j, slopes[j], curve, reach))}
    theta, which = [fit.theta[None].repeat(len(slopes), axis=0)], [np.arange(len(slopes))]
    if paths:
        sides = [(j, sign) for j in paths for sign in (-1, 1)]
        own = np.array([j for j, _ in sides])
        held = _held(fit, problem, paths, own)
        before = last = fit.theta[None].repeat(len(sides), axis=0)
        for i in range(1, HALF + 1):
            ahead = 2 * last - before if i > 1 else np.stack([paths[j].theta[HALF + s] for j, s in sides])
            wanted = np.array([paths[j].wanted[HALF + s * i] for j, s in sides])
            before, last = last, _drawn(held, np.stack([ahead, last]), own, wanted)
            theta.append(last)
            which.append(own)
    return np.concatenate(theta), np.concatenate(which)


def _held(fit: Fit, problem: Problem, paths: dict[int, _Path], own: NDArray[np.intp]) -> Problem:
    """The fit once for each side [B], every one with its parameter as a further run; targets are set by `_drawn`."""
    q, n = len(fit.params), len(own)
    log, scale, pull = np.zeros(q, bool), np.ones(q), np.zeros(q)
    for j, path in paths.items():
        log[j] = path.log
        scale[j] = 0.5 * float(np.median(problem.delta)) / max(float(np.ptp(path.wanted)), 1e-300)
        pull[j] = path.pull / scale[j] ** 2
    weight = np.where(np.arange(q) == own[:, None], pull, 0.0)
    form: Any = _Watched(fit.form, log, scale)
    many = problem.rows(np.zeros(n, int))
    delta: float | Floats = many.delta
    if isinstance(delta, np.ndarray):
        delta = np.concatenate([delta, np.full((len(delta), q), np.median(delta))], axis=1)
    return replace(
        many,
        form=form,
        delta=delta,
        log_loss=np.concatenate([many.log_loss, np.full((n, q), OFFSET)], axis=1),
        weight=np.concatenate([many.weight, weight], axis=1),
    )


def _drawn(held: Problem, starts: Floats, own: NDArray[np.intp], wanted: Floats) -> Floats:
    """theta [B, p] with parameter `own` [B] drawn to h = `wanted` [B], from the better of starts [S, B, p]."""
    form: Any = held.form
    log_loss, rows = held.log_loss.copy(), np.arange(len(own))
    log_loss[rows, log_loss.shape[1] - len(form.scale) + own] += form.scale[own] * wanted
    many = replace(held, log_loss=log_loss).rows(np.tile(rows, len(starts)))
    theta, value = polish(many, starts.reshape(-1, starts.shape[2]), 60, 1e-8)
    best = np.nan_to_num(value, nan=np.inf).reshape(len(starts), len(own)).argmin(0)
    return theta.reshape(starts.shape)[best, rows]


def _inverse_curvature(problem: Problem, theta: Floats) -> Floats:
    """Inverse [p, p] of the Gauss-Newton curvature of one fit in theta, parameters at a bound held."""
    predicted, jacobian = problem.form.evaluate(theta[None], problem.data, problem.frame)
    assert jacobian is not None
    low, high = (side[0] for side in problem.bounds())
    free = ((theta > low) & (theta < high)).astype(float)
    basis = problem.form.basis(problem.data, problem.frame)
    residual = predicted[0] - problem.log_loss[0]
    bend = np.minimum(1.0, problem.delta / np.maximum(np.abs(residual), 1e-300))
    moved = (jacobian[0] * free) @ basis
    curvature = moved.T @ (moved * (problem.weight[0] * bend)[:, None])
    curvature = curvature + basis.T @ (problem.ridge[0] * free * free[:, None]) @ basis
    scale = 1 / np.sqrt(np.maximum(np.diag(curvature), 1e-300))
    scale = np.where(np.diag(curvature) > 0, scale, 0.0)
    inverse = np.linalg.pinv(curvature * scale * scale[:, None], rcond=1e-10, hermitian=True) * scale * scale[:, None]
    return np.asarray(basis @ inverse @ basis.T)


def _path(fit: Fit, j: int, slope: Floats, curve: Floats, reach: float) -> _Path | None:
    """The first-order profile of parameter j along C G, cut where it would leave all reason; None if nothing moves.

    A parameter belongs on a log scale where the path's two ends lie more evenly about the estimate there.
    """
    width = max(float(slope @ curve @ slope), 0.0) ** 0.5
    if not (np.isfinite(width) and width > 1e-100):
        return None
    steps = np.linspace(-1, 1, 2 * HALF + 1)[:, None] * reach * (curve @ slope) / width
    for _ in range(40):
        values = fit.form.params(fit.theta + steps, fit.frame)[:, j]
        positive = bool(values.min() > 0)
        if np.isfinite(values).all() and (not positive or np.ptp(np.log(values)) <= 2 * np.log(MOST_FACTOR)):
            break
        steps = steps / 1.5
    log = bool(positive and _uneven(np.log(values)) < _uneven(values))
    wanted = fit.form.params(fit.theta + steps * (1 + 1 / STIFFNESS), fit.frame)[:, j]
    spread = width / values[HALF] if log else width
    return _Path(fit.theta + steps, np.log(wanted) if log else wanted, log, STIFFNESS / spread**2)


def _uneven(values: Floats) -> float:
    """How far the middle of a path is from half way between its ends, in units of their distance."""
    return abs(float(values[0] + values[-1] - 2 * values[HALF])) / max(abs(float(values[-1] - values[0])), 1e-300)


def _outline(value: Floats, rise: Floats, estimate: float) -> tuple[Floats, Floats]:
    """Points sorted by value, without those above a point further out: there a fit stopped short of the profile."""
    order = np.argsort(value, kind="stable")
    order = order[np.isfinite(value[order]) & np.isfinite(rise[order])]
    value, rise = value[order], rise[order]
    left = value < estimate
    beyond = np.where(left, np.minimum.accumulate(rise), np.minimum.accumulate(rise[::-1])[::-1])
    kept = rise <= beyond + 1e-9
    return value[kept], rise[kept]
