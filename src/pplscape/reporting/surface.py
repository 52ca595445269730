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

from pplscape.runs import Compositions
from pplscape.statistics import Bins, Floats

Facts = Mapping[str, Any]
GRID = 33
TOLERANCE = 0.25
"""Largest miss of a tilt in mean or spread, in standard deviations of the pool: bins cannot be split."""


def compositions_of(rows: Sequence[Facts]) -> Compositions:
    """Rows of runs.jsonl as arrays; a column that any row lacks is None."""

    def column(name: str) -> Floats | None:
        values = [r.get(name) for r in rows]
        return None if any(v is None for v in values) else np.asarray(values, dtype=float)

    names = (
        "nll_mean",
        "nll_std",
        "ppl_mean",
        "ppl_std",
        "bin_tokens",
        "bin_unique_tokens",
        "n_params",
        "unique_tokens",
    )
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
        if np.abs(step).max() < 1e-9:
            break
    shares = _softmax(log_weight + tilt @ features.T)
    got = shares @ features
    got_std = np.sqrt(np.maximum(got[:, 1] - got[:, 0] ** 2, 0))
    return Tilts(shares, (np.abs(got[:, 0] - m) < TOLERANCE) & (np.abs(got_std - s) < TOLERANCE))


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Mesh:
    """The part of the (mean, std) plane that a budget can reach and a figure shows, with the tilt at each point.

    `mean`, `std` [S, M]: columns are lines of equal mean, cut where the set ends, so that its borders are smooth.
    """

    scale: str
    mean: Floats
    std: Floats
    tilts: Tilts

    @classmethod
    def of(cls, landscape: Facts, scale: str, box: tuple[float, float, float, float]) -> Mesh | None:
        """The feasible part of a box (mean low, mean high, std low, std high); None where they do not meet."""
        found = feasible_mesh(landscape, scale, box)
        if found is None:
            return None
        mean, std = found
        return cls(scale, mean, std, tilt_to(landscape, scale, mean.ravel(), std.ravel()))

    def compositions(self, landscape: Facts, tokens: float, bins: Facts | None, n_params: float | None) -> Compositions:
        """What `tokens` tokens at each point [S x M] consist of, on `bins` {edges, share} if given."""
        return tilted_compositions(
            landscape, self.scale, self.mean.ravel(), self.std.ravel(), self.tilts, tokens, bins, n_params
        )


def tilted_compositions(
    landscape: Facts, scale: str, mean: Floats, std: Floats, tilts: Tilts, tokens: float, bins: Facts | None,
    n_params: float | None,
) -> Compositions:  # fmt: skip
    """Compositions of `tokens` tokens at each (mean, std) [G] that `tilts` were made for."""
    fine = landscape["fine_bins"]
    token_share = np.asarray(fine["share"]) * landscape["tokens"] / np.asarray(fine["chunks"])
    in_fine = tilts.shares * token_share
    in_fine *= tokens / in_fine.sum(-1, keepdims=True)
    columns: dict[str, Floats] = {f"{scale}_mean": np.asarray(mean), f"{scale}_std": np.asarray(std)}
    other = "ppl" if scale == "nll" else "nll"
    moments = fine["winsorised"][other]
    other_mean = tilts.shares @ np.asarray(moments["mean"])
    square = tilts.shares @ (np.asarray(moments["variance"]) + np.asarray(moments["mean"]) ** 2)
    columns |= {f"{other}_mean": other_mean, f"{other}_std": np.sqrt(np.maximum(square - other_mean**2, 0))}
    if bins is not None and bins.get("edges") is not None:
        cuts = Bins.from_json(bins)
        member = cuts.of_cells(np.asarray(fine["mean"]))[:, None] == np.arange(cuts.n)
        columns["bin_tokens"] = in_fine @ member
        held = np.asarray(cuts.share) * landscape["tokens"]
        columns["bin_unique_tokens"] = np.minimum(columns["bin_tokens"], held)
    if n_params is not None:
        columns["n_params"] = np.full(len(mean), float(n_params))
    total = np.full(len(mean), float(tokens))
    return Compositions(tokens=total, unique_tokens=total, **columns)


@dataclass(frozen=True)
class Surface:
    """Predicted loss [S, M] (nats/token; NaN where no tilt comes near) over a mesh at one size."""

    tokens: float
    mesh: Mesh
    loss: Floats


def loss_surface(law: Any, landscape: Facts, mesh: Mesh, tokens: float, n_params: float | None) -> Surface | None:
    """The law's prediction for `tokens` tokens over the mesh; None if it has none."""
    with np.errstate(all="ignore"):
        loss = np.asarray(law.predict(mesh.compositions(landscape, tokens, law.bins, n_params)), dtype=float)
    known = np.isfinite(loss) & (mesh.tilts.reached | (law.scale is not None))  # laws on moments need no tilt
    loss = np.where(known, loss, np.nan).reshape(mesh.mean.shape)
    return Surface(tokens, mesh, loss) if np.isfinite(loss).any() else None


def feasible_mesh(landscape: Facts, scale: str, box: tuple[float, float, float, float]) -> tuple[Floats, Floats] | None:
    """(mean, std) [GRID, GRID] filling the feasible set within a box; None where they do not meet.

    The set is convex in (mean, mean square): a line of equal mean enters and leaves its boundary once.
    """
    ring = np.asarray(landscape["feasible"][scale])
    x, y = ring[:, 0], ring[:, 0] ** 2 + ring[:, 1] ** 2
    margin = 1e-4 * (x.max() - x.min())
    low, high = max(box[0], x.min() + margin), min(box[1], x.max() - margin)
    if not low < high:
        return None
    mean = np.geomspace(low, high, GRID) if scale == "ppl" else np.linspace(low, high, GRID)
    before, after = x[:-1, None] - mean, x[1:, None] - mean
    crosses = before * after <= 0
    share = np.divide(before, before - after, out=np.zeros_like(before), where=before != after)
    square = np.where(crosses, y[:-1, None] + share * (y[1:] - y[:-1])[:, None], np.nan)
    ends = [np.sqrt(np.maximum(f(square, axis=0) - mean**2, 0)) for f in (np.nanmin, np.nanmax)]
    bottom, top = (np.clip(e, box[2], box[3]) for e in ends)
    kept = top - bottom > 1e-6 * (box[3] - box[2])
    if kept.sum() < 2:
        return None
    steps, bottom = np.linspace(0, 1, GRID)[:, None], np.maximum(bottom, 1e-6)
    if scale == "ppl":
        std = np.exp(np.log(bottom[kept]) * (1 - steps) + np.log(top[kept]) * steps)
    else:
        std = bottom[kept] * (1 - steps) + top[kept] * steps
    return np.broadcast_to(mean[kept], std.shape), std


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


def plane_box(
    points: Sequence[tuple[float, float]], scale: str = "nll", pad: float = 0.07
) -> tuple[float, float, float, float]:
    """The box around (mean, std) points [at least one] that a figure of the plane shows; padded in logs for `ppl`."""
    values = np.asarray(points, dtype=float)
    if scale == "ppl":
        low, high = np.log(np.maximum(values.min(0), 1e-9)), np.log(np.maximum(values.max(0), 1e-9))
        room = pad * np.maximum(high - low, 0.05)
        ends = np.exp([low - room, high + room])
    else:
        low, high = values.min(0), values.max(0)
        room = pad * np.maximum(high - low, 1e-3 * np.abs(high) + 1e-9)
        ends = np.stack([low - room, high + room])
    return float(ends[0, 0]), float(ends[1, 0]), float(max(0.0, ends[0, 1])), float(ends[1, 1])
