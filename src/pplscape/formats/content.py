"""What a shard holds, what a format is, and the sums by which a reader can tell that nothing was lost or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.engines.base import Ids

Files = dict[str, bytes]
"""Content by name, relative to the format's folder."""
Facts = Mapping[str, Any]
UINT16_VOCABULARY = 65_500
"""Vocabularies below this size fit unsigned 16-bit ids; Megatron's own limit (`DType.optimal_dtype`)."""


@dataclass(frozen=True, slots=True)
class Row:
    """Adjacent selected chunks of one document, once: the piece that `text.cutback` writes as one row."""

    id: str
    """The document's id, for a further piece of it `id#chunk_index`."""
    source: str
    file: str
    """Name of the input file, and the row in it (from 0)."""
    row: int
    copy: int
    """1 for the first time, 2 for the first repetition."""
    chunk_index: int
    """Of the first chunk."""
    char_start: int
    """Where the text begins in the document, code points."""
    text: str
    cuts: tuple[int, ...]
    """Where each chunk ends in `text`, code points; the last is its length."""
    lengths: tuple[int, ...]
    """Tokens of each chunk, encoded alone."""
    replay: bool = False
    """General text beside the selection, not part of it."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def chunks(self) -> list[str]:
        """The texts that were scored and selected, in order."""
        return [self.text[a:b] for a, b in zip((0, *self.cuts), self.cuts, strict=False)]


@dataclass(frozen=True)
class Shard:
    """Part `index` of `total`: its rows, and with token formats the ids of all their chunks, in order."""

    index: int
    total: int
    rows: Sequence[Row]
    ids: Sequence[Ids] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int32))
    """What ids are stored as."""

    @property
    def number(self) -> str:
        return f"{self.index:05d}"

    def rows_with_ids(self) -> Iterator[tuple[Row, Sequence[Ids]]]:
        at = 0
        for row in self.rows:
            yield row, self.ids[at : at + len(row.cuts)]
            at += len(row.cuts)


@dataclass(frozen=True)
class Format:
    """`shard`: the files of one shard. `index`: the files over all shards, from their facts and the ids' dtype.

    The facts of a shard: `rows`, `chunks`, `tokens`, and `files` {name: bytes} of this format.
    """

    name: str
    has_tokens: bool
    shard: Callable[[Shard], Files]
    index: Callable[[Sequence[Facts], np.dtype[Any]], Files] = lambda shards, dtype: {}


def id_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest of uint16 and int32 (little endian) that every format here can hold ids of this vocabulary in."""
    return np.dtype("<u2" if vocabulary < UINT16_VOCABULARY else "<i4")


class ContentSum:
    """Identifies a multiset of byte strings: the sum of their 128-bit blake2b digests, modulo 2^128.

    Independent of order and of sharding, so a reader that shuffles can check it; a chunk that is repeated counts as
    often. Against accidents, not against an adversary.
    """

    def __init__(self, hex_: str = "0"):
        self._sum = int(hex_, 16)

    def add(self, items: Iterable[bytes]) -> ContentSum:
        for item in items:
            self._sum += int.from_bytes(blake2b(item, digest_size=16).digest(), "little")
        return self

    def merge(self, hex_: str) -> ContentSum:
        self._sum += int(hex_, 16)
        return self

    @property
    def hex(self) -> str:
        return f"{self._sum % (1 << 128):032x}"


def token_sum(chunks: Iterable[NDArray[Any] | Sequence[int]]) -> str:
    """ContentSum of chunks of token ids, each as little-endian int32."""
    return ContentSum().add(np.asarray(ids).astype("<i4").tobytes() for ids in chunks).hex


def text_sum(chunks: Iterable[str]) -> str:
    """ContentSum of chunk texts in UTF-8."""
    return ContentSum().add(text.encode() for text in chunks).hex
