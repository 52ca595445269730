"""Which documents are held out: decided by a hash of (seed, doc_id), so that a document never straddles the split.

Documents stand in the order of their hash; the first go to `test`, the next to `valid`, until each has its tokens.
A document that would exceed a target is passed over, so that a split never has more tokens than asked for. When
files are added to a corpus the order of the old documents stays, and the held-out set changes little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError

SPLITS = ("pool", "valid", "test")
POOL, VALID, TEST = range(3)


def uniform(seed: int, doc_id: str) -> float:
    """A number in [0, 1) fixed by (seed, doc_id), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def token_target(wanted: float, total: int, cap: int) -> int:
    """Tokens of a held-out split: a share (< 1) of `total`, at most `cap`; or a number of tokens (>= 1)."""
    if wanted < 0:
        raise UserError(f"A held-out size of {wanted} makes no sense: give a share below 1 or a number of tokens.")
    return int(wanted) if wanted >= 1 else min(int(wanted * total), cap)


def assign(
    hashes: NDArray[np.float64] | Sequence[float], tokens: NDArray[np.int64], targets: tuple[int, int],
    source: NDArray[Any] | Sequence[str] | None = None,
) -> NDArray[np.int8]:  # fmt: skip
    """Split [n] of documents with `hashes` [n] and `tokens` [n]; `targets` = tokens of (valid, test).

    Each `source` [n] (names or numbers) gets its share of a target first; what is left of it is filled from all.
    UserError if a wanted split would stay empty, or nothing would be left in the pool.
    """
    split = np.full(len(tokens), POOL, np.int8)
    order = np.lexsort((np.arange(len(tokens)), np.asarray(hashes)))
    names, group = np.unique(np.asarray(source if source is not None else [""] * len(tokens)), return_inverse=True)
    shares = np.bincount(group, weights=tokens) / max(1, tokens.sum())
    together = order[np.argsort(group[order], kind="stable")]
    bounds = np.searchsorted(group[together], np.arange(len(names) + 1))
    for which, target in ((TEST, targets[1]), (VALID, targets[0])):
        left = target
        for k in range(len(names)) if len(names) > 1 else ():
            own = together[bounds[k] : bounds[k + 1]]
            left -= _fill(split, own, tokens, which, int(target * shares[k]))
        _fill(split, order, tokens, which, left)
        if target > 0 and not (split == which).any():
            raise _nothing_fits(target, tokens)
    if not (split == POOL).any():
        raise UserError("All documents would be held out: give a larger corpus or smaller held-out sizes.")
    return split


def _fill(split: NDArray[np.int8], order: NDArray[np.intp], tokens: NDArray[np.int64], which: int, target: int) -> int:
    """Give documents, in order, to a split while they fit into `target`; the tokens given."""
    left = target
    for i in order[split[order] == POOL]:
        if left <= target / 50:  # near enough: do not comb the corpus for the shortest documents
            break
        if tokens[i] <= left:
            split[i] = which
            left -= int(tokens[i])
    return target - left


def _nothing_fits(target: int, tokens: NDArray[np.int64]) -> UserError:
    return UserError(
        f"No document fits in the held-out target of {target} tokens (the corpus has {int(tokens.sum())} tokens in "
        f"{len(tokens)} documents): give more text, a larger target, or a file of held-out text."
    )


def halves(hashes: NDArray[np.float64] | Sequence[float], tokens: NDArray[np.int64]) -> NDArray[np.int8]:
    """Split of given held-out documents: half of the tokens, in hash order, are valid, the rest is test."""
    if len(tokens) < 2:
        raise UserError("The held-out text has fewer than two documents: valid and test need one each.")
    order = np.lexsort((np.arange(len(tokens)), np.asarray(hashes)))
    before = np.cumsum(tokens[order]) - tokens[order]
    split = np.full(len(tokens), TEST, np.int8)
    split[order[before < tokens.sum() / 2]] = VALID
    split[order[-1]] = TEST
    return split
