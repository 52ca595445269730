"""`quadratic`: a concave quadratic in log-perplexity and log-spread multiplies the power of D."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pplscape.laws.forms.base import (
    EXPONENT,
    Data,
    Floats,
    Frame,
    Prior,
    believe,
    box,
    gap_floor_grid,
    weighted_least_squares,
)
from pplscape.laws.forms.gap import MAX_EXPONENT
from pplscape.laws.forms.plane import PlaneForm
from pplscape.runs import Compositions


class Quadratic(PlaneForm):
    """L = E + Dc D^-aD exp(-g), g = g_x x + g_y y - (q_xx x^2 + 2 q_xy x y + q_yy y^2) / 2, q positive semi-definite.

    x = mean log-perplexity (scale `ppl`: ln of the mean perplexity), y = ln s. The fit works on coordinates centred on
    the pilots, theta = (E, ln Dc', g_x', g_y', l11, l21, l22, aD) with q = l l'; `params` are for the raw coordinates.
    """

    name = "quadratic"
    variants = ("std", "var")
    default_scale = "nll"
    composition_terms = 6

    def coordinates(self, compositions: Compositions) -> tuple[Floats, Floats]:
        """(x, y), each [n]."""
        m, s = compositions.moments(self.scale or "nll", self.reading)
        return (m if self.scale == "nll" else np.log(m)), np.log(s)

    def reframe(self, compositions: Compositions, frame: Frame) -> Frame:
        x, y = self.coordinates(compositions)
        return replace(frame, centre=(float(x.mean()), float(y.mean())))

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        x, y = self.coordinates(compositions)
        size = np.log(compositions.tokens / frame.unit)
        return {"x": x - frame.centre[0], "y": y - frame.centre[1], "size": size}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("E", "Dc", "g_x", "g_y", "q_xx", "q_xy", "q_yy", "aD")

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        return box([0.0, *[-np.inf] * 6, 0.0], [smallest, *[np.inf] * 6, 3.0], smallest)

    def prior(self, frame: Frame) -> Prior:
        return believe(8, {-1: (EXPONENT, EXPONENT)})

    def basis(self, data: Data, frame: Frame) -> Floats:
        x, y = (max(float(np.std(data[k])), 1e-6) for k in ("x", "y"))
        return np.diag([1.0, 1.0, 1 / x, 1 / y, 1 / x, 1 / y, 1 / y, 1.0])

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        x, y, size = data["x"], data["y"], data["size"]
        first, second = theta[..., 4:5] * x + theta[..., 5:6] * y, theta[..., 6:7] * y
        bowl = theta[..., 2:3] * x + theta[..., 3:4] * y - 0.5 * (first**2 + second**2)
        gap = np.exp(np.clip(theta[..., 1:2] - theta[..., 7:8] * size - bowl, -2 * MAX_EXPONENT, MAX_EXPONENT))
        loss = theta[..., :1] + gap
        if not jacobian:
            return np.log(loss), None
        derivative = np.empty((*loss.shape, 8))
        derivative[..., 0] = 1
        ones = np.ones_like(gap)
        columns = (ones, -x * ones, -y * ones, first * x, first * y, second * y, -size * ones)
        for i, column in enumerate(columns, start=1):
            derivative[..., i] = gap * column
        return np.log(loss), derivative / loss[..., None]

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        x, y, size = data["x"], data["y"], data["size"]
        floor = gap_floor_grid(loss, weight)[..., None]
        gap = np.maximum(loss[:, None, :] - floor, 1e-9)
        effective = weight[:, None, :] * (gap / loss[:, None, :]) ** 2
        full = np.stack([np.ones_like(x), -x, -y, x**2 / 2, x * y, y**2 / 2, -size], axis=-1)
        q = weighted_least_squares(full, np.log(gap), effective)[..., 3:6]
        lower = _nearest_factor(q, 1e-2 / np.maximum(np.array([x.std(), y.std()]), 1e-6))
        bowl = 0.5 * ((lower[..., :1] * x + lower[..., 1:2] * y) ** 2 + (lower[..., 2:] * y) ** 2)
        linear = weighted_least_squares(full[:, [0, 1, 2, 6]], np.log(gap) - bowl, effective)
        linear[..., -1] = np.clip(linear[..., -1], 0.0, 3.0)
        return np.concatenate([floor, linear[..., :3], lower, linear[..., 3:]], axis=-1)

    def plane(self, logs: Floats) -> Floats:
        return np.stack([np.exp(logs[..., 0]) if self.scale == "nll" else logs[..., 0], logs[..., 1]], axis=-1)

    def logs(self, plane: Floats) -> Floats:
        x = np.log(np.maximum(plane[..., 0], 1e-12)) if self.scale == "nll" else plane[..., 0]
        return np.stack([x, plane[..., 1]], axis=-1)

    def surface(self, params: Floats, points: Floats) -> tuple[Floats, Floats, Floats]:
        x, y = points[..., 0], points[..., 1]
        g_x, g_y, q_xx, q_xy, q_yy = params[:, 2:7].T[..., None]
        value = g_x * x + g_y * y - 0.5 * (q_xx * x**2 + 2 * q_xy * x * y + q_yy * y**2)
        gradient = np.stack([g_x - q_xx * x - q_xy * y, g_y - q_xy * x - q_yy * y], axis=-1)
        curvature = -np.stack([np.stack([q_xx, q_xy], axis=-1), np.stack([q_xy, q_yy], axis=-1)], axis=-2)
        return value, gradient, np.broadcast_to(curvature, (*value.shape, 2, 2))

    def params(self, theta: Floats, frame: Frame) -> Floats:
        floor, log_scale, g_x, g_y, l11, l21, l22, size = np.moveaxis(theta, -1, 0)
        q_xx, q_xy, q_yy = l11**2, l11 * l21, l21**2 + l22**2
        x, y = frame.centre
        raw_x, raw_y = g_x + q_xx * x + q_xy * y, g_y + q_xy * x + q_yy * y
        bowl = raw_x * x + raw_y * y - 0.5 * (q_xx * x**2 + 2 * q_xy * x * y + q_yy * y**2)
        log_scale = np.clip(log_scale + bowl + size * np.log(frame.unit), -700, 700)
        return np.stack([floor, np.exp(log_scale), raw_x, raw_y, q_xx, q_xy, q_yy, size], axis=-1)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        floor, scale, raw_x, raw_y, q_xx, q_xy, q_yy, size = np.moveaxis(np.asarray(params, float), -1, 0)
        x, y = frame.centre
        bowl = raw_x * x + raw_y * y - 0.5 * (q_xx * x**2 + 2 * q_xy * x * y + q_yy * y**2)
        l11 = np.sqrt(np.maximum(q_xx, 0))
        l21 = np.divide(q_xy, l11, out=np.zeros_like(l11), where=l11 > 0)
        l22 = np.sqrt(np.maximum(q_yy - l21**2, 0))
        g_x, g_y = raw_x - q_xx * x - q_xy * y, raw_y - q_xy * x - q_yy * y
        log_scale = np.log(scale) - bowl - size * np.log(frame.unit)
        return np.stack([floor, log_scale, g_x, g_y, l11, l21, l22, size], axis=-1)


def _nearest_factor(q: Floats, least: Floats) -> Floats:
    """Lower factor (l11, l21, l22) [..., 3] of the positive definite matrix nearest to (q_xx, q_xy, q_yy) [..., 3]."""
    scale = 1 / least
    matrix = np.stack([q[..., [0, 1]], q[..., [1, 2]]], axis=-2) * scale[:, None] * scale
    values, vectors = np.linalg.eigh(matrix)
    positive = np.einsum("...ij,...j,...kj->...ik", vectors, np.maximum(values, 1.0), vectors)
    lower = np.linalg.cholesky(positive) / scale[:, None]
    return np.stack([lower[..., 0, 0], lower[..., 1, 0], lower[..., 1, 1]], axis=-1)
