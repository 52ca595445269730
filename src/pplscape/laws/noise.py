"""The noise of measured losses: two variances, of trunks and of runs, and how well residuals tell them.

Branches of one trunk share part of their noise: ln L = law + trunk effect + run effect. With 8 trunks the two variances
are poorly known themselves; their posterior (restricted likelihood; the share that a trunk's branches have in common is
uniform beforehand, the total is scale-free) says how poorly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.forms.base import Floats
from pplscape.laws.polish import Problem

LEAST_FREEDOM = 2.0
"""Fewer degrees of freedom than this would make every interval of cross-validation infinite; it is used instead and
said (`words.noise_words`)."""
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
