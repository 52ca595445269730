"""Small models of many architectures with weights that matter, and what their likelihoods must be.

Fresh models of a library are nearly linear: logits of 0.1, norms of exactly 1, biases of 0. Here logits spread by
several nats, so that a forgotten scale, soft-cap, bias or window changes the result by far more than the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

WIDTH, WINDOW = 32, 8
SIZE = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SIZE, "num_key_value_heads": 1, "head_dim": 16}
MOE = {**SIZE, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
WINDOWED = ["sliding_attention", "full_attention"]

CONFIGURATIONS: dict[str, Callable[..., Any]] = {
    "gpt2": lambda **k: transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=128, **k),
    "gpt-neox": lambda **k: transformers.GPTNeoXConfig(
        max_position_embeddings=128, rotary_pct=0.25, use_parallel_residual=True, **SIZE, **k
    ),
    "opt": lambda **k: transformers.OPTConfig(
        hidden_size=WIDTH, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=WIDTH,
        max_position_embeddings=128, **k,
    ),
    "llama": lambda **k: transformers.LlamaConfig(tie_word_embeddings=True, **GROUPED, **k),
    "llama-untied": lambda **k: transformers.LlamaConfig(tie_word_embeddings=False, **GROUPED, **k),
    "mistral-window": lambda **k: transformers.MistralConfig(sliding_window=WINDOW, **GROUPED, **k),
    "qwen3": lambda **k: transformers.Qwen3Config(tie_word_embeddings=True, **GROUPED, **k),
    "gemma2": lambda **k: transformers.Gemma2Config(
        final_logit_softcapping=3.0, attn_logit_softcapping=2.0, sliding_window=WINDOW, layer_types=WINDOWED,
        query_pre_attn_scalar=16, **GROUPED, **k,
    ),
    "gemma3": lambda **k: transformers.Gemma3TextConfig(
        sliding_window=WINDOW, layer_types=WINDOWED, query_pre_attn_scalar=16, **GROUPED, **k
    ),
    "cohere": lambda **k: transformers.CohereConfig(
        logit_scale=0.25, use_qk_norm=True, num_key_value_heads=1, **SIZE, **k
    ),
    "cohere2": lambda **k: transformers.Cohere2Config(
        logit_scale=0.25, num_key_value_heads=1, sliding_window=WINDOW, layer_types=WINDOWED, **SIZE, **k
    ),
    "granite": lambda **k: transformers.GraniteConfig(
        logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3,
        num_key_value_heads=1, **SIZE, **k,
    ),
    "olmo2": lambda **k: transformers.Olmo2Config(num_key_value_heads=1, **SIZE, **k),
    "mixtral": lambda **k: transformers.MixtralConfig(
        num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=1, **SIZE, **k
    ),
    "olmoe": lambda **k: transformers.OlmoeConfig(**MOE, **k),
    "qwen3-moe": lambda **k: transformers.Qwen3MoeConfig(moe_intermediate_size=32, head_dim=16, **MOE, **k),
}  # fmt: skip
SCALED = {"cohere": 4.0, "cohere2": 4.0, "granite": 0.25, "gemma2": None}
"""Architectures whose head does more than multiply: what undoes their logits' factor (None: a soft-cap)."""
LENGTHS = (40, 7, 23, 64, 1, 64, 2)
"""Most of them longer than WINDOW."""


def spread(model: torch.nn.Module, seed: int, scale: float = 1.0) -> None:
    """Random weights: matrices of gain 1.5, logits that spread by about 3 nats, shaken norms and biases."""
    generator = torch.Generator().manual_seed(seed)
    tables = {id(e.weight) for e in (model.get_input_embeddings(), model.get_output_embeddings())}  # type: ignore[operator]
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 1:
                p += 0.2 * noise
            else:
                p.copy_(noise * (3 * scale if id(p) in tables else 1.5) / p.shape[-1] ** 0.5)


def build(name: str, tokenizer_dir: Path, folder: Path, seed: int = 0, scale: float = 1.0) -> str:
    """Write a small random model with the tokenizer; returns its folder. `scale` multiplies embeddings and head."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    config = CONFIGURATIONS[name](
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.bos_token_id,
        pad_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    spread(model, seed, scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def chunks_of(n_vocabulary: int, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    """Random ids without the tokenizer's first, which is BOS."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, n_vocabulary, n).astype(np.int32) for n in lengths]


class Reference:
    """The plain model in fp32 with eager attention: one sequence at a time, all logits, log-softmax in float64."""

    def __init__(self, folder: str):
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def log_p(self, ids: Sequence[int]) -> torch.Tensor:
        """[T, V] log-probabilities of the token after each of `ids`."""
        with torch.inference_mode():
            return torch.log_softmax(self.model(input_ids=torch.tensor([list(ids)])).logits[0].double(), -1)

    def nll(self, ids: Sequence[int]) -> np.ndarray:
        """[T - 1] NLL of ids[1:]."""
        return -self.log_p(ids[:-1]).gather(1, torch.tensor(list(ids))[1:, None])[:, 0].numpy()
