"""Permanent uniforms: one number in (0, 1) for each chunk, the same in every process, platform and part layout.

    d = the document id's UTF-8 bytes, folded in words of 8 bytes (little endian, the last padded with zeros):
        d = mix(bytes);  for each word: d = mix(d ^ word)
    bits(seed, doc_id, chunk_index) = mix(mix(d ^ mix(seed)) + chunk_index * G)
    h = (top 52 bits + 0.5) / 2^52

`mix` is the splitmix64 finaliser, G = 2^64 / phi. A subset drawn by comparing h with a threshold needs no state and no
order, can be restarted, split over any number of workers, and stays as similar as possible when the thresholds change.
The 12 bits that h leaves serve where a second, independent sample is wanted. Not cryptographic: whoever chooses
document ids can choose their h. All numpy, on Arrow's buffers: see benchmarks/results for the cost of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_KEEP = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
"""Mask of the first n bytes of a little-endian word."""


def hash_documents(doc_ids: pa.Array | Iterable[str]) -> NDArray[np.uint64]:
    """64-bit hash d [n] of document ids; a null counts as empty."""
    if not isinstance(doc_ids, pa.Array):
        doc_ids = pa.array(doc_ids, pa.large_string())
    if pa.types.is_dictionary(doc_ids.type):
        return hash_documents(doc_ids.dictionary)[doc_ids.indices.to_numpy()]
    # Chunks of a document stand together: finding the runs costs a twentieth of hashing what they hold.
    runs = pc.run_end_encode(doc_ids)
    return np.repeat(_hash(runs.values), np.diff(runs.run_ends.to_numpy(), prepend=0))


def _hash(doc_ids: pa.Array) -> NDArray[np.uint64]:
    data, offsets = _bytes_of(doc_ids)
    start, size = offsets[:-1], np.diff(offsets)
    hashed = mix(size.astype(np.uint64))
    for word in range(-(-int(size.max(initial=0)) // 8)):
        at = 8 * word
        if int(size.min()) >= at + 8:
            hashed = mix(hashed ^ _words(data, start + at))
        else:
            on = np.flatnonzero(size > at)
            keep = _KEEP[np.minimum(size[on] - at, 8)]
            hashed[on] = mix(hashed[on] ^ (_words(data, start[on] + at) & keep))
    return hashed


def _bytes_of(strings: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Bytes as aligned little-endian words, two more than they fill, and offsets [n + 1] into the bytes."""
    strings = strings.cast(pa.large_string()).fill_null("") if strings.null_count else strings.cast(pa.large_string())
    _, where, content = strings.buffers()
    if not len(strings) or content is None:
        return np.zeros(2, np.uint64), np.zeros(len(strings) + 1, np.int64)
    offsets = np.frombuffer(where, np.int64, len(strings) + 1, strings.offset * 8)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros((last - first) // 8 + 2, dtype="<u8")
    data.view(np.uint8)[: last - first] = np.frombuffer(content, np.uint8, last - first, first)
    return data.astype(np.uint64, copy=False), offsets - first


def _words(data: NDArray[np.uint64], at: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The 8 bytes from byte `at` [n] on, read from two aligned words each."""
    word, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
    low = data.take(word) >> shift
    # A shift by 64 is undefined, so the upper part is shifted by one and then by up to 63.
    return low | ((data.take(word + 1) << np.uint64(1)) << (np.uint64(63) - shift))


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014), a bijection of 64-bit integers with full avalanche."""
    z = value + np.uint64(_GOLDEN)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def bits_of_hashes(seed: int, doc_hash: NDArray[np.uint64], chunk_index: Any) -> NDArray[np.uint64]:
    """64 permanent bits [n] from document hashes [n] and chunk indices [n]."""
    key = mix(np.array([seed & _MASK], dtype=np.uint64))
    index = np.asarray(chunk_index).astype(np.uint64) * np.uint64(_GOLDEN)
    return mix(mix(doc_hash ^ key) + index)


def names_of(doc_hash: NDArray[np.uint64], chunk_index: Any) -> NDArray[np.uint64]:
    """64 bits [n] that stand for a chunk's name, whatever the draw's seed: lists of chunks are looked up by them."""
    return bits_of_hashes(0, doc_hash, chunk_index)


def uniforms_of_bits(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """h [n] from the top 52 of 64 bits; strictly between 0 and 1."""
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def uniforms_of_hashes(seed: int, doc_hash: NDArray[np.uint64], chunk_index: Any) -> NDArray[np.float64]:
    """h [n] from document hashes [n] and chunk indices [n]; strictly between 0 and 1."""
    return uniforms_of_bits(bits_of_hashes(seed, doc_hash, chunk_index))


def uniforms(seed: int, doc_id: Iterable[str], chunk_index: Any) -> NDArray[np.float64]:
    """h [n] in (0, 1) of chunks given by (doc_id [n], chunk_index [n])."""
    return uniforms_of_hashes(seed, hash_documents(doc_id), chunk_index)
