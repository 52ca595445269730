"""Left context: the ids before a place, whatever is cut off the text to find them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pplscape.text.context import MARGIN, left_contexts
from pplscape.text.tokenizer import Failed


def words(texts: Sequence[str]) -> list[np.ndarray]:
    """A tokenizer of one id a word: its length."""
    return [np.array([len(w) for w in t.split()], dtype=np.int32) for t in texts]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=300), st.integers(0, 40), st.data())
def test_last_ids_before_a_position(lengths: list[int], n: int, data: st.DataObject) -> None:
    text = " ".join("a" * k for k in lengths)
    starts = np.cumsum([0] + [k + 1 for k in lengths])[:-1]
    at = data.draw(st.integers(0, len(lengths) - 1))
    (found,) = left_contexts([(text, int(starts[at]))], n, words)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == lengths[max(0, at - n) : at]


def test_only_as_much_is_tokenised_as_it_takes() -> None:
    seen: list[int] = []

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        seen.extend(len(t) for t in texts)
        return words(texts)

    (found,) = left_contexts([("ab " * 100_000, 300_000)], 10, encode)
    assert isinstance(found, np.ndarray)
    assert len(found) == 10
    assert sum(seen) < 1000 * MARGIN


def test_a_text_that_the_tokenizer_fails_on_fails_alone() -> None:
    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        if any("bad" in t for t in texts):
            raise ValueError("cannot")
        return words(texts)

    good, failed = left_contexts([("one three", 9), ("bad text", 8)], 2, encode)
    assert isinstance(good, np.ndarray)
    assert good.tolist() == [3, 5]
    assert failed == Failed("ValueError: cannot")
