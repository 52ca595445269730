"""Second pass: decide which documents and chunks stay, and in which split. Holds hashes, never the corpus's text.

Held-out documents are looked at first, so that it is always the pool that gives way: what nearly repeats, or shares
13-word sequences with, held-out or evaluation text is removed from the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.text.chunk import Chunk
from pplscape.text.clean import GRAM, HashSet, NearDuplicates, Overlap, sequences
from pplscape.text.ingest import SpooledDocument
from pplscape.text.read import Rejected
from pplscape.text.split import POOL

EVAL_CONTAINED = 0.5
"""A pool document that holds half the 13-word sequences of one evaluation document is removed whatever its length."""
Keep = Literal["remove", "keep"] | int
"""What to do with near-duplicates: remove them, keep them, or keep at most so many of a kind."""


def kept_of_a_kind(near_duplicates: Keep) -> float:
    """How many documents of a near-duplicate group stay."""
    if near_duplicates == "remove":
        return 1
    return float("inf") if near_duplicates == "keep" else float(near_duplicates)


@dataclass
class Sieve:
    """Decides document by document, in the order they are given; the same order gives the same result."""

    split: NDArray[np.int8]
    """[n] documents, then one entry (POOL) for every evaluation document."""
    doc_ids: pa.ChunkedArray
    near: NearDuplicates
    n_documents: int
    min_tokens: int
    kept_of_a_kind: float
    overlap_share: float
    heldout_chunks: int
    """Most chunks of a held-out document that stay."""
    heldout: Overlap = field(default_factory=lambda: Overlap([]))
    eval: Overlap = field(default_factory=lambda: Overlap([]))
    _kind: Counter[int] = field(default_factory=Counter)
    """Near-duplicates that stayed, by the first of their kind."""
    _chunk_keys: HashSet = field(default_factory=HashSet)

    def protect_eval(self) -> None:
        """From now on documents near to an evaluation document are found."""
        for i in range(self.n_documents, len(self.split)):
            self.near.keep(i)

    def sift(self, i: int, spooled: SpooledDocument) -> tuple[list[Chunk], list[Rejected]]:
        """(chunks that stay, what is rejected) of document i. No chunk stays if the document is rejected."""
        reason, first = self._overlap_reason(i, spooled), None
        if reason is None:
            first = self.near.find(i)
            reason = self._near_reason(i, first)
        if reason is not None:
            return [], [_whole(spooled, *reason)]
        kept: list[Chunk] = []
        rejected: list[Rejected] = []
        for chunk, key in spooled.chunks:
            why = self._chunk_reason(chunk, key)
            if why is None:
                self._chunk_keys.add(key)
                kept.append(chunk)
            else:
                rejected.append(_piece(spooled, chunk, *why))
        if not kept:
            return [], [_whole(spooled, "duplicate_chunk", "every chunk repeats an earlier one")]
        self._keep(i, first)
        if self.split[i] != POOL:
            kept, surplus = evenly(kept, self.heldout_chunks)
            detail = f"more than {self.heldout_chunks} chunks of a held-out document"
            rejected += [_piece(spooled, chunk, "heldout_surplus", detail) for chunk in surplus]
        return kept, rejected

    def recall(self, i: int, spooled: SpooledDocument) -> None:
        """Document i stayed in an earlier run: later ones are compared with it."""
        for _, key in spooled.chunks:
            self._chunk_keys.add(key)
        self._keep(i, self.near.find(i))

    def _keep(self, i: int, first: int | None) -> None:
        """Later documents are compared with document i, or with the `first` of its kind only."""
        if first is None:
            self.near.keep(i)
        else:
            self._kind[first] += 1

    def _overlap_reason(self, i: int, spooled: SpooledDocument) -> tuple[str, str] | None:
        if self.split[i] == POOL:
            found = sequences(spooled.words, GRAM)
            share, _ = self.heldout.shares(found)
            if share >= self.overlap_share:
                return "overlap_heldout", f"{share:.0%} of its 13-word sequences are in held-out text"
            share, held = self.eval.shares(found)
            if share >= self.overlap_share or held >= EVAL_CONTAINED:
                return (
                    "overlap_eval",
                    f"{share:.0%} of its 13-word sequences are in evaluation text, or {held:.0%} of one",
                )
        return None

    def _near_reason(self, i: int, first: int | None) -> tuple[str, str] | None:
        """`first`: the earliest document that document i nearly repeats."""
        if first is None:
            return None
        if first >= self.n_documents:
            return "overlap_eval", "near-duplicate of an evaluation document"
        detail = f"near-duplicate of {self.doc_ids[first].as_py()}"
        if self.split[first] != self.split[i]:
            return ("overlap_heldout" if self.split[i] == POOL else "near_duplicate"), detail
        if 1 + self._kind[first] >= self.kept_of_a_kind:
            return "near_duplicate", detail
        return None

    def _chunk_reason(self, chunk: Chunk, key: int) -> tuple[str, str] | None:
        if chunk.length < self.min_tokens:
            return "short_remainder", f"{chunk.length} tokens, fewer than {self.min_tokens}"
        if key in self._chunk_keys:
            return "duplicate_chunk", "the same text, up to white space, as an earlier chunk"
        return None


def evenly(chunks: list[Chunk], most: int) -> tuple[list[Chunk], list[Chunk]]:
    """(at most `most` chunks, evenly spaced over the document, the others)."""
    if len(chunks) <= most:
        return chunks, []
    taken = {int(k) for k in np.linspace(0, len(chunks) - 1, most).round()}
    return [c for k, c in enumerate(chunks) if k in taken], [c for k, c in enumerate(chunks) if k not in taken]


def _whole(spooled: SpooledDocument, reason: str, detail: str) -> Rejected:
    d = spooled.document
    return Rejected(d.doc_id, d.path, d.row, reason, detail, None, sum(c.length for c, _ in spooled.chunks))


def _piece(spooled: SpooledDocument, chunk: Chunk, reason: str, detail: str) -> Rejected:
    d = spooled.document
    return Rejected(d.doc_id, d.path, d.row, reason, detail, chunk.chunk_index, chunk.length)


def positions(part_sizes: list[int], wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """(part, index of its first document, wanted of its documents) for every part."""
    start = 0
    for k, size in enumerate(part_sizes):
        yield k, start, wanted[start : start + size]
        start += size
