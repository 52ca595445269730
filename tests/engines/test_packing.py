"""How chunks become batches, and the layers packed for the forward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from pplscape.engines import packed
from pplscape.engines import transformers as module
from pplscape.engines.base import length_buckets
from pplscape.engines.learner import TransformersLearner
from pplscape.engines.packed import PackedLinear, can_pack, pack
from pplscape.engines.transformers import TransformersEngine
from pplscape.errors import UserError

packs = pytest.mark.skipif(not can_pack("cpu", torch.float32), reason="this PyTorch has no packed linear layers")


def _chunks(lengths: Any, n_vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, n_vocabulary, n).astype(np.int32) for n in lengths]


@given(st.lists(st.integers(0, 600), max_size=200), st.integers(1, 5000))
def test_buckets_are_a_partition_within_the_bound(lengths: list[int], max_tokens: int) -> None:
    batches = length_buckets(lengths, max_tokens)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens
    assert [len(b) for b in batches] == [len(b) for b in length_buckets(sorted(lengths), max_tokens)]  # lengths alone


def test_buckets_known_answer() -> None:
    """Room for 10 of each 100: the 50s would cost 100 more positions beside the 100s than apart, where to begin a batch
    costs 7 (1,000 / 128), the 98s 4; room for 2: nothing else fits."""
    lengths = [50, 100, 98, 100, 50, 98]
    assert [b.tolist() for b in length_buckets(lengths, 1000)] == [[1, 3, 2, 5], [0, 4]]
    assert [b.tolist() for b in length_buckets(lengths, 200)] == [[1, 3], [2, 5], [0, 4]]


@given(
    st.one_of(st.lists(st.integers(0, most), min_size=1, max_size=10) for most in (3, 40)),
    st.integers(1, 400), st.integers(1, 400),
)  # fmt: skip
def test_no_other_cut_costs_less(lengths: list[int], max_tokens: int, most: int) -> None:
    """All cuts of the sorted items, tried one by one."""

    def cost(batches: Sequence[Sequence[int]]) -> float:
        sizes = [len(b) * max(1, *b) for b in batches]
        fits = all(size <= most or len(b) == 1 for size, b in zip(sizes, batches, strict=True))
        return sum(sizes) + len(batches) * max(1, max_tokens // 128) if fits else math.inf

    ordered = sorted(lengths, reverse=True)
    cuts = itertools.product([False, True], repeat=len(lengths) - 1)
    tried = [np.split(ordered, [i + 1 for i, cut in enumerate(c) if cut]) for c in cuts]
    ours = [[lengths[i] for i in b] for b in length_buckets(lengths, max_tokens, most)]
    assert cost(ours) == min(map(cost, tried))


@pytest.mark.parametrize("max_tokens", module.BATCH_TOKENS.values())
@pytest.mark.parametrize("kind", ["short", "mixed", "even"])
def test_less_than_three_percent_is_padding(kind: str, max_tokens: int) -> None:
    rng = np.random.default_rng(0)
    lengths = {
        "short": np.clip(rng.lognormal(np.log(40), 0.5, 4096), 3, 512).astype(int),
        "mixed": np.where(rng.random(2048) < 0.7, 512, rng.integers(64, 512, 2048)),
        "even": rng.integers(1, 513, 2048),
    }[kind]
    computed = sum(len(b) * lengths[b].max() for b in length_buckets(lengths.tolist(), max_tokens))
    assert 0 <= 1 - lengths.sum() / computed < 0.03


def test_the_engine_counts_the_padding_it_computes(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted at the network's door: positions that enter it, and those that carry no token of a chunk."""
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    lengths = np.clip(np.random.default_rng(1).lognormal(np.log(40), 0.5, 1500), 3, 200).astype(int)
    entered = []
    monkeypatch.setattr(
        engine.model.base_model, "forward", _spy(engine.model.base_model.forward, entered), raising=True
    )
    engine.nll(_chunks(lengths, 400))
    assert sum(entered) == engine.work.inputs + engine.work.padding
    assert engine.work.inputs == lengths.sum()  # BOS enters, the last token does not
    assert engine.work.padding / sum(entered) < 0.03


def _spy(forward: Callable[..., Any], entered: list[int]) -> Callable[..., Any]:
    def call(input_ids: torch.Tensor, **options: Any) -> Any:
        entered.append(input_ids.numel())
        return forward(input_ids=input_ids, **options)

    return call


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: RuntimeError, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    engine.lanes = 1  # what several do is in test_lanes.py
    chunks = _chunks([100] * 25 + [3, 60, 250, 7], 400)
    expected = engine.nll(chunks)
    real, sizes = engine._batch_nll, []

    def small_memory(rows: Any, train: bool = False) -> torch.Tensor:
        sizes.append(len(rows) * max(r.n_inputs for r in rows))
        if sizes[-1] > 300:
            raise error
        return real(rows, train)

    monkeypatch.setattr(engine, "_batch_nll", small_memory)
    with pytest.warns(UserWarning, match="at most 2"):
        found = engine.nll(chunks)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert engine.work.halvings == sum(s > 300 for s in sizes) <= 3  # remembered: a size fails once
    assert 150 <= engine.batch_tokens <= 300
    engine.nll(chunks)
    assert max(sizes[-3:]) <= 300


def test_a_row_too_large_for_memory_is_a_users_error(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")

    def no_memory(rows: Any, train: bool = False) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_batch_nll", no_memory)
    with pytest.warns(UserWarning, match="Out of memory"), pytest.raises(UserError, match="one row of 40"):
        engine.nll(_chunks([40, 40], 400))


def test_what_this_machine_says_when_memory_is_out_is_known() -> None:
    """Not what the other tests make it say: its own words, of more than any machine can address."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert module.out_of_memory(caught.value), str(caught.value)


def test_other_errors_are_not_taken_for_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    monkeypatch.setattr(engine.model.base_model, "forward", lambda **_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        engine.nll(_chunks([40, 40], 400))


@packs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_packed_layer_equals_plain(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 24) if kind == "linear" else Conv1D(24, 40)
    weight = layer.weight if kind == "linear" else layer.weight.t()
    x = torch.randn(3, 7, 40)
    with torch.inference_mode():
        found = PackedLinear(weight, layer.bias, dtype)(x)
        expected = x.to(dtype).double() @ weight.to(dtype).double().t() + layer.bias.to(dtype).double()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=1e-6 if dtype == torch.float32 else 0.01, rtol=0.005)


@packs
def test_the_engine_packs_and_the_learner_does_not(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    learner = TransformersLearner(str(tiny_model_dir), dtype="float32")
    chunks = _chunks([60, 5], 400)
    for a, b in zip(engine.nll(chunks), learner.nll(chunks), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert any(isinstance(m, PackedLinear) for m in engine.model.modules())
    assert not any(isinstance(m, PackedLinear) for m in learner.model.modules())


@packs
def test_a_model_first_used_in_bfloat16_is_packed_too(tiny_model_dir: Path) -> None:
    """Its weights are loaded inside the autocast of the first call."""
    chunks = _chunks([60, 5], 400)
    exact = TransformersEngine(str(tiny_model_dir), dtype="float32").nll(chunks)
    for a, b in zip(TransformersEngine(str(tiny_model_dir), dtype="bfloat16").nll(chunks), exact, strict=True):
        np.testing.assert_allclose(a, b, atol=0.05)


@packs
def test_a_model_that_reads_its_weights_is_loaded_again_unpacked(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TransformersEngine(str(tiny_model_dir), dtype="float32").nll(_chunks([30], 400))
    monkeypatch.setattr(module, "pack", lambda *a: pack(*a) and False)  # packed, then found to differ
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    np.testing.assert_allclose(engine.nll(_chunks([30], 400))[0], expected[0], atol=1e-5)
    assert not any(isinstance(m, PackedLinear) for m in engine.model.modules())


@packs
def test_packing_is_refused_where_a_weight_is_read(tiny_model_dir: Path) -> None:
    model = module.transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(nn.functional.silu(x @ mlp.gate_proj.weight.t()) * mlp.up_proj(x))
    assert not pack(model, torch.float32, 400)


@packs
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_too_large_to_lay_out_gives_the_same(
    dtype: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = _chunks([5, 90, 40], 400)
    expected = TransformersEngine(str(tiny_model_dir), dtype=dtype).nll(chunks)
    monkeypatch.setattr(packed, "HEAD_BYTES", 0)
    engine = TransformersEngine(str(tiny_model_dir), dtype=dtype)
    for found, laid_out in zip(engine.nll(chunks), expected, strict=True):
        np.testing.assert_allclose(found, laid_out, atol=2e-5 if dtype == "float32" else 0.05)
    assert not any(isinstance(tile, PackedLinear) for tile in engine._packed_tiles)


@packs
@pytest.mark.parametrize("lanes", [1, 2])
def test_no_memory_to_lay_out_the_head(lanes: int, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is read as it is; rows are not taken to be too many."""
    chunks = _chunks([100] * 30, 400)
    expected = TransformersEngine(str(tiny_model_dir), dtype="float32").nll(chunks)

    def no_memory(*given: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module, "packed_tiles", no_memory)
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    engine.lanes = lanes
    with pytest.warns(UserWarning, match="vocabulary head is read as it is"):
        found = engine.nll(chunks)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert (engine.work.halvings, engine.work.lanes) == (0, lanes)
