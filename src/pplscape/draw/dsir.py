"""DSIR: hashed n-gram features and log-importance weights (Xie et al. 2302.03169; package data-selection 1.0.3).

    words(t)   = runs of word characters and runs of other signs, in lower case
    n-grams    = words, and neighbouring words joined by a space; each hashed with SHA-256 into BUCKETS buckets
    log weight = sum over the n-grams of a chunk of  ln(p_target + 1e-8) - ln(p_pool + 1e-8)  of their buckets

The weight is a sum, so it grows with length: among chunks unlike the target the shortest have the largest weights. The
package leaves out texts below 100 words; a chunk has a fixed length, so here chunks shorter than half of it come last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from itertools import pairwise

import numpy as np
import regex
from numpy.typing import NDArray

from pplscape.statistics import Floats

BUCKETS = 10_000
SMOOTHING = 1e-8
HALF = 0.5
SHORT_SHARE = 0.5
"""Of the corpus' chunk length; shorter chunks come after all others."""
BEHIND = 50.0
"""Nats that they stand behind: Gumbel noise of 52-bit uniforms stays within [-4, 37]."""
REMEMBERED = 1 << 20
_WORDS = r"\w+|[^\w\s]+"
_ASCII_WORDS, _UNICODE_WORDS = re.compile(_WORDS), regex.compile(_WORDS)
"""`regex` counts combining marks as word characters, as NLTK does since 3.10; for ASCII `re` is the same and faster."""
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words."""
_SIGNS = regex.compile(rf"(?V1)[{_ALONE}]|[\w--[{_ALONE}]]+|[^\w\s]+")


class _Buckets(dict[str, int]):
    """n-gram -> bucket, remembered."""

    def __missing__(self, ngram: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        self[ngram] = bucket = int.from_bytes(sha256(ngram.encode()).digest()) % BUCKETS
        return bucket


_BUCKETS = _Buckets()


Split = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """Words of the module's text, as the package finds them."""
    text = text.lower()
    found: list[str] = (_ASCII_WORDS if text.isascii() else _UNICODE_WORDS).findall(text)
    return found


def words_and_signs(text: str) -> list[str]:
    """`words`, but every sign of a script without spaces alone: there a run of them is a clause, seldom seen twice."""
    found: list[str] = words(text) if text.isascii() else _SIGNS.findall(text.lower())
    return found


def buckets(text: str, split: Split = words) -> NDArray[np.uint16]:
    """Buckets of the words of a text, then of its pairs of words."""
    found = split(text)
    pairs = map(" ".join, pairwise(found))
    return np.array([_BUCKETS[n] for n in (*found, *pairs)], dtype=np.uint16)


def count(texts: Iterable[str], split: Split = words) -> NDArray[np.int64]:
    """[BUCKETS] n-grams of all texts."""
    found = np.zeros(BUCKETS, dtype=np.int64)
    for text in texts:
        found += np.bincount(buckets(text, split), minlength=BUCKETS)
    return found


def log_ratio(target: NDArray[np.int64], pool: NDArray[np.int64]) -> Floats:
    """[BUCKETS] ln p_target - ln p_pool from counts."""
    p, q = target / target.sum(), pool / pool.sum()
    return np.log(p + SMOOTHING) - np.log(q + SMOOTHING)


def smoothed_log_ratio(target: NDArray[np.int64] | Floats, pool: NDArray[np.int64] | Floats) -> Floats:
    """`log_ratio` from counts + 1/2 (Jeffreys' prior): what a short target lacks by chance costs little."""
    p, q = target + HALF, pool + HALF
    return np.log(p / p.sum()) - np.log(q / q.sum())


def log_weights(ratio: Floats, flat: NDArray[np.uint16], sizes: NDArray[np.int64]) -> Floats:
    """[n] sums of `ratio` over the n-grams of each chunk; `flat`: their buckets, `sizes` [n] of each chunk."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(of, weights=ratio[flat], minlength=len(sizes)).astype(np.float64)


def likeness(ratio: Floats, flat: NDArray[np.uint16], sizes: NDArray[np.int64]) -> Floats:
    """[n] mean of `ratio` over the n-grams of each chunk, whatever its length; 0, as the pool, of one without words."""
    return log_weights(ratio, flat, sizes) / np.maximum(sizes, 1)


def short_last(weight: Floats, length: NDArray[np.int64], chunk_tokens: int, least: float) -> Floats:
    """Weights with those of short chunks BEHIND `least`, the smallest weight of the others."""
    return np.where(length < SHORT_SHARE * chunk_tokens, least - BEHIND, weight)
