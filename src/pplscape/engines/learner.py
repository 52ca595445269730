"""Training any Hugging Face causal language model: fp32 weights, AdamW, autocast to the compute dtype.

All weights, or (`lora_rank`) low-rank adapters of every linear layer beside frozen ones. Dropout is off: pilots and
arms differ by their data alone. One step may be computed in any number of micro-batches: their losses are sums over
the tokens of the whole step, so its gradient is that of the mean over all its tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pplscape.engines.abreast import attending_abreast, hidden_abreast, runs_abreast
from pplscape.engines.base import Ids, even_batches, length_buckets
from pplscape.engines.fused import LinearCrossEntropy
from pplscape.engines.head import head_is_linear
from pplscape.engines.transformers import LOGIT_BYTES, Row, TransformersEngine, out_of_memory
from pplscape.errors import UserError

WEIGHT_DECAY, BETAS, CLIP_NORM = 0.1, (0.9, 0.95), 1.0
HEAD_ROWS = 256
"""Positions whose logits are computed at once, at least: products of fewer rows are slow."""
LORA_SEED = 0
"""Of the adapters' first weights: the same for every run that is compared."""


class TransformersLearner(TransformersEngine):
    """A `TransformersEngine` that can be trained; its weights are fp32 on every device.

    `gradient_checkpointing`: activations are computed again in the backward pass, for models that would not fit.
    """

    dtypes = ("float32", "bfloat16")
    packs = False
    _abreast = False
    """Whether rows are computed side by side, without padding (engines/abreast.py); known once the model is loaded."""

    def __init__(
        self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto", lora_rank: int = 0,
        gradient_checkpointing: bool = False,
    ):  # fmt: skip
        super().__init__(model, revision=revision, dtype=dtype, bos=bos)
        self._lora_rank, self._recompute = lora_rank, gradient_checkpointing
        self.optimizer: torch.optim.Optimizer | None = None

    def _default_dtype(self) -> str:
        """bfloat16 on CUDA and where the CPU multiplies in it."""
        fast = self.device == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return "bfloat16" if fast else "float32"

    def _weights_dtype(self) -> torch.dtype:
        return torch.float32

    @cached_property
    def _loaded(self) -> tuple[Any, bool]:
        network, plain = super()._loaded
        fused = plain and head_is_linear(network)
        self._abreast = fused and self.device == "cpu" and runs_abreast(network, len(self.tokenizer))
        if self._recompute:
            no_dropout(network)
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return network, plain

    @cached_property
    def _adapters(self) -> Any:
        """The network with its adapters, as peft wraps it; its layers are replaced in place."""
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError:
            raise UserError(
                "Training adapters needs peft; install it with: pip install 'pplscape[lora]', or set lora_rank to 0."
            ) from None
        config = LoraConfig(
            r=self._lora_rank, lora_alpha=2 * self._lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng():
            torch.manual_seed(LORA_SEED)
            return get_peft_model(self.model, config)

    @cached_property
    def _base(self) -> Any:
        """The weights before any step."""
        if self._lora_rank:
            self._adapters  # noqa: B018 - puts the adapters in
        return copy.deepcopy(self._trained_state())

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _trained_state(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self._trained().items()}

    def reset(self) -> None:
        self._put(self._base)
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for parameter in self._trained().values():
            groups[parameter.dim() > 1].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False], "weight_decay": 0.0}],
            lr=0.0, betas=BETAS, fused=True,
        )  # fmt: skip

    def _put(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(state[name])
        self.model.zero_grad(set_to_none=True)  # a step that failed leaves its gradients behind

    def step(self, chunks: Sequence[Ids], learning_rate: float) -> dict[str, float]:
        assert self.optimizer is not None, "reset() first"
        rows = [self._row(chunk) for chunk in chunks]
        self._check_lengths(rows)
        self.model.train(self._recompute)  # transformers recomputes in training mode only
        try:
            with self._attention():
                loss = self._accumulate(rows)
        finally:
            self.model.eval()
        norm = self._clip()
        if not np.isfinite([loss, norm]).all():
            self.model.zero_grad(set_to_none=True)
            raise FloatingPointError(f"training loss is {loss}, its gradient's norm {norm}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "gradient_norm": norm}

    def _clipped(self) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self._trained().values(), CLIP_NORM)

    def _clip(self) -> float:
        """Clips the gradient; its norm before."""
        return float(self._clipped())

    def _accumulate(self, rows: list[Row]) -> float:
        """Gradients of the mean loss over all targets of a step, by micro-batches; out of memory: of half the size."""
        targets = sum(r.n_targets for r in rows)
        while True:
            try:
                return sum(self._backward([rows[i] for i in batch], 1 / targets) for batch in self._micro_batches(rows))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.batch_tokens <= max(len(r.ids) for r in rows):
                    raise
            self.batch_tokens //= 2
            self.model.zero_grad(set_to_none=True)
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def _attention(self) -> AbstractContextManager[None]:
        """Around the passes of a step."""
        network = self.model
        return attending_abreast(network) if self._abreast else nullcontext()

    def _micro_batches(self, rows: Sequence[Row]) -> list[NDArray[np.intp]]:
        """Which rows are computed together, longest first."""
        cut = even_batches if self._abreast else length_buckets
        return cut([r.n_inputs for r in rows], self.batch_tokens)

    def _backward(self, rows: list[Row], share: float) -> float:
        """Adds the gradient of `share` times the rows' total NLL; returns that product."""
        loss = self._total(rows) * share
        loss.backward()
        return loss.item()

    def _total(self, rows: list[Row]) -> torch.Tensor:
        """Total NLL of all targets."""
        with self._autocast():
            if self._head_is_plain and head_is_linear(self.model):
                return self._linear_total(rows)
            return self._batch_nll(rows, train=True).sum()

    def _linear_total(self, rows: list[Row]) -> torch.Tensor:
        hidden_Nd, targets_N = self._hidden(rows)
        weight_Vd = self.model.get_output_embeddings().weight
        slice_rows = max(HEAD_ROWS, LOGIT_BYTES[self.device] // (4 * len(weight_Vd)))
        with torch.autocast(self.device, enabled=False):
            return LinearCrossEntropy.apply(hidden_Nd.to(self._compute), weight_Vd, targets_N, slice_rows)

    def _hidden(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden states [N, d] of all scored positions, the targets there [N])."""
        if not self._abreast:
            tokens_BT, mask_BT, targets_N = self._tensors(rows)
            return self.model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state[mask_BT], targets_N
        ids_T, targets_N = (torch.from_numpy(np.concatenate(parts)) for parts in (
            [r.ids[:-1] for r in rows], [r.ids[r.start :] for r in rows],
        ))  # fmt: skip
        hidden_Td = hidden_abreast(self.model, ids_T, [r.n_inputs for r in rows])
        if len(targets_N) == len(ids_T):
            return hidden_Td, targets_N
        scored_T = np.concatenate([np.arange(r.n_inputs) >= r.start - 1 for r in rows])
        return hidden_Td[torch.from_numpy(scored_T)], targets_N

    def snapshot(self) -> Any:
        assert self.optimizer is not None
        return copy.deepcopy((self._trained_state(), self.optimizer.state_dict()))

    def restore(self, snapshot: Any) -> None:
        assert self.optimizer is not None
        weights, optimizer = copy.deepcopy(snapshot)
        self._put(weights)
        self.optimizer.load_state_dict(optimizer)

    def save_state(self, folder: Path) -> None:
        assert self.optimizer is not None
        slots = {
            f"{slot}/{name}": self._whole(value)
            for name, parameter in self._trained().items()
            for slot, value in self.optimizer.state[parameter].items()
        }
        weights = {name: self._whole(value) for name, value in self._trained_state().items()}
        self._write(weights, folder / "weights.safetensors", {})
        self._write(slots, folder / "optimizer.safetensors", {"batch_tokens": str(self.batch_tokens)})

    def _write(self, tensors: dict[str, torch.Tensor], path: Path, facts: dict[str, str]) -> None:
        with writing():
            save_file({name: value.contiguous() for name, value in tensors.items()}, path, facts)

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as it is stored: a sharded one gathered."""
        return tensor

    def _like(self, tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """A stored tensor as this learner holds `own`."""
        return tensor

    def load_state(self, folder: Path) -> None:
        self.reset()
        assert self.optimizer is not None
        trained = self._trained()
        stored_weights = load_file(folder / "weights.safetensors", device=self.device)
        self._put({name: self._like(stored_weights[name], own) for name, own in trained.items()})
        with safe_open(folder / "optimizer.safetensors", "pt", device=self.device) as stored:
            self.batch_tokens = int(stored.metadata()["batch_tokens"])
            for key in stored.keys():  # noqa: SIM118 - not a mapping
                slot, _, name = key.partition("/")
                self.optimizer.state[trained[name]][slot] = self._like(stored.get_tensor(key), trained[name])

    def save(self, folder: Path) -> None:
        """Plain transformers load it: adapters are merged into the weights."""
        network = copy.deepcopy(self._adapters).merge_and_unload() if self._lora_rank else self.model
        with writing():
            network.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


@contextmanager
def writing() -> Iterator[None]:
    """A disk that is full is an OSError here as elsewhere; safetensors calls it an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def no_dropout(network: torch.nn.Module) -> None:
    """Training mode without its randomness."""
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
