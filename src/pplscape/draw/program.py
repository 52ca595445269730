"""How many tokens each bin should give: the convex program of the utility law.

    maximise  sum_b u_b w_b phi(e_b(n_b) / w_b)   subject to   sum_b n_b <= D,  0 <= n_b <= cap_b

with n in units of `Utility.unit` tokens, w_b the bin's share of pool tokens, u_b its utility, and
    phi(z) = tau (1 - exp(-z / tau))  (saturating)    or    z^gamma, 0 < gamma <= 1  (power)
    e(n) = n up to one epoch, then U + U R (1 - exp(-(n/U - 1)/R)), U the bin's unique tokens (Muennighoff 2305.16264).
Both are concave, so the price of a token lambda decides everything: a bin gives tokens while its marginal value is
above lambda. lambda is found by bisection; the duality gap at the answer is the certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pplscape.statistics import Floats

HALF_LIFE = 15.387756
"""R: epochs over which a repeated token loses its worth; R_D* of Muennighoff et al. 2305.16264, their unrounded fit."""


@dataclass(frozen=True)
class Utility:
    """The part of a utility law that decides an allocation."""

    u: Floats
    """[K] utility per bin; zero or negative where training on the bin does not help."""
    share: Floats
    """[K] w, the bin's share of pool tokens."""
    phi: Literal["saturating", "power"]
    shape: float
    """tau (saturating) or gamma (power)."""
    unit: float
    """Tokens in one unit of n."""
    half_life: float = HALF_LIFE


@dataclass(frozen=True)
class Allocation:
    """The optimum of the program."""

    tokens: Floats
    """[K] tokens per bin, repeats included."""
    price: float
    """lambda: value of one more unit of tokens; 0 when the caps and not the budget bind."""
    value: float
    """sum_b u_b w_b phi."""
    gap: float
    """Duality gap, relative to the value: the value is this close to the best possible."""
    unspent: float
    """Tokens of the budget that only bins with u <= 0 could fill."""


class Program:
    """Objective and marginals over the bins `asked` [K], in units; utilities are divided by the largest, `scale`."""

    def __init__(self, utility: Utility, unique: Floats, max_epochs: float, floor: Floats, asked: NDArray[np.bool_]):
        self.utility, self.asked = utility, asked
        self.u, self.w = np.asarray(utility.u)[asked], np.asarray(utility.share)[asked]
        self.scale = float(self.u.max(initial=0.0)) or 1.0
        self.u = self.u / self.scale
        self.unique = unique[asked] / utility.unit
        self.floor = floor[asked] / utility.unit
        self.cap = np.maximum(max_epochs * self.unique, self.floor)

    def _effective(self, n: Floats) -> tuple[Floats, Floats]:
        """e(n) and its slope."""
        worth = np.exp(-np.maximum(n / self.unique - 1, 0) / self.utility.half_life)
        return np.minimum(n, self.unique) + self.unique * self.utility.half_life * (1 - worth), worth

    def value(self, n: Floats) -> Floats:
        z, shape = self._effective(n)[0] / self.w, self.utility.shape
        phi = -shape * np.expm1(-z / shape) if self.utility.phi == "saturating" else z**shape
        return self.u * self.w * phi

    def marginal(self, n: Floats) -> Floats:
        effective, slope = self._effective(n)
        z, shape = effective / self.w, self.utility.shape
        if self.utility.phi == "saturating":
            return self.u * np.exp(-z / shape) * slope
        with np.errstate(divide="ignore"):
            return self.u * shape * z ** (shape - 1) * slope

    def demand(self, price: float) -> Floats:
        """Where each bin's marginal value falls to the price, within [0, cap]."""
        n = self._first_epoch(price)
        if (self.cap > self.unique).any():
            n = np.where(self.marginal(self.unique) > price, self._later_epochs(price), n)
        return np.clip(n, self.floor, self.cap)

    def _first_epoch(self, price: float) -> Floats:
        """phi' inverted: tau w ln(u / price), or w (gamma u / price)^(1 / (1 - gamma)); at most the bin."""
        shape, ratio = self.utility.shape, self.u / price
        if self.utility.phi == "saturating":
            n = shape * self.w * np.log(np.maximum(ratio, 1.0))
        elif shape < 1:
            with np.errstate(over="ignore"):
                n = self.w * (shape * ratio) ** (1 / (1 - shape))
        else:
            n = np.where(ratio > 1, self.unique, 0.0)
        return np.minimum(n, self.unique)

    def _later_epochs(self, price: float) -> Floats:
        """Beyond one epoch there is no closed form: bisection."""
        low, high = self.unique.copy(), self.cap.copy()
        for _ in range(60):
            middle = (low + high) / 2
            above = self.marginal(middle) > price
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(self.marginal(self.cap) > price, self.cap, low)

    def solve(self, budget: float) -> tuple[Floats, float]:
        """n of the helpful bins and the price; `budget` in units."""
        if self.cap.sum() <= budget:
            return self.cap, 0.0
        if self.floor.sum() >= budget:
            return self.floor, float(self.marginal(np.maximum(self.floor, budget * 1e-9)).max())
        cheap, dear = 1e-300, float(self.marginal(np.minimum(self.cap, budget) * 1e-9).max())
        much, little = self.cap, self.floor
        for _ in range(200):
            price = float(np.sqrt(cheap) * np.sqrt(dear))
            if not cheap < price < dear:
                break
            n = self.demand(price)
            if n.sum() > budget:
                cheap, much = price, n
            else:
                dear, little = price, n
        # Bins whose marginal value equals the price may take anything between: divide what is left in proportion.
        spread = much.sum() - little.sum()
        return little + (much - little) * ((budget - little.sum()) / spread if spread > 0 else 0.0), dear


def solve(
    utility: Utility, unique_tokens: ArrayLike, budget: float, max_epochs: float = 1.0, floor: ArrayLike | None = None
) -> Allocation:
    """Best tokens per bin for `budget` tokens; `unique_tokens` [K] are what the pool holds in each bin.

    With equal utilities the answer is proportional to `share` as long as no cap binds. `floor` [K]: tokens that a bin
    has been given already, and keeps; those of bins that do not help are part of the budget too.
    """
    unique = np.asarray(unique_tokens, dtype=np.float64)
    least = np.zeros(len(unique)) if floor is None else np.asarray(floor, dtype=np.float64)
    helpful = (np.asarray(utility.u) > 0) & (np.asarray(utility.share) > 0) & (unique > 0)
    program = Program(utility, unique, max_epochs, least, helpful)
    units = (budget - float(least[~helpful].sum())) / utility.unit
    n, price = program.solve(units)
    value = float(program.value(n).sum())
    best = program.demand(price) if price > 0 else program.cap
    dual = price * units + float((program.value(best) - price * best).sum())
    tokens = np.where(helpful, 0.0, least)
    tokens[helpful] = n * utility.unit
    gap = max(dual - value, 0.0) / abs(value) if value else 0.0
    unspent = budget - float(tokens.sum()) if price == 0 else 0.0
    return Allocation(tokens, price * program.scale, value * program.scale, gap, max(unspent, 0.0))
