"""A law over the (mean, spread) plane: which compositions stand for its points, and what the law says of them.

A point of the plane is not one subset. It is read as the pool tilted to that mean and spread (exponential family in
the value and its square: the subset of maximum entropy), so that laws on bins can be drawn over the same plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.landscape import Bins, Floats
from pplscape.runs import Compositions

Facts = Mapping[str, Any]
GRID = 41
TOLERANCE = 0.02
"""Largest miss of a tilt in mean or spread, in standard deviations of the pool."""


def compositions_of(rows: Sequence[Facts]) -> Compositions:
    """Rows of runs.jsonl as arrays; a column that any row lacks is None."""

    def column(name: str) -> Floats | None:
        values = [r.get(name) for r in rows]
        return None if any(v is None for v in values) else np.asarray(values, dtype=float)

    names = ("nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens", "bin_unique_tokens", "n_params", "unique_tokens")
    tokens = np.array([r["tokens"] for r in rows], dtype=float)
    return Compositions(tokens=tokens, **{n: column(n) for n in names})


@dataclass(frozen=True)
class Tilts:
    """G tilts of the pool: chunk shares over its F fine bins [G, F], and which of them reached their target [G]."""

    shares: Floats
    reached: NDArray[np.bool_]


def tilt_to(landscape: Facts, scale: str, mean: Floats, std: Floats, steps: int = 60) -> Tilts:
    """The pool tilted to each (mean, std) [G] on `scale`, by Newton's method on the convex dual, all at once."""
    fine, pool = landscape["fine_bins"], landscape["scale"][scale]
    centre, width = pool["mean"], pool["std"] or 1.0
    inside = fine["winsorised"][scale]
    z = (np.asarray(inside["mean"]) - centre) / width
    square = z**2 + np.asarray(inside["variance"]) / width**2
    m, s = (np.asarray(mean) - centre) / width, np.asarray(std) / width
    target = np.stack([m, s**2 + m**2], axis=-1)
    features = np.stack([z, square], axis=-1)
    log_weight = np.log(np.asarray(fine["chunks"], dtype=float))
    tilt = np.zeros((len(m), 2))
    for _ in range(steps):
        shares = _softmax(log_weight + tilt @ features.T)
        gradient = shares @ features - target
        centred = features[None] - (shares @ features)[:, None]
        hessian = np.einsum("gf,gfi,gfj->gij", shares, centred, centred) + 1e-7 * np.eye(2)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        tilt -= step * np.minimum(1.0, 4.0 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-12))
    shares = _softmax(log_weight + tilt @ features.T)
    got = shares @ features
    got_std = np.sqrt(np.maximum(got[:, 1] - got[:, 0] ** 2, 0))
    return Tilts(shares, (np.abs(got[:, 0] - m) < TOLERANCE) & (np.abs(got_std - s) < TOLERANCE))


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def tilted_compositions(
    landscape: Facts, scale: str, mean: Floats, std: Floats, tokens: float, bins: Facts | None, n_params: float | None
) -> tuple[Compositions, NDArray[np.bool_]]:
    """Compositions of `tokens` tokens at each (mean, std) [G], on `bins` {edges, share} if given; which exist."""
    fine = landscape["fine_bins"]
    tilts = tilt_to(landscape, scale, mean, std)
    token_share = np.asarray(fine["share"]) * landscape["tokens"] / np.asarray(fine["chunks"])
    in_fine = tilts.shares * token_share
    in_fine *= tokens / in_fine.sum(-1, keepdims=True)
    columns: dict[str, Floats] = {f"{scale}_mean": np.asarray(mean), f"{scale}_std": np.asarray(std)}
    other = "ppl" if scale == "nll" else "nll"
    moments = fine["winsorised"][other]
    other_mean = tilts.shares @ np.asarray(moments["mean"])
    square = tilts.shares @ (np.asarray(moments["variance"]) + np.asarray(moments["mean"]) ** 2)
    columns |= {f"{other}_mean": other_mean, f"{other}_std": np.sqrt(np.maximum(square - other_mean**2, 0))}
    if bins is not None:
        cuts = Bins(tuple(bins["edges"]), tuple(bins["share"]))
        member = cuts.of(np.asarray(fine["mean"]))[:, None] == np.arange(cuts.n)
        columns["bin_tokens"] = in_fine @ member
        held = np.asarray(cuts.share) * landscape["tokens"]
        columns["bin_unique_tokens"] = np.minimum(columns["bin_tokens"], held)
    if n_params is not None:
        columns["n_params"] = np.full(len(mean), float(n_params))
    total = np.full(len(mean), float(tokens))
    return Compositions(tokens=total, unique_tokens=total, **columns), tilts.reached


@dataclass(frozen=True)
class Surface:
    """Predicted loss [S, M] (nats/token; NaN where no such subset exists) at spreads [S] and means [M] on `scale`."""

    scale: str
    tokens: float
    mean: Floats
    std: Floats
    loss: Floats


def loss_surface(
    law: Any, landscape: Facts, scale: str, box: tuple[float, float, float, float], tokens: float, n_params: float | None
) -> Surface:
    """The law's prediction over a box (mean low, mean high, std low, std high) of the plane, within the feasible set."""
    mean, std = np.linspace(*box[:2], GRID), np.linspace(max(box[2], 1e-3 * box[3]), box[3], GRID)
    m, s = (a.ravel() for a in np.meshgrid(mean, std))
    subsets, exists = tilted_compositions(landscape, scale, m, s, tokens, law.bins or landscape["bins"], n_params)
    with np.errstate(all="ignore"):
        loss = np.asarray(law.predict(subsets), dtype=float)
    keep = exists & is_feasible(landscape, scale, m, s) & np.isfinite(loss)
    return Surface(scale, tokens, mean, std, np.where(keep, loss, np.nan).reshape(GRID, GRID))


def is_feasible(landscape: Facts, scale: str, mean: Floats, std: Floats) -> NDArray[np.bool_]:
    """Whether some subset of the budget's size has these moments [G]: the set is convex in (mean, mean square)."""
    from matplotlib.path import Path as Polygon

    ring = np.asarray(landscape["feasible"][scale])
    centre, width = landscape["scale"][scale]["mean"], landscape["scale"][scale]["std"] or 1.0

    def convex(m: Floats, s: Floats) -> Floats:
        z = (m - centre) / width
        return np.stack([z, (s / width) ** 2 + z**2], axis=-1)

    return Polygon(convex(ring[:, 0], ring[:, 1])).contains_points(convex(np.asarray(mean), np.asarray(std)))


def hull(mean: Floats, std: Floats, per_edge: int = 8) -> Floats:
    """Convex hull in (ln mean, ln std) as a closed ring [p, 2] of (mean, std); the points themselves when flat."""
    from scipy.spatial import ConvexHull, QhullError

    points = np.log(np.stack([mean, np.maximum(std, 1e-9)], axis=-1))
    try:
        corners = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return np.exp(points)
    steps = np.arange(per_edge)[:, None] / per_edge
    edges = [a * (1 - steps) + b * steps for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    return np.exp(np.concatenate([*edges, corners[:1]]))


def plane_box(points: Sequence[tuple[float, float]], pad: float = 0.07) -> tuple[float, float, float, float]:
    """The box around (mean, std) points that a figure of the plane shows."""
    values = np.asarray(points, dtype=float)
    low, high = values.min(0), values.max(0)
    room = pad * np.maximum(high - low, 1e-3 * np.abs(high) + 1e-9)
    return (
        float(low[0] - room[0]),
        float(high[0] + room[0]),
        float(max(0.0, low[1] - room[1])),
        float(high[1] + room[1]),
    )
