"""Hashes with known values, MinHash against exact Jaccard similarity, overlap counted by hand."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplscape.text.clean import (
    GRAM,
    SIMILARITY,
    NearDuplicates,
    Overlap,
    hash_words,
    sequences,
    shingles,
    signatures,
    text_key,
)


def words(rng: random.Random, n: int) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(n)]


def signature_of(*texts: str) -> np.ndarray:
    return signatures([shingles(hash_words(t), t) for t in texts])


def jaccard(a: str, b: str) -> float:
    x, y = (set(shingles(hash_words(t), t).tolist()) for t in (a, b))
    return len(x & y) / len(x | y)


def by_hand(word: str) -> int:
    """The hash of a word as the docstrings define it, in Python's own integers."""
    x = sum((ord(c) + 1) * 0x9E3779B97F4A7C15**i for i, c in enumerate(word)) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) >> 32


ANY_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
PIECES = st.sampled_from(["word", " ", ".", "心", "脏", "é", "_1", "\n", "🫀", "İ", "の", "한", "'"])


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join)))
def test_words_are_those_of_a_regular_expression(text: str) -> None:
    assert hash_words(text).tolist() == [by_hand(w) for w in ANY_WORD.findall(text.lower())]


def test_words() -> None:
    assert hash_words("Hello, World_1 hello!").tolist()[::2] == [by_hand("hello")] * 2
    assert len(hash_words("心脏病 naïve")) == 4
    assert len(hash_words("")) == len(hash_words("?!")) == 0


def test_long_texts_are_hashed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox, 心脏病, jumps. " * 20
    whole = hash_words(text)
    monkeypatch.setattr("pplscape.text.clean._BLOCK", 40)
    assert (hash_words(text) == whole).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=40), st.integers(1, 8))
def test_sequences_depend_on_their_words_and_order_alone(values: list[int], n: int) -> None:
    array = np.array(values, np.uint32)
    found = sequences(array, n)
    assert len(found) == len(values) - n + 1
    for i in (0, len(found) - 1):
        assert found[i] == sequences(array[i : i + n], n).item()
    if values[:n] != values[:n][::-1]:
        assert sequences(array[:n][::-1], n).item() != found[0]


@pytest.mark.parametrize("changed", [0, 2, 5, 15, 40])
def test_signatures_estimate_similarity(changed: int) -> None:
    rng = random.Random(changed)
    errors = []
    for _ in range(20):
        a = words(rng, 300)
        b = a.copy()
        for i in rng.sample(range(300), changed):
            b[i] = "changed"
        one, two = " ".join(a), " ".join(b)
        estimate = (np.subtract(*signature_of(one, two).astype(np.int64)) == 0).mean()
        errors.append(float(estimate) - jaccard(one, two))
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 0.07


def test_near_duplicates_are_found_and_strangers_are_not() -> None:
    rng = random.Random(0)
    texts = [" ".join(words(rng, 200)) for _ in range(200)]
    near = [t.replace(" ", "  ", 5) + " and a new end" for t in texts[:50]]
    far = [" ".join(t.split()[:100] + words(rng, 100)) for t in texts[50:100]]
    assert min(jaccard(a, b) for a, b in zip(texts, near, strict=False)) > SIMILARITY
    signature = signature_of(*texts, *near, *far)
    index = NearDuplicates(lambda: [signature[:70], signature[70:]])
    found = []
    for i in range(300):
        found.append(index.find(i))
        if found[-1] is None:
            index.keep(i)
    assert found == [None] * 200 + list(range(50)) + [None] * 50


def test_documents_of_few_words_are_compared_by_their_text() -> None:
    index = NearDuplicates(lambda: [signature_of("Yes.", "No.", "yes.", "?!", "!?")])
    assert index.find(0) is None
    for i in (0, 1, 3):
        index.keep(i)
    assert [index.find(i) for i in range(5)] == [0, None, 0, None, None]


def grams(text: str) -> np.ndarray:
    return sequences(hash_words(text), GRAM)


def test_overlap_shares() -> None:
    rng = random.Random(0)
    a, b = words(rng, 40), words(rng, 20)
    overlap = Overlap([hash_words(" ".join(a)), hash_words(" ".join(b)), hash_words("too short")])
    document = words(rng, 30) + a[:20] + words(rng, 30)
    share, held = overlap.shares(grams(" ".join(document)))
    assert share == pytest.approx((20 - GRAM + 1) / (80 - GRAM + 1))
    assert held == pytest.approx((20 - GRAM + 1) / (40 - GRAM + 1))
    assert overlap.shares(grams(" ".join(b).upper() + "!")) == (1.0, 1.0)
    assert overlap.shares(grams(" ".join(b * 3)))[1] == 1.0
    assert overlap.shares(grams("too short")) == (0.0, 0.0)
    assert Overlap([]).shares(grams(" ".join(a))) == (0.0, 0.0)


def test_text_keys_ignore_white_space_only() -> None:
    assert text_key(" a  b\n") == text_key("a b") != text_key("A b")
    assert text_key("a b") == 0xBB37DEA5C027F928


def test_hashes_do_not_depend_on_hash_randomisation() -> None:
    code = (
        "from pplscape.text.clean import *; t = 'The quick brown fox jumps over the lazy dog again and again today.';"
        "w = hash_words(t); print(w.sum(), sequences(w, 13), text_key(t), signatures([shingles(w, t)])[0, :3])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
