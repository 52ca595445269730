"""Which (mean, standard deviation) a subset of a given number of tokens can have, and the best of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pplscape.draw.microbins import Cells
from pplscape.landscape import Floats, Moments

MARGIN = 0.01
"""Targets are kept this share of the way from the boundary towards the pool's moments: on the boundary itself only one
subset is left, and the maximum-entropy draw has nothing to choose."""


def feasible_polygon(cells: Cells, budget: float, directions: int = 64) -> Floats:
    """Boundary of the reachable {(mean, mean square)} of subsets of `budget` tokens: [directions, 2], standardised.

    Coordinates are z = (value - pool mean) / pool std and z^2. The extreme point in direction (c, d) maximises
    sum q (c z + d z^2) / sum q under sum q length = budget: a linear fractional program, by Dinkelbach's iteration,
    each step of which takes the best value per token first.
    """
    spread = cells.spread or 1.0
    z = (cells.value - cells.mean) / spread
    square = (cells.square - 2 * cells.mean * cells.value + cells.mean**2) / spread**2
    tokens = cells.count * cells.length
    points = np.empty((directions, 2))
    for i, angle in enumerate(np.linspace(0, 2 * np.pi, directions, endpoint=False)):
        score = np.cos(angle) * z + np.sin(angle) * square
        theta = float(np.average(score, weights=cells.count))
        for _ in range(20):
            order = np.argsort(-(score - theta) / cells.length, kind="stable")
            filled = np.minimum(np.cumsum(tokens[order]), budget)
            taken = np.diff(filled, prepend=0.0) / cells.length[order]
            better = float(taken @ score[order] / taken.sum())
            if better <= theta + 1e-12:
                break
            theta = better
        points[i] = taken @ z[order] / taken.sum(), taken @ square[order] / taken.sum()
    return points


def nearest_feasible(
    cells: Cells, budget: float, asked: Moments, loss: Callable[[float, float], float] | None = None
) -> Moments:
    """Feasible (mean, std) of lowest `loss(mean, std)`; without a loss the nearest to `asked` in pool units.

    The feasible set is convex in (mean, mean square), so it is searched as a fan of triangles around the pool's own
    moments: a grid of (place on the boundary, share of the way to it), refined around its best point.
    """
    centre, spread = cells.mean, cells.spread or 1.0

    def moments_at(place: float, share: float) -> Moments:
        mean, square = inside + share * (_along(polygon, place) - inside)
        return Moments(float(centre + spread * mean), float(spread * np.sqrt(max(square - mean**2, 0.0))))

    def cost(place: float, share: float) -> float:
        m = moments_at(place, share)
        if loss is None:
            return ((m.mean - asked.mean) / spread) ** 2 + ((m.std - asked.std) / spread) ** 2
        found = loss(m.mean, m.std)
        return found if np.isfinite(found) else np.inf

    polygon = feasible_polygon(cells, budget)
    inside = polygon.mean(axis=0)
    places, shares = np.arange(len(polygon), dtype=float), np.linspace(0.0, 1 - MARGIN, 16)
    half_place, half_share = 1.0, 1 / 15
    best = (0.0, 0.0)
    for _ in range(6):
        grid = [(cost(p, s), float(p), float(s)) for p in places for s in shares]
        _, *place_share = min(grid)
        best = (place_share[0], place_share[1])
        places = best[0] + np.linspace(-half_place, half_place, 9)
        shares = np.clip(best[1] + np.linspace(-half_share, half_share, 9), 0.0, 1 - MARGIN)
        half_place, half_share = half_place / 4, half_share / 4
    return moments_at(*best)


def _along(polygon: Floats, place: float) -> Floats:
    """Point at `place` vertices along the closed polygon."""
    i = int(np.floor(place))
    first, second = polygon[i % len(polygon)], polygon[(i + 1) % len(polygon)]
    return first + (place - i) * (second - first)
