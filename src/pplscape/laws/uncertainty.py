"""How sure a fit is: variance components of trunks and runs, refits to simulated losses, t quantiles.

Branches of one trunk share its noise. Losses are simulated from the fitted law with a trunk effect (sd `trunk`) and a
run effect (sd `run`), both relative, estimated from the residuals with the fit's leverage removed; every simulated
table is refitted, with what is believed beforehand (priors, shrinkage) drawn anew as well. Quantiles are stretched by
t / z with Satterthwaite degrees of freedom, because with 8-12 trunks the components themselves are uncertain.
`experiments/coverage_small.py` measures the coverage of this and of the wild cluster bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.laws.fit import Fit, Setting, belief, fit_many, problem_of, setting_of, smoother
from pplscape.laws.forms.base import Floats
from pplscape.laws.table import labels, noise_weights
from pplscape.runs import RunTable

LEAST_FREEDOM = 2.0
"""Fewer degrees of freedom than this would make every interval infinite; it is used instead and said."""


@dataclass(frozen=True)
class Noise:
    """Relative noise of measured losses around a law, and how well it is known."""

    trunk: float
    """Standard deviation of ln L shared by the branches of a trunk."""
    run: float
    """Standard deviation of ln L of one run given its trunk."""
    freedom: float
    """Degrees of freedom behind a typical prediction's variance."""

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
    """Refits of one law: draws of its theta, and the noise behind them."""

    draws: Floats
    """[B, p] theta of the refits."""
    noise: Noise
    pull: Floats
    """[n, n] smoother of the fit to all runs."""

    def stretch(self, level: float) -> float:
        """t quantile over normal quantile at a two-sided level."""
        tail = 0.5 + level / 2
        return float(stats.t.ppf(tail, self.noise.freedom) / stats.norm.ppf(tail))


def uncertainty(
    fit: Fit, runs: RunTable, resamples: int = 500, seed: int = 0, method: str = "parametric",
    noise: Noise | None = None,
) -> Uncertainty:  # fmt: skip
    """Refit `resamples` simulated tables; method `parametric` (variance components) or `wild` (cluster, Rademacher).

    `noise` is used instead of what the residuals say.
    """
    setting = setting_of(fit.form, runs, fit.delta)
    weight, groups = noise_weights(runs), labels(runs, "group")
    log_loss = np.log(runs.loss)
    problem = problem_of(setting, log_loss[None], weight[None], np.array([fit.strength]))
    pull, residual, _ = smoother(problem, fit.theta[None])
    noise = noise or variance_components(pull[0], residual[0], groups, weight)
    rng = np.random.default_rng(seed)
    if method == "wild":
        errors = _wild(pull[0], residual[0], groups, rng, resamples)
    else:
        trunks, members = np.unique(groups, return_inverse=True)
        errors = noise.trunk * rng.normal(size=(resamples, len(trunks)))[:, members]
        errors = errors + noise.run * rng.normal(size=(resamples, len(runs)))
    simulated = log_loss + residual[0] + errors
    weights = np.broadcast_to(weight, simulated.shape)
    strength = np.full(resamples, fit.strength)
    centre = _believed(setting, strength, rng)
    draws, _, _ = fit_many(setting, simulated, weights, warm=fit.theta[None], strength=strength, centre=centre)
    return Uncertainty(draws, noise, pull[0])


def _believed(setting: Setting, strength: Floats, rng: np.random.Generator) -> Floats:
    """What each refit believes of theta [B, p]: drawn from the prior, so that what only the prior decides varies."""
    precision, centre = belief(setting, strength[:1])
    values, vectors = np.linalg.eigh(precision[0])
    spread = np.where(values > 1e-12, 1 / np.sqrt(np.maximum(values, 1e-12)), 0.0)
    return centre + (rng.normal(size=(len(strength), len(centre))) * spread) @ vectors.T


def _wild(pull: Floats, residual: Floats, groups: NDArray[np.str_], rng: Any, resamples: int) -> Floats:
    """Errors [B, n]: a random sign a trunk times its residuals, leverage-inflated by (I - S_gg)^-1/2."""
    inflated = np.empty_like(residual)
    trunks, members = np.unique(groups, return_inverse=True)
    for i in range(len(trunks)):
        rows = np.flatnonzero(members == i)
        block = pull[np.ix_(rows, rows)]
        values, vectors = np.linalg.eigh(np.eye(len(rows)) - (block + block.T) / 2)
        inflated[rows] = vectors @ ((vectors.T @ residual[rows]) / np.sqrt(np.maximum(values, 0.05)))
    signs = rng.choice([-1.0, 1.0], size=(resamples, len(trunks)))
    return signs[:, members] * inflated
