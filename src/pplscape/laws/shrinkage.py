"""How strongly refits shrink: as weakly as any candidate, or as a Gaussian process's own spread is told by the runs.

Most penalties only settle what the runs leave open: intervals are made with the weakest, so that they do not lean on
it. The spread of a Gaussian process is a variance of the law itself. Between and beyond the pilots nothing else says
how far the truth may be from the mean, so its weakest candidate would make every interval there as wide as that
candidate: at four times the largest size 99.6 % of 90 % intervals held the truth. Refits draw it from its posterior
instead, as they draw the two variances of the noise (`Penalty.estimated`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.fit import Setting, fit_many, problem_of
from pplscape.laws.forms.base import Floats
from pplscape.laws.noise import Noise, fitted_space, noise_posterior

NOISES = 20
"""Draws of the noise that the posterior of the spread is averaged over."""
LEAST_NOISE = 1e-6
"""Of a run, in ln L: estimates may be 0 (`noise.variance_components`), and pilots that repeat one another would then
leave nothing to invert."""


def weakest(setting: Setting, n_tables: int) -> Floats:
    """[T] the smallest candidate; 0 for forms without penalty."""
    penalty = setting.form.penalty(setting.frame)
    return np.full(n_tables, min(penalty.strengths) if penalty else 0.0)


def chances(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    seed: int = 0,
    known: Noise | None = None,
) -> tuple[Floats, Floats]:
    """(strengths [K] that refits of T tables draw from, their chances [T, K]).

    theta [T, p] are fits, log_loss [T, n], weight [n]. Chances are equal beforehand.
    """
    penalty = setting.form.penalty(setting.frame)
    least = weakest(setting, len(theta))
    if penalty is None or not penalty.estimated:
        return least[:1], np.ones((len(theta), 1))
    weights = np.broadcast_to(weight, log_loss.shape)
    near, _, _ = fit_many(setting, log_loss, weights, warm=theta[:, None], strength=least)
    problem = problem_of(setting, log_loss, weights, least)
    predicted, jacobian = setting.form.evaluate(near, setting.data, setting.frame)
    assert jacobian is not None
    low, high = problem.bounds()
    values, vectors = np.linalg.eigh(penalty.matrix)
    shrunk = values > 1e-12 * values.max()
    root = vectors[:, shrunk] / np.sqrt(values[shrunk])
    strengths, found = np.array(penalty.strengths), np.empty((len(theta), len(penalty.strengths)))
    for t in range(len(theta)):
        scale = np.sqrt(weight) if np.ptp(weight) else np.exp(predicted[t] - predicted[t].mean())
        residual, slopes = (log_loss[t] - predicted[t]) * scale, scale[:, None] * jacobian[t]
        if known is None:
            space = fitted_space(problem.rows(slice(t, t + 1)), near[t], jacobian[t], scale)
            trunk, run = noise_posterior(residual, space, groups, NOISES, np.random.default_rng(seed))
        else:
            trunk, run = np.full(1, known.trunk), np.full(1, known.run)
        free = slopes @ (vectors[:, ~shrunk] * ((near[t] > low[t]) & (near[t] < high[t]))[:, None])
        moved = slopes @ root
        told = residual + moved @ (np.sqrt(values[shrunk]) * (vectors[:, shrunk].T @ near[t]))
        logs = restricted(told, free, moved @ moved.T, strengths, groups, trunk, run)
        each = np.exp(logs - logs.max(1, keepdims=True))
        found[t] = (each / each.sum(1, keepdims=True)).mean(0)
    return strengths, found


def restricted(
    told: Floats,
    free: Floats,
    kernel: Floats,
    strengths: Floats,
    groups: NDArray[np.str_],
    trunk: Floats,
    run: Floats,
) -> Floats:
    """Restricted log likelihood [R, K] of told [n] = free [n, k] b + f + noise, f of covariance kernel [n, n] over
    strength, noise of a trunk's and a run's standard deviations [R]."""
    same = (groups[:, None] == groups[None, :]).astype(float)
    noise = trunk[:, None, None] ** 2 * same + np.maximum(run, LEAST_NOISE)[:, None, None] ** 2 * np.eye(len(told))
    covariance = noise[:, None] + kernel / strengths[:, None, None]
    left, singular, _ = np.linalg.svd(free, full_matrices=False)
    design = left[:, singular > 1e-8 * max(singular.max(initial=0.0), 1e-300)]
    solved = np.linalg.solve(covariance, np.column_stack([design, told]))
    inner = design.T @ solved[..., :-1]
    cross = design.T @ solved[..., -1:]
    squares = told @ solved[..., -1:] - (np.swapaxes(cross, -1, -2) @ np.linalg.solve(inner, cross))[..., 0]
    volume = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(inner)[1]
    return np.asarray(-0.5 * (volume + squares[..., 0]))


def likeliest(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    seed: int = 0,
    known: Noise | None = None,
) -> Floats:
    """[T] the strength of highest chance."""
    strengths, chance = chances(setting, theta, log_loss, weight, groups, seed, known)
    return np.asarray(strengths[chance.argmax(1)])
