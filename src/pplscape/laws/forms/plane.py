"""What forms that draw a surface over the (mean, spread) plane have in common: value, slope and curvature of it."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from pplscape.laws.forms.base import Floats, Form


class PlaneForm(Form):
    """L = E + Dc D^-aD exp(-g(point)); `params` begin with E, Dc and end with aD."""

    def plane(self, logs: Floats) -> Floats:
        """(ln mean, ln spread) [n, 2] -> the form's own coordinates [n, 2]."""
        return logs

    def logs(self, plane: Floats) -> Floats:
        """Inverse of `plane`."""
        return plane

    @abstractmethod
    def surface(self, params: Floats, points: Floats) -> tuple[Floats, Floats, Floats]:
        """g [B, n], its gradient [B, n, 2] and Hessian [B, n, 2, 2] at points [n, 2] or [B, n, 2] of the plane."""

    def log_gap(self, params: Floats, tokens: float) -> Floats:
        """ln(Dc D^-aD) [B] for parameters [B, p] at D tokens: the loss gap where g is 0."""
        return np.log(params[:, 1]) - params[:, -1] * np.log(tokens)
