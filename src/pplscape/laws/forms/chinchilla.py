"""`chinchilla`: L = E + A N^-alpha + B D^-beta (Hoffmann et al., arXiv 2203.15556), in the log-sum-exp form."""

from __future__ import annotations

from itertools import product

import numpy as np

from pplscape.laws.forms.base import Data, Floats, Form, Frame, box, log_amounts
from pplscape.runs import Compositions


class Chinchilla(Form):
    """theta = (ln A, ln B, ln E, alpha, beta); N parameters, D tokens. Says nothing about composition."""

    name = "chinchilla"
    columns = ("tokens", "n_params")
    uses_composition = False

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        assert compositions.n_params is not None
        return {"log_n": np.log(compositions.n_params), "log_d": np.log(compositions.tokens)}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("A", "B", "E", "alpha", "beta")

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        return box([-np.inf, -np.inf, -30.0, 0.0, 0.0], [np.inf, np.inf, np.log(smallest), 3.0, 3.0], smallest)

    def basis(self, data: Data, frame: Frame) -> Floats:
        basis = np.eye(5)
        basis[0, 3], basis[1, 4] = data["log_n"].mean(), data["log_d"].mean()
        return basis

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        log_n, log_d = data["log_n"], data["log_d"]
        with np.errstate(over="ignore"):
            by_n = np.exp(theta[..., 0:1] - theta[..., 3:4] * log_n)
            by_d = np.exp(theta[..., 1:2] - theta[..., 4:5] * log_d)
            floor = np.exp(theta[..., 2:3])
            loss = floor + by_n + by_d
        if not jacobian:
            return np.log(loss), None
        # [B, p, n] in memory: every column is written and weighted in one sweep.
        derivative = np.empty((*loss.shape[:-1], 5, loss.shape[-1]))
        with np.errstate(invalid="ignore"):
            for i, part in enumerate((by_n, by_d, floor)):
                np.divide(part, loss, out=derivative[..., i, :])
            np.multiply(derivative[..., 0, :], -log_n, out=derivative[..., 3, :])
            np.multiply(derivative[..., 1, :], -log_d, out=derivative[..., 4, :])
        return np.log(loss), np.swapaxes(derivative, -1, -2)

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """(alpha, beta) on a grid, (A, B, E) projected out."""
        pairs = np.array(list(product(np.linspace(0.1, 1.0, 10), repeat=2)))
        return np.stack([self._projected(pair, data, loss, weight) for pair in pairs], axis=1)

    def project(self, exponents: Floats, data: Data, loss: Floats) -> Floats:
        """theta [k, 5] with the best (A, B, E) for exponents (alpha, beta) [k, 2] and losses [n]."""
        one = np.ones((1, len(loss)))
        return np.concatenate([self._projected(pair, data, loss[None], one) for pair in exponents])

    def _projected(self, exponents: Floats, data: Data, loss: Floats, weight: Floats) -> Floats:
        """(A, B, E) by non-negative least squares in relative loss."""
        alpha, beta = exponents
        unit_n, unit_d = np.exp(-alpha * data["log_n"].mean()), np.exp(-beta * data["log_d"].mean())
        columns = [np.exp(-alpha * data["log_n"]) / unit_n, np.exp(-beta * data["log_d"]) / unit_d]
        design = np.stack([*columns, np.ones_like(columns[0])], axis=-1)
        amounts = log_amounts(design, loss, weight) - np.log([unit_n, unit_d, 1.0])
        return np.concatenate([amounts, np.broadcast_to(exponents, (len(loss), 2))], axis=-1)

    def params(self, theta: Floats, frame: Frame) -> Floats:
        return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:]], axis=-1)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        return np.concatenate([np.log(params[..., :3]), params[..., 3:]], axis=-1)
