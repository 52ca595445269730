"""Fit one form: variable projection for starts, Huber polish, penalty by approximate leave-one-regime-out error.

`fit_many` does B fits at once (folds, resamples, simulated losses); `fit_form` is the one fit to all runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import Data, Floats, Form, Frame
from pplscape.laws.polish import Problem, huber, polish, take
from pplscape.laws.table import frame_of, left_out_units, noise_weights, seed_noise
from pplscape.runs import Compositions, RunTable

LEAST_DELTA = 1e-3
"""Huber threshold of the Chinchilla protocol, in ln L."""
POLISHED_STARTS = 3
Care = tuple[int, float]
"""Most steps of the polish, and the relative gain below which it stops."""
PRECISE: Care = (500, 1e-12)
QUICK: Care = (60, 1e-8)
AUDIT: Care = (300, 1e-10)
SPREAD = 0.5
SAME = 1e-6
"""Objectives that differ by less than this share are the same."""
LEFT_OUT_DELTA = 5.0
"""Huber threshold of left-out residuals, in thresholds of the fit: one regime that no other resembles must not decide
how strong the penalty is."""
BATCH_CELLS = 2_000_000
"""Numbers in one batched derivative: keeps memory near 100 MB."""


@dataclass(frozen=True)
class Fit:
    """One form fitted to all runs."""

    form: Form
    frame: Frame
    theta: Floats
    """[p]"""
    objective: float
    """Sum of Huber losses (plus penalty) at theta."""
    delta: float
    noise: float
    strength: float
    """Of the penalty; 0 for forms without."""
    n_effective: float
    """Trace of the smoother: parameters the data really move."""

    @property
    def params(self) -> dict[str, float]:
        values = self.form.params(self.theta, self.frame)
        return {k: float(v) for k, v in zip(self.form.names(self.frame), values, strict=True)}

    def log_loss(self, compositions: Compositions) -> Floats:
        """ln of the predicted loss [n]."""
        data = self.form.data(compositions, self.frame)
        return self.form.evaluate(self.theta[None], data, self.frame, jacobian=False)[0][0]


@dataclass(frozen=True)
class Setting:
    """What all fits of one form to one table share."""

    form: Form
    frame: Frame
    data: Data
    delta: float | Floats
    """Huber threshold; [1, n] where the runs' noise is known to differ, [B, n] where the fits' thresholds do."""
    noise: float | Floats
    """Relative noise, the unit of penalties and priors; [B] for B fits with noise of their own."""
    regimes: NDArray[np.str_]
    trust: float = 1.0
    """Weight of the form's prior; intervals are made with less (see `uncertainty`)."""

    def rows(self, index: slice) -> Setting:
        """The same setting for fits `index`."""
        return replace(self, delta=take(self.delta, index), noise=take(self.noise, index))


def setting_of(form: Form, runs: RunTable, delta: float | None = None) -> Setting:
    """Prepare a form for a table of runs; UserError if columns are missing."""
    frame = frame_of(runs)
    lacking = form.missing(runs, frame)
    if lacking:
        raise UserError(f"Form {form.spec} needs {', '.join(lacking)}, which the table of runs does not have.")
    frame = form.reframe(runs, frame)
    noise = seed_noise(runs)
    if delta is None:
        delta = max(LEAST_DELTA, 1.345 * (noise or 0.0))
    by_run: float | Floats = delta
    if runs.noise is not None:  # Huber's loss of the standardised residual: k times the noise, k times the threshold
        by_run = delta / np.sqrt(noise_weights(runs))[None]
    return Setting(form, frame, form.data(runs, frame), by_run, noise or delta / 1.345, left_out_units(runs))


def fit_form(form: Form | str, runs: RunTable, delta: float | None = None) -> Fit:
    """Fit one form; `delta` overrides the Huber threshold `max(1e-3, 1.345 x relative seed noise)`."""
    form = get_form(form) if isinstance(form, str) else form
    setting = setting_of(form, runs, delta)
    weight, log_loss = noise_weights(runs)[None], np.log(runs.loss)[None]
    theta, value, strength = fit_tables(setting, log_loss, weight)
    trace = float(np.einsum("bnn->b", smoother(problem_of(setting, log_loss, weight, strength), theta)[0])[0])
    threshold = float(np.ravel(setting.delta * np.sqrt(weight))[0])
    return Fit(
        form, setting.frame, theta[0], float(value[0]), threshold, float(setting.noise), float(strength[0]), trace
    )


def fit_tables(setting: Setting, log_loss: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """`fit_form` for T tables of the same compositions: (theta [T, p], objective [T], strength [T])."""
    start, _, strength = fit_many(setting, log_loss, weight)
    return fit_many(setting, log_loss, weight, warm=start[:, None], strength=strength, precise=True)


@dataclass(frozen=True)
class Audit:
    """What random starts found."""

    starts: int
    agree: float
    """Share of them that end at the fit's objective, within SAME of it."""
    better: float
    """Share of the objective by which the best of them was below the fit; 0 if none was."""


def audit(fit: Fit, runs: RunTable, starts: int = 24, seed: int = 0) -> tuple[Fit, Audit]:
    """Polish random starts around a fit; (the best fit known now, what they found).

    Starts differ from the fit by about SPREAD in every direction of its basis: by a factor of 1.6 in the loss gap.
    """
    setting = setting_of(fit.form, runs, fit.delta)
    basis = fit.form.basis(setting.data, setting.frame)
    scattered = fit.theta + SPREAD * np.random.default_rng(seed).normal(size=(starts, len(basis))) @ basis.T
    problem = problem_of(setting, np.log(runs.loss)[None], noise_weights(runs)[None], np.array([fit.strength]))
    theta, value = polish(problem.rows(np.zeros(starts, int)), scattered, *AUDIT)
    tolerance = SAME * max(fit.objective, 0.5 * fit.delta**2)
    agree, best = float(np.mean(np.abs(value - fit.objective) <= tolerance)), int(np.argmin(value))
    if fit.objective - value[best] <= tolerance:
        return fit, Audit(starts, agree, 0.0)
    better = replace(fit, theta=theta[best], objective=float(value[best]))
    return better, Audit(starts, agree, 1 - better.objective / fit.objective)


def belief(setting: Setting, strength: Floats) -> tuple[Floats, Floats]:
    """(precision [B, p, p], centre [p]) of what is believed of theta before the runs, in units of one run's noise."""
    penalty, prior = setting.form.penalty(setting.frame), setting.form.prior(setting.frame)
    p = len(setting.form.basis(setting.data, setting.frame))
    precision, centre = np.zeros((len(strength), p, p)), np.zeros(p)
    if penalty is not None:
        precision += strength[:, None, None] * penalty.matrix
    if prior is not None:
        precision += setting.trust * np.diag(prior.precision)
        centre = prior.centre
    return precision, centre


def problem_of(
    setting: Setting,
    log_loss: Floats,
    weight: Floats,
    strength: Floats,
    centre: Floats | None = None,
    held: Floats | None = None,
) -> Problem:
    """The minimisation behind B fits with penalties of strengths [B]; `centre` [B, p] replaces the believed theta, and
    `held` [B, p] is a further pull to it, in units of the objective."""
    precision, believed = belief(setting, strength)
    centres = np.broadcast_to(believed, precision.shape[:2]) if centre is None else centre
    ridge = np.reshape(setting.noise, (-1, 1, 1)) ** 2 * precision
    if held is not None:
        ridge = ridge + held[:, :, None] * np.eye(held.shape[1])
    return Problem(setting.form, setting.frame, setting.data, log_loss, weight, setting.delta, ridge, centres)


def fit_many(
    setting: Setting,
    log_loss: Floats,
    weight: Floats,
    warm: Floats | None = None,
    strength: Floats | None = None,
    centre: Floats | None = None,
    held: Floats | None = None,
    precise: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """B fits: (theta [B, p], objective [B], strength [B]) for ln L [B, n] and weights [B, n].

    `warm` are starts that replace the grid of starts: [W, p] for all fits, or [B, W, p].
    `strength` [B] fixes the penalty instead of choosing it fit by fit, `centre` [B, p] is where it pulls theta (only
    with `strength`) and `held` [B, p] a further pull to it (see `problem_of`); `precise` polishes to the last digit.
    """
    n_fits, n_runs = weight.shape
    cells = n_runs * (len(setting.form.names(setting.frame)) + 1) * 8
    size = max(1, BATCH_CELLS // cells)
    parts = [
        _fit_batch(
            setting.rows(slice(i, i + size)),
            log_loss[i : i + size],
            weight[i : i + size],
            warm[i : i + size] if warm is not None and warm.ndim == 3 else warm,
            None if strength is None else strength[i : i + size],
            None if centre is None else centre[i : i + size],
            None if held is None else held[i : i + size],
            PRECISE if precise else QUICK,
        )
        for i in range(0, n_fits, size)
    ]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


def _fit_batch(
    setting: Setting,
    log_loss: Floats,
    weight: Floats,
    warm: Floats | None,
    strength: Floats | None,
    centre: Floats | None,
    held: Floats | None,
    care: Care,
) -> tuple[Floats, Floats, Floats]:
    starts = _starts(setting, log_loss, weight, warm)
    penalty = setting.form.penalty(setting.frame)
    if penalty is None or strength is not None:
        fixed = np.zeros(len(weight)) if strength is None else strength
        theta, value = _solve(problem_of(setting, log_loss, weight, fixed, centre, held), starts, care)
        return theta, value, fixed
    thetas: list[Floats] = []
    values, errors = [], []
    for candidate in penalty.strengths:
        problem = problem_of(setting, log_loss, weight, np.full(len(weight), candidate))
        before = [theta[:, None] for theta in thetas[-1:]]  # the last strength's fit: closer than any start
        theta, value = _solve(problem, np.concatenate([starts, *before], axis=1), care)
        thetas.append(theta)
        values.append(value)
        errors.append(left_out_error(problem, theta, setting.regimes))
    best, rows = np.argmin(errors, axis=0), np.arange(len(weight))
    return np.stack(thetas)[best, rows], np.stack(values)[best, rows], np.asarray(penalty.strengths)[best]


def _starts(setting: Setting, log_loss: Floats, weight: Floats, warm: Floats | None) -> Floats:
    if warm is not None:
        return np.broadcast_to(warm, (len(weight), *warm.shape[-2:]))
    return setting.form.starts(setting.data, np.exp(log_loss), weight, setting.frame)


def _solve(problem: Problem, starts: Floats, care: Care) -> tuple[Floats, Floats]:
    """Polish the best few of starts [B, C, p], compared on the objective, and keep the best."""
    n_fits, n_starts = starts.shape[:2]
    low, high = problem.bounds()
    starts = np.clip(starts, low[:, None], high[:, None])
    values = np.stack([problem.objective(starts[:, c]) for c in range(n_starts)], axis=1)
    chosen = np.argsort(values, axis=1, kind="stable")[:, :POLISHED_STARTS]
    kept = chosen.shape[1]
    rows = np.repeat(np.arange(n_fits), kept)
    theta, value = polish(problem.rows(rows), starts[rows, chosen.ravel()], *care)
    best = value.reshape(n_fits, kept).argmin(1) + np.arange(n_fits) * kept
    return theta[best], value[best]


def smoother(problem: Problem, theta: Floats) -> tuple[Floats, Floats, Floats]:
    """(S [B, n, n], residual [B, n], jacobian [B, n, p]): first-order d(prediction)/d(measured ln L) at theta."""
    predicted, jacobian = problem.form.evaluate(theta, problem.data, problem.frame)
    assert jacobian is not None
    residual = predicted - problem.log_loss
    basis = problem.form.basis(problem.data, problem.frame)
    inverse, weighted = _inverse_curvature(problem, theta, residual, jacobian)
    return (jacobian @ basis) @ inverse @ np.swapaxes(weighted, -1, -2), residual, jacobian


def _inverse_curvature(problem: Problem, theta: Floats, residual: Floats, jacobian: Floats) -> tuple[Floats, Floats]:
    """Pseudo-inverse [B, p, p] of the curvature with parameters at a bound held, and w psi'(r) J [B, n, p]."""
    low, high = problem.bounds()
    basis = problem.form.basis(problem.data, problem.frame)
    bend = np.minimum(1.0, problem.delta / np.maximum(np.abs(residual), 1e-300))
    free = ((theta > low) & (theta < high)).astype(float)
    moved = (jacobian @ basis) * free[:, None, :]
    weighted = moved * (problem.weight * bend)[..., None]
    curvature = np.swapaxes(moved, -1, -2) @ weighted
    held = free[:, :, None] * free[:, None, :]
    curvature = curvature + (basis.T @ problem.ridge @ basis) * held
    scale = 1 / np.sqrt(np.maximum(np.einsum("bpp->bp", curvature), 1e-300))
    scale = np.where(np.einsum("bpp->bp", curvature) > 0, scale, 0.0)
    scaled = curvature * scale[:, :, None] * scale[:, None, :]
    inverse = np.linalg.pinv(scaled, rcond=1e-10, hermitian=True) * scale[:, :, None] * scale[:, None, :]
    return inverse, weighted


def left_out_error(problem: Problem, theta: Floats, regimes: NDArray[np.str_]) -> Floats:
    """Approximate leave-one-regime-out error [B]: mean Huber loss of residuals with their regime's pull removed.

    First order exaggerates what becomes of a regime that is left out: no residual counts as larger than the range of
    the measured ln L and of ln L(0), which no bounded law would leave.
    """
    pull, residual, _ = smoother(problem, theta)
    same = regimes[:, None] == regimes[None, :]
    system = np.eye(len(regimes)) - pull * same
    used = problem.weight > 0
    system = np.where(used[:, :, None] & used[:, None, :], system, np.eye(len(regimes)))
    system = system + 1e-8 * np.eye(len(regimes))
    reach = np.ptp(problem.log_loss, axis=1, keepdims=True)
    if problem.frame.base_loss is not None:
        reach = np.maximum(reach, np.log(problem.frame.base_loss) - problem.log_loss.min(1, keepdims=True))
    without = np.clip(np.linalg.solve(system, residual[..., None])[..., 0], -reach, reach)
    return (used * problem.weight * huber(without, LEFT_OUT_DELTA * problem.delta)).sum(-1) / problem.weight.sum(-1)
