"""Likeness of a target text to itself, told by documents it did not see.

A chunk that was counted into the target is more like it than any chunk of a pool can be. So the target's documents are
dealt into folds, and a chunk's likeness is to the other folds. A pool's chunks are counted into the pool with all of
their document; to rank a target's among them, each is told without its own document. Fewer words make likeness less
extreme: the rank is put on the scale of the whole target, which `liken` used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw import dsir
from pplscape.errors import UserError
from pplscape.statistics import Floats

FOLDS = 8
GRID = np.linspace(0.0, 1.0, 1001)
"""Quantiles of the pool by which one scale is put on another."""


def folds(document: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Fold [n] of chunks by the hash [n] of their document. UserError for a single document."""
    names, of = np.unique(document, return_inverse=True)
    if len(names) < 2:
        raise UserError("A target of one document cannot be told from the pool by its other documents: give more.")
    return of % min(FOLDS, len(names))


def likeness_across(
    target: Sequence[NDArray[Any]], fold: NDArray[np.intp], pool: Sequence[NDArray[Any]],
    document: NDArray[np.uint64], known: Floats,
) -> Floats:  # fmt: skip
    """Likeness [m] of the target's chunks, each to the folds it is not in, on the scale of `known`.

    `target` [m], `pool` [n]: buckets of every chunk (`dsir.buckets`); `document` [n]: hash of a pool chunk's document;
    `known` [n]: the pool chunks' likeness to the whole target, nats per n-gram.
    """
    of_pool = np.bincount(np.concatenate(pool), minlength=dsir.BUCKETS)
    flat, sizes, left = (
        np.concatenate(pool),
        np.array([len(chunk) for chunk in pool]),
        _left_out(pool, document, of_pool),
    )
    scale, members = np.quantile(known, GRID), [np.flatnonzero(fold == k).tolist() for k in np.unique(fold)]
    counted = np.stack(
        [np.bincount(np.concatenate([target[i] for i in mine]), minlength=dsir.BUCKETS) for mine in members]
    )
    found = np.zeros(len(target))
    for mine, count in zip(members, counted, strict=True):
        wanted = _log_share(counted.sum(0) - count)
        here = np.quantile(_means(wanted[flat], sizes) - left, GRID)
        told = [float((wanted - _log_share(of_pool))[target[i]].mean()) if len(target[i]) else 0.0 for i in mine]
        found[mine] = np.interp(np.interp(told, here, GRID), GRID, scale)
    return found


def _log_share(counts: NDArray[np.int64]) -> Floats:
    """ln of the smoothed share of every bucket, as in `dsir.smoothed_log_ratio`."""
    smooth = counts + dsir.HALF
    return np.log(smooth) - np.log(smooth.sum())


def _left_out(pool: Sequence[NDArray[Any]], document: NDArray[np.uint64], of_pool: NDArray[np.int64]) -> Floats:
    """Mean [n] over a chunk's n-grams of the ln of their smoothed share in the pool without the chunk's document."""
    flat, sizes = np.concatenate(pool).astype(np.int64), np.array([len(chunk) for chunk in pool])
    number = np.unique(document, return_inverse=True)[1]
    of = np.repeat(number, sizes)
    _, which, times = np.unique(of * dsir.BUCKETS + flat, return_inverse=True, return_counts=True)
    left = of_pool[flat] - times[which] + dsir.HALF
    totals = of_pool.sum() - np.bincount(of, minlength=int(number.max()) + 1) + dsir.HALF * dsir.BUCKETS
    return _means(np.log(left) - np.log(totals[of]), sizes)


def _means(values: Floats, sizes: NDArray[np.int64]) -> Floats:
    """Mean [n] of each chunk's `values`; 0 for a chunk without words."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(of, weights=values, minlength=len(sizes)) / np.maximum(sizes, 1)
