"""Minimise `sum w Huber_delta(ln Lhat - ln L) + penalty` over all parameters, for many fits at once.

Levenberg-Marquardt with analytic derivatives, batched over B fits; every iteration tries the Gauss-Newton step of the
reweighted residuals (safe far away) and of the inliers only (fast close by) and keeps the better. Deterministic.
The *sum* matters: with a mean, optimisers stop early (the original error of arXiv 2203.15556).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pplscape.laws.forms.base import Data, Floats, Form, Frame


def huber(residual: Floats, delta: float) -> Floats:
    """0.5 r^2 for |r| <= delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


@dataclass(frozen=True)
class Problem:
    """B fits of one form to the same n compositions."""

    form: Form
    frame: Frame
    data: Data
    log_loss: Floats
    """[B, n] ln of the measured losses."""
    weight: Floats
    """[B, n]; 0 leaves a run out."""
    delta: float
    ridge: Floats
    """[B, p, p] penalty 0.5 (theta - centre)' ridge (theta - centre)."""
    centre: Floats
    """[B, p]"""

    def rows(self, index: Floats | np.ndarray) -> Problem:
        """The same problem for fits `index`."""
        columns = (self.log_loss[index], self.weight[index])
        return Problem(self.form, self.frame, self.data, *columns, self.delta, self.ridge[index], self.centre[index])

    def bounds(self) -> tuple[Floats, Floats]:
        smallest = np.exp(np.where(self.weight > 0, self.log_loss, np.inf).min(-1))
        return self.form.bounds(self.frame, smallest)

    def objective(self, theta: Floats) -> Floats:
        """theta [B, p] -> [B]."""
        return self._value(self.form.evaluate(theta, self.data, self.frame, jacobian=False)[0], theta)

    def _value(self, predicted: Floats, theta: Floats) -> Floats:
        value = (self.weight * huber(predicted - self.log_loss, self.delta)).sum(-1)
        away = theta - self.centre
        value = value + 0.5 * ((self.ridge @ away[..., None])[..., 0] * away).sum(-1)
        return np.where(np.isfinite(value), value, np.inf)


def polish(problem: Problem, theta: Floats, max_steps: int = 100, tolerance: float = 1e-9) -> tuple[Floats, Floats]:
    """(theta [B, p], objective [B]) from starts [B, p]; stops a fit after two steps that gain less than `tolerance`."""
    low, high = problem.bounds()
    theta = np.clip(theta, low, high)
    value = problem.objective(theta)
    damping = np.full(len(theta), 1e-2)
    idle = np.zeros(len(theta), int)
    basis = problem.form.basis(problem.data, problem.frame)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(max_steps):
        if not len(active):
            break
        part = problem.rows(active)
        steps = _steps(part, theta[active], damping[active], basis, low[active], high[active])
        found, reached = _best_of(part, theta[active], steps, low[active], high[active])
        gain = value[active] - reached
        better = gain > 0
        theta[active[better]], value[active[better]] = found[better], reached[better]
        damping[active] = np.where(better, np.maximum(damping[active] * 0.2, 1e-12), damping[active] * 6)
        small = gain <= tolerance * np.maximum(value[active], 1e-12)
        idle[active] = np.where(small, idle[active] + 1, 0)
        stuck = damping[active] > 1e8
        active = active[~((idle[active] >= 4) | (better & (idle[active] >= 2)) | stuck)]
    return theta, value


def _steps(part: Problem, theta: Floats, damping: Floats, basis: Floats, low: Floats, high: Floats) -> list[Floats]:
    predicted, jacobian = part.form.evaluate(theta, part.data, part.frame)
    assert jacobian is not None
    residual = predicted - part.log_loss
    size = np.abs(residual)
    bend = np.minimum(1.0, part.delta / np.maximum(size, 1e-300))
    moved = jacobian @ basis
    gradient = ((part.weight * bend * residual)[:, None, :] @ moved)[:, 0]
    curvatures = [_gram(moved, part.weight * bend)]
    outliers = bool((size > part.delta).any())
    if outliers:
        curvatures.append(_gram(moved, part.weight * np.where(size <= part.delta, 1.0, 0.02 * bend)))
    gradient = gradient + (part.ridge @ (theta - part.centre)[..., None])[..., 0] @ basis
    extra = basis.T @ part.ridge @ basis
    curvatures = [c + extra for c in curvatures]
    frozen = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    gradient = np.where(frozen, 0.0, gradient)
    eye = np.eye(theta.shape[-1])
    steps = []
    for curvature in curvatures:
        curvature = np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, curvature)
        diagonal = np.einsum("bpp->bp", curvature)
        floor = 1e-14 * diagonal.max(-1, keepdims=True) + 1e-300
        damped = curvature + eye * (damping[:, None] * np.maximum(diagonal, floor) + floor + frozen)[:, None, :]
        step = np.linalg.solve(damped, -gradient[..., None])[..., 0]
        steps.append(step @ basis.T)
    return steps


def _gram(design: Floats, weight: Floats) -> Floats:
    return np.swapaxes(design * weight[..., None], -1, -2) @ design


def _best_of(part: Problem, theta: Floats, steps: list[Floats], low: Floats, high: Floats) -> tuple[Floats, Floats]:
    candidates = np.stack([np.clip(theta + np.nan_to_num(step), low, high) for step in steps])
    values = np.stack([part.objective(candidate) for candidate in candidates])
    best = values.argmin(0)
    rows = np.arange(len(theta))
    return candidates[best, rows], values[best, rows]
