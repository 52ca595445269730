"""The vocabulary head: how hidden states become logits in the architectures we know."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from pplscape.errors import UserError


def head_logits(model: Any, hidden_nd: torch.Tensor) -> torch.Tensor:
    """The vocabulary head, with the scalings that Cohere, Granite and Gemma apply after it."""
    return scaled_logits(model, model.get_output_embeddings()(hidden_nd))


def scaled_logits(model: Any, logits: torch.Tensor) -> torch.Tensor:
    """What Cohere, Granite and Gemma do to the head's product; position by position and column by column."""
    config = model.config.get_text_config()
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    logits = logits * scale if scale != 1.0 else logits
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def cut_head(
    weight_Vd: torch.Tensor, bias_V: torch.Tensor | None, width: int
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of `width` columns of the vocabulary each, in order; views."""
    weights = weight_Vd.split(width)
    return list(zip(weights, [None] * len(weights) if bias_V is None else bias_V.split(width), strict=True))


def head_is_linear(model: Any) -> bool:
    """True if the head is one matrix product: no bias, scaling or cap. For heads that are plain (`head_is_plain`)."""
    config = model.config.get_text_config()
    changed = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")]
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and head.bias is None and all(c in (None, 1.0) for c in changed)


def head_is_plain(model: Any, n_vocabulary: int) -> bool:
    """True if hidden states + `head_logits` reproduce the model's own logits; else the model's logits are used whole.

    UserError if the model is not causal. A model that overflows gives NaN on both sides, which is another matter.
    """
    ids = torch.arange(1, 9, device=model.device)[None] % n_vocabulary
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % n_vocabulary
    with torch.inference_mode(), torch.autocast(model.device.type, enabled=False):
        own = model(input_ids=ids, use_cache=False).logits.float()
        other = model(input_ids=changed, use_cache=False).logits.float()
        if not torch.allclose(own[:, :-1], other[:, :-1], atol=1e-2, rtol=1e-2, equal_nan=True):
            raise UserError("This model is not causal: it sees later tokens, so its perplexities mean nothing.")
        try:
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours = head_logits(model, hidden).float()
        except (AttributeError, TypeError):
            ours = own[:0]
    same = ours.shape == own.shape and torch.allclose(ours, own, atol=1e-3, rtol=1e-3, equal_nan=True)
    if not same:
        warnings.warn("This architecture scales its logits in an unknown way: full logits are used.", stacklevel=4)
    return same
