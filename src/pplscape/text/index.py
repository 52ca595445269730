"""Which part of a prepared corpus holds a document: 12 bytes a document, by the hash of its id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.draw.permanent import hash_documents


class DocumentIndex:
    """`parts`: the document ids of each part, in the order of parts."""

    def __init__(self, parts: Iterable[Sequence[str] | pa.Array]):
        hashes, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
        for at, ids in enumerate(parts):
            hashes.append(hash_documents(ids))
            numbers.append(np.full(len(ids), at, dtype=np.int32))
        found, part_of = np.concatenate(hashes), np.concatenate(numbers)
        order = np.argsort(found, kind="stable")
        self._hashes, self._part_of = found[order], part_of[order]

    def locate(self, doc_ids: Sequence[str] | pa.Array) -> NDArray[np.int32]:
        """Position of the part of each document [n], -1 for one that is nowhere."""
        hashes = hash_documents(doc_ids)
        if not len(self._hashes):
            return np.full(len(hashes), -1, dtype=np.int32)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[at] == hashes, self._part_of[at], -1).astype(np.int32)
