"""Rows abreast: several rows in one sequence without padding, each attending to itself alone. For training on a CPU.

A training step has few rows, of any length. Padded in groups of similar length they make many small batches; abreast,
linear layers, norms and the vocabulary head see all their tokens at once, and only attention is computed row by row
(rows of one length together, no mask). It is computed in fp32: the backward pass of torch's bfloat16 kernel takes three
times as long for 130 tokens. Positions begin at 0 in every row. A model is used this way only if its hidden states are
then those of each row alone (`runs_abreast`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "pplscape_abreast"
TOLERANCE = 1e-4
"""What a hidden state abreast and alone may differ by."""
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Keys of configurations whose models see less than a whole row, which they say by a mask."""


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    row_lengths: Sequence[int] | None = None, **options: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' SDPA of every row by itself: [1, H, T, d] each -> [1, T, H, d], T the sum of `row_lengths`."""
    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = [(length, len(list(same))) for length, same in groupby(row_lengths)]
    sizes = [length * n for length, n in groups]
    with torch.autocast(query.device.type, enabled=False):
        parts = zip(*(x[0].float().split(sizes, dim=1) for x in (query, key, value)), strict=True)
        found = []
        for (length, n), part in zip(groups, parts, strict=True):
            q, k, v = (x.unflatten(1, (n, length)).transpose(0, 1) for x in part)
            found.append(sdpa_attention_forward(module, q, k, v, None, **options)[0])
    return torch.cat([x.flatten(0, 1) for x in found])[None], None


AttentionInterface.register(NAME, attend)


@contextmanager
def attending_abreast(model: Any) -> Iterator[None]:
    """Inside, the model's attention is `attend`, in the forward pass and in what the backward pass computes again."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def hidden_abreast(model: Any, ids_T: torch.Tensor, row_lengths: Sequence[int]) -> torch.Tensor:
    """[T, d] last hidden states of rows that stand one after the other in `ids_T`; inside `attending_abreast`."""
    positions_T = torch.cat([torch.arange(n, device=ids_T.device) for n in row_lengths])
    return model.base_model(
        input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, row_lengths=tuple(row_lengths)
    ).last_hidden_state[0]


def runs_abreast(model: Any, n_vocabulary: int) -> bool:
    """Whether hidden states of rows abreast are those of each row alone; tried on three short rows."""
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or any(getattr(config, name, None) for name in WINDOWS):
        return False
    ids_T, lengths = torch.arange(1, 16, device=model.device) % n_vocabulary, (7, 4, 4)
    with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
        try:
            with attending_abreast(model):
                found_Td = hidden_abreast(model, ids_T, lengths)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # its forward pass cannot be told of rows
            return False
        alone = [
            model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in ids_T.split(lengths)
        ]
    return torch.allclose(found_Td, torch.cat(alone), atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)
