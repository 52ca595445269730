"""Which (mean, standard deviation) a subset of a given number of tokens can have, and the best of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pplscape.draw.microbins import Cells
from pplscape.draw.options import Target
from pplscape.statistics import Floats


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
    cells: Cells,
    budget: float,
    asked: Target,
    loss: Callable[[Floats, Floats], Floats] | None = None,
    margin: float = 0.0,
) -> Target:
    """Feasible (mean, std) of lowest `loss(means, stds)`; without a loss the nearest to `asked` in pool units.

    The feasible set is convex in (mean, mean square), so it is searched as a fan around a point inside: a grid of
    (place on the boundary, share of the way to it), refined five times around its best point. Where no point of the
    grid has a finite loss, the nearest point is taken. The outer `margin` of the set is left out.
    """
    polygon = feasible_polygon(cells, budget)
    inside, spread = polygon.mean(axis=0), cells.spread or 1.0
    places, shares = np.arange(len(polygon), dtype=np.float64), np.linspace(0.0, 1 - margin, 16)
    half_place, half_share = 1.0, 1 / 15
    for _ in range(6):
        place, share = (a.ravel() for a in np.meshgrid(places, shares))
        points = inside + share[:, None] * (_along(polygon, place) - inside)
        mean = cells.mean + spread * points[:, 0]
        std = spread * np.sqrt(np.maximum(points[:, 1] - points[:, 0] ** 2, 0.0))
        cost = loss(mean, std) if loss else _distance(mean, std, asked)
        if not np.isfinite(cost).any():
            return nearest_feasible(cells, budget, asked, None, margin)
        best = int(np.argmin(np.where(np.isfinite(cost), cost, np.inf)))
        places = place[best] + np.linspace(-half_place, half_place, 9)
        shares = np.clip(share[best] + np.linspace(-half_share, half_share, 9), 0.0, 1 - margin)
        half_place, half_share = half_place / 4, half_share / 4
    return Target(float(mean[best]), None if asked.std is None else float(std[best]))


def _distance(mean: Floats, std: Floats, asked: Target) -> Floats:
    away = (mean - asked.mean) ** 2
    return away if asked.std is None else away + (std - asked.std) ** 2


def _along(polygon: Floats, place: Floats) -> Floats:
    """Points [n, 2] at `place` [n] vertices along the closed polygon."""
    i = np.floor(place).astype(int)
    first, second = polygon[i % len(polygon)], polygon[(i + 1) % len(polygon)]
    return first + (place - i)[:, None] * (second - first)
