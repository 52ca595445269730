"""The token ids that stand before a place in a text: the left context of a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pplscape.text.tokenizer import Failed, attempt

Ids = NDArray[np.int32]
Encode = Callable[[list[str]], list[Ids]]
CHARS_PER_TOKEN, MARGIN = 8, 16
"""How much text is tokenised at first for one id; ids beyond those wanted, because the cut falsifies the first few."""


def left_contexts(places: Sequence[tuple[str, int]], n: int, encode: Encode) -> list[Ids | Failed]:
    """For each (text, position): the last `n` token ids of `text[:position]`, fewer where the text begins; `Failed`
    where the tokenizer fails on that text.

    Only as much of the text is tokenised as it takes, so that a long document costs no more than its contexts.
    """
    found: list[Ids | Failed] = [np.empty(0, np.int32)] * len(places)
    width, open_places = CHARS_PER_TOKEN * (n + MARGIN), list(range(len(places)))
    while open_places:
        tails = [places[i][0][max(0, places[i][1] - width) : places[i][1]] for i in open_places]
        short = []
        encoded = attempt(encode, tails)
        for i, ids in zip(open_places, encoded, strict=True):
            if isinstance(ids, Failed):
                found[i] = ids
                continue
            found[i] = ids[-n:] if n else ids[:0]
            if len(ids) < n + MARGIN and places[i][1] > width:
                short.append(i)
        open_places, width = short, 2 * width
    return found
