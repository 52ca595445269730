"""Training any Hugging Face causal language model: fp32 weights, AdamW, autocast to the compute dtype."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pplscape.engines.base import Ids, length_buckets
from pplscape.engines.transformers import TransformersEngine

WEIGHT_DECAY, BETAS, CLIP_NORM = 0.1, (0.9, 0.95), 1.0


class TransformersLearner(TransformersEngine):
    """A `TransformersEngine` that can be trained; its weights are fp32 on every device."""

    dtypes = ("float32", "bfloat16")

    def __init__(self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto"):
        super().__init__(model, revision=revision, dtype=dtype, bos=bos)
        self.optimizer: torch.optim.Optimizer | None = None

    def _default_dtype(self) -> str:
        """bfloat16 on CUDA and where the CPU multiplies in it."""
        fast = self.device == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return "bfloat16" if fast else "float32"

    def _weights_dtype(self) -> torch.dtype:
        return torch.float32

    @cached_property
    def _base(self) -> Any:
        """The base model's weights, taken at the first `reset`, before any step."""
        return copy.deepcopy(self.model.state_dict())

    def reset(self) -> None:
        self.model.load_state_dict(self._base)
        self.model.zero_grad(set_to_none=True)  # a step that failed leaves its gradients behind
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    def step(self, chunks: Sequence[Ids], learning_rate: float) -> float:
        assert self.optimizer is not None, "reset() first"
        rows = [self._row(chunk) for chunk in chunks]
        targets = sum(r.n_targets for r in rows)
        total = 0.0
        for batch in length_buckets([len(r.ids) for r in rows], self.batch_tokens):
            with self._autocast():
                loss = self._batch_nll([rows[i] for i in batch], train=True).sum() / targets
            loss.backward()
            total += loss.item()
        if not np.isfinite(total):
            raise FloatingPointError(f"training loss is {total}")
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def snapshot(self) -> Any:
        assert self.optimizer is not None
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def restore(self, snapshot: Any) -> None:
        assert self.optimizer is not None
        weights, optimizer = copy.deepcopy(snapshot)
        self.model.load_state_dict(weights)
        self.model.zero_grad(set_to_none=True)
        self.optimizer.load_state_dict(optimizer)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
