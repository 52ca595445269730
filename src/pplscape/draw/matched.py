"""Draw text in the mix of a target: what a target says of a pool without any law.

Every bin gives tokens in proportion to the target's share of it (`mix.target_mix`), chunks within a bin are random. It
is the limit of an allocation that is hedged towards the target (`hedge.allocate` with T without end), and no pilots
decide it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pplscape.draw.allocate import Allocate
from pplscape.draw.options import Options
from pplscape.draw.program import Allocation
from pplscape.statistics import Floats

STEPS = 100
"""Halvings: to the last bit of a float."""


class Matched(Allocate):
    """Tokens per bin in a target's proportions, no chunk twice; what a bin lacks is spread over the others likewise."""

    name = "matched"
    needs = "the mix of a target over bins: pass --toward with scored text of the target, and --landscape or --law"

    def planned(self, options: Options, unique: Floats, given: Floats, budget: int) -> Allocation:
        if options.toward is None:
            raise self.lacking()
        self.max_epochs = 1.0
        tokens = in_mix(options.toward, given, unique + given, budget + float(given.sum()))
        self.helpful = tokens > 0
        return Allocation(tokens, 0.0, 0.0, 0.0, 0.0)

    def solved(self) -> dict[str, float]:
        return {}


def in_mix(mix: ArrayLike, low: ArrayLike, high: ArrayLike, total: float) -> Floats:
    """n [K] = clip(s q, low, high) with the s for which they sum to `total` tokens, or to what is there.

    `mix` [K]: q, shares; `low`, `high` [K]: least and most tokens of each bin, low <= high.
    """
    q, least, most = (np.asarray(a, dtype=np.float64) for a in (mix, low, high))
    there = (q > 0) & (most > 0)
    begin, end = 0.0, float(np.max(most[there] / q[there], initial=0.0))
    for _ in range(STEPS):
        middle = (begin + end) / 2
        begin, end = (middle, end) if np.clip(middle * q, least, most).sum() < total else (begin, middle)
    return np.asarray(np.clip(end * q, least, most))
