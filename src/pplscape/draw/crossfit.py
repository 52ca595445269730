"""Likeness of a target text to itself, told by documents it did not see.

A chunk that was counted into the target is more like it than any chunk of a pool can be. So the target's documents are
dealt into folds, and a chunk's likeness is to the other folds; and as a pool's chunks are counted into the pool, so is
this one. Fewer words make likeness less extreme: what the other folds say is put on the scale of the whole target by
the pool's quantiles, which both have.
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
    target: Sequence[NDArray[Any]], fold: NDArray[np.intp], pool: Sequence[NDArray[Any]], known: Floats
) -> Floats:
    """Likeness [m] of the target's chunks, each to the folds it is not in, on the scale of `known`.

    `target` [m], `pool` [n]: buckets of every chunk (`dsir.buckets`); `known` [n]: the pool chunks' likeness to the
    whole target, nats per n-gram.
    """
    flat, sizes = np.concatenate(pool), np.array([len(chunk) for chunk in pool])
    of_pool, scale = np.bincount(flat, minlength=dsir.BUCKETS), np.quantile(known, GRID)
    members = [np.flatnonzero(fold == k).tolist() for k in np.unique(fold)]
    counted = np.stack(
        [np.bincount(np.concatenate([target[i] for i in mine]), minlength=dsir.BUCKETS) for mine in members]
    )
    found = np.zeros(len(target))
    for mine, count in zip(members, counted, strict=True):
        others = counted.sum(0) - count
        here = np.quantile(dsir.likeness(dsir.smoothed_log_ratio(others, of_pool), flat, sizes), GRID)
        told = [_as_of_pool(target[i], others, of_pool) for i in mine]
        found[mine] = np.interp(np.interp(told, here, GRID), GRID, scale)
    return found


def _as_of_pool(chunk: NDArray[Any], target: NDArray[np.int64], pool: NDArray[np.int64]) -> float:
    """Likeness of a chunk that is counted into the pool too; `target`, `pool` [BUCKETS]: counts."""
    if not len(chunk):
        return 0.0
    names, times = np.unique(chunk, return_counts=True)
    wanted, held = target[names] + dsir.HALF, pool[names] + times + dsir.HALF
    empty = dsir.HALF * dsir.BUCKETS
    totals = np.log(target.sum() + empty) - np.log(pool.sum() + len(chunk) + empty)
    return float(times @ (np.log(wanted) - np.log(held)) / len(chunk) - totals)
