"""The perplexity landscape of a set of chunks: moments, bins, feasible set. Pure numpy.

`x` is a chunk's log-perplexity (nll_sum / n_tokens, nats/token); on scale `ppl` the value is exp(x).
Moments are chunk-weighted with population variance, after clipping to the pool's winsor limits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    """Equal-token log-perplexity bins. `edges` [K-1] are the inner edges (nats/token); `share` [K] of pool tokens."""

    edges: tuple[float, ...]
    share: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.share)

    @property
    def hash(self) -> str:
        """Identifies the binning: runs and laws with different hashes must not be mixed."""
        return hashlib.sha256(json.dumps(self.edges).encode()).hexdigest()[:16]

    def of(self, x: Floats) -> NDArray[np.intp]:
        """Bin index [n] of log-perplexities [n]; a value on an edge belongs to the upper bin."""
        return np.searchsorted(np.asarray(self.edges), x, side="right")

    def tokens(self, x: Floats, length: NDArray) -> Floats:
        """Tokens per bin [K] of chunks with log-perplexity x [n] and length [n] (times repeats)."""
        return np.bincount(self.of(x), weights=length, minlength=self.n).astype(np.float64)


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
