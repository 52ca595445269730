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
from numpy.typing import NDArray

from pplscape.text.chunk import Chunk
from pplscape.text.clean import GRAM, NearDuplicates, Overlap, sequences
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
    doc_ids: list[str]
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
    _repeats: set[int] = field(default_factory=set)
    """These documents themselves: later ones are compared with the first of the kind only."""
    _chunk_keys: set[int] = field(default_factory=set)

    def protect_eval(self) -> None:
        """From now on documents near to an evaluation document are found."""
        for i in range(self.n_documents, len(self.split)):
            self.near.keep(i)

    def sift(self, i: int, spooled: SpooledDocument) -> tuple[list[Chunk], list[Rejected]]:
        """(chunks that stay, what is rejected) of document i. No chunk stays if the document is rejected."""
        reason = self._reason(i, spooled)
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
        if i not in self._repeats:
            self.near.keep(i)
        if self.split[i] != POOL:
            kept, surplus = evenly(kept, self.heldout_chunks)
            detail = f"more than {self.heldout_chunks} chunks of a held-out document"
            rejected += [_piece(spooled, chunk, "heldout_surplus", detail) for chunk in surplus]
        return kept, rejected

    def _reason(self, i: int, spooled: SpooledDocument) -> tuple[str, str] | None:
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
        return self._near_reason(i)

    def _near_reason(self, i: int) -> tuple[str, str] | None:
        first = self.near.find(i)
        if first is None:
            return None
        if first >= self.n_documents:
            return "overlap_eval", "near-duplicate of an evaluation document"
        detail = f"near-duplicate of {self.doc_ids[first]}"
        if self.split[first] != self.split[i]:
            return ("overlap_heldout" if self.split[i] == POOL else "near_duplicate"), detail
        if 1 + self._kind[first] >= self.kept_of_a_kind:
            return "near_duplicate", detail
        self._kind[first] += 1
        self._repeats.add(i)
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
