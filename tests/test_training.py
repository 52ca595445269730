"""Schedule and loop: exact token counts, learning rates with known values, whole runs on the fake learner."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplscape.engines.base import even_batches, length_buckets
from pplscape.engines.fake import FakeEngine
from pplscape.training.evaluate import measure
from pplscape.training.loop import (
    Progressed,
    Replay,
    batches_of,
    constant_steps,
    cooldown_steps,
    run_steps,
    train_steps,
)  # fmt: skip
from pplscape.training.schedule import Recipe

RECIPE = Recipe(learning_rate=1.0, warmup_tokens=400, cooldown_share=0.25, step_tokens=100)


def test_learning_rate_known_values() -> None:
    assert RECIPE.constant(0) == 0.25  # the first step ends after 100 of 400 warm-up tokens
    assert RECIPE.constant(300) == RECIPE.constant(10_000) == 1.0
    assert RECIPE.cooled(1000, 0, 400) == 1.0
    assert RECIPE.cooled(1100, 100, 400) == 0.5  # 1 - sqrt(1/4)
    assert RECIPE.cooled(1400, 400, 400) == 0.0
    assert RECIPE.split(1000) == (750, 250)


def test_a_cooldown_takes_the_rate_of_the_middle_of_each_step() -> None:
    chunks = [np.zeros(50, np.int32)] * 4
    shares = [s.learning_rate for s in cooldown_steps(chunks, RECIPE, 1000)]
    assert shares == pytest.approx([1 - 0.25**0.5, 1 - 0.75**0.5])  # two steps of 100: at 50 and 150 of 200
    (only,) = cooldown_steps(chunks[:1], RECIPE, 1000)
    assert only.learning_rate == pytest.approx(1 - 0.5**0.5)  # a pilot with one step of cooldown is annealed too


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_steps_drop_no_token_and_end_at_most_one_chunk_late(lengths: list[int], step_tokens: int) -> None:
    chunks = [np.zeros(n, np.int32) for n in lengths]
    steps = list(batches_of(chunks, step_tokens))
    assert [len(c) for s in steps for c in s] == lengths
    for step in steps[:-1]:
        total = sum(len(c) for c in step)
        assert step_tokens <= total < step_tokens + len(step[-1])


@given(st.lists(st.integers(1, 300), max_size=50), st.integers(1, 1000))
def test_buckets_hold_every_item_once_within_the_limit(lengths: list[int], limit: int) -> None:
    batches = length_buckets(lengths, limit)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for b in batches:
        assert len(b) == 1 or len(b) * max(lengths[i] for i in b) <= limit


@given(st.lists(st.integers(1, 300), max_size=50), st.integers(1, 1000))
def test_even_batches_hold_every_item_once_within_the_limit(lengths: list[int], limit: int) -> None:
    batches = even_batches(lengths, limit)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(len(b) == 1 or sum(lengths[i] for i in b) <= limit for b in batches)


def test_even_batches_known_cut() -> None:
    """2,300 tokens in two of about 1,150, not in one of 2,048 and a rest."""
    batches = even_batches([100] * 23, 2048)
    assert [len(b) for b in batches] == [12, 11]
    assert [b.tolist() for b in even_batches([1, 5, 3], 5)] == [[1], [2, 0]]


def _chunks(n: int, vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.cumsum(rng.integers(1, 3, 40)).astype(np.int32) % vocabulary for _ in range(n)]


def _train_run(
    learner: FakeEngine, chunks: list[np.ndarray], recipe: Recipe, replay: Replay | None = None
) -> Progressed:
    learner.reset()
    at = Progressed()
    train_steps(learner, run_steps(chunks, recipe), recipe, at, replay)
    return at


def test_a_run_counts_every_token_and_learns(tiny_tokenizer_dir: Path) -> None:
    learner = FakeEngine(str(tiny_tokenizer_dir))
    chunks = _chunks(30, 50)
    before = np.concatenate(learner.nll(chunks)).mean()
    at = _train_run(learner, chunks, RECIPE)
    assert at.tokens == 30 * 40
    assert at.steps[-1]["tokens"] == 1200
    assert np.concatenate(learner.nll(chunks)).mean() < before - 1
    rates = [s["learning_rate"] for s in at.steps]
    assert rates[0] == 0.25  # 100 of 400 warm-up tokens
    assert rates[-1] < rates[len(rates) // 2]


def test_trunk_with_branch_equals_a_separate_run(tiny_tokenizer_dir: Path) -> None:
    """A branch off the trunk and a run of its own over the same chunks end in the same weights."""
    chunks = _chunks(20, 50)
    alone = FakeEngine(str(tiny_tokenizer_dir))
    _train_run(alone, chunks, RECIPE)
    branched = FakeEngine(str(tiny_tokenizer_dir))
    branched.reset()
    at = Progressed()
    train_steps(branched, constant_steps(chunks[:15], RECIPE, 0), RECIPE, at)
    trunk = branched.snapshot()
    train_steps(branched, cooldown_steps(chunks[15:], RECIPE, at.tokens), RECIPE, at.copy())
    np.testing.assert_array_equal(alone.counts, branched.counts)
    branched.restore(trunk)
    train_steps(branched, constant_steps(chunks[15:], RECIPE, at.tokens), RECIPE, at)
    assert at.tokens == 800


@pytest.mark.parametrize(("share", "length"), [(0.5, 50), (0.05, 50), (0.05, 130), (0.2, 400), (0.8, 7)])
def test_replay_takes_its_share_and_is_not_counted_as_domain_tokens(
    tiny_tokenizer_dir: Path, share: float, length: int
) -> None:
    """To half a chunk, also where one chunk is more than many steps' share."""
    recipe = Recipe(learning_rate=1.0, warmup_tokens=0, cooldown_share=0.25, step_tokens=100, replay_share=share)
    replay = Replay([np.full(length, 3)] * 3)
    at = _train_run(FakeEngine(str(tiny_tokenizer_dir)), [np.full(40, 5)] * 100, recipe, replay)
    assert at.tokens == 4000
    assert abs(at.replay_tokens - 4000 * share / (1 - share)) <= length / 2


def test_standard_error_is_that_of_a_ratio(tiny_tokenizer_dir: Path) -> None:
    engine = FakeEngine(str(tiny_tokenizer_dir))
    found = measure(engine, _chunks(4, 50), ["a", "a", "b", "c"], [10, 10, 20, 30])
    assert found.doc_id == ["a", "b", "c"]
    assert found.n_tokens.tolist() == [80, 40, 40]
    assert found.loss == pytest.approx(math.log(400), rel=1e-6)  # a fresh fake model is uniform over its 400 tokens
    assert found.bits_per_byte == pytest.approx(160 * math.log2(400) / 70)
    assert found.standard_error == pytest.approx(0, abs=1e-6)
