"""`gp`: a Gaussian process over size and composition on top of a d-only mean: the law that assumes least.

    ln L = ln L_D(D) + f(x),   f ~ GP(0, spread^2 k),   L_D = `d-only:anchored`, or `d-only` without L(0)
    k(x, x') = 1 / (1 + |x - x'|^2 / 2)          (rational quadratic, Rasmussen & Williams 2006, eq. 4.19, alpha = 1)

x = (ln D, mean log-perplexity, ln spread), or (ln D, square roots of the bin shares) for `gp:bins`, in units of
LENGTH standard deviations of the pilots. The kernel averages over all length scales, so none is fitted.

In the weight-space view f(x) = phi(x) w with w ~ N(0, spread^2 I): the mean of the posterior is a penalised fit, and
the machinery for penalties does the rest (spread by left-out error, folds, refits). phi = k(x, Z) chol(k(Z, Z))^-T for
a subset Z of the pilots chosen by pivoted Cholesky, exact when all are in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from scipy.linalg import block_diag, cholesky, solve_triangular

from pplscape.laws.forms.base import Data, Floats, Form, Frame, Penalty, Prior, weighted_least_squares
from pplscape.laws.forms.d_only import DOnly, DOnlyAnchored
from pplscape.runs import Compositions

LENGTH = 3.0
"""Length scale, in standard deviations of the pilots: of 1.5, 3 and 5 the best in most simulated worlds."""
SPREADS = (0.003, 0.01, 0.03, 0.1)
"""Candidates for the standard deviation of f, in ln L."""
MEAN_TERMS = 3
MOST_POINTS = 64
LEAST_VARIANCE = 1e-4
"""A pilot joins Z while this share of its prior variance is unexplained by Z. What stays unexplained is in no interval:
with 0.005 only 83 % of 90 % intervals held the truth at the pilots farthest from the others, with 0.001 77 % where 32
trunks and little noise (0.003 nats) leave them narrow."""
START_NOISE = 0.01
"""Relative noise over spread assumed for the starting values only."""


class GaussianProcess(Form):
    """moments: theta = (the mean's, w_0..w_r); w in ln L."""

    name = "gp"
    variants = ("moments", "bins")
    default_scale: ClassVar[str | None] = "nll"
    at_one_size = True

    def coordinates(self, compositions: Compositions) -> Floats:
        """x [n, d] in raw units, ln D last."""
        mean, std = compositions.moments(self.scale or "nll")
        first = mean if self.scale == "nll" else np.log(mean)
        return np.stack([first, np.log(std), np.log(compositions.tokens)], axis=-1)

    def lengths(self, x: Floats) -> Floats:
        """Length scale [d] of each coordinate, ln D last."""
        return LENGTH * np.maximum(x.std(0), 1e-3)

    def reframe(self, compositions: Compositions, frame: Frame) -> Frame:
        x = self.coordinates(compositions)
        lengths = self.lengths(x)
        chosen = pivots(kernel(x / lengths, x / lengths))
        return replace(frame, own={"points": x[chosen].tolist(), "lengths": lengths.tolist()})

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        lengths = np.asarray(frame.own["lengths"])
        points, x = np.asarray(frame.own["points"]) / lengths, self.coordinates(compositions) / lengths
        lower = cholesky(kernel(points, points) + 1e-10 * np.eye(len(points)), lower=True)
        phi = solve_triangular(lower, kernel(points, x), lower=True).T
        return {"phi": phi, **mean_of(frame).data(compositions, frame)}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return (*mean_of(frame).names(frame), *(f"w_{i}" for i in range(len(frame.own["points"]))))

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        low, high = mean_of(frame).bounds(frame, smallest)
        free = np.full((len(smallest), len(frame.own["points"])), np.inf)
        return np.concatenate([low, -free], axis=-1), np.concatenate([high, free], axis=-1)

    def prior(self, frame: Frame) -> Prior | None:
        of_mean = mean_of(frame).prior(frame)
        assert of_mean is not None
        n = len(frame.own["points"])
        return Prior(np.pad(of_mean.centre, (0, n)), np.pad(of_mean.precision, (0, n)))

    def penalty(self, frame: Frame) -> Penalty:
        n = len(frame.own["points"])
        return Penalty(np.diag([0.0] * MEAN_TERMS + [1.0] * n), tuple(s**-2 for s in SPREADS), estimated=True)

    def basis(self, data: Data, frame: Frame) -> Floats:
        return block_diag(mean_of(frame).basis(data, frame), np.eye(data["phi"].shape[1]))

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        mean, slopes = mean_of(frame).evaluate(theta[..., :MEAN_TERMS], data, frame, jacobian)
        log_loss = mean + theta[..., MEAN_TERMS:] @ data["phi"].T
        if slopes is None:
            return log_loss, None
        phi = np.broadcast_to(data["phi"], (*log_loss.shape, data["phi"].shape[1]))
        return log_loss, np.concatenate([slopes, phi], axis=-1)

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """The best of the mean's own starts, and w by ridge on what it leaves."""
        of_mean = mean_of(frame)
        candidates = of_mean.starts(data, loss, weight, frame)
        left = np.stack(
            [np.log(loss) - of_mean.evaluate(c, data, frame, False)[0] for c in np.moveaxis(candidates, 1, 0)], axis=1
        )
        best, rows = (weight[:, None, :] * left**2).sum(-1).argmin(1), np.arange(len(loss))
        ridge = START_NOISE * np.eye(data["phi"].shape[1])
        w = weighted_least_squares(data["phi"], left[rows, best], weight, ridge)
        return np.concatenate([candidates[rows, best], w], axis=-1)[:, None, :]

    def params(self, theta: Floats, frame: Frame) -> Floats:
        first = mean_of(frame).params(theta[..., :MEAN_TERMS], frame)
        return np.concatenate([first, theta[..., MEAN_TERMS:]], axis=-1)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        first = mean_of(frame).theta(params[..., :MEAN_TERMS], frame)
        return np.concatenate([first, params[..., MEAN_TERMS:]], axis=-1)


def mean_of(frame: Frame) -> Form:
    """The d-only form that is the prior mean: anchored where L(0) is known."""
    return DOnly() if frame.base_loss is None else DOnlyAnchored("anchored")


class GaussianProcessBins(GaussianProcess):
    """bins: composition enters as square roots of the bin shares (their distance is Hellinger's)."""

    columns = ("tokens", "bin_tokens")
    default_scale = None

    def coordinates(self, compositions: Compositions) -> Floats:
        assert compositions.bin_tokens is not None
        share = compositions.bin_tokens / compositions.bin_tokens.sum(1, keepdims=True)
        return np.concatenate([np.sqrt(share), np.log(compositions.tokens)[:, None]], axis=-1)

    def lengths(self, x: Floats) -> Floats:
        lengths = super().lengths(x)
        lengths[:-1] = LENGTH * max(float(np.sqrt(x[:, :-1].var(0).sum())), 1e-3)
        return lengths


def kernel(x: Floats, y: Floats) -> Floats:
    """k [n, m] of points [n, d], [m, d] in units of the length scales."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return 1 / (1 + np.maximum(squares, 0.0) / 2)


def pivots(k: Floats) -> list[int]:
    """Rows of a kernel matrix [n, n] that explain the others: pivoted Cholesky, in order of need."""
    left = np.diag(k).copy()
    factor = np.zeros((len(k), 0))
    chosen: list[int] = []
    while len(chosen) < min(MOST_POINTS, len(k)):
        at = int(np.argmax(left))
        if left[at] < LEAST_VARIANCE:
            break
        column = (k[:, at] - factor @ factor[at]) / np.sqrt(left[at])
        factor = np.column_stack([factor, column])
        left = np.maximum(left - column**2, 0.0)
        chosen.append(at)
    return chosen
