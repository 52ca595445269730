"""What a scored pool looks like: the facts of landscape.json that follow from its scores alone.

Losses in nats per token, sizes in tokens; moments as in `pplscape.statistics`. `stages.landscape` reads and writes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.design import Fine
from pplscape.errors import TooFewValues
from pplscape.statistics import (
    Bins,
    Floats,
    Scale,
    cut_levels,
    make_bins,
    moments,
    on_scale,
    winsor_limits,
)

HISTOGRAM_CELLS = 60
FINER, MOST_FINE_BINS = 4, 40
MOST_WINDOWS = 500
QUANTILES = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995)


@dataclass(frozen=True)
class ScoredPool:
    """The columns of a score table that the landscape needs; every array is [n]."""

    length: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    nll_sum: Floats
    source: NDArray[np.intp]
    """Index into `sources`."""
    sources: tuple[str, ...]
    place: pa.Table
    """doc_id, chunk_index, char_start, char_end of the chunks; empty unless asked for."""
    rejected: dict[str, int]
    second: Floats = field(default_factory=lambda: np.empty(0))
    """[n] learnability or likeness (`columns.AXES`); empty of scores without."""
    axis: str = "learnability"
    """Which of them."""

    @property
    def x(self) -> Floats:
        """Log-perplexity [n], nats per token."""
        return self.nll_sum / self.n_tokens


def describe(pool: ScoredPool, budget: int, n_bins: int, levels: int = 1) -> dict[str, Any]:
    """The facts of landscape.json that follow from the scores alone."""
    x = pool.x
    bins = make_bins(x, pool.length, n_bins)
    fine = make_bins(x, pool.length, n_bins * max(1, min(FINER, MOST_FINE_BINS // n_bins)))
    if levels > 1:
        bins = cut_levels(bins, x, pool.second, pool.length, levels, pool.axis)
        fine = cut_levels(fine, x, pool.second, pool.length, levels, pool.axis, keep=bins.edges)
    tokens, scored, n_bytes = (int(a.sum()) for a in (pool.length, pool.n_tokens, pool.n_bytes))
    nats = float(pool.nll_sum.sum())
    n_budget = max(1, min(len(x), round(budget / float(np.mean(pool.length)))))
    scales = {scale: _scale_facts(x, scale) for scale in ("nll", "ppl")}
    return {
        "n_chunks": len(x),
        "tokens": tokens,
        "n_tokens": scored,
        "n_bytes": n_bytes,
        "budget": budget,
        "budget_chunks": n_budget,
        "corpus_nll": nats / scored,
        "corpus_ppl": float(np.exp(nats / scored)),
        "mean_chunk_ppl": scales["ppl"]["raw"]["mean"],
        "bits_per_byte": nats / np.log(2) / max(n_bytes, 1),
        "bytes_per_token": n_bytes / tokens,
        "scale": scales,
        "winsor": {scale: facts["winsor"] for scale, facts in scales.items()},
        "n_sources": len(pool.sources),
        "by_source": by_source(pool),
        "histogram": histogram(pool),
        "bins": {**bins.to_json(), "by_bin": by_bin(pool, bins.coarse)},
        "fine_bins": _fine_bins(fine, pool),
        "feasible": {scale: feasible_boundary(x, scale, n_budget) for scale in ("nll", "ppl")},
    }


def describe_fewer(pool: ScoredPool, budget: int, n_bins: int, levels: int) -> dict[str, Any]:
    """`describe` with as many levels as leave half the bins or more: a second axis must not cost the first one."""
    least = make_bins(pool.x, pool.length, n_bins).n / 2
    for taken in range(levels, 1, -1):
        try:
            facts = describe(pool, budget, n_bins, taken)
        except TooFewValues:
            continue
        if len(facts["bins"]["by_bin"]) >= least:
            break
    else:
        taken, facts = 1, describe(pool, budget, n_bins)
    if taken == levels:
        return facts
    became = f"{taken} were cut" if taken > 1 else "the bins are of log-perplexity alone"
    sentence = f"{pool.axis.capitalize()} has too few different values for {levels} levels in every bin: {became}."
    warnings.warn(sentence, stacklevel=3)
    return facts | {"second_axis": {"axis": pool.axis, "asked": levels, "levels": taken, "sentence": sentence}}


def _fine_bins(fine: Bins, pool: ScoredPool) -> dict[str, Any]:
    """The fine bins with what is inside them: token-weighted mean and variance of x for the design of pilots;
    chunks, and chunk-weighted winsorised mean and variance on both scales, as the moments of subsets are taken."""
    x, index = pool.x, fine.of(pool.x, pool.second)
    by_token = Fine.of(fine, x, pool.length, pool.second)
    chunks = np.bincount(index, minlength=fine.n)
    winsorised = {}
    for scale in ("nll", "ppl"):
        values = on_scale(x, scale)
        values = np.clip(values, *winsor_limits(values))
        mean = np.bincount(index, values, fine.n) / chunks
        variance = np.bincount(index, (values - mean[index]) ** 2, fine.n) / chunks
        winsorised[scale] = {"mean": mean.tolist(), "variance": variance.tolist()}
    inside = {"mean": by_token.mean.tolist(), "variance": by_token.variance.tolist(), "chunks": chunks.tolist()}
    return {**fine.to_json(), **inside, "winsorised": winsorised}


def _scale_facts(x: Floats, scale: Scale) -> dict[str, Any]:
    values = on_scale(x, scale)
    limits = winsor_limits(values)
    winsorised = moments(values, limits)
    clipped = np.clip(values, *limits)
    z = (clipped - winsorised.mean) / (winsorised.std or 1.0)
    quantiles = np.quantile(values, QUANTILES)
    return {
        "mean": winsorised.mean,
        "std": winsorised.std,
        "skewness": float(np.mean(z**3)),
        "kurtosis": float(np.mean(z**4)),
        "raw": {"mean": float(values.mean()), "std": float(values.std())},
        "winsor": list(limits),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
    }


def feasible_boundary(x: Floats, scale: Scale, n: int) -> list[list[float]]:
    """Boundary of the (mean, std) pairs that n of the chunks can have, as a closed ring of points.

    The set is convex in (mean, mean square). Its extreme points are known: below, n neighbours in sorted order; above,
    the k lowest with the n - k highest. Neighbouring windows overlap by 7/8 (less for budgets below 2 % of the pool),
    so that chords between them, which bend in (mean, std), do not hide narrow subsets. Values are winsorised.
    """
    values = on_scale(x, scale)
    values = np.sort(np.clip(values, *winsor_limits(values)))
    centre = float(values.mean())
    sums, squares = (np.concatenate([[0.0], np.cumsum((values - centre) ** p)]) for p in (1, 2))
    size, windows = len(values), int(np.clip(8 * (len(values) - n) / n, 64, MOST_WINDOWS))
    start = np.unique(np.linspace(0, size - n, windows).round().astype(int))
    low = np.unique(np.linspace(n, 0, 65).round().astype(int))
    below = [(s[start + n] - s[start]) / n for s in (sums, squares)]
    above = [(s[low] + s[size] - s[size - n + low]) / n for s in (sums, squares)]
    ring = np.concatenate([np.stack(below, axis=1), np.stack(above, axis=1)])
    ring = np.repeat(ring, 2, axis=0)[:-1]
    ring[1::2] = (ring[:-2:2] + ring[2::2]) / 2
    std = np.sqrt(np.maximum(ring[:, 1] - ring[:, 0] ** 2, 0))
    points = [[float(m + centre), float(s)] for m, s in zip(ring[:, 0], std, strict=True)]
    return [*points, points[0]]


def _group_facts(pool: ScoredPool, group: NDArray[np.intp], n: int) -> list[dict[str, Any]]:
    """Chunks, tokens, share, corpus loss and bits per byte of each of n groups of chunks."""
    columns = {"tokens": pool.length, "n_tokens": pool.n_tokens, "bytes": pool.n_bytes, "nats": pool.nll_sum}
    sums = {k: np.bincount(group, weights=v, minlength=n) for k, v in columns.items()}
    chunks = np.bincount(group, minlength=n)
    return [
        {
            "n_chunks": int(chunks[i]),
            "tokens": int(sums["tokens"][i]),
            "share": float(sums["tokens"][i] / sums["tokens"].sum()),
            "nll": float(sums["nats"][i] / max(sums["n_tokens"][i], 1)),
            "bits_per_byte": float(sums["nats"][i] / np.log(2) / max(sums["bytes"][i], 1)),
        }
        for i in range(n)
    ]


def _largest_sources(pool: ScoredPool, most: int) -> tuple[list[str], NDArray[np.intp]]:
    """Names of the sources with most tokens (then one for all others) and each chunk's index [n] into them."""
    tokens = np.bincount(pool.source, weights=pool.length, minlength=len(pool.sources))
    order = sorted(range(len(tokens)), key=lambda i: (-tokens[i], pool.sources[i]))
    kept = order if len(order) <= most else order[: most - 1]
    place = np.full(len(tokens), len(kept))
    place[kept] = np.arange(len(kept))
    names = [pool.sources[i] for i in kept]
    if len(kept) < len(order):
        names.append(f"other ({len(order) - len(kept)} sources)")
    return names, place[pool.source]


def by_source(pool: ScoredPool, most: int = 20) -> list[dict[str, Any]]:
    """One row a source, most tokens first; past `most` rows the rest is summed up in the last."""
    names, index = _largest_sources(pool, most)
    return [{"source": n} | facts for n, facts in zip(names, _group_facts(pool, index, len(names)), strict=True)]


def by_bin(pool: ScoredPool, bins: Bins) -> list[dict[str, Any]]:
    """One row a bin, lowest perplexity first, with its range in nats per token."""
    x = pool.x
    edges = [float(x.min()), *bins.edges, float(x.max())]
    rows = _group_facts(pool, bins.of(x), bins.n)
    return [{"bin": i, "low": edges[i], "high": edges[i + 1]} | row for i, row in enumerate(rows)]


def histogram(pool: ScoredPool, most_sources: int = 6) -> dict[str, Any]:
    """Chunks and tokens per log-perplexity cell and source.

    Cells span the raw range; when a few outliers stretch it to more than twice the central 99.8 %, the central
    range (padded) is cut up instead and the outliers are counted under `outside`.
    """
    x = pool.x
    low, high = float(x.min()), float(x.max())
    inner_low, inner_high = (float(q) for q in np.quantile(x, [0.001, 0.999]))
    if high - low > 2 * (inner_high - inner_low) > 0:
        pad = 0.25 * (inner_high - inner_low)
        low, high = max(low, inner_low - pad), min(high, inner_high + pad)
    if high == low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM_CELLS + 1)
    names, source = _largest_sources(pool, most_sources)
    counts, tokens = [], []
    for i in range(len(names)):
        of_source = source == i
        counts.append(np.histogram(x[of_source], edges)[0].tolist())
        tokens.append(np.histogram(x[of_source], edges, weights=pool.length[of_source])[0].astype(int).tolist())
    outside = {"below": int((x < low).sum()), "above": int((x > high).sum())}
    return {"edges": edges.tolist(), "sources": names, "counts": counts, "tokens": tokens, "outside": outside}
