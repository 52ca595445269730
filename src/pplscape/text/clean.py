"""Duplicates and overlap. Words are hashed once per document; everything else is arithmetic on those hashes.

    exact duplicates    chunks whose text is equal up to white space
    near-duplicates     documents with Jaccard similarity >= 0.8 of their 5-word shingles, estimated by MinHash
    overlap             documents that share 13-word sequences with held-out or evaluation text

All hashes are fixed functions of the text: nothing depends on Python's hash randomisation, on order or on threads.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_NO_SPACES = re.compile(f"[{_CHARACTERS}]")
_WORDS_OF_ANY_SCRIPT = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+")
"""Letters, digits and underscores; Chinese, Japanese and Korean characters count as a word each."""
_WORDS_WITH_SPACES = re.compile(r"\w+")
_ASCII_WORDS = re.compile(r"\w+", re.ASCII)
SHINGLE, GRAM = 5, 13
"""Words of a MinHash shingle, and of an overlap sequence."""
PERMUTATIONS, BANDS, ROWS = 128, 21, 6
"""21 bands of 6 rows find a pair of similarity 0.8 with probability 0.998, one of 0.5 with 0.28 (then verified)."""
SIMILARITY = 0.8


class _WordHashes(dict[str, int]):
    """word -> crc32 of its UTF-8 bytes, remembered."""

    LIMIT = 1 << 20

    def __missing__(self, word: str) -> int:
        if len(self) >= self.LIMIT:
            self.clear()
        value = self[word] = zlib.crc32(word.encode())
        return value


_WORDS = _WordHashes()


def hash_words(text: str) -> NDArray[np.uint32]:
    """One hash per word of the lower-cased text."""
    pattern = (
        _ASCII_WORDS if text.isascii() else _WORDS_OF_ANY_SCRIPT if _NO_SPACES.search(text) else _WORDS_WITH_SPACES
    )
    words = pattern.findall(text.lower())
    return np.fromiter(map(_WORDS.__getitem__, words), np.uint32, len(words))


def _mix(x: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sequences(words: NDArray[np.uint32], n: int) -> Hashes:
    """Hashes [max(0, len - n + 1)] of the sequences of n words."""
    if len(words) < n:
        return np.empty(0, np.uint64)
    mixed = _mix(words.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    size = len(words) - n + 1
    total = mixed[:size].copy()
    for k in range(1, n):
        total *= np.uint64(0xD6E8FEB86659FD93)
        total += mixed[k : k + size]
    return _mix(total)


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

    def shares(self, words: NDArray[np.uint32]) -> tuple[float, float]:
        """(share of the document's sequences that are protected, largest share of one protected document it holds)."""
        found = sequences(words, GRAM)
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
