"""Rows abreast compute what each row alone does, in every pass of a step, or are not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pplscape.engines import abreast
from pplscape.engines.abreast import attending_abreast, hidden_abreast, runs_abreast
from pplscape.engines.learner import TransformersLearner

SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def _network(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def _gpt2() -> Any:
    return transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)


@pytest.mark.parametrize("config", [transformers.LlamaConfig(**SMALL), transformers.Qwen3Config(**SMALL), _gpt2()])
def test_hidden_states_and_gradients_are_those_of_each_row_alone(config: Any) -> None:
    network, lengths = _network(config), (9, 5, 5, 2, 1)
    assert runs_abreast(network, 50)
    ids = torch.randint(0, 50, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    with attending_abreast(network):
        found = hidden_abreast(network, ids, lengths)
    alone = torch.cat([network.base_model(input_ids=r[None]).last_hidden_state[0] for r in ids.split(lengths)])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
    pull = torch.randn_like(alone)
    embedding = network.get_input_embeddings().weight
    ours, theirs = (torch.autograd.grad((h * pull).sum(), embedding)[0] for h in (found, alone))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert network.config._attn_implementation == "sdpa"


def test_models_that_cannot_are_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runs_abreast(_network(transformers.MistralConfig(**SMALL, sliding_window=4)), 50)
    bloom = transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)  # positions by bias
    assert not runs_abreast(_network(bloom), 50)
    eager = _network(transformers.LlamaConfig(**SMALL))
    eager.set_attn_implementation("eager")
    assert not runs_abreast(eager, 50)
    monkeypatch.setattr(abreast, "groupby", lambda lengths: [(sum(lengths), [0])])  # rows that see one another
    assert not runs_abreast(_network(transformers.LlamaConfig(**SMALL)), 50)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_a_step_abreast_is_a_step_padded(tiny_model_dir: Path, dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.integers(1, 300, n).astype(np.int32) for n in (30, 7, 7, 19, 2, 33)]
    found = []
    for rows_abreast in (True, False):
        learner = TransformersLearner(str(tiny_model_dir), dtype=dtype)
        learner.reset()
        assert learner._abreast
        learner._abreast, learner.batch_tokens = rows_abreast, 64
        found.append([value for _ in range(2) for value in learner.step(chunks, 1e-3).values()])
    assert found[0] == pytest.approx(found[1], rel=tolerance)


def test_positions_that_are_not_scored_are_left_out(tiny_model_dir: Path) -> None:
    """Without a BOS a row's first token is no target; with context before it, more are not."""
    learner = TransformersLearner(str(tiny_model_dir), dtype="float32", bos="none")
    context, chunk = np.arange(5, 15, dtype=np.int32), np.arange(20, 40, dtype=np.int32)
    rows = [learner._row(chunk, context), learner._row(chunk)]
    assert learner.model is not None  # loaded: says whether rows stand abreast
    totals = []
    for rows_abreast in (True, False):
        learner._abreast = rows_abreast
        with learner._attention():
            totals.append(learner._total(rows).item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
