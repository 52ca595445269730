"""Forms of the published family: the loss gap is a power of D times a function of a subset's mean and spread.

m = mean, s = spread (standard deviation, or variance for `:var`) of chunk perplexity (scale `ppl`) or log-perplexity
(scale `nll`), natural logarithms throughout.
"""

from __future__ import annotations

import numpy as np

from pplscape.laws.forms.base import Floats
from pplscape.laws.forms.gap import GapForm
from pplscape.laws.forms.plane import PlaneForm
from pplscape.runs import Compositions


class Monotone(GapForm):
    """L = E + Dc D^-aD exp(-a x), x = log-perplexity of the subset (mean nll, or ln of the mean perplexity)."""

    name = "monotone"
    default_scale = "nll"
    coefficient_names = ("a",)
    composition_terms = 2

    def columns_of(self, compositions: Compositions) -> list[Floats]:
        m, _ = compositions.moments(self.scale or "nll")
        return [-(m if self.scale == "nll" else np.log(m))]


class Paper(GapForm, PlaneForm):
    """L = E + Dc / (m^(a0 + a1 s) s^(b0 + b1 m) D^aD), arXiv 2512.21515; whether s is std or variance is ambiguous."""

    name = "paper"
    variants = ("std", "var")
    default_scale = "ppl"
    coefficient_names: tuple[str, ...] = ("a0", "a1", "b0", "b1")
    composition_terms = 5

    def columns_of(self, compositions: Compositions) -> list[Floats]:
        m, s = compositions.moments(self.scale or "ppl", self.reading)
        log_m, log_s = np.log(m), np.log(s)
        return [-log_m, -s * log_m, -log_s, -m * log_s]

    def surface(self, params: Floats, points: Floats) -> tuple[Floats, Floats, Floats]:
        """g = (a0 + a1 s) ln m + (b0 + b1 m) ln s (+ c1 m + c2 s) in x = ln m, y = ln s."""
        x, y = points[..., 0], points[..., 1]
        m, s = np.exp(np.clip(x, -50, 50)), np.exp(np.clip(y, -50, 50))
        a0, a1, b0, b1 = params[:, 2:6].T[..., None]
        c1, c2 = params[:, 6:8].T[..., None] if self.name == "extended" else np.zeros((2, len(params), 1))
        value = (a0 + a1 * s) * x + (b0 + b1 * m) * y + c1 * m + c2 * s
        by_x = a0 + a1 * s + (b1 * y + c1) * m
        by_y = (a1 * x + c2) * s + b0 + b1 * m
        by_xx, by_yy, by_xy = (b1 * y + c1) * m, (a1 * x + c2) * s, a1 * s + b1 * m
        hessian = np.stack([np.stack([by_xx, by_xy], axis=-1), np.stack([by_xy, by_yy], axis=-1)], axis=-2)
        return value, np.stack([by_x, by_y], axis=-1), hessian


class Extended(Paper):
    """The published form with c1 m + c2 s added to ln(m^.. s^..): closed under rescaling of m and s."""

    name = "extended"
    coefficient_names = ("a0", "a1", "b0", "b1", "c1", "c2")
    composition_terms = 7

    def columns_of(self, compositions: Compositions) -> list[Floats]:
        m, s = compositions.moments(self.scale or "ppl", self.reading)
        return [*super().columns_of(compositions), -m, -s]
