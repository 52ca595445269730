"""Duplicates and overlap. Words are hashed once per document; everything else is arithmetic on those hashes.

    exact duplicates    chunks whose text is equal up to white space
    near-duplicates     documents with Jaccard similarity >= 0.8 of their 5-word shingles, estimated by MinHash
    overlap             documents that share 13-word sequences with held-out or evaluation text

All hashes are fixed functions of the text: nothing depends on Python's hash randomisation, on order or on threads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
SHINGLE, GRAM = 5, 13
"""Words of a MinHash shingle, and of an overlap sequence."""
PERMUTATIONS, BANDS, ROWS = 128, 21, 6
"""21 bands of 6 rows find a pair of similarity 0.8 with probability 0.998, one of 0.5 with 0.28 (then verified)."""
SIMILARITY = 0.8
COMPARED = 64
"""Most documents kept for comparison under one key of a band: bounds time and memory for families of similar pages."""
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
    found, start = [], 0
    while len(text) - start > _BLOCK:
        stop = text.rfind(" ", start, start + _BLOCK) + 1 or start + _BLOCK
        found.append(_hash_block(text[start:stop]))
        start = stop
    return np.concatenate([*found, _hash_block(text[start:])])


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
    return np.array([text_key(text.lower())], np.uint64)


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

    Only documents that share a band's key with another one of the corpus take part: in memory are 0.6 kB for each of
    these and 4 bytes for each other; some 300 bytes a document while the keys are counted.
    """

    def __init__(self, blocks: Callable[[], Iterable[NDArray[np.uint32]]]):
        """`blocks`: gives the signatures of all documents, in blocks [?, PERMUTATIONS]; called twice."""
        bucket, n_buckets = _buckets([np.ascontiguousarray(band_keys(b).T) for b in blocks()])
        shared = np.asarray((bucket >= 0).any(axis=1))
        self._document = np.flatnonzero(shared)
        self._row = np.where(shared, np.cumsum(shared) - 1, -1).astype(np.int32)
        self._bucket = bucket[shared]
        self._signature = _chosen(blocks(), shared)
        self._first = np.full(n_buckets, -1, np.int32)
        """Row of the first document kept in each bucket."""
        self._further: dict[int, list[int]] = {}

    def find(self, i: int) -> int | None:
        """The earliest kept document whose estimated similarity with document i is at least SIMILARITY."""
        mine = self._buckets_of(i)
        first = self._first[mine]
        rows = {*first[first >= 0].tolist(), *(r for b in mine.tolist() for r in self._further.get(b, ()))}
        if not rows:
            return None
        candidates = sorted(rows)
        equal = (self._signature[candidates] == self._signature[self._row[i]]).mean(axis=1)
        hits = np.flatnonzero(equal >= SIMILARITY)
        return int(self._document[candidates[int(hits[0])]]) if len(hits) else None

    def keep(self, i: int) -> None:
        """Later documents are compared with document i."""
        for b in self._buckets_of(i).tolist():
            if self._first[b] < 0:
                self._first[b] = self._row[i]
            elif len(further := self._further.setdefault(b, [])) < COMPARED - 1:
                further.append(int(self._row[i]))

    def _buckets_of(self, i: int) -> NDArray[np.int32]:
        if self._row[i] < 0:
            return np.empty(0, np.int32)
        found = self._bucket[self._row[i]]
        return found[found >= 0]


def _buckets(keys: list[Hashes]) -> tuple[NDArray[np.int32], int]:
    """[n, BANDS] number of the bucket of every document in every band, -1 where it would be alone; their number.

    `keys`: blocks [BANDS, ?].
    """
    columns, total = list[NDArray[np.int32]](), 0
    if not keys:
        return np.empty((0, BANDS), np.int32), 0
    for band in range(BANDS):
        found = np.concatenate([k[band] for k in keys])
        _, inverse, counts = np.unique(found, return_inverse=True, return_counts=True)
        repeated = counts > 1
        number = np.where(repeated, np.cumsum(repeated) - 1 + total, -1).astype(np.int32)
        columns.append(number[inverse])
        total += int(repeated.sum())
    return np.stack(columns, axis=1), total


def _chosen(blocks: Iterable[NDArray[np.uint32]], wanted: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The wanted [n] rows of blocks that have n rows together."""
    found, start = [np.empty((0, PERMUTATIONS), np.uint32)], 0
    for block in blocks:
        found.append(block[wanted[start : start + len(block)]])
        start += len(block)
    return np.concatenate(found)


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
    return hash64(" ".join(text.split()))


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class HashSet:
    """A growing set of 64-bit hashes in 8 bytes each: sorted arrays, merged as they grow, and a set of the newest."""

    _NEWEST = 1 << 16

    def __init__(self) -> None:
        self._newest: set[int] = set()
        self._sorted: list[Hashes] = []

    def __contains__(self, key: int) -> bool:
        return key in self._newest or any(_holds(array, key) for array in self._sorted)

    def add(self, key: int) -> None:
        self._newest.add(key)
        if len(self._newest) < self._NEWEST:
            return
        merged = np.fromiter(self._newest, np.uint64, len(self._newest))
        merged.sort()
        self._newest = set()
        while self._sorted and len(self._sorted[-1]) <= len(merged):
            merged = np.concatenate([self._sorted.pop(), merged])
            merged.sort(kind="stable")
        self._sorted.append(merged)


def _holds(array: Hashes, key: int) -> bool:
    at = int(np.searchsorted(array, np.uint64(key)))
    return at < len(array) and int(array[at]) == key
