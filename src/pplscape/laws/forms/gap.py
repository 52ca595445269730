"""Forms `L = E + exp(X b)`: linear in b once E is given (variable projection), X = design matrix [n, q].

The last column is always -ln D, so its coefficient aD can be bounded below by 0.
"""

from __future__ import annotations

import numpy as np

from pplscape.laws.forms.base import (
    EXPONENT,
    Data,
    Floats,
    Form,
    Frame,
    Prior,
    believe,
    box,
    gap_floor_grid,
    weighted_least_squares,
)
from pplscape.runs import Compositions

MAX_EXPONENT = 12.0
"""exp of it, 160,000 nats, and exp of -2 x it are far beyond any loss gap: predictions stay finite and above 0."""


class GapForm(Form):
    """Base of d-only, monotone, paper and extended. theta = (E, ln Dc, coefficients..., aD)."""

    coefficient_names: tuple[str, ...] = ()
    floor_name = "E"
    scale_name = "Dc"
    exponent_name = "aD"

    def columns_of(self, compositions: Compositions) -> list[Floats]:
        """The form's own columns [n] of X, with the sign they carry in ln(L - E)."""
        return []

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        size = np.log(compositions.tokens)
        return {"X": np.stack([np.ones_like(size), *self.columns_of(compositions), -size], axis=-1)}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return (self.floor_name, self.scale_name, *self.coefficient_names, self.exponent_name)

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        free = 1 + len(self.coefficient_names)
        return box([0.0, *[-np.inf] * free, 0.0], [smallest, *[np.inf] * free, 3.0], smallest)

    def prior(self, frame: Frame) -> Prior:
        return believe(len(self.names(frame)), {-1: (EXPONENT, EXPONENT)})

    def basis(self, data: Data, frame: Frame) -> Floats:
        q = data["X"].shape[-1]
        upper: Floats = np.linalg.qr(data["X"], mode="r")  # type: ignore[assignment]
        upper = upper * np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None]
        diagonal = np.diag(upper)
        upper[np.diag_indices(q)] = np.maximum(diagonal, 1e-9 * diagonal.max())
        basis = np.eye(1 + q)
        basis[1:, 1:] = np.linalg.inv(upper) * np.sqrt(len(data["X"]))
        return basis

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        gap = np.exp(np.clip(theta[..., 1:] @ data["X"].T, -2 * MAX_EXPONENT, MAX_EXPONENT))
        loss = theta[..., :1] + gap
        if not jacobian:
            return np.log(loss), None
        derivative = np.empty((*loss.shape, theta.shape[-1]))
        derivative[..., 0] = 1 / loss
        derivative[..., 1:] = (gap / loss)[..., None] * data["X"]
        return np.log(loss), derivative

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        floor = gap_floor_grid(loss, weight)[..., None]
        gap = np.maximum(loss[:, None, :] - floor, 1e-9)
        effective = weight[:, None, :] * (gap / loss[:, None, :]) ** 2
        linear = weighted_least_squares(data["X"], np.log(gap), effective)
        linear[..., -1] = np.clip(linear[..., -1], 0.0, 3.0)
        return np.concatenate([floor, linear], axis=-1)

    def params(self, theta: Floats, frame: Frame) -> Floats:
        values = theta.copy()
        values[..., 1] = np.exp(np.minimum(theta[..., 1], 700.0))
        return values

    def theta(self, params: Floats, frame: Frame) -> Floats:
        values = np.array(params, float)
        values[..., 1] = np.log(np.maximum(values[..., 1], 1e-300))
        return values
