"""`utility`: what a token of each perplexity bin is worth. Anchored at the base model's loss, concave, budget-aware.

    L(n) = E + (L0 - E) (1 - J) [1 + sum_b u_b w_b phi(n_b / w_b)]^-beta      n > 0
    phi(z) = tau (1 - exp(-z / tau))   (saturating, default)      or      z^gamma, 0 < gamma <= 1   (power)

n_b = tokens of bin b in units of the largest pilot, w_b = the bin's share of pool tokens. Repeats beyond one epoch
count less (Muennighoff et al., arXiv 2305.16264): n_b -> U_b + U_b R (1 - exp(-(n_b/U_b - 1)/R)), U_b = unique tokens.

J, believed to be small, is the share of the gap that the first steps close whatever they read (format, frequent
tokens). Without it the curve is fitted to that, and says too little of what more tokens bring (docs/decisions.md).

Of bins that are cut a second time, by learnability, utilities are additive: v of a cell is f of its range of
log-perplexity plus h of its level, K + M numbers for K M cells.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pplscape.laws.forms.base import (
    EXPONENT,
    Data,
    Floats,
    Form,
    Frame,
    Penalty,
    Prior,
    believe,
    box,
    gap_floor_grid,
    weighted_least_squares,
)
from pplscape.runs import Compositions

REPEAT_VALUE = 15.387756
"""R*_D of arXiv 2305.16264: how many repeats are worth about as much as fresh tokens."""
LEAST_BRACKET = 0.05
"""Below it the bracket falls exponentially to 0 instead of crossing it, so that a prediction always exists."""
PRIOR_SPREADS = (0.1, 0.3, 1.0, 3.0)
"""Candidates for the spread of u_b around its mean, relative to the mean."""

NOISE_GUESS = 0.003
"""Relative noise assumed for the ridge of the starting values only."""


def effective_tokens(tokens: Floats, unique: Floats | None) -> Floats:
    """Tokens per bin [n, K] after discounting repeats beyond one epoch of the bin's unique tokens [n, K]."""
    if unique is None:
        return tokens
    epochs = np.divide(tokens, unique, out=np.ones_like(tokens), where=unique > 0)
    repeated = unique * (1 + REPEAT_VALUE * -np.expm1(-(epochs - 1) / REPEAT_VALUE))
    return np.where((unique > 0) & (epochs > 1), repeated, tokens)


HEAD, JUMP = 5, 4
"""Numbers of theta before the bins', and where J stands among them."""
JUMP_SPREAD, MOST_JUMP = 0.1, 0.9
"""What is believed of J, around none, and its bound."""
JUMPS = (0.0, 0.05)
"""Values of J to start from."""


class Utility(Form):
    """theta = (E, ln beta, ln tau | gamma, ln k, J, v_1..v_K); u_b = k (1 + v_b), v smoothed and shrunk to 0.

    With M levels theta ends in (f_1..f_K, h_1..h_M), each smoothed and shrunk to 0, and v = f + h."""

    name = "utility"
    variants = ("saturating", "power")
    columns = ("tokens", "bin_tokens")
    uses_base = True
    at_one_size = True

    def missing(self, compositions: Compositions, frame: Frame) -> list[str]:
        lacking = super().missing(compositions, frame)
        return lacking + (["bin shares of the pool"] if not lacking and frame.bin_share is None else [])

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        assert compositions.bin_tokens is not None
        share = np.asarray(frame.bin_share)
        z = effective_tokens(compositions.bin_tokens, compositions.bin_unique_tokens) / (share * frame.unit)
        return {"z": z, "log_z": np.log(np.maximum(z, 1e-300)), "share": share}

    def names(self, frame: Frame) -> tuple[str, ...]:
        shape = "tau" if self.variant == "saturating" else "gamma"
        return ("E", "beta", shape, "J", *(f"u_{b}" for b in range(len(frame.bin_share or ()))))

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        assert frame.base_loss is not None
        shape = (np.log(0.1), np.log(100.0)) if self.variant == "saturating" else (0.05, 1.0)
        top = np.minimum(smallest, 0.999 * frame.base_loss)
        n = _cells(frame).shape[1]
        low = [0.0, np.log(0.02), shape[0], -12.0, 0.0, *[-50.0] * n]
        return box(low, [top, np.log(5.0), shape[1], 12.0, MOST_JUMP, *[50.0] * n], smallest)

    def prior(self, frame: Frame) -> Prior:
        beliefs = {1: (float(np.log(EXPONENT)), 1.0), JUMP: (0.0, JUMP_SPREAD)}
        return believe(HEAD + _cells(frame).shape[1], beliefs)

    def basis(self, data: Data, frame: Frame) -> Floats:
        steps = np.ones(HEAD + _cells(frame).shape[1])
        steps[JUMP] = JUMP_SPREAD
        return np.diag(steps)

    def penalty(self, frame: Frame) -> Penalty:
        n_levels = frame.bin_levels
        n_bins = len(frame.bin_share or ()) // n_levels
        axes = [n_bins] if n_levels == 1 else [n_bins, n_levels]
        matrix = np.zeros((HEAD + sum(axes), HEAD + sum(axes)))
        start = HEAD
        for n in axes:
            differences, inside = np.diff(np.eye(n), axis=0), slice(start, start + n)
            matrix[inside, inside] = np.eye(n) + differences.T @ differences
            start += n
        return Penalty(matrix, tuple(spread**-2 for spread in PRIOR_SPREADS))

    def _phi(self, shape: Floats, data: Data) -> tuple[Floats, Floats]:
        """phi [..., n, K] and its derivative by theta's shape parameter, for shape [...]."""
        z = data["z"]
        if self.variant == "power":
            phi = np.where(z > 0, np.exp(shape[..., None, None] * data["log_z"]), 0.0)
            return phi, phi * np.where(z > 0, data["log_z"], 0.0)
        tau = np.exp(shape)[..., None, None]
        decay = np.exp(-z / tau)
        phi = -tau * np.expm1(-z / tau)
        return phi, phi - z * decay

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        assert frame.base_loss is not None
        floor, beta, k, left = (
            theta[..., :1],
            np.exp(theta[..., 1:2]),
            np.exp(theta[..., 3:4]),
            1 - theta[..., JUMP:HEAD],
        )
        phi, by_shape = self._phi(theta[..., 2], data)
        worth = k * (1 + _spread(theta[..., HEAD:], frame)) * data["share"]
        total = (phi @ worth[..., None])[..., 0]
        raw = 1 + total
        bracket = np.where(raw < LEAST_BRACKET, LEAST_BRACKET * np.exp(np.minimum(raw / LEAST_BRACKET - 1, 0)), raw)
        bracket = np.maximum(bracket, 1e-12)
        whole = (frame.base_loss - floor) * bracket**-beta
        gap = left * whole
        loss = floor + gap
        if not jacobian:
            return np.log(loss), None
        slope = -beta * gap / np.where(raw < LEAST_BRACKET, LEAST_BRACKET, bracket)
        derivative = np.empty((*loss.shape, theta.shape[-1]))
        derivative[..., 0] = 1 - left * bracket**-beta
        derivative[..., 1] = -beta * gap * np.log(bracket)
        derivative[..., 2] = slope * (by_shape @ worth[..., None])[..., 0]
        derivative[..., 3] = slope * total
        by_cell = (slope * k)[..., None] * phi * data["share"]
        derivative[..., JUMP] = -whole
        derivative[..., HEAD:] = by_cell if frame.bin_levels == 1 else by_cell @ _cells(frame)
        return np.log(loss), derivative / loss[..., None]

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """(E, beta, shape) on a grid; `((L-E)/(L0-E))^(-1/beta) - 1`, linear in u, solved with a ridge of spread 1.

        Each also with all bins alike: where the penalty is strong, fits that start far apart end far above the best.
        """
        assert frame.base_loss is not None
        floor = np.minimum(gap_floor_grid(loss, weight, 5), 0.99 * frame.base_loss)
        shapes = np.log([0.3, 1.0, 3.0, 20.0]) if self.variant == "saturating" else np.array([0.25, 0.5, 0.75, 1.0])
        found = [
            self._linear_starts(data, loss, weight, frame, floor, beta, shape, jump)
            for beta in (0.1, 0.25, 0.6, 1.5)
            for shape in shapes
            for jump in JUMPS
        ]
        starts = np.concatenate(found, axis=1)
        alike = np.concatenate([starts[..., :HEAD], np.zeros_like(starts[..., HEAD:])], axis=-1)
        return np.concatenate([starts, alike], axis=1)

    def _linear_starts(
        self, data: Data, loss: Floats, weight: Floats, frame: Frame, floor: Floats, beta: float, shape: float,
        jump: float,
    ) -> Floats:  # fmt: skip
        assert frame.base_loss is not None
        phi = self._phi(np.asarray(shape), data)[0] * data["share"]
        floor = floor[..., None]
        left = (frame.base_loss - floor) * (1 - jump)
        ratio = np.maximum((loss[:, None, :] - floor) / left, 1e-6)
        bracket = ratio ** (-1 / beta)
        effective = weight[:, None, :] * (ratio * left * beta / (bracket * loss[:, None, :])) ** 2
        common = phi.sum(-1)
        k = (effective * common * (bracket - 1)).sum(-1) / np.maximum((effective * common**2).sum(-1), 1e-300)
        k = np.clip(k, 1e-3, 1e4)
        penalty = self.penalty(frame)
        ridge = NOISE_GUESS**2 * penalty.matrix[HEAD:, HEAD:] / (k**2)[..., None, None]
        if frame.bin_levels > 1:
            phi = phi @ _cells(frame)
        spread = weighted_least_squares(phi, bracket - 1 - k[..., None] * common, effective, ridge)
        head = [floor[..., 0], np.full_like(k, np.log(beta)), np.full_like(k, shape), np.log(k), np.full_like(k, jump)]
        return np.concatenate([np.stack(head, axis=-1), np.clip(spread / k[..., None], -10, 10)], axis=-1)

    def params(self, theta: Floats, frame: Frame) -> Floats:
        shape = np.exp(theta[..., 2:3]) if self.variant == "saturating" else theta[..., 2:3]
        worth = np.exp(theta[..., 3:4]) * (1 + _spread(theta[..., HEAD:], frame))
        return np.concatenate([theta[..., :1], np.exp(theta[..., 1:2]), shape, theta[..., JUMP:HEAD], worth], axis=-1)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        shape = np.log(params[..., 2:3]) if self.variant == "saturating" else params[..., 2:3]
        worth = params[..., 4:]
        mean = worth.mean(-1, keepdims=True)
        k = np.where(mean > 0, mean, np.abs(worth).mean(-1, keepdims=True) + 1e-12)
        spread = worth / k - 1
        if frame.bin_levels > 1:
            spread = spread @ np.linalg.pinv(_cells(frame)).T
        head = [params[..., :1], np.log(params[..., 1:2]), shape, np.log(k), params[..., 3:4]]
        return np.concatenate([*head, spread], axis=-1)


def _cells(frame: Frame) -> Floats:
    """[K M, K + M] which of f and h make up v of each cell; the identity without levels."""
    n, levels = len(frame.bin_share or ()), frame.bin_levels
    if levels == 1:
        return np.eye(n)
    ranges = np.repeat(np.eye(n // levels), levels, axis=0)
    return np.concatenate([ranges, np.tile(np.eye(levels), (n // levels, 1))], axis=1)


def _spread(values: Floats, frame: Frame) -> Floats:
    """v [..., K M] of theta's last numbers."""
    return values if frame.bin_levels == 1 else values @ _cells(frame).T


class Alike(Utility):
    """The utility law in which every bin is worth the same: returns may fall within a bin, but no text is better.

    What a utility law must beat before its utilities mean anything; not a form to choose.
    """

    name = "alike"

    def penalty(self, frame: Frame) -> Penalty:
        return replace(super().penalty(frame), strengths=(1.0,))

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        """v is 0 and not only near it: what is left of a preference would be taken for a gain, however small."""
        low, high = super().bounds(frame, smallest)
        low[..., HEAD:], high[..., HEAD:] = 0.0, 0.0
        return low, high
