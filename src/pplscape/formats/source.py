"""A selection, or the general text to replay beside it, as rows in a fixed order, cut into shards of bounded size.

Order: first every selected chunk once, in the corpus' order, then those with repeats left once more, and so on - as
training takes them (`training.texts.with_repeats`) but for the shuffle, which trainers do themselves. The unit of work
is (copy, part of the prepared corpus), a pure function of the inputs, so that an export resumes at any shard. In
memory: `text.chosen`, and one part of text.

Replayed rows are spread evenly over the shards of the selection, because trainers mix what lies in one shard better
than what lies in several: after any shard the replayed tokens are the same share as after all, to within one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.formats.content import Row
from pplscape.text.chosen import Chosen, Span, selected_files
from pplscape.text.cutback import Piece, pieces_of
from pplscape.text.inputs import name_of
from pplscape.text.prepared import Prepared

Unit = tuple[int, int]
"""(copy, position of the part): copy 1 is the first time."""


class Source:
    """The rows of a selection folder, with the text of `prepared`; scratch files go to `spool`.

    UserError: a chunk that is not the corpus', or is listed twice; nothing selected.
    """

    def __init__(self, selection: Path, prepared: Prepared, spool: Path):
        self.prepared, self.chosen = prepared, Chosen(selected_files(selection), prepared, spool)
        if not self.tokens.any():
            raise UserError(f"{selection} selects nothing: there is nothing to export.")

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[copies, parts] selected tokens."""
        return self.chosen.tokens

    @property
    def total(self) -> int:
        """Selected tokens."""
        return int(self.tokens.sum())

    @property
    def units(self) -> list[Unit]:
        """All units that hold anything, in order."""
        return [(int(copy) + 1, int(at)) for copy, at in np.argwhere(self.tokens)]

    def tokens_of(self, units: Sequence[Unit]) -> int:
        return sum(int(self.tokens[copy - 1, at]) for copy, at in units)

    def shards(self, shard_tokens: int) -> list[list[Unit]]:
        """Consecutive units in shards that end as soon as they hold `shard_tokens`; a unit is never split."""
        shards: list[list[Unit]] = []
        held = shard_tokens
        for unit in self.units:
            if held >= shard_tokens:
                shards.append([])
                held = 0
            shards[-1].append(unit)
            held += self.tokens_of([unit])
        return shards

    def rows(self, unit: Unit) -> Iterator[Row]:
        """The rows of one unit, documents in corpus order."""
        copy, at = unit
        chosen = self.chosen.of(at)
        table = self.prepared.documents("pool", self.chosen.parts[at])
        for i, doc_id in enumerate(table["doc_id"].to_pylist()):
            if doc_id in chosen:
                document = {name: table[name][i].as_py() for name in table.column_names}
                yield from _rows(document, sorted(chosen[doc_id]), copy)

    def replayed(self, skip: int) -> Iterator[Row]:
        """All rows but the first `skip`, marked as replayed."""
        return (
            replace(row, replay=True) for row in islice(chain.from_iterable(map(self.rows, self.units)), skip, None)
        )


def until(rows: Iterator[Row], tokens: int) -> list[Row]:
    """Rows up to the one with which they hold `tokens`."""
    taken: list[Row] = []
    while tokens > 0 and (row := next(rows, None)) is not None:
        taken.append(row)
        tokens -= row.tokens
    return taken


def _rows(document: dict[str, Any], spans: list[Span], copy: int) -> Iterator[Row]:
    for piece in pieces_of([s[:4] for s in spans]):
        if piece.copy == copy:
            yield _row(document, piece, [s for s in spans if piece.start <= s.start < piece.end and s.repeats >= copy])


def _row(document: dict[str, Any], piece: Piece, spans: list[Span]) -> Row:
    doc_id = document["doc_id"]
    return Row(
        id=doc_id if piece.first else f"{doc_id}#{piece.chunk_index}",
        source=document["source"],
        file=name_of(document["path"]),
        row=document["row"],
        copy=piece.copy,
        chunk_index=piece.chunk_index,
        char_start=piece.start,
        text=document["text"][piece.start : piece.end],
        cuts=tuple(s.end - piece.start for s in spans),
        lengths=tuple(s.length for s in spans),
    )
