"""Scoring and training with any Hugging Face causal language model.

A row is BOS + chunk, padded on the right. Attention is causal, so padding needs no mask and chunks never see one
another. The vocabulary head runs on slices of positions: the full [batch, length, vocabulary] logits never exist.

Shapes: B rows, T positions, N = scored positions of a batch, d hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.checkpoint import checkpoint

from pplscape.engines.base import EngineFacts, Ids, Nll, encode, length_buckets
from pplscape.errors import UserError
from pplscape.manifest import fingerprint, sha256_file
from pplscape.text.tokenizer import load_tokenizer, model_name, tokenizer_hash

LOGIT_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Upper bound on the fp32 logits alive at once. On a CPU small enough for the caches and for malloc to reuse: 8 MiB
score 1.65 times as fast as 128 MiB (fp32) and train as fast."""
DTYPES = ("float32", "float16", "bfloat16")
"""Training excludes float16: it would need loss scaling."""
CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 4096, 32768
WEIGHT_DECAY, BETAS, CLIP_NORM = 0.1, (0.9, 0.95), 1.0


def _cannot_load(what: str, model: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Cannot load the {what} of '{model}': {first_line} Give a Hugging Face id or a local folder with config.json."
    )


def default_dtype(device: str, train: bool) -> str:
    """float32 for scoring on a CPU; bfloat16 on CUDA, and for training where the CPU multiplies in bfloat16."""
    if device == "cuda":
        return "bfloat16"
    return "bfloat16" if train and torch.cpu._is_avx512_bf16_supported() else "float32"


class TransformersEngine:
    """See the module's docstring. `train=True` keeps fp32 weights and adds an AdamW optimiser."""

    def __init__(
        self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto", train: bool = False
    ):
        transformers.utils.logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = default_dtype(self.device, train) if dtype == "auto" else dtype
        self.tokenizer = load_tokenizer(model, revision)
        if self.tokenizer.chat_template is not None:
            warnings.warn(f"{model} has a chat template: continual pre-training harms chat-tuned models.", stacklevel=2)
        if dtype not in DTYPES or (train and dtype == "float16"):
            allowed = ", ".join(d for d in DTYPES if not train or d != "float16")
            raise UserError(f"dtype '{dtype}' cannot be used here; choose one of auto, {allowed}.")
        self._compute = getattr(torch, dtype)
        weights = torch.float32 if train or self.device == "cpu" else self._compute
        self.model = self._load(model, revision, weights)
        self.prefix = self._prefix(bos)
        self._head_is_plain = self._check_head()
        self.batch_tokens = CUDA_BATCH_TOKENS if self.device == "cuda" else CPU_BATCH_TOKENS
        self.facts = EngineFacts(
            engine="transformers",
            model=model_name(model),
            revision=revision,
            weights=weights_hash(model, self.model),
            tokenizer=tokenizer_hash(self.tokenizer),
            dtype=dtype,
            bos=self.tokenizer.convert_ids_to_tokens(self.prefix[0]) if self.prefix else "none",
            n_params=sum(p.numel() for p in self.model.parameters()),
            max_positions=getattr(self.model.config, "max_position_embeddings", None),
        )
        self._base = copy.deepcopy(self.model.state_dict()) if train else None
        self.optimizer: torch.optim.Optimizer | None = None

    def _load(self, model: str, revision: str | None, weights: torch.dtype) -> Any:
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                model, revision=revision, dtype=weights, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise UserError(_cannot_load("model", model, error)) from error
        if len(self.tokenizer) > loaded.get_input_embeddings().num_embeddings:
            raise UserError(
                f"The tokenizer of {model} has {len(self.tokenizer)} tokens, its model only "
                f"{loaded.get_input_embeddings().num_embeddings}; they do not belong together."
            )
        return loaded.to(self.device).eval()

    def _prefix(self, bos: str) -> list[int]:
        """BOS policy: `auto` takes BOS, else EOS, else nothing."""
        candidates = {
            "auto": [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id],
            "bos": [self.tokenizer.bos_token_id],
            "eos": [self.tokenizer.eos_token_id],
            "none": [],
        }
        if bos not in candidates:
            raise UserError(f"Unknown BOS policy '{bos}'; choose one of {', '.join(candidates)}.")
        found = [c for c in candidates[bos] if c is not None]
        if bos in ("bos", "eos") and not found:
            raise UserError(f"The tokenizer has no {bos.upper()} token; choose --bos none or auto.")
        return found[:1]

    # ---- scoring -------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return encode(self.tokenizer, texts)

    def nll(self, chunks: Sequence[Ids]) -> list[Nll]:
        too_long = self.facts.max_positions and max((len(c) for c in chunks), default=0) > self.facts.max_positions
        if too_long:
            raise UserError(
                f"A chunk is longer than the model's {self.facts.max_positions} positions; use --chunk-tokens."
            )
        results: list[Nll] = [np.empty(0, np.float32)] * len(chunks)
        for batch in length_buckets([len(c) for c in chunks], self.batch_tokens):
            rows = [chunks[i] for i in batch]
            with torch.inference_mode(), self._autocast():
                values = self._batch_nll(rows).float().cpu().numpy()
            ends = np.cumsum([self._n_targets(r) for r in rows])
            for i, part in zip(batch, np.split(values, ends[:-1]), strict=True):
                results[i] = part
        return results

    def _n_targets(self, row: Ids) -> int:
        return len(row) if self.prefix else max(0, len(row) - 1)

    def _autocast(self) -> Any:
        if self._compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute)

    def _batch_nll(self, rows: Sequence[Ids], train: bool = False) -> torch.Tensor:
        """[N] NLL of all scored positions, row after row."""
        skip = 0 if self.prefix else 1
        counts = [self._n_targets(r) for r in rows]
        width = max(1, *counts) if counts else 1
        inputs_BT = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            inputs_BT[i, : counts[i]] = np.concatenate([self.prefix, row])[: counts[i]]
        targets_N = torch.from_numpy(np.concatenate([r[skip:] for r in rows]).astype(np.int64)).to(self.device)
        scored_BT = torch.from_numpy(np.arange(width) < np.asarray(counts)[:, None]).to(self.device)
        tokens_BT = torch.from_numpy(inputs_BT).to(self.device)
        if not self._head_is_plain:
            logits_NV = self.model(input_ids=tokens_BT, use_cache=False).logits[scored_BT]
            return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        hidden_Nd = self.model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state[scored_BT]
        return self._head_nll(hidden_Nd, targets_N, train)

    def _head_nll(self, hidden_Nd: torch.Tensor, targets_N: torch.Tensor, train: bool) -> torch.Tensor:
        """Head and cross-entropy on slices of positions; recomputed in the backward pass when there are several."""
        step = max(1, LOGIT_BYTES[self.device] // (4 * self.model.config.get_text_config().vocab_size))
        starts = range(0, len(targets_N), step)
        call: Callable[..., torch.Tensor] = self._slice_nll
        if train and len(starts) > 1:
            call = lambda h, t: checkpoint(self._slice_nll, h, t, use_reentrant=False)  # noqa: E731
        return torch.cat(
            [call(hidden_Nd[i : i + step], targets_N[i : i + step]) for i in starts] or [hidden_Nd.sum(-1)]
        )

    def _slice_nll(self, hidden_nd: torch.Tensor, targets_n: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self._logits(hidden_nd).float(), targets_n, reduction="none")

    def _logits(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        """The head, with the scalings that Cohere, Granite and Gemma apply after it."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden_nd)
        logits = (
            logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        )
        cap = getattr(config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def _check_head(self) -> bool:
        """True if hidden states + head reproduce the model's own logits; else the model's logits are used whole."""
        ids = torch.arange(1, 9, device=self.device)[None] % len(self.tokenizer)
        changed = ids.clone()
        changed[0, -1] = (changed[0, -1] + 1) % len(self.tokenizer)
        with torch.inference_mode():
            own = self.model(input_ids=ids, use_cache=False).logits.float()
            other = self.model(input_ids=changed, use_cache=False).logits.float()
            if not torch.allclose(own[:, :-1], other[:, :-1], atol=1e-2, rtol=1e-2):
                raise UserError("This model is not causal: it sees later tokens, so its perplexities mean nothing.")
            try:
                hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                ours = self._logits(hidden).float()
            except (AttributeError, TypeError):
                ours = own[:0]
        same = ours.shape == own.shape and torch.allclose(ours, own, atol=1e-3, rtol=1e-3)
        if not same:
            warnings.warn("This architecture scales its logits in an unknown way: full logits are used.", stacklevel=3)
        return same

    def sample(self, n: int, length: int, seed: int) -> list[str]:
        """`n` texts of at most `length` tokens, sampled at temperature 1 from BOS; the same for the same seed."""
        start = torch.tensor([self.prefix or [0]], device=self.device).expand(n, -1)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            written = self.model.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=length, pad_token_id=self.tokenizer.eos_token_id or 0,
            )  # fmt: skip
        return self.tokenizer.batch_decode(written[:, 1:], skip_special_tokens=True)

    # ---- training ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        assert self._base is not None, "load with train=True"
        self.model.load_state_dict(self._base)
        self.model.zero_grad(set_to_none=True)  # a step that failed leaves its gradients behind
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, fused=True)

    def step(self, chunks: Sequence[Ids], learning_rate: float) -> float:
        assert self.optimizer is not None, "reset() first"
        targets = sum(self._n_targets(c) for c in chunks)
        total = 0.0
        for batch in length_buckets([len(c) for c in chunks], self.batch_tokens):
            with self._autocast():
                loss = self._batch_nll([chunks[i] for i in batch], train=True).sum() / targets
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


def weights_hash(model: str, loaded: Any) -> str | None:
    """What identifies the weights: see `EngineFacts.weights`."""
    files = sorted(Path(model).glob("*.safetensors"))
    if not files:
        return getattr(loaded.config, "_commit_hash", None)
    return fingerprint([sha256_file(f) for f in files])[:16]
