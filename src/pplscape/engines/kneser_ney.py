"""Interpolated Kneser-Ney n-gram model over token ids: counting, probabilities. Numpy only; knows no text and no files.

    p_k(w | u) = max(c(u w) - d_k, 0) / c(u) + d_k T(u) / c(u) * p_{k-1}(w | u without its first id)
    p_0(w) = 1 / V,   T(u) = distinct ids seen after u;   p_k = p_{k-1} where u was never seen

c counts occurrences at the highest order; below it, in how many different contexts an n-gram was seen (those that begin
a chunk keep their occurrences: nothing else can stand before them). d_k = n1 / (n1 + 2 n2) from the numbers of n-grams
counted once and twice. Every p_k( . | u) sums to one. Source: Kneser, Ney 1995; Chen, Goodman 1999, section 2.7.

An n-gram is one number, its ids as digits to base V + 1; digit V stands for the ids before a chunk's first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
Ids = NDArray[np.int32]
DISCOUNTS = (0.1, 0.95)
"""Range of d_k: without a rest for unseen ids, or for seen ones, a probability would be 0 or a count without effect."""


def most_orders(vocabulary: int) -> int:
    """The longest n-gram of this vocabulary that fits into 64 bits."""
    return int(64 * np.log(2) / np.log(vocabulary + 1))


def ngrams(chunks: Sequence[Ids], contexts: Sequence[Ids] | None, vocabulary: int, order: int) -> Keys:
    """Keys [N] of the n-grams that end at each id of the chunks, one chunk after the other.

    `contexts`: ids that stand before each chunk; only the last `order` - 1 matter.
    """
    reach = order - 1
    start = np.full(reach, vocabulary, dtype=np.int32)
    pieces: list[Ids] = [start[:0]]
    for i, chunk in enumerate(chunks):
        before = contexts[i][-reach:] if contexts is not None and reach else chunk[:0]
        pieces += [start[len(before) :], before, chunk]
    flat = np.concatenate(pieces).astype(np.uint64)
    keys = flat.copy()
    for back in range(1, order):
        keys[back:] += flat[: len(flat) - back] * np.uint64(vocabulary + 1) ** np.uint64(back)
    length = np.array([len(c) for c in chunks], dtype=np.int64)
    before_each = np.cumsum(length + reach) - length - reach
    scored = np.ones(len(flat), dtype=bool)
    scored[(before_each[:, None] + np.arange(reach)).ravel()] = False
    return keys[scored]


@dataclass(frozen=True)
class Tally:
    """Distinct n-grams, ascending, and how often each occurred."""

    keys: Keys
    counts: Counts

    @classmethod
    def of(cls, keys: Keys) -> Tally:
        return cls(*np.unique(keys, return_counts=True))

    def __add__(self, other: Tally) -> Tally:
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")  # two ascending runs: a merge
        keys, counts = keys[order], np.concatenate([self.counts, other.counts])[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        return Tally(keys[first], np.add.reduceat(counts, first) if len(first) else counts)


def tally(parts: Iterable[Keys]) -> Tally:
    """All n-grams of all parts; runs of like size are merged, so that each is moved a few times only."""
    runs: list[Tally] = []
    for keys in parts:
        runs.append(Tally.of(keys))
        while len(runs) > 1 and 2 * len(runs[-1].keys) > len(runs[-2].keys):
            runs[-2:] = [runs[-2] + runs[-1]]
    while len(runs) > 1:
        runs[-2:] = [runs[-2] + runs[-1]]
    return runs[0] if runs else Tally(np.empty(0, np.uint64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Level:
    """One order k >= 2 of the model."""

    keys: Keys
    """[m] ascending."""
    alpha: NDArray[np.float64]
    """[m] (c - d) / c(u)"""
    contexts: Keys
    """[u] ascending: the keys without their last digit."""
    gamma: NDArray[np.float64]
    """[u] d T(u) / c(u)"""


@dataclass(frozen=True)
class KneserNey:
    """The model of a tally of `order`-grams."""

    counted: Tally
    vocabulary: int
    order: int

    @cached_property
    def levels(self) -> tuple[NDArray[np.float64], list[Level]]:
        """p_1 [V], and the orders from 2 on."""
        base, found, run = np.uint64(self.vocabulary + 1), list[Level](), self.counted
        for k in range(self.order, 1, -1):
            found.append(_level(run, base))
            run = _shorter(run, base, k)
        c = np.zeros(self.vocabulary)
        c[run.keys.astype(np.int64)] = run.counts
        total = max(c.sum(), 1.0)
        d = discount(run.counts) if len(run.keys) else 0.0
        rest = d * len(run.keys) / total if len(run.keys) else 1.0
        return (np.maximum(c - d, 0) / total + rest / self.vocabulary), found[::-1]

    def nll(self, keys: Keys) -> NDArray[np.float32]:
        """-ln p [N] of the n-grams' last ids given the others, nats."""
        base = np.uint64(self.vocabulary + 1)
        unigram, levels = self.levels
        p = unigram[(keys % base).astype(np.int64)]
        for k, level in enumerate(levels, start=2):
            key = keys % base ** np.uint64(k) if k < self.order else keys
            gamma, seen = _find(level.contexts, level.gamma, key // base)
            alpha, _ = _find(level.keys, level.alpha, key)
            p = np.where(seen, alpha + gamma * p, p)
        return -np.log(p).astype(np.float32)


def _find(keys: Keys, values: NDArray[np.float64], asked: Keys) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values [N] at `asked`, 0 where it is not among `keys`; and where it is."""
    if not len(keys):
        return np.zeros(len(asked)), np.zeros(len(asked), dtype=bool)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    there = keys[at] == asked
    return np.where(there, values[at], 0.0), there


def _level(run: Tally, base: np.uint64) -> Level:
    contexts, first, types = np.unique(run.keys // base, return_index=True, return_counts=True)
    if not len(contexts):
        return Level(run.keys, np.empty(0), contexts, np.empty(0))
    total = np.add.reduceat(run.counts, first).astype(np.float64)
    d = discount(run.counts)
    return Level(run.keys, (run.counts - d) / np.repeat(total, types), contexts, d * types / total)


def _shorter(run: Tally, base: np.uint64, k: int) -> Tally:
    """The (k-1)-grams that end the k-grams: in how many contexts each was seen, or how often if it begins a chunk."""
    suffix = run.keys % base ** np.uint64(k - 1)
    order = np.argsort(suffix, kind="stable")
    keys, first, contexts = np.unique(suffix[order], return_index=True, return_counts=True)
    if not len(keys):
        return Tally(keys, contexts)
    occurred = np.add.reduceat(run.counts[order], first)
    begins = keys // base ** np.uint64(k - 2) == base - np.uint64(1)
    return Tally(keys, np.where(begins, occurred, contexts))


def discount(counts: Counts) -> float:
    """d = n1 / (n1 + 2 n2), kept within DISCOUNTS; 0.5 where nothing was counted once or twice."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return float(np.clip(once / (once + 2 * twice), *DISCOUNTS)) if once + twice else 0.5
