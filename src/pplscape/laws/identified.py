"""Which parameters the runs tell: the rule by which intervals are labelled unidentified."""

from __future__ import annotations

import numpy as np

from pplscape.laws.forms import Form
from pplscape.laws.forms.base import Floats, Frame

EXPONENTS = ("aD", "alpha", "beta")
"""Parameters that trade off with the irreducible loss E along a valley of equal fit."""
UNIDENTIFIED_RATIO = 1e3
"""A positive parameter whose interval spans more than this factor is called unidentified; so is an irreducible loss
whose interval spans half of the smallest measured, and whatever reaches its bound."""
EXPONENT_RATIO = 3.0
"""The same for exponents: from 0.2 to 0.6, say, nothing is known of what larger sizes bring."""
JUMP_WIDTH = 0.1
"""A jump whose interval is wider than what was believed of it beforehand (`forms.utility`) is called unidentified."""


def identified(name: str, limits: tuple[float, float], edges: tuple[float, float], smallest: float) -> bool:
    """Whether an interval says something: it ends before the parameter's bounds, and is not absurdly wide."""
    low, high = limits
    if name == "J":  # 0, its bound, is an answer
        return high - low <= JUMP_WIDTH
    if low <= edges[0] or high >= edges[1] or low == high:
        return False
    if name == "E":
        return high - low <= 0.5 * smallest
    return not 0 < low * (EXPONENT_RATIO if name in EXPONENTS else UNIDENTIFIED_RATIO) < high


def edges(form: Form, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
    """Lowest and highest values [T, q] that a fit may give the parameters, for smallest losses [T]."""
    with np.errstate(all="ignore"):  # where there is no bound, or one of theta says nothing of a parameter: not finite
        low, high = (form.params(side, frame) for side in form.bounds(frame, smallest))
    return np.where(np.isfinite(low), low, -np.inf), np.where(np.isfinite(high), high, np.inf)
