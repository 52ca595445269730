"""Token budgets: reading them, and filling them exactly."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
REACH = 256
"""How far past the first chunk that does not fit shorter ones are looked for: a stream holds no more than a stretch."""
_NUMBER = re.compile(r"([0-9.][0-9._]*(?:e[+-]?[0-9]+)?)\s*([kmbgt%]?)", re.IGNORECASE)


class Wider(Exception):
    """The chunks that were kept as undecided do not hold the decision: keep more."""


def parse_budget(text: str | float, pool_tokens: int) -> int:
    """Whole tokens of `2000000`, `2e6`, `2M` (k, M, B or G, T) or `10%` of the pool's tokens, rounded down.

    UserError when it cannot be read, is not at least one token, or is not finite.
    """
    found = _NUMBER.fullmatch(str(text).strip().removesuffix("tokens").strip())
    try:
        digits = found[1].replace("_", "") if found else "nan"
        readable = math.isfinite(float(digits))
    except ValueError:
        readable = False
    if not found or not readable:
        raise UserError(f"Cannot read the budget {text!r}: write tokens as 2000000, 2e6 or 2M, or a share as 10%.")
    unit = found[2].lower()
    # Exact arithmetic: 29% of 100 tokens is 28.999999999999996 in floating point.
    tokens = math.floor(Fraction(digits) * (Fraction(pool_tokens, 100) if unit == "%" else _UNITS[unit]))
    if tokens < 1:
        raise UserError(f"The budget {text!r} is less than one token.")
    return tokens


def fill(
    order: NDArray[np.intp], length: NDArray[np.int64], budget: float, whole: bool = True, prefix: bool = False
) -> NDArray[np.intp]:
    """Rows taken when walking `order`: all until one does not fit, then of the next REACH those that still fit.

    Never exceeds `budget` (tokens), short by less than one chunk. With `whole` False `order` is only a stretch of the
    pool's: Wider if it does not hold the end of the walk. With `prefix` the walk ends at the first that does not fit:
    a larger budget then takes the same rows and more.
    """
    cumulative = np.cumsum(length[order])
    k = int(np.searchsorted(cumulative, budget, side="right"))
    left = budget - (cumulative[k - 1] if k else 0)
    if left < 0 or (not whole and len(order) - k < REACH):
        raise Wider
    taken, rest = [order[:k]], order[k : k + REACH]
    while len(rest) and left > 0 and not prefix:
        fits = np.flatnonzero(length[rest] <= left)
        if not len(fits):
            break
        taken.append(rest[fits[:1]])
        left -= length[rest[fits[0]]]
        rest = rest[fits[0] + 1 :]
    return np.concatenate(taken)
