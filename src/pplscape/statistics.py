"""The perplexity landscape of a set of chunks: moments, bins, feasible set. Pure numpy.

`x` is a chunk's log-perplexity (nll_sum / n_tokens, nats/token); on scale `ppl` the value is exp(x).
Moments are chunk-weighted with population variance, after clipping to the pool's winsor limits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import TooFewValues, UserError

Scale = Literal["nll", "ppl"]
Floats = NDArray[np.float64]
WINSOR_SHARE = 0.005
"""Share of chunks clipped on each side."""


def on_scale(x: Floats, scale: Scale) -> Floats:
    """Log-perplexity [n] on the scale of a law: itself, or perplexity."""
    return x if scale == "nll" else np.exp(x)


def winsor_limits(values: Floats) -> tuple[float, float]:
    """The (0.5 %, 99.5 %) quantiles of the pool's values; fixed for all subsets of that pool."""
    low, high = np.quantile(values, [WINSOR_SHARE, 1 - WINSOR_SHARE])
    return float(low), float(high)


@dataclass(frozen=True)
class Moments:
    """Mean and population standard deviation of winsorised values, chunk-weighted."""

    mean: float
    std: float


def moments(values: Floats, limits: tuple[float, float], weights: NDArray | None = None) -> Moments:
    """Moments of values [n] clipped to `limits`; `weights` [n] counts repeats. Needs at least one chunk."""
    clipped = np.clip(values, *limits)
    mean = float(np.average(clipped, weights=weights))
    return Moments(mean, float(np.sqrt(np.average((clipped - mean) ** 2, weights=weights))))


@dataclass(frozen=True)
class Bins:
    """Equal-token log-perplexity bins. `edges` [K-1] are the inner edges (nats/token); `share` [K] of pool tokens.

    With `levels` [K][M-1] every bin is cut again by a second axis into M levels of equal tokens; bins are then the
    K M cells, level by level within each range of log-perplexity.
    """

    edges: tuple[float, ...]
    share: tuple[float, ...]
    levels: tuple[tuple[float, ...], ...] = ()
    axis: str = "learnability"
    """What levels are of: learnability (nats/token) or likeness (nats/n-gram)."""

    @property
    def n(self) -> int:
        return len(self.share)

    @property
    def n_levels(self) -> int:
        """M; 1 for bins of log-perplexity alone."""
        return len(self.levels[0]) + 1 if self.levels else 1

    @property
    def hash(self) -> str:
        """Identifies the binning: runs and laws with different hashes must not be mixed."""
        cuts = [self.edges, self.levels] if self.levels else self.edges
        return hashlib.sha256(json.dumps(cuts).encode()).hexdigest()[:16]

    def of(self, x: Floats, second: Floats | None = None) -> NDArray[np.intp]:
        """Bin index [n] of log-perplexities [n]; a value on an edge belongs to the upper bin.

        UserError if bins with levels are asked without the second axis [n].
        """
        coarse = np.searchsorted(np.asarray(self.edges), x, side="right")
        if not self.levels:
            return coarse
        if second is None or len(second) != len(x):
            raise UserError(f"These bins are cut by {self.axis} too, which these scores do not hold.")
        above = second[:, None] >= np.asarray(self.levels)[coarse]
        return coarse * self.n_levels + above.sum(1)

    def of_cells(self, mean: Floats) -> NDArray[np.intp]:
        """Bin index [F] of finer bins with these mean log-perplexities [F], which are cut in as many levels."""
        coarse = np.searchsorted(np.asarray(self.edges), mean, side="right")
        return coarse * self.n_levels + np.arange(len(mean)) % self.n_levels

    def tokens(self, x: Floats, length: NDArray, second: Floats | None = None) -> Floats:
        """Tokens per bin [K] of chunks with log-perplexity x [n] and length [n] (times repeats)."""
        return np.bincount(self.of(x, second), weights=length, minlength=self.n).astype(np.float64)

    @property
    def coarse(self) -> Bins:
        """The bins of log-perplexity alone."""
        return Bins(self.edges, tuple(np.asarray(self.share).reshape(-1, self.n_levels).sum(1).tolist()))

    def to_json(self) -> dict[str, Any]:
        cut = {"levels": [list(row) for row in self.levels], "axis": self.axis} if self.levels else {}
        return {"edges": list(self.edges), **cut, "share": list(self.share), "hash": self.hash}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Bins:
        levels = tuple(tuple(row) for row in value.get("levels", ()))
        return cls(tuple(value["edges"]), tuple(value["share"]), levels, value.get("axis", "learnability"))


def make_bins(x: Floats, length: NDArray, n_bins: int) -> Bins:
    """Cut the pool into at most `n_bins` bins of equal token share; ties may merge bins, none is empty."""
    order = np.argsort(x, kind="stable")
    cumulative = np.cumsum(length[order])
    targets = cumulative[-1] * np.arange(1, n_bins) / n_bins
    edges = np.unique(x[order][np.searchsorted(cumulative, targets)])
    edges = edges[edges > x.min()]
    bins = Bins(tuple(float(e) for e in edges), (1.0,) * (len(edges) + 1))
    tokens = bins.tokens(x, length)
    return Bins(bins.edges, tuple(float(t) for t in tokens / tokens.sum()))


def cut_levels(
    bins: Bins, x: Floats, second: Floats, length: NDArray, n_levels: int, axis: str, keep: Sequence[float] = ()
) -> Bins:
    """Every bin cut again into `n_levels` levels of the second axis [n] (`axis` is its name) of equal token share.

    Levels are relative to a bin's own chunks: learnability rises with perplexity, and a second axis must tell what the
    first does not. A bin in which ties, or too few chunks, leave a level empty is merged with a neighbour, but not over
    the edges in `keep`. TooFewValues where that does not help.
    """
    edges = list(bins.edges)
    while True:
        levels = _level_edges(Bins(tuple(edges), (1.0,) * (len(edges) + 1)), x, second, length, n_levels)
        found = Bins(tuple(edges), (1.0,) * ((len(edges) + 1) * n_levels), levels, axis)
        tokens = found.tokens(x, length, second)
        lacking = np.flatnonzero((tokens.reshape(-1, n_levels) == 0).any(1))
        if not len(lacking):
            return Bins(found.edges, tuple((tokens / tokens.sum()).tolist()), levels, axis)
        around = [e for e in (lacking[0], lacking[0] - 1) if 0 <= e < len(edges) and edges[e] not in keep]
        if not around:
            raise TooFewValues(f"There are too few different values of {axis} for {n_levels} levels; ask for fewer.")
        edges.pop(around[0])


def _level_edges(
    bins: Bins, x: Floats, second: Floats, length: NDArray, n_levels: int
) -> tuple[tuple[float, ...], ...]:
    """[K][n_levels - 1] of `cut_levels`, for these bins."""
    coarse, shares = bins.of(x), np.arange(1, n_levels) / n_levels
    levels = []
    for b in range(bins.n):
        members = np.flatnonzero(coarse == b)
        members = members[np.argsort(second[members], kind="stable")]
        cumulative = np.cumsum(length[members])
        levels.append(tuple(second[members][np.searchsorted(cumulative, shares * cumulative[-1])].tolist()))
    return tuple(levels)


def kl_to_pool(x: Floats, length: NDArray, taken: NDArray, n_bins: int = 50) -> float:
    """KL(subset || pool) in nats over `n_bins` equal-token bins; `taken` [n] = times each chunk is taken."""
    bins = make_bins(x, length, n_bins)
    subset = bins.tokens(x, length * taken)
    p, q = subset / subset.sum(), np.asarray(bins.share)
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))


def feasible_moments(values: Floats, n: int, directions: int = 64) -> Floats:
    """Boundary of the reachable {(mean, mean square)} of any n chunks, as [directions, 2]; convex.

    The extreme point in direction (c, d) is the n chunks with the largest c v + d v^2. Works on standardised
    values so that directions are evenly spread, and maps back.
    """
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    z = (values - centre) / spread
    points = []
    for angle in np.linspace(0, 2 * np.pi, directions, endpoint=False):
        score = np.cos(angle) * z + np.sin(angle) * z**2
        chosen = values[np.argpartition(-score, min(n, len(z)) - 1)[:n]]
        points.append((chosen.mean(), np.mean(chosen**2)))
    return np.asarray(points)
