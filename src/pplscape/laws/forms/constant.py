"""`constant`: the loss does not depend on anything. The null of nulls."""

from __future__ import annotations

import numpy as np

from pplscape.laws.forms.base import Data, Floats, Form, Frame, box
from pplscape.runs import Compositions


class Constant(Form):
    """L = L_mean (nats/token)."""

    name = "constant"
    uses_size = False
    uses_composition = False

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        return {"n": len(compositions)}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("L_mean",)

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        return box([1e-9], [np.inf], smallest)

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        log_loss = np.repeat(np.log(theta), data["n"], axis=-1)
        return log_loss, np.repeat(1 / theta, data["n"], axis=-1)[..., None] if jacobian else None

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        mean = (weight * np.log(loss)).sum(-1) / weight.sum(-1)
        return np.exp(mean)[:, None, None]
