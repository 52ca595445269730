"""How sure a fit is: what the residuals say of the noise, and refits to losses simulated with it.

Branches of one trunk share part of their noise: ln L = law + trunk effect + run effect. With 8 trunks the two variances
are poorly known themselves, so every refit draws its own pair from their posterior given the residuals (restricted
likelihood; the share that a trunk's branches have in common is uniform beforehand, the total is scale-free). In a
linear law with one variance the refits' quantiles are then exactly the t interval.

Noise is the same in nats at every size and composition (unless the table states each run's), so in ln L it shrinks
where the loss is large: taking it as relative left single compositions up to 8 points off (paper form, 32 trunks).

Refits know less beforehand than the fit: priors weigh TRUST, and the weakest shrinkage is used. An estimate may lean on
a belief; an interval that did would hold the truth only where the belief is right.
`experiments/coverage.py` measures how often the intervals hold the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.fit import Fit, Setting, belief, fit_many, problem_of, setting_of, smoother
from pplscape.laws.forms.base import Floats
from pplscape.laws.polish import Problem
from pplscape.laws.table import labels, noise_weights
from pplscape.runs import RunTable

LEAST_FREEDOM = 2.0
"""Fewer degrees of freedom than this would make every interval of cross-validation infinite; it is used instead and
said (`words.noise_words`)."""
TRUST = 0.25
"""Weight of a form's prior in refits: its spread is twice as wide as in the fit. Where E is hardly identified
(utility, 8 trunks, noise 0.01 nats; 100-150 data sets) 90 % intervals held it in 97 % of cases with weight 1, in 88 %
with 1/4 and in 77 % with 1/100, where many fits end at E = 0 and their refits stay there."""
SHARES = 20
"""Points at which the posterior of the trunk's share of the noise is evaluated."""


@dataclass(frozen=True)
class Noise:
    """Relative noise of measured losses around a law, and how well it is known."""

    trunk: float
    """Standard deviation of ln L shared by the branches of a trunk."""
    run: float
    """Standard deviation of ln L of one run given its trunk."""
    freedom: float
    """Degrees of freedom behind a typical prediction's variance: decides the t quantile in cross-validation (refits
    draw their noise from its posterior instead), and is told to the reader."""

    @property
    def total(self) -> float:
        return float(np.hypot(self.trunk, self.run))

    def covariance(self, groups: NDArray[np.str_]) -> Floats:
        """[n, n] covariance of ln L."""
        same = (groups[:, None] == groups[None, :]).astype(float)
        return self.trunk**2 * same + self.run**2 * np.eye(len(groups))


def variance_components(pull: Floats, residual: Floats, groups: NDArray[np.str_], weight: Floats) -> Noise:
    """Method of moments with leverage: residual [n] = (I - S) noise, S = `pull` [n, n].

    Between- and within-trunk sums of squares are matched to their expectations; `freedom` is Satterthwaite's for the
    variance of the average prediction.
    """
    n = len(residual)
    same = (groups[:, None] == groups[None, :]).astype(float)
    between = same / same.sum(1, keepdims=True)
    within = np.eye(n) - between
    keep = np.eye(n) - pull
    used = (weight > 0).astype(float)
    expected = np.empty((2, 2))
    shapes = [keep.T @ (form * used[:, None] * used) @ keep for form in (between, within)]
    for i, shape in enumerate(shapes):
        expected[i] = [np.sum(shape * same), np.trace(shape)]
    observed = np.array([residual @ (form * used[:, None] * used) @ residual for form in (between, within)])
    trunk, run = _non_negative_components(expected, observed)
    covariance = trunk * same + run * np.eye(n)
    return Noise(float(np.sqrt(trunk)), float(np.sqrt(run)), _freedom(pull, shapes, expected, covariance, same))


def _non_negative_components(expected: Floats, observed: Floats) -> tuple[float, float]:
    if np.linalg.cond(expected) > 1e8:  # every run is its own trunk: the two cannot be told apart
        return 0.0, float(max(observed.sum() / max(expected[:, 1].sum(), 1e-12), 0.0))
    trunk, run = np.linalg.solve(expected, observed)
    if trunk < 0:
        return 0.0, float(observed.sum() / expected[:, 1].sum())
    if run < 0:
        return float(observed.sum() / expected[:, 0].sum()), 0.0
    return float(trunk), float(run)


def _freedom(pull: Floats, shapes: list[Floats], expected: Floats, covariance: Floats, same: Floats) -> float:
    """2 E^2 / Var of the estimated mean prediction variance, a quadratic form in the noise."""
    wanted = np.array([np.trace(pull @ same @ pull.T), np.trace(pull @ pull.T)])
    if np.linalg.cond(expected) > 1e8:
        form = sum(shapes)
    else:
        mix = np.linalg.solve(expected.T, wanted)
        form = mix[0] * shapes[0] + mix[1] * shapes[1]
    product = form @ covariance
    spread = float(np.sum(product * product.T))
    freedom = float(np.trace(product)) ** 2 / spread if spread > 0 else LEAST_FREEDOM
    return float(np.clip(freedom, LEAST_FREEDOM, 1e4))


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
    n_tables, n_runs = log_loss.shape
    penalty = setting.form.penalty(setting.frame)
    weakest = np.full(n_tables, min(penalty.strengths) if penalty else 0.0)
    loose = replace(setting, trust=TRUST)
    weights = np.broadcast_to(weight, log_loss.shape)
    alone, _, _ = fit_many(loose, log_loss, weights, warm=theta[:, None], strength=weakest)
    problem = problem_of(loose, log_loss, weights, weakest)
    predicted, jacobian = setting.form.evaluate(alone, setting.data, setting.frame)
    assert jacobian is not None
    simulated = np.empty((n_tables, resamples, n_runs))
    noise = np.empty((n_tables, resamples))
    trunks, members = np.unique(groups, return_inverse=True)
    typical = predicted.mean(1)
    for t in range(n_tables):
        scale = np.sqrt(weight) if np.ptp(weight) else np.exp(predicted[t] - typical[t])
        if known is None:
            space = fitted_space(problem.rows(slice(t, t + 1)), alone[t], jacobian[t], scale)
            trunk, run = noise_posterior((log_loss[t] - predicted[t]) * scale, space, groups, resamples, rng)
        else:
            trunk, run = np.full(resamples, known.trunk), np.full(resamples, known.run)
        shared = trunk[:, None] * rng.normal(size=(resamples, len(trunks)))[:, members]
        own = run[:, None] * rng.normal(size=(resamples, n_runs))
        simulated[t] = predicted[t] + (shared + own) / scale
        noise[t] = np.hypot(trunk, run) * np.exp(typical[t])
    many = loose
    if isinstance(loose.noise, np.ndarray):
        many = replace(loose, delta=np.repeat(loose.delta, resamples, axis=0), noise=np.repeat(loose.noise, resamples))
    strength = np.repeat(weakest, resamples)
    draws, _, _ = fit_many(
        many,
        simulated.reshape(-1, n_runs),
        np.broadcast_to(weight, (len(strength), n_runs)),
        warm=np.repeat(alone, resamples, axis=0)[:, None],
        strength=strength,
        centre=_believed(loose, strength, rng),
    )
    return draws.reshape(n_tables, resamples, -1), noise


def fitted_space(problem: Problem, theta: Floats, jacobian: Floats, scale: Floats) -> Floats:
    """[n, k] orthonormal: the directions of `scale` [n] x ln L that the fit follows, first order, for a batch of one.

    A direction counts as fitted where the runs say more of it than what is believed beforehand.
    """
    low, high = problem.bounds()
    basis = problem.form.basis(problem.data, problem.frame)
    free = (theta > low[0]) & (theta < high[0])
    moved = (scale[:, None] * (jacobian @ basis))[:, free]
    ridge = (basis.T @ problem.ridge[0] @ basis)[np.ix_(free, free)]
    size = np.sqrt(np.maximum((moved**2).sum(0) + np.diag(ridge), 1e-300))
    moved, ridge = moved / size, ridge / np.outer(size, size)
    values, vectors = np.linalg.eigh(moved.T @ moved + ridge)
    kept = values > 1e-10
    left, singular, _ = np.linalg.svd(moved @ (vectors[:, kept] / np.sqrt(values[kept])), full_matrices=False)
    return left[:, singular**2 > 0.5]


def noise_posterior(
    residual: Floats, space: Floats, groups: NDArray[np.str_], resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Draws (trunk [B], run [B]) of the two standard deviations behind residuals [n] of a fit that followed `space`.

    Restricted likelihood of V = s^2 ((1 - r) I + r K), K = 1 within a trunk: what lies in `space` [n, k] says nothing
    of the noise, so it does not matter which estimator left the residuals. r is uniform on a grid, p(s^2) ~ 1 / s^2.
    """
    n, k = space.shape
    trunks, members = np.unique(groups, return_inverse=True)
    count = np.bincount(members)
    columns = np.column_stack([space, residual])
    sums = np.zeros((len(trunks), k + 1))
    np.add.at(sums, members, columns)
    share = (np.arange(SHARES) + 0.5) / SHARES if count.max() > 1 else np.zeros(1)
    own = 1 - share[:, None]
    whole = own + count * share[:, None]
    gram = columns.T @ columns / own[..., None]
    gram = gram - np.einsum("rt,ti,tj->rij", share[:, None] / (own * whole), sums, sums, optimize=True)
    inner, cross = gram[:, :k, :k], gram[:, :k, k]
    explained = (cross * np.linalg.solve(inner, cross[..., None])[..., 0]).sum(1)
    squares = np.maximum(gram[:, k, k] - explained, 1e-30)
    freedom = max(n - k, 1)
    log_volume = ((count - 1) * np.log(own) + np.log(whole)).sum(1) + np.linalg.slogdet(inner)[1]
    log_weight = -0.5 * (log_volume + freedom * np.log(squares))
    chance = np.exp(log_weight - log_weight.max())
    picked = rng.choice(len(share), size=resamples, p=chance / chance.sum())
    variance = squares[picked] / rng.chisquare(freedom, resamples)
    return np.sqrt(variance * share[picked]), np.sqrt(variance * (1 - share[picked]))


def _believed(setting: Setting, strength: Floats, rng: np.random.Generator) -> Floats:
    """What each refit believes of theta [B, p]: drawn from the belief, so that what only it decides varies."""
    precision, centre = belief(setting, strength[:1])
    values, vectors = np.linalg.eigh(precision[0])
    spread = np.where(values > 1e-12, 1 / np.sqrt(np.maximum(values, 1e-12)), 0.0)
    return centre + (rng.normal(size=(len(strength), len(centre))) * spread) @ vectors.T


def middle(draws: Floats, level: float) -> tuple[Floats, Floats]:
    """The middle `level` of draws [B, ...], the truth being as likely as any draw to rank anywhere among them."""
    tails = [0.5 - level / 2, 0.5 + level / 2]
    low, high = np.quantile(draws, tails, axis=0, method="weibull")
    return low, high
