"""What a draw consists of, as sums that can be added up: for a law to judge, and for the facts of selection.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.census import KL_BINS, Census
from pplscape.draw.pool import Pool
from pplscape.draw.scores import Rows
from pplscape.runs import Compositions
from pplscape.statistics import Bins, Floats, Moments, Scale, on_scale

SCALES: tuple[Scale, ...] = ("nll", "ppl")
Limits = Mapping[str, tuple[float, float]]
SAMPLES = 3


@dataclass(frozen=True)
class Frame:
    """What taken chunks are counted by."""

    bins: Bins
    kl_bins: Bins
    limits: Limits
    """Winsor limits by scale."""
    centre: Mapping[str, float]
    """Near the mean by scale: squares are summed around it."""
    names: tuple[str, ...]
    """Sources."""


def frame_of(census: Census, bins: Bins | None = None, limits: Limits | None = None) -> Frame:
    """The frame for draws of this pool; `limits` default to the pool's own."""
    kl_bins = census.make_bins(KL_BINS)
    every: dict[str, tuple[float, float]] = {s: (limits or {}).get(s) or census.limits(s) for s in SCALES}
    centre: dict[str, float] = {s: census.moments(s, every[s]).mean for s in SCALES}
    return Frame(bins or kl_bins, kl_bins, every, centre, tuple(census.source_tokens))


@dataclass
class Tally:
    """Sums over taken chunks, repeats counted unless `unique`; tallies of parts are added."""

    chunks: int
    unique_chunks: int
    bins: Floats
    """[K] tokens"""
    unique_bins: Floats
    """[K] unique tokens"""
    kl: Floats
    """[KL_BINS] tokens"""
    sources: Floats
    """[S] tokens"""
    sums: dict[str, Floats]
    """By scale: [2] of the winsorised value's distance from the frame's centre, and its square."""

    @classmethod
    def of(cls, frame: Frame, rows: Rows, times: NDArray) -> Tally:
        """`times` [n] each of `rows` is taken."""
        at = np.flatnonzero(times)
        x, length, times = rows.x[at], rows.length[at], times[at].astype(np.int64)
        spent, b = length * times, frame.bins.of(x, rows.take(at).second)
        sums: dict[str, Floats] = {}
        for scale in SCALES:
            away = np.clip(on_scale(x, scale), *frame.limits[scale]) - frame.centre[scale]
            sums[scale] = np.array([away @ times, away**2 @ times])
        sources = np.bincount(rows.source_in(frame.names)[at], weights=spent, minlength=len(frame.names))
        return cls(
            int(times.sum()), len(at),
            np.bincount(b, weights=spent, minlength=frame.bins.n).astype(np.float64),
            np.bincount(b, weights=length, minlength=frame.bins.n).astype(np.float64),
            frame.kl_bins.tokens(x, spent), sources.astype(np.float64), sums,
        )  # fmt: skip

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.chunks + other.chunks, self.unique_chunks + other.unique_chunks, self.bins + other.bins,
            self.unique_bins + other.unique_bins, self.kl + other.kl, self.sources + other.sources,
            {s: v + other.sums[s] for s, v in self.sums.items()},
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        return int(self.bins.sum())

    @property
    def unique_tokens(self) -> int:
        return int(self.unique_bins.sum())

    def shape(self, frame: Frame) -> dict[str, Moments]:
        """Moments on both scales; all zero for an empty draw."""
        if not self.chunks:
            return {s: Moments(0.0, 0.0) for s in SCALES}
        found = {}
        for scale, (first, second) in self.sums.items():
            mean = first / self.chunks
            spread = float(np.sqrt(max(second / self.chunks - mean**2, 0.0)))
            found[scale] = Moments(frame.centre[scale] + float(mean), spread)
        return found

    def kl_to_pool(self, frame: Frame) -> float | None:
        """KL(subset || pool) in nats over the equal-token bins; None for an empty draw."""
        if not self.tokens:
            return None
        p, q = self.kl / self.kl.sum(), np.asarray(frame.kl_bins.share)
        return float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))

    def composition(self, frame: Frame, with_bins: bool, n_params: float | None) -> Compositions:
        """The draw as one row of compositions."""

        def column(value: float) -> Floats:
            return np.array([value], dtype=np.float64)

        shapes = self.shape(frame)
        return Compositions(
            tokens=column(self.tokens),
            nll_mean=column(shapes["nll"].mean),
            nll_std=column(shapes["nll"].std),
            ppl_mean=column(shapes["ppl"].mean),
            ppl_std=column(shapes["ppl"].std),
            bin_tokens=self.bins[None] if with_bins else None,
            bin_unique_tokens=self.unique_bins[None] if with_bins else None,
            n_params=None if n_params is None else column(n_params),
            unique_tokens=column(self.unique_tokens),
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


def stack(rows: list[Compositions]) -> Compositions:
    """One Compositions of many; a column is kept if all rows have it."""
    names = Compositions.__dataclass_fields__
    columns = {name: [getattr(r, name) for r in rows] for name in names}
    return Compositions(**{k: np.concatenate(v) for k, v in columns.items() if all(c is not None for c in v)})


def whole_pool(census: Census, frame: Frame, with_bins: bool, n_params: float | None) -> Compositions:
    """The whole pool as one composition."""
    away = {s: np.clip(on_scale(census.x, s), *frame.limits[s]) - frame.centre[s] for s in SCALES}
    sums: dict[str, Floats] = {s: np.array([a @ census.count_at, a**2 @ census.count_at]) for s, a in away.items()}
    bins, sources = census.bin_tokens(frame.bins), np.array(list(census.source_tokens.values()), dtype=np.float64)
    kl = census.bin_tokens(frame.kl_bins)
    return Tally(census.n, census.n, bins, bins, kl, sources, sums).composition(frame, with_bins, n_params)


def facts(census: Census, frame: Frame, tally: Tally) -> dict[str, Any]:
    """The measured part of selection.json: tokens, moments, bins, sources, KL."""
    bins = frame.bins
    return {
        "tokens": tally.tokens,
        "n_chunks": tally.chunks,
        "unique_tokens": tally.unique_tokens,
        "pool_tokens": census.total,
        "pool_chunks": census.n,
        "achieved": {s: vars(m) for s, m in tally.shape(frame).items()},
        "pool_moments": {s: vars(census.moments(s, frame.limits[s])) for s in SCALES},
        "bins": bins.to_json(),
        "bin_tokens": _whole(tally.bins),
        "unique_bin_tokens": _whole(tally.unique_bins),
        "pool_bin_tokens": _whole(census.bin_tokens(bins)),
        "source_tokens": dict(zip(frame.names, _whole(tally.sources), strict=True)),
        "pool_source_tokens": census.source_tokens,
        "kl_to_pool": tally.kl_to_pool(frame),
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
