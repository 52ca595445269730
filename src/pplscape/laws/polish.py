"""Minimise `sum w Huber_delta(ln Lhat - ln L) + penalty` over all parameters, for many fits at once.

Levenberg-Marquardt with analytic derivatives, batched over B fits. The first try of an iteration is the Gauss-Newton
step of the inliers (fast close by); fits that it does not improve try the step of the reweighted residuals (safe far
away). Deterministic. The *sum* matters: with a mean, optimisers stop early (the original error of arXiv 2203.15556).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.forms.base import Data, Floats, Form, Frame

Step = Callable[[NDArray[np.intp]], Floats]
"""Fits to move -> how far [len, p]."""
CHUNK_CELLS = 40_000
"""Numbers in one batched derivative: what an iteration touches stays in the processor's cache."""
MOST_HOLDS = 3
"""Times that parameters are held at their bounds within one step."""
OUTLIER_WEIGHT = 0.02
"""Share of their reweighted curvature that outliers keep in the inliers' step: it stays finite with few inliers."""


def huber(residual: Floats, delta: float | Floats) -> Floats:
    """0.5 r^2 for |r| <= delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def take(value: float | Floats, index: NDArray[Any] | slice) -> float | Floats:
    """The part of a value that belongs to fits `index`; the value itself where all fits share it."""
    return value[index] if isinstance(value, np.ndarray) and len(value) > 1 else value


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
    delta: float | Floats
    """Huber threshold in ln L; [B or 1, n] where fits or runs have thresholds of their own."""
    ridge: Floats
    """[B, p, p] penalty 0.5 (theta - centre)' ridge (theta - centre)."""
    centre: Floats
    """[B, p]"""

    def rows(self, index: NDArray[Any] | slice) -> Problem:
        """The same problem for fits `index`."""
        delta = take(self.delta, index)
        log_loss, weight, ridge, centre = (a[index] for a in (self.log_loss, self.weight, self.ridge, self.centre))
        return replace(self, log_loss=log_loss, weight=weight, delta=delta, ridge=ridge, centre=centre)

    def bounds(self) -> tuple[Floats, Floats]:
        smallest = np.exp(np.where(self.weight > 0, self.log_loss, np.inf).min(-1))
        return self.form.bounds(self.frame, smallest)

    def objective(self, theta: Floats) -> Floats:
        """theta [B, p] -> [B]."""
        return self.value(self.form.evaluate(theta, self.data, self.frame, jacobian=False)[0], theta)

    def value(self, predicted: Floats, theta: Floats) -> Floats:
        """Objective [B] of predictions [B, n] made by theta [B, p]; infinite where one is not finite."""
        size = np.abs(predicted - self.log_loss)
        inside = np.minimum(size, self.delta)
        value = (self.weight * inside * (size - 0.5 * inside)).sum(-1)
        away = theta - self.centre
        value = value + 0.5 * ((self.ridge @ away[..., None])[..., 0] * away).sum(-1)
        return np.where(np.isfinite(value), value, np.inf)


def polish(problem: Problem, theta: Floats, max_steps: int = 100, tolerance: float = 1e-9) -> tuple[Floats, Floats]:
    """(theta [B, p], objective [B]) from starts [B, p]; stops a fit after two steps that gain less than `tolerance`."""
    size = max(1, CHUNK_CELLS // (problem.log_loss.shape[1] * (theta.shape[1] + 1)))
    found = [
        _descend(problem.rows(slice(i, i + size)), theta[i : i + size], max_steps, tolerance)
        for i in range(0, len(theta), size)
    ]
    return np.concatenate([t for t, _ in found]), np.concatenate([v for _, v in found])


def _descend(problem: Problem, theta: Floats, max_steps: int, tolerance: float) -> tuple[Floats, Floats]:
    low, high = problem.bounds()
    final = np.clip(theta, low, high)
    final_value = problem.objective(final)
    basis = problem.form.basis(problem.data, problem.frame)
    rows = np.flatnonzero(np.isfinite(final_value))
    here = _Place.at(problem.rows(rows), final[rows], low[rows], high[rows])
    damping, idle = np.full(len(rows), 1e-2), np.zeros(len(rows), int)
    for _ in range(max_steps):
        if not len(rows):
            break
        steps = _steps(here, damping, basis)
        gain = here.move(steps)
        better = gain > 0
        damping = np.where(better, np.maximum(damping * 0.2, 1e-12), damping * 6)
        idle = np.where(gain <= tolerance * np.maximum(here.value, 1e-12), idle + 1, 0)
        done = (idle >= 4) | (better & (idle >= 2)) | (damping > 1e8)
        if done.any():
            final[rows[done]], final_value[rows[done]] = here.theta[done], here.value[done]
            rows, damping, idle, here = rows[~done], damping[~done], idle[~done], here.rows(~done)
    final[rows], final_value[rows] = here.theta, here.value
    return final, final_value


@dataclass
class _Place:
    """Where B descents are: theta and all that was computed there."""

    problem: Problem
    theta: Floats
    low: Floats
    high: Floats
    predicted: Floats
    jacobian: Floats
    value: Floats

    @classmethod
    def at(cls, problem: Problem, theta: Floats, low: Floats, high: Floats) -> _Place:
        predicted, jacobian = _evaluate(problem, theta)
        return cls(problem, theta, low, high, predicted, jacobian, problem.value(predicted, theta))

    def rows(self, index: NDArray[Any]) -> _Place:
        arrays = (self.theta, self.low, self.high, self.predicted, self.jacobian, self.value)
        return _Place(self.problem.rows(index), *(a[index] for a in arrays))

    def move(self, steps: list[Step]) -> Floats:
        """Take the first of the steps that improves a fit; gain [B] is 0 or below where none does."""
        best = np.full(len(self.theta), -np.inf)
        rows = np.arange(len(self.theta))
        for step in steps:
            found = np.clip(self.theta[rows] + np.nan_to_num(step(rows)), self.low[rows], self.high[rows])
            part = self.problem.rows(rows) if len(rows) < len(best) else self.problem
            predicted, jacobian = _evaluate(part, found)
            value = part.value(predicted, found)
            best[rows] = self.value[rows] - value
            to = best[rows] > 0
            moved = rows[to]
            self.theta[moved], self.value[moved] = found[to], value[to]
            self.predicted[moved], self.jacobian[moved] = predicted[to], jacobian[to]
            rows = rows[~to]
            if not len(rows):
                break
        return best


def _evaluate(problem: Problem, theta: Floats) -> tuple[Floats, Floats]:
    predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
    assert jacobian is not None
    return predicted, jacobian


def _steps(place: _Place, damping: Floats, basis: Floats) -> list[Step]:
    """Damped steps in order of trial; parameters at a bound that the gradient pushes against stay."""
    problem, theta = place.problem, place.theta
    residual = place.predicted - problem.log_loss
    size = np.abs(residual)
    bent = problem.weight * np.minimum(1.0, problem.delta / np.maximum(size, 1e-300))
    moved = basis.T @ np.swapaxes(place.jacobian, -1, -2)
    gradient = (moved @ (bent * residual)[..., None])[..., 0]
    gradient = gradient + (problem.ridge @ (theta - problem.centre)[..., None])[..., 0] @ basis
    frozen = ((theta <= place.low) & (gradient > 0)) | ((theta >= place.high) & (gradient < 0))
    free = np.where(frozen, 0.0, 1.0)
    extra = basis.T @ problem.ridge @ basis
    scale = np.diag(basis)
    low, high = (place.low - theta) / scale, (place.high - theta) / scale

    def damped(weight: Floats, rows: NDArray[np.intp]) -> Floats:
        whole = len(rows) == len(theta)  # then nothing needs to be copied
        parts = (moved, weight, extra, gradient, free, damping, low, high)
        design, weight, ridge, slope, able, lift, *reach = parts if whole else (part[rows] for part in parts)
        return _within(_gram(design, weight) + ridge, slope, able, lift, *reach) @ basis.T

    outside = size > problem.delta
    weights = [bent]
    if outside.any():
        weights.insert(0, np.where(outside, OUTLIER_WEIGHT * bent, problem.weight))
    return [partial(damped, weight) for weight in weights]


def _within(curvature: Floats, gradient: Floats, free: Floats, damping: Floats, low: Floats, high: Floats) -> Floats:
    """The damped step; what would leave [low, high] is held at its end, and the rest solved again.

    A step that is clipped afterwards need not descend: where E, beta and J lie along one valley and J ends at 0, six of
    ten fits of `utility:power` to simulated runs stopped above what a random start found.
    """
    step, held = _damped(curvature, gradient * free, free, damping), np.zeros_like(gradient)
    for _ in range(MOST_HOLDS):
        out = (free > 0) & ((step < low) | (step > high))
        if not out.any():
            break
        held, free = np.where(out, np.clip(step, low, high), held), np.where(out, 0.0, free)
        slope = gradient + (curvature @ held[..., None])[..., 0]
        step = np.where(free > 0, _damped(curvature, slope * free, free, damping), held)
    return step


def _damped(curvature: Floats, gradient: Floats, free: Floats, damping: Floats) -> Floats:
    curvature = curvature * free[:, :, None] * free[:, None, :]
    diagonal = np.einsum("bpp->bp", curvature)
    floor = 1e-14 * diagonal.max(-1, keepdims=True) + 1e-300
    lift = damping[:, None] * np.maximum(diagonal, floor) + floor + (1 - free)
    damped = curvature + np.eye(free.shape[-1]) * lift[:, None, :]
    return np.linalg.solve(damped, -gradient[..., None])[..., 0]


def _gram(design: Floats, weight: Floats) -> Floats:
    """Design [B, p, n] and weight [B, n] -> [B, p, p]."""
    return (design * weight[:, None, :]) @ np.swapaxes(design, -1, -2)
