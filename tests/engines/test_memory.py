"""Memory and values of the tiled vocabulary head."""

from __future__ import annotations

import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pplscape.engines import likelihood
from pplscape.engines.likelihood import tiled_nll
from pplscape.engines.transformers import TransformersEngine


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor) and not t.is_mkldnn:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes() if t._base is None else 0)
        return out


def _engine(n_vocabulary: int, tokenizer_dir: Path, folder: Path) -> TransformersEngine:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    config = transformers.LlamaConfig(
        vocab_size=n_vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TransformersEngine(str(folder), dtype="float32")


@pytest.mark.parametrize(("rows", "length"), [(2, 100), (16, 100), (2, 1500)])
@pytest.mark.parametrize("n_vocabulary", [4_000, 64_000])
def test_no_tensor_grows_with_the_vocabulary(
    n_vocabulary: int, rows: int, length: int, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """The largest tensor is a tile of logits, whatever vocabulary x length x batch is (here up to 768 MB)."""
    engine = _engine(n_vocabulary, tiny_tokenizer_dir, tmp_path)
    chunks = [np.full(length, 5, np.int32)] * rows
    engine.nll(chunks[:1])  # load
    engine.lanes = 1  # the measurement sees its own thread; test_lanes.py looks into lanes
    with Largest() as largest:
        engine.nll(chunks)
    bound = 4 * likelihood.TILE_ROWS["cpu"] * likelihood.TILE_COLUMNS["cpu"]
    assert largest.bytes <= bound
    if rows * length * n_vocabulary * 4 > 2 * bound:
        assert largest.bytes > bound // 8, "the measurement sees the tiles"


def test_the_measurement_sees_full_logits(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    engine = _engine(64_000, tiny_tokenizer_dir, tmp_path)
    with torch.inference_mode(), Largest() as largest:
        engine.model(input_ids=torch.ones(2, 100, dtype=torch.long))
    assert largest.bytes == 2 * 100 * 64_000 * 4


def _in_tiles(
    rows: int, columns: int, hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    with unittest.mock.patch.dict(likelihood.TILE_ROWS, cpu=rows):
        return tiled_nll(hidden, targets, [lambda h, w=w: h @ w.t() for w in weight.split(columns)])


@given(st.integers(1, 9), st.integers(2, 40), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_tiles_equal_log_softmax(n: int, vocabulary: int, columns: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=generator) * 5
    weight = torch.randn(vocabulary, 6, generator=generator) * 5  # logits up to some hundreds: the shift matters
    targets = torch.randint(0, vocabulary, (n,), generator=generator)
    found = _in_tiles(rows, columns, hidden, targets, weight)
    expected = -torch.log_softmax(hidden.double() @ weight.double().t(), -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min, -1e6, -997.3, -703.9, -80.0])
@pytest.mark.parametrize("which", [[0], [3], [0, 1, 2], [0, 1, 2, 3, 4, 5]])
def test_masked_columns_count_as_nothing(masked: float, which: list[int]) -> None:
    """Wherever they stand in a tile of three columns, whole tiles included: the sum is that of the others."""
    weight = torch.tensor([0.5, 4.7, 2.0, 0.0, 1.5, -0.5, 3.0, 1.0])[:, None]
    weight[which] = masked
    found = _in_tiles(2, 3, torch.ones(2, 1), torch.tensor([6, 7]), weight)
    kept = np.delete(weight[:, 0].numpy().astype(np.float64), which)
    expected = np.log(np.exp(kept).sum()) - np.array([3.0, 1.0])
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_many_tiles_add_no_error() -> None:
    """30,000 equal logits in tiles of one: a running sum in float32 is off by some 1e-5."""
    found = _in_tiles(1, 1, torch.zeros(1, 1), torch.tensor([7]), torch.zeros(30_000, 1))
    assert found.item() == pytest.approx(np.log(30_000), abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_shows(bad: float) -> None:
    hidden, weight = torch.eye(3), torch.zeros(5, 3)
    weight[4, 1] = bad
    for tiles in (5, 2):  # all columns in one tile; the last two in a third one
        found = _in_tiles(3, tiles, hidden, torch.tensor([0, 0, 4]), weight)
        assert not found[1].isfinite()
        first = _in_tiles(3, tiles, hidden, torch.tensor([0, 0, 4]), weight.flip(0))
        assert not first[1].isfinite()


def test_nothing_to_score() -> None:
    found = tiled_nll(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), [lambda h: h.new_zeros(0, 5)])
    assert found.shape == (0,)
