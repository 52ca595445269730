"""The strategies by definition: everything sorted in memory, ties by the permanent uniforms. Slow and obvious."""

import numpy as np

from pplscape.draw.permanent import uniforms
from pplscape.draw.program import solve
from pplscape.statistics import make_bins


def walk(order, length, budget, reach=256):
    """Take while it fits; then of the next `reach` what still fits."""
    taken, left, missed = [], budget, 0
    for row in order:
        if length[row] <= left:
            taken.append(row)
            left -= length[row]
        elif missed == 0:
            missed = 1
        if missed:
            missed += 1
            if missed > reach + 1:
                break
    return taken


def rank(pool, h):
    """Share of tokens below the middle of each chunk."""
    order = np.lexsort((h, pool.x))
    found = np.empty(len(pool))
    found[order] = (np.cumsum(pool.length[order]) - pool.length[order] / 2) / pool.tokens
    return found


def expected(name, pool, budget, seed, options):
    """Times [n] each chunk is taken."""
    h = pool.uniforms(seed)
    times = np.zeros(len(pool), int)
    if name == "random":
        order = np.argsort(h)
    elif name in ("low", "high"):
        order = np.lexsort((h, pool.x if name == "low" else -pool.x))
    elif name == "mid":
        order = np.lexsort((h, np.abs(rank(pool, h) - 0.5)))
    elif name == "band":
        inside = np.flatnonzero((rank(pool, h) >= options.band[0]) & (rank(pool, h) <= options.band[1]))
        order = inside[np.argsort(h[inside])]
    elif name == "learnable":
        by_x = np.argsort(pool.x, kind="stable")
        ends = np.searchsorted(np.cumsum(pool.length[by_x]), np.array(options.band) * pool.tokens)
        low, high = pool.x[by_x][np.minimum(ends, len(pool) - 1)]
        order = np.lexsort((h, -pool.second))
        order = order[(pool.x[order] >= low) & (pool.x[order] <= high)]
    elif name == "temperature":
        value = pool.values("nll")
        z = (value - value.mean()) / value.std()
        order = np.argsort(-(z / options.temperature - np.log(-np.log(h))))
    elif name == "stratified":
        bins = make_bins(pool.x, pool.length, 10)
        stratum, position = pool.source * bins.n + bins.of(pool.x), np.empty(len(pool))
        for s in np.unique(stratum):
            rows = np.flatnonzero(stratum == s)
            rows = rows[np.argsort(h[rows])]
            length = pool.length[rows]
            shift = uniforms(seed, [pool.source_names[s // bins.n]], [s % bins.n])
            position[rows] = (np.cumsum(length) - length + shift * length) / length.sum()
        order = np.argsort(position)
    elif name == "allocate":
        unique = options.bins.tokens(pool.x, pool.length)
        quota = solve(options.utility, unique, budget, options.max_epochs).tokens
        return allocated(pool, budget, h, options, quota, options.utility.u > 0, options.max_epochs)
    elif name == "matched":
        quota = filled(np.asarray(options.toward), options.bins.tokens(pool.x, pool.length), budget)
        return allocated(pool, budget, h, options, quota, quota > 0, 1.0)
    times[walk(order, pool.length, budget)] = 1
    return times


def filled(mix, unique, budget):
    """In proportion to mix; what full bins cannot take goes to the others, again and again."""
    quota = np.zeros(len(mix))
    free = mix > 0
    while free.any():
        offered = (budget - quota[~free].sum()) * np.where(free, mix, 0) / mix[free].sum()
        full = free & (offered > unique)
        if not full.any():
            return np.where(free, offered, quota)
        quota[full] = unique[full]
        free &= ~full
    return quota


def allocated(pool, budget, h, options, quota, helpful, max_epochs):
    bin_of, unique = options.bins.of(pool.x), options.bins.tokens(pool.x, pool.length)
    epochs = np.floor(quota / unique + 1e-12).astype(int)
    times, first, later = epochs[bin_of], [], []
    for b in np.flatnonzero(helpful):
        rows = np.flatnonzero(bin_of == b)
        rows, left = rows[np.argsort(h[rows])], quota[b] - epochs[b] * unique[b]
        k = int(np.searchsorted(np.cumsum(pool.length[rows]), left + 1e-6, side="right"))
        times[rows[:k]] += 1
        if epochs[b] < np.ceil(max_epochs):
            below = left - pool.length[rows[:k]].sum()
            first.append((-below, rows[k : k + 1]))
            later.append((-below, rows[k + 1 : k + 256]))
    rest = budget - (times * pool.length).sum()
    candidates = [rows for group in (first, later) for _, rows in sorted(group, key=lambda c: c[0])]
    times[walk(np.concatenate(candidates), pool.length, rest)] += 1
    return times
