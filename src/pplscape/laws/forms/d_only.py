"""`d-only`: the number of tokens explains the loss, its composition nothing: the null a perplexity law must beat."""

from __future__ import annotations

import numpy as np

from pplscape.laws.forms.base import EXPONENT, Data, Floats, Form, Frame, Prior, believe, box, gap_floor_grid
from pplscape.laws.forms.gap import GapForm
from pplscape.runs import Compositions


class DOnly(GapForm):
    """power: L = E + A D^-alpha, D in tokens."""

    name = "d-only"
    variants = ("power", "anchored", "rectified")
    scale_name = "A"
    exponent_name = "alpha"
    uses_composition = False


class DOnlyAnchored(Form):
    """anchored: L = E + (L0 - E) (1 + k D/unit)^-beta; L(0) is the base model's measured loss, unit = largest pilot.

    theta = (E, ln k, ln beta).
    """

    name = "d-only"
    variants = ("power", "anchored", "rectified")
    uses_composition = False
    uses_base = True

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        return {"t": compositions.tokens / frame.unit}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("E", "k", "beta")

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        assert frame.base_loss is not None
        top = np.minimum(smallest, 0.999 * frame.base_loss)
        return box([0.0, -12.0, np.log(0.02)], [top, 12.0, np.log(5.0)], smallest)

    def prior(self, frame: Frame) -> Prior:
        return believe(3, {2: (float(np.log(EXPONENT)), 1.0)})

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        assert frame.base_loss is not None
        floor, k, beta = theta[..., :1], np.exp(theta[..., 1:2]), np.exp(theta[..., 2:3])
        bracket = 1 + k * data["t"]
        gap = (frame.base_loss - floor) * bracket**-beta
        loss = floor + gap
        if not jacobian:
            return np.log(loss), None
        by_floor = 1 - bracket**-beta
        by_k = -beta * gap * (bracket - 1) / bracket
        by_beta = -beta * gap * np.log(bracket)
        return np.log(loss), np.stack([by_floor, by_k, by_beta], axis=-1) / loss[..., None]

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        assert frame.base_loss is not None
        floor = np.minimum(gap_floor_grid(loss, weight, 8), 0.99 * frame.base_loss)[:, :, None, None]
        beta = np.geomspace(0.05, 2.0, 8)[:, None]
        ratio = np.maximum((loss[:, None, None, :] - floor) / (frame.base_loss - floor), 1e-9)
        bracket = ratio ** (-1 / beta)
        effective = weight[:, None, None, :] * ((ratio * beta) / (bracket * loss[:, None, None, :])) ** 2
        k = (effective * data["t"] * (bracket - 1)).sum(-1) / (effective * data["t"] ** 2).sum(-1)
        grids = np.broadcast_arrays(floor[..., 0], np.log(np.clip(k, 1e-5, 1e5)), np.log(beta[:, 0]))
        return np.stack(grids, axis=-1).reshape(len(loss), -1, 3)

    def params(self, theta: Floats, frame: Frame) -> Floats:
        return np.concatenate([theta[..., :1], np.exp(theta[..., 1:])], axis=-1)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        return np.concatenate([params[..., :1], np.log(params[..., 1:])], axis=-1)


class DOnlyRectified(Form):
    """rectified: L = E + B / (D0 + D^alpha), D in units of the largest pilot (Lin et al., arXiv 2402.02314).

    theta = (E, ln B, ln D0, alpha).
    """

    name = "d-only"
    variants = ("power", "anchored", "rectified")
    uses_composition = False

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        return {"t": compositions.tokens / frame.unit}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("E", "B", "D0", "alpha")

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        return box([0.0, -12.0, -12.0, 0.0], [smallest, 8.0, 5.0, 3.0], smallest)

    def prior(self, frame: Frame) -> Prior:
        return believe(4, {3: (EXPONENT, EXPONENT)})

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        floor, offset, alpha = theta[..., :1], np.exp(theta[..., 2:3]), theta[..., 3:4]
        power = data["t"] ** alpha
        gap = np.exp(theta[..., 1:2]) / (offset + power)
        loss = floor + gap
        if not jacobian:
            return np.log(loss), None
        by_offset = -gap * offset / (offset + power)
        by_alpha = -gap * power * np.log(data["t"]) / (offset + power)
        return np.log(loss), np.stack([np.ones_like(gap), gap, by_offset, by_alpha], axis=-1) / loss[..., None]

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        floor = gap_floor_grid(loss, weight, 6)[:, :, None, None, None]
        offset, alpha = np.geomspace(0.01, 3.0, 5)[:, None, None], np.array([0.15, 0.3, 0.6, 1.0])[:, None]
        shape = 1 / (offset + data["t"] ** alpha)
        effective = (weight / loss**2)[:, None, None, None, :]
        gap = loss[:, None, None, None, :] - floor
        top = (effective * shape * gap).sum(-1) / (effective * shape**2).sum(-1)
        grids = np.broadcast_arrays(
            floor[..., 0], np.log(np.clip(top, 1e-5, 1e3)), np.log(offset[..., 0]), alpha[..., 0]
        )
        return np.stack(grids, axis=-1).reshape(len(loss), -1, 4)

    def params(self, theta: Floats, frame: Frame) -> Floats:
        values = theta.copy()
        values[..., 1:3] = np.exp(theta[..., 1:3])
        return values

    def theta(self, params: Floats, frame: Frame) -> Floats:
        values = np.array(params, float)
        values[..., 1:3] = np.log(values[..., 1:3])
        return values
