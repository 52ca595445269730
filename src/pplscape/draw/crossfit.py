"""Likeness of a target text to itself, told by documents it did not see.

A chunk that was counted into the target is more like it than any chunk of a pool can be. So the target's documents are
dealt into folds, and a chunk's likeness is to the other folds. A pool's chunk is counted into the pool with all of its
document, and so is this one. Fewer words make likeness less extreme: what the other folds say is put on the scale of
the whole target by the pool's quantiles, which both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw import dsir
from pplscape.errors import UserError
from pplscape.statistics import Floats

Counts = NDArray[np.int64] | Floats
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
    target: Sequence[NDArray[Any]], document: NDArray[np.uint64], pool: Sequence[NDArray[Any]], known: Floats,
    share: float = 1.0,
) -> Floats:  # fmt: skip
    """Likeness [m] of the target's chunks, each to the folds it is not in, on the scale of `known`.

    `target` [m], `pool` [n]: buckets of every chunk (`dsir.buckets`); `document` [m]: hash of a target chunk's
    document; `known` [n]: the pool chunks' likeness to the whole target, nats per n-gram; `share` of the pool's chunks
    that `pool` is. UserError for a single document.
    """
    flat, sizes = np.concatenate(pool), np.array([len(chunk) for chunk in pool])
    of_pool, fold = np.bincount(flat, minlength=dsir.BUCKETS), folds(document)
    whole, scale = _count(target), np.quantile(known, GRID)
    found = np.zeros(len(target))
    for k in np.unique(fold):
        others = whole - _count([target[i] for i in np.flatnonzero(fold == k).tolist()])
        here = np.quantile(dsir.likeness(dsir.smoothed_log_ratio(others, of_pool), flat, sizes), GRID)
        for name in np.unique(document[fold == k]):
            mine = np.flatnonzero(document == name).tolist()
            siblings = share * _count([target[i] for i in mine])
            for i in mine:  # itself it is in the sample, its siblings as often as the pool's chunks are
                own = of_pool + siblings + (1 - share) * _count([target[i]])
                ratio = dsir.smoothed_log_ratio(others, own)
                told = float(ratio[target[i]].mean()) if len(target[i]) else 0.0
                found[i] = np.interp(np.interp(told, here, GRID), GRID, scale)
    return found


def _count(chunks: Sequence[NDArray[Any]]) -> Counts:
    return np.bincount(np.concatenate(chunks), minlength=dsir.BUCKETS)
