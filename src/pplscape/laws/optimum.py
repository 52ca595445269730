"""Where a moment law is lowest, and whether that means anything.

The published form has saddles and falls to its floor in degenerate corners, so its optimum is only sought where
pilots and feasible subsets are: the pilots' hull in (ln mean, ln spread) intersected with the feasible set. It is
    interior   a minimum inside
    saddle     none, but a stationary point of indefinite curvature lies inside
    unbounded  none, and the loss still falls along the descent ray to 10 x the hull
    edge       none of these: the best place is on the border
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.forms.base import Floats, Frame
from pplscape.laws.forms.plane import PlaneForm
from pplscape.laws.hull import Hull
from pplscape.runs import RunTable

KINDS = ("interior", "saddle", "unbounded", "edge")
GRID = 41
RAY = 10.0
"""How many hull sizes the descent ray is followed."""
NEEDED_PRODUCT = 4.0
"""ln m ln s that a minimum of the published form needs for m, s > 1."""


@dataclass(frozen=True)
class Arena:
    """The places an optimum may be, in the form's plane coordinates (for scale ppl: ln mean, ln spread)."""

    inside: Floats
    """[n, 2] grid points inside."""
    border: Floats
    """[m, 2] points on the border."""
    size: Floats
    """[2] width and height of the pilots' hull: the unit of length."""
    hull: Hull
    feasible: Hull | None
    """Of (mean, mean square), where the budget's subsets can be."""


def arena_of(form: PlaneForm, runs: RunTable, feasible: Floats | None = None) -> Arena | None:
    """Hull of the pilots in (ln mean, ln spread) with feasible (mean, std) points [k, 2]; None if it has no area."""
    mean, spread = runs.moments(form.scale or "ppl", form.reading)
    hull = Hull.of(np.stack([np.log(mean), np.log(spread)], axis=-1))
    if len(hull.corners) < 3:
        return None
    reachable = None
    if feasible is not None and len(feasible) > 2:
        points = np.asarray(feasible, float)
        reachable = Hull.of(np.stack([points[:, 0], points[:, 0] ** 2 + points[:, 1] ** 2], axis=-1))
    grid = _grid(hull)
    allowed = hull.contains(grid) & _reachable(grid, reachable, form)
    if not allowed.any():
        return None
    cell = allowed.reshape(GRID, GRID)
    padded = np.pad(cell, 1)
    core = cell & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge = _edge_points(hull)
    edge = edge[_reachable(edge, reachable, form)]
    border = np.concatenate([grid[(cell & ~core).ravel()], edge])
    return Arena(form.plane(grid[core.ravel()]), form.plane(border), _plane_size(form, hull), hull, reachable)


def _grid(hull: Hull) -> Floats:
    """[GRID^2, 2] points of the rectangle around a hull along its principal axes: a thin slanted hull is filled too."""
    corners = (hull.corners - hull.centre) / hull.size
    turn = np.linalg.eigh(corners.T @ corners)[1]
    low, high = (corners @ turn).min(0), (corners @ turn).max(0)
    axes = [np.linspace(low[i], high[i], GRID) for i in (0, 1)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return grid @ turn.T * hull.size + hull.centre


def _reachable(points: Floats, reachable: Hull | None, form: PlaneForm) -> NDArray[np.bool_]:
    """Which (ln mean, ln spread) points [n, 2] a subset of the budget can have."""
    if reachable is None:
        return np.ones(len(points), bool)
    mean, spread = np.exp(points[:, 0]), np.exp(points[:, 1])
    variance = spread if form.reading == "var" else spread**2
    return reachable.contains(np.stack([mean, mean**2 + variance], axis=-1), slack=1e-6)


def _inside(form: PlaneForm, arena: Arena, points: Floats) -> NDArray[np.bool_]:
    """Which points [n, 2] of the form's plane lie in the pilots' hull and the feasible set."""
    logs = form.logs(points)
    return arena.hull.contains(logs) & _reachable(logs, arena.feasible, form)


def _edge_points(hull: Hull, each: int = 40) -> Floats:
    share = np.linspace(0, 1, each, endpoint=False)[:, None, None]
    following = np.roll(hull.corners, -1, axis=0)
    return (hull.corners + share * (following - hull.corners)).reshape(-1, 2)


def _plane_size(form: PlaneForm, hull: Hull) -> Floats:
    corners = form.plane(hull.corners)
    return corners.max(0) - corners.min(0)


def optimum(
    form: PlaneForm, params: Floats, frame: Frame, arena: Arena, draws: Floats | None = None, level: float = 0.9
) -> dict[str, Any]:
    """The confined optimum of parameters [p], classified; with refits `draws` [B, p] its shares, region and regret."""
    kinds, points = classify(form, params[None], arena)
    kind, point = kinds[0], points[0]
    place = _describe(form, point)
    found: dict[str, Any] = {"kind": kind, **place, "scale": form.scale, "reading": form.reading}
    if form.name == "paper":
        found |= bowl_condition(form, arena, point)
    if draws is not None and len(draws):
        found |= _spread_of(form, frame, arena, params, draws, point, level)
    return found


def bowl_condition(form: PlaneForm, arena: Arena, point: Floats) -> dict[str, Any]:
    """ln m ln s at a point [2], its range over the arena, and whether the published form can have a minimum at the
    point, and anywhere in the arena.

    Where ln m ln s > 0 a minimum needs it above 4 (`docs/theory.md`); where it is negative, only signs of a1 and b1.
    """
    product = float(np.prod(form.logs(point)))
    everywhere = form.logs(np.concatenate([arena.inside, arena.border])).prod(1)
    return {
        "log_product": product,
        "bowl_possible": bool(product > NEEDED_PRODUCT or product < 0),
        "log_product_range": [float(everywhere.min()), float(everywhere.max())],
        "bowl_possible_anywhere": bool((everywhere > NEEDED_PRODUCT).any() or (everywhere < 0).any()),
    }


def _describe(form: PlaneForm, point: Floats) -> dict[str, float]:
    mean, spread = (float(v) for v in np.exp(form.logs(point[None])[0]))
    return {"mu": mean, "sigma": float(np.sqrt(spread)) if form.reading == "var" else spread, "spread": spread}


def classify(form: PlaneForm, params: Floats, arena: Arena) -> tuple[list[str], Floats]:
    """(kind [B], confined minimiser [B, 2]) for parameters [B, p]."""
    inside = form.surface(params, arena.inside)[0] if len(arena.inside) else np.full((len(params), 1), -np.inf)
    border = form.surface(params, arena.border)[0]
    interior = inside.max(1) > border.max(1)
    points = arena.border[border.argmax(1)]
    if len(arena.inside):
        starts = _refined(form, params, arena, arena.inside[inside.argmax(1)])
        points = np.where(interior[:, None], starts, points)
    saddle = _has_saddle(form, params, arena)
    falls = _falls_forever(form, params, points, arena)
    kinds = np.where(interior, "interior", np.where(saddle, "saddle", np.where(falls, "unbounded", "edge")))
    return [str(k) for k in kinds], points


def _has_saddle(form: PlaneForm, params: Floats, arena: Arena, starts: int = 3) -> NDArray[np.bool_]:
    """True [B] where Newton's iteration from the flattest grid points ends inside with indefinite curvature."""
    points = np.concatenate([arena.inside, arena.border])
    _, gradient, _ = form.surface(params, points)
    flat = np.argsort(np.linalg.norm(gradient * arena.size, axis=-1), axis=1)[:, :starts]
    found = np.zeros(len(params), bool)
    for start in points[flat].transpose(1, 0, 2):
        at = start.copy()
        for _ in range(12):
            _, slope, bend = (v[:, 0] for v in form.surface(params, at[:, None]))
            at = at + np.clip(_solve_2x2(bend, -slope), -0.25 * arena.size, 0.25 * arena.size)
        _, slope, bend = (v[:, 0] for v in form.surface(params, at[:, None]))
        still = np.linalg.norm(slope * arena.size, axis=-1) < 1e-6 * (1 + np.abs(bend).max((1, 2)))
        indefinite = np.linalg.det(bend * arena.size * arena.size[:, None]) < 0
        found |= still & indefinite & _inside(form, arena, at)
    return found


def _solve_2x2(matrix: Floats, right: Floats) -> Floats:
    (a, b), (c, d) = matrix[..., 0, :].T, matrix[..., 1, :].T
    determinant = a * d - b * c
    determinant = np.where(np.abs(determinant) < 1e-12, 1e-12, determinant)
    solved = np.stack([d * right[:, 0] - b * right[:, 1], a * right[:, 1] - c * right[:, 0]], axis=-1)
    return solved / determinant[:, None]


def _falls_forever(form: PlaneForm, params: Floats, points: Floats, arena: Arena) -> NDArray[np.bool_]:
    """True [B] where the loss falls all along the steepest ray from points [B, 2] to RAY x the hull."""
    _, slope, _ = form.surface(params, points[:, None])
    direction = slope[:, 0] * arena.size
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-300) * arena.size
    far = np.linspace(0, RAY, 61)[:, None]
    values, _, _ = form.surface(params, points[:, None] + far * direction[:, None])
    return np.asarray((np.diff(values, axis=1) > 0).all(1))


def _refined(form: PlaneForm, params: Floats, arena: Arena, points: Floats) -> Floats:
    """Newton's iteration from grid optima [B, 2] inside, a cell at most a step; a step that does not gain is not taken.

    Without it the optima of resamples would scatter over the grid's points and not as the data tell.
    """
    value = form.surface(params, points[:, None])[0][:, 0]
    for _ in range(8):
        _, slope, bend = (v[:, 0] for v in form.surface(params, points[:, None]))
        ahead = points + np.clip(_solve_2x2(bend, -slope), -arena.size / GRID, arena.size / GRID)
        reached = form.surface(params, ahead[:, None])[0][:, 0]
        better = (reached > value) & _inside(form, arena, ahead)
        points, value = np.where(better[:, None], ahead, points), np.where(better, reached, value)
    return points


def _spread_of(
    form: PlaneForm, frame: Frame, arena: Arena, params: Floats, draws: Floats, point: Floats, level: float
) -> dict[str, Any]:
    kinds, points = classify(form, draws, arena)
    gain_here = form.surface(draws, point[None])[0][:, 0]
    gain_best = form.surface(draws, points[:, None])[0][:, 0]
    gap = np.exp(np.minimum(form.log_gap(draws, frame.unit) - gain_here, 50))
    regret = np.maximum(gap * -np.expm1(-np.maximum(gain_best - gain_here, 0.0)), 0.0)
    logs = form.logs(points)
    spread = np.std(logs, axis=0)
    correlation = float(np.atleast_2d(np.corrcoef(logs.T))[0, 1]) if (spread > 1e-9).all() else None
    cloud = [_describe(form, p) for p in points]
    corners = still_region(form, arena, params, draws, points, level) if kinds.count("interior") else None
    corners = region(points, arena.size, level) if corners is None else corners
    return {
        "shares": {kind: kinds.count(kind) / len(kinds) for kind in KINDS},
        "region": [[p["mu"], p["sigma"]] for p in (_describe(form, p) for p in corners)],
        "region_level": level,
        "correlation": correlation,
        "regret": {"mean": float(regret.mean()), "high": float(np.quantile(regret, level)), "tokens": frame.unit},
        "cloud": {"mu": [p["mu"] for p in cloud], "sigma": [p["sigma"] for p in cloud], "kind": kinds},
    }


def still_region(
    form: PlaneForm, arena: Arena, params: Floats, draws: Floats, points: Floats, level: float
) -> Floats | None:
    """Corners [m, 2] of the places where the slope may be 0 as far as the runs tell; None if the grid misses them.

    Fieller's construction: a place belongs to the region if the estimated slope there, in units of the refits' spread
    of that slope, is no larger than `level` of the refits' own deviations. Slopes are linear in a law's coefficients,
    so this holds its level where the optima themselves, ratios of coefficients, scatter with heavy and skewed tails.
    """
    low, high = points.min(0), points.max(0)
    for _ in range(5):
        margin = 0.5 * (high - low) + 1e-4 * arena.size
        low, high = low - margin, high + margin
        axes = [np.linspace(low[i], high[i], GRID) for i in (0, 1)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        allowed = _inside(form, arena, grid)
        held = np.zeros(len(grid), bool)
        held[allowed] = _maybe_still(form, params, draws, grid[allowed], level)
        cell = held.reshape(GRID, GRID)
        if not (cell[[0, -1]].any() or cell[:, [0, -1]].any()):
            break
    if not held.any():
        return None
    half = 0.5 * (high - low) / (GRID - 1) * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])  # cells belong whole
    return Hull.of((grid[held][:, None] + half).reshape(-1, 2)).corners


def _maybe_still(form: PlaneForm, params: Floats, draws: Floats, places: Floats, level: float) -> NDArray[np.bool_]:
    """Which places [n, 2] are in Fieller's region."""
    slope = form.surface(params[None], places)[1][0]
    away = form.surface(draws, places)[1] - slope
    covariance = np.einsum("bni,bnj->nij", away, away) / len(away)
    covariance = (
        covariance + 1e-9 * np.trace(covariance, axis1=1, axis2=2)[:, None, None] * np.eye(2) + 1e-300 * np.eye(2)
    )
    precision = np.linalg.inv(covariance)
    depth = np.einsum("ni,nij,nj->n", slope, precision, slope)
    usual = np.quantile(np.einsum("bni,nij,bnj->bn", away, precision, away, optimize=True), level, axis=0)
    return np.asarray(depth <= usual)


def region(points: Floats, size: Floats, level: float) -> Floats:
    """Corners [m, 2] of the hull of the `level` share of points [B, 2] that lie deepest (Mahalanobis from the median).

    Optima of resamples lie along a valley: a joint region says what two intervals cannot. `size` [2] is the unit.
    """
    offsets = (points - np.median(points, 0)) / size
    covariance = offsets.T @ offsets / len(offsets) + 1e-8 * np.eye(2)
    depth = np.einsum("bi,ij,bj->b", offsets, np.linalg.inv(covariance), offsets)
    deepest = np.argsort(depth, kind="stable")[: max(int(np.ceil(level * len(points))), 1)]
    return Hull.of(points[deepest]).corners
