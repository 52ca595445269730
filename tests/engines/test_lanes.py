"""Several batches at a time: order, threads, errors, and the same numbers as one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from engines.test_memory import Largest

from pplscape.engines import likelihood
from pplscape.engines.lanes import LANE_BYTES, in_lanes, keeps_state, lanes_for
from pplscape.engines.learner import TransformersLearner
from pplscape.engines.packed import can_pack
from pplscape.engines.transformers import TransformersEngine

packs = pytest.mark.skipif(not can_pack("cpu", torch.float32), reason="lanes are for packed layers")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_how_many_lanes() -> None:
    assert [lanes_for(n, 1) for n in (1, 2, 4, 7, 12, 64)] == [1, 2, 4, 7, 6, 8]
    assert lanes_for(11, 1) == 1, "eleven threads can only be shared out to one or to eleven"
    assert [lanes_for(8, LANE_BYTES // n) for n in (8, 4, 3, 1)] == [8, 4, 2, 1]
    assert lanes_for(8, 2 * LANE_BYTES) == 1


def test_lanes_work_at_a_time_with_shares_of_the_threads_in_order(threads: Callable[[int], None]) -> None:
    threads(4)
    meeting = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int, int]:
        meeting.wait()  # nobody passes alone
        return item, torch.get_num_threads(), threading.get_ident()

    found = in_lanes(work, range(8), 2)
    assert [item for item, _, _ in found] == list(range(8))
    assert {n for _, n, _ in found} == {2}
    assert len({who for _, _, who in found}) == 2
    assert threading.get_ident() not in {who for _, _, who in found}
    assert torch.get_num_threads() == _threads_of_a_new_thread() == 4, "as before"


def test_the_first_error_ends_all(threads: Callable[[int], None]) -> None:
    threads(2)
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 2:
            raise ValueError(f"item {item}")
        time.sleep(0.02)  # all 1,000 would take 10 s

    with pytest.raises(ValueError, match="item 2"):
        in_lanes(work, range(1000), 2)
    assert len(begun) < 1000
    assert torch.get_num_threads() == _threads_of_a_new_thread() == 2


def test_a_lane_that_cannot_begin_is_an_error_and_no_endless_wait(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    real, calls = torch.set_num_threads, []

    def failing(n: int) -> None:
        calls.append(n)
        if n == 1 and calls.count(1) == 2:  # the second lane
            raise RuntimeError("no more threads")
        real(n)

    monkeypatch.setattr(torch, "set_num_threads", failing)
    with pytest.raises(RuntimeError):
        in_lanes(str, range(8), 2)
    assert torch.get_num_threads() == _threads_of_a_new_thread() == 2


def test_fewer_threads_than_lanes(threads: Callable[[int], None]) -> None:
    """As where the number was lowered after an engine had its lanes."""
    threads(1)
    assert in_lanes(lambda item: torch.get_num_threads(), range(4), 2) == [1] * 4


def _chunks(n: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 400, length).astype(np.int32) for length in rng.integers(2, 250, n)]


@packs
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lanes_of_one_thread_score_as_one_thread(
    dtype: str, tiny_model_dir: Path, threads: Callable[[int], None]
) -> None:
    """Bit for bit: a batch does not know how many lanes there are."""
    found = {}
    for n in (1, 2, 3):
        threads(n)
        engine = TransformersEngine(str(tiny_model_dir), dtype=dtype)
        found[n] = engine.nll(_chunks())
        assert engine.work.lanes == n
    for n in (2, 3):
        for a, b in zip(found[1], found[n], strict=True):
            np.testing.assert_array_equal(a, b)


@packs
def test_batches_are_the_same_for_any_number_of_threads(tiny_model_dir: Path, threads: Callable[[int], None]) -> None:
    """Little text makes batches of 512 tokens, more text larger ones, and never larger than 2,048."""
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    sizes = {}
    for n in (4, 64, 500):
        rows = [engine._row(np.full(250, 5, np.int32))] * n
        cut = {}
        for count in (1, 3):
            threads(count)
            cut[count] = [len(b) for b in engine._batches(rows)]
        assert cut[1] == cut[3]
        sizes[n] = max(cut[1])
    assert sizes == {4: 512 // 250, 64: 64 * 250 // 16 // 250, 500: 2048 // 250}


@packs
def test_few_batches_take_all_threads_one_after_the_other(
    tiny_model_dir: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    real, seen = engine._batch_nll, []

    def spy(rows: Any, train: bool = False) -> torch.Tensor:
        seen.append((torch.get_num_threads(), threading.current_thread() is threading.main_thread()))
        return real(rows, train)

    monkeypatch.setattr(engine, "_batch_nll", spy)
    engine.nll([np.full(250, 5, np.int32)] * 6)  # two a batch
    assert seen == [(2, True)] * 3
    assert engine.nll([]) == []


@packs
def test_an_error_in_a_lane_names_its_batch(
    tiny_model_dir: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    chunks, real = _chunks(), engine._batch_nll
    third = engine._batches([engine._row(c) for c in chunks])[2]

    def failing(rows: Any, train: bool = False) -> torch.Tensor:
        if rows[0].n_inputs == len(chunks[third[0]]):
            raise RuntimeError("something broke")
        return real(rows, train)

    monkeypatch.setattr(engine, "_batch_nll", failing)
    with pytest.raises(RuntimeError, match="something broke") as caught:
        engine.nll(chunks)
    assert caught.value.__notes__ == [f"In a batch of {len(third)} chunks of up to {len(chunks[third[0]])} tokens."]


@packs
def test_too_little_memory_for_two_at_a_time(
    tiny_model_dir: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fits alone is not halved."""
    threads(2)
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    chunks = _chunks()
    expected, real = engine.nll(chunks), engine._batch_nll

    def small_memory(rows: Any, train: bool = False) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return real(rows, train)

    monkeypatch.setattr(engine, "_batch_nll", small_memory)
    with pytest.warns(UserWarning, match="one batch is computed at a time"):
        found = engine.nll(chunks)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (engine.lanes, engine.work.lanes, engine.work.halvings) == (1, 1, 0)
    engine.nll(chunks)  # without another attempt


@packs
def test_every_lane_keeps_within_a_tile_of_logits(
    tiny_model_dir: Path, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is that of one lane times their number: no tensor of a lane grows with the vocabulary."""
    monkeypatch.setitem(likelihood.TILE_COLUMNS, "cpu", 256)
    bound = 4 * 256 * likelihood.TILE_ROWS["cpu"]
    threads(2)
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    engine.nll(_chunks(1))  # load
    real, found = engine._batch_nll, []

    def watched(rows: Any, train: bool = False) -> torch.Tensor:
        with Largest() as largest:
            values = real(rows, train)
        found.append(largest.bytes)
        return values

    monkeypatch.setattr(engine, "_batch_nll", watched)
    engine.nll(_chunks())
    assert engine.work.lanes == 2
    assert bound // 4 < max(found) <= bound
    assert engine.batch_tokens * len(engine.tokenizer) * 4 > 3 * bound, "all logits of a batch"


@pytest.mark.parametrize(
    ("rope", "disturbs"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, False),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, False),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, True),
    ],
)
def test_a_network_whose_positions_follow_the_batch_has_one_lane(rope: dict[str, Any], disturbs: bool) -> None:
    """Such a network's buffers are others after a long batch than before it."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, rope_parameters=rope,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config).eval()
    before = network.model.rotary_emb.inv_freq.clone()
    with torch.inference_mode():
        network(input_ids=torch.ones(1, 20, dtype=torch.long))
    assert torch.equal(before, network.model.rotary_emb.inv_freq) != disturbs
    assert keeps_state(network) == disturbs


@packs
def test_a_learner_has_one_lane(tiny_model_dir: Path, threads: Callable[[int], None]) -> None:
    threads(2)
    assert TransformersLearner(str(tiny_model_dir), dtype="float32").lanes == 1
