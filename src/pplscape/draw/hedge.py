"""How far an allocation should leave the pool's mix when utilities are only estimated, and a law knows no variety.

The convex program of the utility law (`program.solve`) takes estimates for truth: where the law is nearly linear it
spends the whole budget on the one or two bins that came out best, and the bin that came out best is overrated. A
hedged allocation maximises

    sum_b u_b w_b phi(e_b(n_b) / w_b)  -  T v N KL(n / N || q)     subject to   sum_b n_b = N,  0 <= n_b <= cap_b

with N the budget and v the value of one more token in the pool's own mix w, so that T is a number: 0 is the program
itself, infinity the mix q. That is the pool's, or, where scored text of the target is known, the target's: it holds no
dirt (`mix.target_mix`). With a linear phi and no cap in reach n_b is proportional to q_b exp(u_b / (T v)), the
maximum-entropy allocation of its mean utility.

T is at least the first of the strengths: text of few bins repeats itself, which a law of sums over bins cannot know,
however many pilots it has. Both values were found on text that no pilot and no test saw (docs/selection.md, *Hedged*).
Beyond it T is as large as the law's doubt asks for: the first at which the 10th percentile of the predicted gain over
random, over the law's refits, is above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pplscape.draw.gate import PERCENTILE
from pplscape.draw.program import Allocation, Program, Utility, solve
from pplscape.statistics import Floats

TO_POOL, TO_TARGET = (0.4, 0.7, 1.0, 2.0), (0.6, 1.0, 1.4, 2.0)
"""T that are tried, in this order, where q is the pool's mix, and where it is the target's."""
STEPS = 50
"""Halvings; each gains a bit of the answer."""
LEAST = 1e-12
"""Share of the budget that every bin keeps: the entropy's slope has no end at 0."""


def allocate(
    utility: Utility,
    unique_tokens: ArrayLike,
    budget: float,
    hedge: float,
    max_epochs: float = 1.0,
    floor: ArrayLike | None = None,
    toward: ArrayLike | None = None,
) -> Allocation:
    """Best tokens per bin for `budget` tokens with T = `hedge`; arguments as of `program.solve`, which serves T = 0.

    `toward` [K]: q, shares of the bins that the pool holds, at least LEAST each; None: the pool's.

    With T > 0 bins that do not help are given a little, and nothing is left unspent but what the pool lacks. The
    allocation's value is that of the utility law; its gap that of the hedged program.
    """
    unique = np.asarray(unique_tokens, dtype=np.float64)
    least = np.zeros(len(unique)) if floor is None else np.asarray(floor, dtype=np.float64)
    there = (unique > 0) & (np.asarray(utility.share) > 0)
    if hedge == 0 or max_epochs * unique[there].sum() <= budget or least.sum() >= budget:
        return solve(utility, unique, budget, max_epochs, least)
    program = Program(utility, unique, max_epochs, least, there)
    units = budget / utility.unit
    pull = hedge * abs(float(program.w @ program.marginal(program.w * units)) / program.w.sum())
    little = np.maximum(program.floor, LEAST * units)
    q = program.w if toward is None else np.asarray(toward, dtype=np.float64)[there]
    q = np.maximum(q / q.sum(), LEAST)

    def slope(n: Floats) -> Floats:
        return program.marginal(n) - pull * (np.log(n / q / units) + 1)

    def hedged(n: Floats) -> float:
        return float((program.value(n) - pull * n * np.log(n / q / units)).sum())

    def demand(price: float) -> Floats:
        return _where_falling(lambda n: slope(n) > price, little, program.cap)

    low, high = float(slope(program.cap).min()), float(slope(little).max())
    for _ in range(STEPS):
        price = (low + high) / 2
        low, high = (price, high) if demand(price).sum() > units else (low, price)
    best = demand(high)
    n = best * (units / best.sum())
    worth, dual = float(program.value(n).sum()), hedged(best) + high * (units - best.sum())
    tokens = np.zeros(len(unique))
    tokens[there] = n * utility.unit
    gap = max(dual - hedged(n), 0.0) / abs(worth) if worth else 0.0
    return Allocation(tokens, high * program.scale, worth * program.scale, gap, 0.0)


def _where_falling(above: Callable[[Floats], NDArray[np.bool_]], low: Floats, high: Floats) -> Floats:
    """Where each of the decreasing functions behind `above` [K] -> bool [K] falls below its level; bisects ln n."""
    low, high = low.copy(), high.copy()
    for _ in range(STEPS):
        middle = np.sqrt(low * high)
        up = above(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    return low


def choose(gains: Floats, strengths: Sequence[float]) -> float:
    """The first T whose lower bound is above 0, else that with the largest; `gains` [B, T] over random, nats/token, by
    refit and strength.

    A refit whose prediction is not finite counts as no gain.
    """
    bound = np.percentile(np.where(np.isfinite(gains), gains, 0.0), PERCENTILE, axis=0)
    sure = np.flatnonzero(bound > 0)
    return float(strengths[sure[0] if len(sure) else int(np.argmax(bound))])
