"""The split is fixed by the ids, has the tokens asked for, and moves little when documents are added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.text.split import POOL, TEST, VALID, assign, halves, token_target, uniform


def hashes(n: int, seed: int = 0) -> list[float]:
    return [uniform(seed, f"doc-{i}") for i in range(n)]


def test_uniform_has_a_known_value_and_is_uniform() -> None:
    assert uniform(0, "doc-0") == uniform(0, "doc-0") != uniform(1, "doc-0")
    values = np.sort(hashes(4000))
    assert np.abs(values - (np.arange(4000) + 0.5) / 4000).max() < 0.03


def test_targets() -> None:
    assert token_target(0.02, 1_000_000, 100_000) == 20_000
    assert token_target(0.02, 10_000_000, 100_000) == 100_000
    assert token_target(250_000, 1_000_000, 100_000) == 250_000
    with pytest.raises(UserError, match="makes no sense"):
        token_target(-0.1, 10, 10)


@settings(max_examples=40)
@given(st.lists(st.integers(10, 50), min_size=100, max_size=110), st.integers(60, 300), st.integers(60, 300))
def test_no_split_exceeds_its_target(tokens: list[int], valid: int, test: int) -> None:
    array = np.array(tokens)
    split = assign(hashes(len(tokens)), array, (valid, test))
    for which, target in ((VALID, valid), (TEST, test)):
        assert target - 50 < array[split == which].sum() <= target


def test_the_split_does_not_depend_on_the_order_of_documents() -> None:
    tokens = np.random.default_rng(0).integers(1, 100, 500)
    values = np.array(hashes(500))
    order = np.random.default_rng(1).permutation(500)
    assert (assign(values[order], tokens[order], (900, 700)) == assign(values, tokens, (900, 700))[order]).all()


def test_few_documents_move_when_some_are_added() -> None:
    tokens = np.random.default_rng(0).integers(50, 150, 2200)
    values = hashes(2200)
    before = assign(values[:2000], tokens[:2000], (5000, 5000))
    after = assign(values, tokens, (5500, 5500))[:2000]
    assert ((before == POOL) & (after != POOL)).sum() + ((before != POOL) & (after == POOL)).sum() < 10


def test_impossible_splits() -> None:
    with pytest.raises(UserError, match="No document fits"):
        assign(hashes(3), np.array([100, 100, 100]), (50, 50))
    with pytest.raises(UserError, match="would be held out"):
        assign(hashes(3), np.array([10, 10, 10]), (10, 20))
    with pytest.raises(UserError, match="fewer than two"):
        halves(hashes(1), np.array([10]))


@given(st.lists(st.integers(1, 100), min_size=2, max_size=60))
def test_halves(tokens: list[int]) -> None:
    split = halves(hashes(len(tokens)), np.array(tokens))
    assert set(split.tolist()) == {VALID, TEST}
    assert abs(np.array(tokens)[split == VALID].sum() - sum(tokens) / 2) <= max(tokens)


def test_each_source_gets_its_share() -> None:
    tokens = np.full(1000, 10)
    source = ["large"] * 800 + ["small"] * 200
    split = assign(hashes(1000), tokens, (1000, 2000), source)
    held = split == TEST
    assert held[:800].sum() == 160
    assert held[800:].sum() == 40
    assert (split == VALID).sum() == 100
