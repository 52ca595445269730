"""Draw what the utility law's convex program asks of each bin, by permanent uniforms within the bin."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.budget import fill
from pplscape.draw.options import Options
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.program import solve
from pplscape.errors import UserError
from pplscape.statistics import Floats


def allocate(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Tokens per bin by the convex program (`program.solve`), chunks within a bin at random.

    Budget that only bins with utility <= 0 could fill is left unspent: `facts["unspent"]` tokens.
    """
    if options.utility is None or options.bins is None:
        raise UserError("Strategy allocate needs a law with bin utilities: pass --law of a fit with form utility.")
    if options.max_epochs < 1:
        raise UserError(f"--max-epochs must be at least 1, not {options.max_epochs}.")
    bin_of = pool.bin_of(options.bins)
    unique = pool.bin_tokens(options.bins)
    plan = solve(options.utility, unique, budget, options.max_epochs)
    helpful = np.asarray(options.utility.u) > 0
    times = draw_quotas(pool, bin_of, plan.tokens, unique, helpful, budget, seed, options.max_epochs)
    facts = {
        "allocation": plan.tokens.tolist(),
        "price": plan.price,
        "duality_gap": plan.gap,
        "unspent": budget - int((times * pool.length).sum()) if plan.unspent >= 1 else 0,
        "max_epochs": options.max_epochs,
    }
    reason = np.asarray([f"bin {b}" for b in range(options.bins.n)])[bin_of]
    return Draw(times, reason, facts)


def draw_quotas(
    pool: Pool,
    bin_of: NDArray[np.int16],
    quota: Floats,
    unique: Floats,
    helpful: NDArray[np.bool_],
    budget: int,
    seed: int,
    max_epochs: float,
) -> NDArray[np.int16]:
    """Times [n] each chunk is taken so that bin b gives `quota[b]` tokens, rounded to whole chunks.

    Every chunk of a bin is taken floor(quota / unique) times and a random part once more. What rounding leaves of the
    budget goes to the bins furthest below their quota, one chunk each, so the total is short by less than one chunk
    unless every helpful bin is exhausted.
    """
    epochs = np.floor(np.divide(quota, unique, out=np.zeros_like(quota), where=unique > 0) + 1e-12).astype(np.int64)
    times = epochs[bin_of].astype(np.int16)
    order = pool.order(seed)
    order = order[np.argsort(bin_of[order], kind="stable")]
    start = np.searchsorted(bin_of[order], np.arange(len(quota) + 1))
    next_chunks: list[tuple[int, float, NDArray[np.intp]]] = []
    for b in np.flatnonzero(helpful):
        rows = order[start[b] : start[b + 1]]
        left = max(quota[b] - epochs[b] * unique[b], 0.0)
        cumulative = np.cumsum(pool.length[rows])
        k = int(np.searchsorted(cumulative, left + 1e-6, side="right"))
        times[rows[:k]] += 1
        below = left - (cumulative[k - 1] if k else 0)
        if epochs[b] + 1 <= math.ceil(max_epochs):
            next_chunks += [(0, -below, rows[k : k + 1]), (1, -below, rows[k + 1 :])]
    rest = budget - int((times * pool.length).sum())
    candidates = [rows for _, _, rows in sorted(next_chunks, key=lambda c: c[:2])]
    if rest > 0 and candidates:
        times[fill(np.concatenate(candidates), pool.length, rest)] += 1
    return times
