"""Duplicates and overlap. Words are hashed once per document; everything else is arithmetic on those hashes.

    exact duplicates    chunks whose text is equal up to white space
    near-duplicates     documents with Jaccard similarity >= 0.8 of their 5-word shingles, estimated by MinHash
    overlap             documents that share 13-word sequences with held-out or evaluation text

All hashes are fixed functions of the text: nothing depends on Python's hash randomisation, on order or on threads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
SHINGLE, GRAM = 5, 13
"""Words of a MinHash shingle, and of an overlap sequence."""
PERMUTATIONS, BANDS, ROWS = 128, 21, 6
"""21 bands of 6 rows find a pair of similarity 0.8 with probability 0.998, one of 0.5 with 0.28 (then verified)."""
SIMILARITY = 0.8
_BLOCK = 1 << 20
"""Characters hashed at a time, cut at a space: bounds memory to some 40 MB whatever the length of a document."""
_CHAR, _SEQUENCE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
"""Odd multipliers of the polynomial hashes over a word's characters and over a sequence's words."""
_LONE = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF))
"""Chinese, Japanese and Korean characters, written without spaces: each is a word."""


@cache
def _word_characters() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For every code point: whether it belongs to a word (a letter, digit or `_`), and whether it is one by itself."""
    everything = "".join(map(chr, range(0x110000)))
    inside, lone = np.zeros(0x110000, np.bool_), np.zeros(0x110000, np.bool_)
    for match in re.finditer(r"\w+", everything):
        inside[match.start() : match.end()] = True
    for first, last in _LONE:
        lone[first : last + 1] = inside[first : last + 1]
    return inside, lone


@cache
def _powers(base: int, n: int) -> Hashes:
    """base**0 ... base**(n - 1), modulo 2**64."""
    powers = np.full(n, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def hash_words(text: str) -> NDArray[np.uint32]:
    """One hash per word of the lower-cased text."""
    text = text.lower()
    found = []
    while len(text) > _BLOCK:
        stop = text.rfind(" ", 0, _BLOCK) + 1 or _BLOCK
        found.append(_hash_block(text[:stop]))
        text = text[stop:]
    return np.concatenate([*found, _hash_block(text)])


def _hash_block(text: str) -> NDArray[np.uint32]:
    """Polynomial hash of every word: differences of one running sum, shifted back to the word's own powers."""
    n = len(text)
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    inside, lone = (table[codes] for table in _word_characters())
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | lone[1:] | lone[:-1]
    starts = np.flatnonzero(begins)
    after = np.append(starts[1:], n)  # the next word's start: characters between words add nothing to the sum
    weights = (codes.astype(np.uint64) + np.uint64(1)) * inside * _powers(_CHAR, _BLOCK)[:n]
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(weights)])
    hashes = (total[after] - total[starts]) * _powers(pow(_CHAR, -1, 1 << 64), _BLOCK)[starts]
    return (_mix(hashes) >> np.uint64(32)).astype(np.uint32)


def _mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sequences(words: NDArray[np.uint32], n: int) -> Hashes:
    """Hashes [max(0, len - n + 1)] of the sequences of n words.

    Polynomials over the words, built by doubling: that of a + b words is that of a, times a power, plus that of b.
    """
    if len(words) < n:
        return np.empty(0, np.uint64)
    single = _mix(words.astype(np.uint64) + np.uint64(_CHAR))
    total, length = single, 1
    for bit in bin(n)[3:]:
        total = _join(total, length, total, length)
        length *= 2
        if bit == "1":
            total = _join(total, length, single, 1)
            length += 1
    return _mix(total)


def _join(first: Hashes, a: int, second: Hashes, b: int) -> Hashes:
    """Hashes of the sequences of a + b words from those of a and of b words."""
    size = len(second) - a
    return first[:size] * np.uint64(pow(_SEQUENCE, b, 1 << 64)) + second[a:]


def shingles(words: NDArray[np.uint32], text: str) -> Hashes:
    """The shingles of a document, with repeats; a document of fewer words than a shingle is one shingle, its text."""
    found = sequences(words, SHINGLE)
    if len(found):
        return found
    whole = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest()
    return np.array([int.from_bytes(whole, "big")], np.uint64)


def signatures(documents: Sequence[Hashes]) -> NDArray[np.uint32]:
    """MinHash signatures [n, PERMUTATIONS] of documents given by their shingles."""
    from rensa import RMinHash

    if not documents:
        return np.empty((0, PERMUTATIONS), np.uint32)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(documents), offsets, PERMUTATIONS, 42)
    return np.asarray(matrix.to_rows(), np.uint32)


def band_keys(signature: NDArray[np.uint32]) -> Hashes:
    """[n, BANDS] keys: two documents are candidates where a key of the same band is equal."""
    rows = signature[:, : BANDS * ROWS].reshape(len(signature), BANDS, ROWS).astype(np.uint64)
    key = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), rows.shape[:2]).copy()
    for k in range(ROWS):
        key = _mix(key * np.uint64(0xD6E8FEB86659FD93) + rows[:, :, k])
    return key


class NearDuplicates:
    """Documents seen so far; `find` returns the first of them that a new document nearly repeats.

    Only documents whose band keys occur more than once in the corpus are kept in the buckets: most cost nothing.
    """

    def __init__(self, signature: NDArray[np.uint32]):
        self._signature = signature
        keys = band_keys(signature)
        self._shared: dict[int, list[int]] = {}
        for band in range(BANDS):
            _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
            for i in np.flatnonzero(counts[inverse] > 1):
                self._shared.setdefault(int(i), []).append(int(keys[i, band]))
        self._buckets: dict[int, list[int]] = {}

    def find(self, i: int) -> int | None:
        """The earliest kept document whose estimated similarity with document i is at least SIMILARITY."""
        candidates = sorted({j for key in self._shared.get(i, ()) for j in self._buckets.get(key, ())})
        if not candidates:
            return None
        equal = (self._signature[candidates] == self._signature[i]).mean(axis=1)
        hits = np.flatnonzero(equal >= SIMILARITY)
        return candidates[int(hits[0])] if len(hits) else None

    def keep(self, i: int) -> None:
        """Later documents are compared with document i."""
        for key in self._shared.get(i, ()):
            self._buckets.setdefault(key, []).append(i)


class Overlap:
    """Which share of a document's 13-word sequences occurs in protected text."""

    _FILTER_BITS = 22

    def __init__(self, protected: Sequence[NDArray[np.uint32]]):
        """`protected`: words of each protected document; those of fewer than 13 words protect nothing."""
        grams = [np.unique(sequences(words, GRAM)) for words in protected]
        flat = np.concatenate([*grams, np.empty(0, np.uint64)])
        owner = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
        self._grams, first = np.unique(flat, return_index=True)
        self._owner = owner[first]
        self._sizes = np.array([max(1, len(g)) for g in grams], np.float64)
        # Few sequences are protected: a table of their low bits spares the search for nearly all others.
        self._filter = np.zeros(1 << self._FILTER_BITS, np.bool_)
        self._filter[self._low(self._grams)] = True

    def _low(self, grams: Hashes) -> NDArray[np.intp]:
        return (grams & np.uint64((1 << self._FILTER_BITS) - 1)).astype(np.intp)

    def shares(self, found: Hashes) -> tuple[float, float]:
        """(share of a document's sequences that are protected, largest share of one protected document it holds).

        `found`: the document's `sequences(words, GRAM)`.
        """
        maybe = found[self._filter[self._low(found)]]
        if not len(maybe):
            return 0.0, 0.0
        at = np.minimum(np.searchsorted(self._grams, maybe), len(self._grams) - 1)
        hit = at[self._grams[at] == maybe]
        if not len(hit):
            return 0.0, 0.0
        held = np.bincount(self._owner[np.unique(hit)], minlength=len(self._sizes)) / self._sizes
        return len(hit) / len(found), float(held.max())


def text_key(text: str) -> int:
    """64-bit hash of a text up to white space."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")
