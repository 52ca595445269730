"""How sure a fit is: what the residuals say of the noise, and refits to losses simulated with it.

Branches of one trunk share part of their noise, and with 8 trunks its two variances are poorly known themselves, so
every refit draws its own pair from their posterior given the residuals (`noise.noise_posterior`). In a linear law with
one variance the refits' quantiles are then exactly the t interval.

E and the exponents lie along a valley of nearly equal fit; how far refits scatter along it depends on where on it the
estimate happens to be: with free refits 90 % intervals at four times the largest size held the truth in 74 to 98 % of
data sets. So the E of a refit is not fitted. It is the value that a likelihood-ratio test of the runs rejects as
strongly as the refit's noise, to first order, moves E (`valley.Path`); the other parameters are fitted with it held, to
losses simulated from the law that fits the runs best with that E, and with the rest of the noise: what moved E is
spent. In a linear law both ways are the same.

Noise is the same in nats at every size and composition (unless the table states each run's), so in ln L it shrinks
where the loss is large: taking it as relative left single compositions up to 8 points off (paper form, 32 trunks).

Refits know less beforehand than the fit: priors weigh TRUST, and the weakest shrinkage is used, or one drawn from its
posterior (`shrinkage`).
`experiments/coverage.py` measures how often the intervals hold the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.fit import Fit, Setting, belief, fit_many, problem_of, setting_of, smoother
from pplscape.laws.forms.base import Floats
from pplscape.laws.noise import Noise, fitted_space, noise_posterior, variance_components
from pplscape.laws.shrinkage import chances, weakest
from pplscape.laws.table import labels, noise_weights
from pplscape.laws.valley import TRUST, coordinate, valley_of
from pplscape.runs import RunTable

HELD = 1e4
"""Pull that holds a refit's E, over the curvature that its objective has with all others at rest."""


@dataclass(frozen=True)
class Uncertainty:
    """Refits of one law and the noise behind each."""

    draws: Floats
    """[B, p] theta of the refits."""
    drawn_noise: Floats
    """[B] noise of one run (trunk and run together) in each refit, nats/token."""
    noise: Noise
    """Estimated by the method of moments."""


def uncertainty(
    fit: Fit, runs: RunTable, resamples: int = 500, seed: int = 0, noise: Noise | None = None
) -> Uncertainty:
    """Refit `resamples` simulated tables; `noise` is used instead of what the residuals say."""
    setting = setting_of(fit.form, runs, fit.delta)
    weight, groups, log_loss = noise_weights(runs), labels(runs, "group"), np.log(runs.loss)
    whole = problem_of(setting, log_loss[None], weight[None], np.array([fit.strength]))
    pull, residual, _ = smoother(whole, fit.theta[None])
    draws, drawn = refits(setting, fit.theta[None], log_loss[None], weight, groups, resamples, seed, noise)
    return Uncertainty(draws[0], drawn[0], noise or variance_components(pull[0], residual[0], groups, weight))


def refits(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    resamples: int,
    seed: int = 0,
    known: Noise | None = None,
) -> tuple[Floats, Floats]:
    """(theta [T, B, p], noise of one run [T, B], nats/token) of B refits to each of T tables of the same compositions.

    theta [T, p] are the fits, log_loss [T, n] the measured losses, weight [n] the runs' weights (`noise_weights`);
    `known` noise takes the place of the posterior.
    """
    rng = np.random.default_rng(seed)
    n_tables, penalty = len(log_loss), setting.form.penalty(setting.frame)
    loose = replace(setting, trust=TRUST)
    weights = np.broadcast_to(weight, log_loss.shape)
    candidates, chance = chances(loose, theta, log_loss, weight, groups, seed, known)
    likely = candidates[chance.argmax(1)]
    alone, _, _ = fit_many(loose, log_loss, weights, warm=theta[:, None], strength=likely)
    centre, error, noise = _simulated(
        loose, alone, log_loss, weight, weakest(loose, n_tables), groups, resamples, rng, known
    )
    starts = np.repeat(alone[:, None], resamples, axis=1)
    floor = coordinate(setting, alone, "E")
    held = None
    if floor is not None:
        valley, _ = valley_of(setting, alone, log_loss, weight, groups, seed, known)
        for t, path in enumerate(valley.paths(floor)):
            score, error[t] = valley.scores(t, error[t], floor)
            starts[t], centre[t] = path.at(score)
        held = np.zeros_like(starts)
        held[:, :, floor] = HELD * valley.curvature(floor)[:, None]
        held = held.reshape(-1, held.shape[2])
    many = loose
    if isinstance(loose.noise, np.ndarray):
        many = replace(loose, delta=np.repeat(loose.delta, resamples, axis=0), noise=np.repeat(loose.noise, resamples))
    strength = np.repeat(likely, resamples)
    if len(candidates) > 1:
        strength = np.concatenate([rng.choice(candidates, size=resamples, p=each) for each in chance])
    warm = starts.reshape(-1, starts.shape[2])
    believed = _believed(loose, strength, rng)
    if penalty is not None and penalty.estimated:  # centred on the fit: it is shrunk already, and would be so twice
        believed = believed + np.where(np.diag(penalty.matrix) > 0, warm, 0.0)
    if floor is not None:
        believed[:, floor] = warm[:, floor]
    draws, _, _ = fit_many(
        many,
        (centre + error).reshape(-1, log_loss.shape[1]),
        np.broadcast_to(weight, (len(strength), len(weight))),
        warm=warm[:, None],
        strength=strength,
        centre=believed,
        held=held,
    )
    return draws.reshape(n_tables, resamples, -1), noise


def _simulated(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    strength: Floats,
    groups: NDArray[np.str_],
    resamples: int,
    rng: np.random.Generator,
    known: Noise | None,
) -> tuple[Floats, Floats, Floats]:
    """(ln L [T, B, n] that fits theta [T, p] predict, errors [T, B, n], noise of one run [T, B] in nats/token)."""
    predicted, jacobian = setting.form.evaluate(theta, setting.data, setting.frame)
    assert jacobian is not None
    problem = problem_of(setting, log_loss, np.broadcast_to(weight, log_loss.shape), strength)
    trunks, members = np.unique(groups, return_inverse=True)
    error, noise = np.empty((len(theta), resamples, len(weight))), np.empty((len(theta), resamples))
    for t, typical in enumerate(predicted.mean(1)):
        scale = np.sqrt(weight) if np.ptp(weight) else np.exp(predicted[t] - typical)
        if known is None:
            space = fitted_space(problem.rows(slice(t, t + 1)), theta[t], jacobian[t], scale)
            trunk, run = noise_posterior((log_loss[t] - predicted[t]) * scale, space, groups, resamples, rng)
        else:
            trunk, run = np.full(resamples, known.trunk), np.full(resamples, known.run)
        shared = trunk[:, None] * rng.normal(size=(resamples, len(trunks)))[:, members]
        error[t] = (shared + run[:, None] * rng.normal(size=(resamples, len(weight)))) / scale
        noise[t] = np.hypot(trunk, run) * np.exp(typical)
    return np.repeat(predicted[:, None], resamples, axis=1), error, noise


def _believed(setting: Setting, strength: Floats, rng: np.random.Generator) -> Floats:
    """What each refit believes of theta [B, p]: drawn from the belief, so that what only it decides varies."""
    distinct, which = np.unique(strength, return_inverse=True)
    precision, centre = belief(setting, distinct)
    values, vectors = np.linalg.eigh(precision)
    spread = np.where(values > 1e-12, 1 / np.sqrt(np.maximum(values, 1e-12)), 0.0)
    drawn = rng.normal(size=(len(strength), len(centre))) * spread[which]
    return centre + np.einsum("bq,bpq->bp", drawn, vectors[which])


def middle(draws: Floats, level: float) -> tuple[Floats, Floats]:
    """The middle `level` of draws [B, ...], the truth being as likely as any draw to rank anywhere among them."""
    tails = [0.5 - level / 2, 0.5 + level / 2]
    low, high = np.quantile(draws, tails, axis=0, method="weibull")
    return low, high
