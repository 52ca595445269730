"""What a draw consists of: as one composition a law can be asked about, and as the facts of selection.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.pool import Pool
from pplscape.runs import Compositions
from pplscape.statistics import Bins, Floats, Moments, Scale, kl_to_pool, moments

SCALES: tuple[Scale, ...] = ("nll", "ppl")
Limits = Mapping[str, tuple[float, float]]
SAMPLES = 3


def shape(pool: Pool, times: NDArray, limits: Limits | None = None) -> dict[str, Moments]:
    """Moments of the taken chunks on both scales, repeats counted; all zero for an empty draw."""
    rows = np.flatnonzero(times)
    if not len(rows):
        return {s: Moments(0.0, 0.0) for s in SCALES}
    inside = (-np.inf, np.inf)  # values are clipped to the pool's limits already
    return {s: moments(pool.values(s, (limits or {}).get(s))[rows], inside, times[rows]) for s in SCALES}


def composition(
    pool: Pool, times: NDArray, bins: Bins | None, limits: Limits | None, n_params: float | None
) -> Compositions:
    """The draw as one row of compositions."""
    return compositions_of(
        shape(pool, times, limits),
        (times * pool.length).sum(),
        pool.length[times > 0].sum(),
        pool.bin_tokens(bins, times) if bins else None,
        pool.bin_tokens(bins, times > 0) if bins else None,
        n_params,
    )


def scaled(whole: Compositions, factors: Sequence[float], copies: bool = True) -> Compositions:
    """One composition at several sizes: its tokens times `factors` [n], the moments unchanged.

    With `copies` a factor above 1 repeats the same unique tokens; without, there are more of them too.
    """
    f = np.asarray(factors, dtype=np.float64)
    once = np.minimum(f, 1.0) if copies else f
    by = {"tokens": f, "bin_tokens": f[:, None], "unique_tokens": once, "bin_unique_tokens": once[:, None]}
    columns = {name: getattr(whole, name) for name in Compositions.__dataclass_fields__}
    return Compositions(
        **{k: np.repeat(v, len(f), axis=0) * by.get(k, 1.0) for k, v in columns.items() if v is not None}
    )


def compositions_of(
    shapes: Mapping[str, Moments],
    tokens: float,
    unique: float,
    bin_tokens: Floats | None,
    bin_unique: Floats | None,
    n_params: float | None,
) -> Compositions:
    """One row of compositions from plain numbers."""

    def column(value: float) -> Floats:
        return np.array([value], dtype=np.float64)

    return Compositions(
        tokens=column(tokens),
        nll_mean=column(shapes["nll"].mean),
        nll_std=column(shapes["nll"].std),
        ppl_mean=column(shapes["ppl"].mean),
        ppl_std=column(shapes["ppl"].std),
        bin_tokens=None if bin_tokens is None else bin_tokens[None].astype(np.float64),
        bin_unique_tokens=None if bin_unique is None else bin_unique[None].astype(np.float64),
        n_params=None if n_params is None else column(n_params),
        unique_tokens=column(unique),
    )


def stack(rows: list[Compositions]) -> Compositions:
    """One Compositions of many; a column is kept if all rows have it."""
    names = Compositions.__dataclass_fields__
    columns = {name: [getattr(r, name) for r in rows] for name in names}
    return Compositions(**{k: np.concatenate(v) for k, v in columns.items() if all(c is not None for c in v)})


def facts(pool: Pool, times: NDArray, bins: Bins, limits: Limits | None) -> dict[str, Any]:
    """The measured part of selection.json: tokens, moments, bins, sources, KL."""
    taken = times * pool.length
    shapes = shape(pool, times, limits)
    every = np.ones(len(pool), dtype=np.int16)
    return {
        "tokens": int(taken.sum()),
        "n_chunks": int(times.sum()),
        "unique_tokens": int(pool.length[times > 0].sum()),
        "pool_tokens": pool.tokens,
        "pool_chunks": len(pool),
        "achieved": {s: vars(m) for s, m in shapes.items()},
        "pool_moments": {s: vars(m) for s, m in shape(pool, every, limits).items()},
        "bins": {"edges": list(bins.edges), "share": list(bins.share), "hash": bins.hash},
        "bin_tokens": _whole(pool.bin_tokens(bins, times)),
        "pool_bin_tokens": _whole(pool.bin_tokens(bins)),
        "source_tokens": _by_source(pool, taken),
        "pool_source_tokens": _by_source(pool, pool.length),
        "kl_to_pool": kl_to_pool(pool.x, pool.length, times) if taken.any() else None,
    }


def samples(pool: Pool, times: NDArray, bins: Bins, seed: int) -> list[dict[str, Any]]:
    """For each bin up to SAMPLES chunks that were taken and as many that were left, at random."""
    order = pool.order(seed)
    kind = 2 * pool.bin_of(bins)[order] + (times[order] == 0)
    rows = order[np.argsort(kind, kind="stable")]
    start = np.searchsorted(np.sort(kind), np.arange(2 * bins.n + 1))
    return [
        _sample(pool, int(row), k // 2, k % 2 == 0)
        for k in range(2 * bins.n)
        for row in rows[start[k] : min(start[k] + SAMPLES, start[k + 1])]
    ]


def _sample(pool: Pool, row: int, bin_: int, taken: bool) -> dict[str, Any]:
    return {
        "doc_id": pool.doc_names[int(pool.doc[row])].as_py(),
        "chunk_index": int(pool.chunk_index[row]),
        "char_start": int(pool.char_start[row]),
        "char_end": int(pool.char_end[row]),
        "length": int(pool.length[row]),
        "nll": float(pool.x[row]),
        "source": pool.source_names[int(pool.source[row])],
        "bin": bin_,
        "taken": taken,
    }


def _whole(tokens: Floats) -> list[int]:
    return [int(t) for t in tokens]


def _by_source(pool: Pool, tokens: NDArray) -> dict[str, int]:
    totals = np.bincount(pool.source, weights=tokens, minlength=len(pool.source_names))
    return {name: int(t) for name, t in zip(pool.source_names, totals, strict=True)}
