"""Scoring and training with any Hugging Face causal language model.

A row is BOS + context + chunk, padded on the right. Attention is causal, so padding needs no mask and chunks never see
one another. The vocabulary head runs on slices of positions: the full [batch, length, vocabulary] logits never exist.

Shapes: B rows, T positions, N = scored positions of a batch, d hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
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


NO_IDS: Ids = np.empty(0, np.int32)


@dataclass(frozen=True)
class Row:
    """One sequence as the model reads it; `ids[start:]` are the scored targets."""

    ids: NDArray[np.int64]
    start: int

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.start


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
    """See the module's docstring. `train=True` keeps fp32 weights and adds an AdamW optimiser.

    `facts` need the configuration, the tokenizer and a hash of the weight files only; the weights are loaded at their
    first use, so a stage that has nothing to do never loads them.
    """

    def __init__(
        self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto", train: bool = False
    ):
        transformers.utils.logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = default_dtype(self.device, train) if dtype == "auto" else dtype
        self._source, self._revision, self._train = model, revision, train
        self.tokenizer = load_tokenizer(model, revision)
        if self.tokenizer.chat_template is not None:
            warnings.warn(f"{model} has a chat template: continual pre-training harms chat-tuned models.", stacklevel=2)
        if dtype not in DTYPES or (train and dtype == "float16"):
            allowed = ", ".join(d for d in DTYPES if not train or d != "float16")
            raise UserError(f"dtype '{dtype}' cannot be used here; choose one of auto, {allowed}.")
        self._compute = getattr(torch, dtype)
        config = load_model_config(model, revision)
        self.prefix = self._prefix(bos)
        self.batch_tokens = CUDA_BATCH_TOKENS if self.device == "cuda" else CPU_BATCH_TOKENS
        self.facts = EngineFacts(
            engine="transformers",
            model=model_name(model),
            revision=revision,
            weights=weights_hash(model, config),
            tokenizer=tokenizer_hash(self.tokenizer),
            dtype=dtype,
            bos=self.tokenizer.convert_ids_to_tokens(self.prefix[0]) if self.prefix else "none",
            n_params=n_parameters(config),
            max_positions=getattr(config, "max_position_embeddings", None),
        )
        vocabulary = config.get_text_config().vocab_size
        if len(self.tokenizer) > vocabulary:
            raise UserError(
                f"The tokenizer of {model} has {len(self.tokenizer)} tokens, its model only {vocabulary}; they do not "
                "belong together."
            )
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def model(self) -> Any:
        """The network, loaded at its first use, on the device."""
        return self._loaded[0]

    @property
    def _head_is_plain(self) -> bool:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, bool]:
        """(network, whether its head can be computed in slices)."""
        weights = torch.float32 if self._train or self.device == "cpu" else self._compute
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                self._source, revision=self._revision, dtype=weights, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise UserError(_cannot_load("model", self._source, error)) from error
        loaded = loaded.to(self.device).eval()
        return loaded, head_is_plain(loaded, len(self.tokenizer))

    @cached_property
    def _base(self) -> Any:
        """The base model's weights, taken at the first `reset`, before any step."""
        assert self._train, "load with train=True"
        return copy.deepcopy(self.model.state_dict())

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

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        rows = [self._row(chunk, contexts[i] if contexts else NO_IDS) for i, chunk in enumerate(chunks)]
        longest = max((len(r.ids) for r in rows), default=0)
        if self.facts.max_positions and longest - 1 > self.facts.max_positions:
            raise UserError(
                f"A chunk with its context is longer than the model's {self.facts.max_positions} positions; give fewer "
                "--chunk-tokens or less --context."
            )
        results: list[Nll] = [np.empty(0, np.float32)] * len(chunks)
        for batch in length_buckets([len(r.ids) for r in rows], self.batch_tokens):
            taken = [rows[i] for i in batch]
            with torch.inference_mode(), self._autocast():
                values = self._batch_nll(taken).float().cpu().numpy()
            ends = np.cumsum([r.n_targets for r in taken])
            for i, part in zip(batch, np.split(values, ends[:-1]), strict=True):
                results[i] = part
        return results

    def _row(self, chunk: Ids, context: Ids = NO_IDS) -> Row:
        """BOS, context, chunk; without anything before it, a chunk's first token cannot be scored."""
        before = len(self.prefix) + len(context)
        return Row(np.concatenate([self.prefix, context, chunk]).astype(np.int64), max(1, before))

    def _autocast(self) -> Any:
        if self._compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute)

    def _batch_nll(self, rows: Sequence[Row], train: bool = False) -> torch.Tensor:
        """[N] NLL of all scored positions, row after row."""
        width = max(1, *(len(r.ids) - 1 for r in rows))
        inputs_BT = np.zeros((len(rows), width), dtype=np.int64)
        scored_BT = np.zeros((len(rows), width), dtype=bool)
        for i, row in enumerate(rows):
            inputs_BT[i, : len(row.ids) - 1] = row.ids[:-1]
            scored_BT[i, row.start - 1 : len(row.ids) - 1] = True
        targets_N = torch.from_numpy(np.concatenate([r.ids[r.start :] for r in rows])).to(self.device)
        tokens_BT, mask_BT = (torch.from_numpy(a).to(self.device) for a in (inputs_BT, scored_BT))
        if not self._head_is_plain:
            logits_NV = self.model(input_ids=tokens_BT, use_cache=False).logits[mask_BT]
            return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        hidden_Nd = self.model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state[mask_BT]
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
        return torch.nn.functional.cross_entropy(
            head_logits(self.model, hidden_nd).float(), targets_n, reduction="none"
        )

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


def head_logits(model: Any, hidden_nd: torch.Tensor) -> torch.Tensor:
    """The vocabulary head, with the scalings that Cohere, Granite and Gemma apply after it."""
    config = model.config.get_text_config()
    logits = model.get_output_embeddings()(hidden_nd)
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def head_is_plain(model: Any, n_vocabulary: int) -> bool:
    """True if hidden states + `head_logits` reproduce the model's own logits; else the model's logits are used whole.

    UserError if the model is not causal.
    """
    ids = torch.arange(1, 9, device=model.device)[None] % n_vocabulary
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % n_vocabulary
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits.float()
        other = model(input_ids=changed, use_cache=False).logits.float()
        if not torch.allclose(own[:, :-1], other[:, :-1], atol=1e-2, rtol=1e-2):
            raise UserError("This model is not causal: it sees later tokens, so its perplexities mean nothing.")
        try:
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours = head_logits(model, hidden).float()
        except (AttributeError, TypeError):
            ours = own[:0]
    same = ours.shape == own.shape and torch.allclose(ours, own, atol=1e-3, rtol=1e-3)
    if not same:
        warnings.warn("This architecture scales its logits in an unknown way: full logits are used.", stacklevel=4)
    return same


def load_model_config(model: str, revision: str | None = None) -> Any:
    """The configuration of a model (hub id or local folder). UserError if there is none."""
    try:
        return transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load("model", model, error)) from error


def n_parameters(config: Any) -> int:
    """Parameters of the model of a configuration, tied ones once; nothing is allocated. UserError if none fits it."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    except ValueError as error:
        raise UserError(f"{config.model_type} is not a causal language model: {str(error).splitlines()[0]}") from None


def weights_hash(model: str, config: Any) -> str | None:
    """What identifies the weights: see `EngineFacts.weights`."""
    files = sorted(Path(model).glob("*.safetensors"))
    if not files:
        return getattr(config, "_commit_hash", None)
    return fingerprint([sha256_file(f) for f in files])[:16]
