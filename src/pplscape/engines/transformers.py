"""Scoring with any Hugging Face causal language model.

A row is BOS + context + chunk, padded on the right. Attention is causal, so padding needs no mask and chunks never see
one another. Batches are cut by length, so that little is padded, and halved where memory is too small; on a CPU several
are computed at a time (`lanes`). The vocabulary head runs in tiles: the full [batch, length, vocabulary] logits never
exist.

Shapes: B rows, T positions, N = scored positions of a batch, d hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from pplscape.engines.base import EngineFacts, Ids, Nll, encode, length_buckets
from pplscape.engines.head import cut_head, head_is_plain, head_logits, scaled_logits
from pplscape.engines.lanes import EACH, MOST, in_lanes, keeps_state, lanes_for
from pplscape.engines.likelihood import TILE_COLUMNS, Tile, tiled_nll
from pplscape.engines.loading import cannot_load, load_model_config, n_parameters, weights_hash
from pplscape.engines.packed import can_pack, pack, packed_tiles, widest
from pplscape.errors import UserError
from pplscape.text.tokenizer import first_token_bytes, load_tokenizer, model_name, tokenizer_hash

LOGIT_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
"""Upper bound on the fp32 logits alive at once in training."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Positions of a batch. On a CPU activations of more than 32 MiB are returned to the kernel after every use."""
FEW_TOKENS = 512
"""Positions that a batch may have however little text there is; products of fewer rows are slower."""
NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What torch's allocator says on a CPU: with posix_memalign (Linux, macOS), and elsewhere."""

NO_IDS: Ids = np.empty(0, np.int32)


@dataclass(frozen=True)
class Row:
    """One sequence as the model reads it; `ids[start:]` are the scored targets."""

    ids: NDArray[np.int64]
    start: int

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.start

    @property
    def n_inputs(self) -> int:
        """Positions that the model computes: all but the last token's."""
        return len(self.ids) - 1


@dataclass
class Work:
    """What an engine has computed so far."""

    inputs: int = 0
    padding: int = 0
    halvings: int = 0
    lanes: int = 1
    """Batches computed at a time."""


def row_of(prefix: list[int], chunk: Ids, context: Ids = NO_IDS) -> Row:
    """BOS, context, chunk; without anything before it, a chunk's first token cannot be scored.

    A text that begins with BOS itself has it already: two of them are nothing that a model has seen.
    """
    text = np.concatenate([context, chunk])
    prefix = [] if text[:1].tolist() == prefix else prefix
    return Row(np.concatenate([prefix, text]).astype(np.int64), max(1, len(prefix) + len(context)))


class TransformersEngine:
    """See the module's docstring; `TransformersLearner` adds training.

    `facts` need the configuration, the tokenizer and a hash of the weight files only; the weights are loaded at their
    first use, so a stage that has nothing to do never loads them.
    """

    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    packs = True
    """Whether the weights may be laid out for the forward pass."""

    def __init__(self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto"):
        transformers.utils.logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = self._default_dtype() if dtype == "auto" else dtype
        self._source, self._revision = model, revision
        self.tokenizer = load_tokenizer(model, revision)
        if self.tokenizer.chat_template is not None:
            warnings.warn(f"{model} has a chat template: continual pre-training harms chat-tuned models.", stacklevel=2)
        if dtype not in self.dtypes:
            raise UserError(f"dtype '{dtype}' cannot be used here; choose one of auto, {', '.join(self.dtypes)}.")
        self._compute = getattr(torch, dtype)
        config = load_model_config(model, revision)
        self.prefix = self._prefix(bos)
        self.batch_tokens = BATCH_TOKENS[self.device]
        self.work = Work()
        self._counting = threading.Lock()
        self._packed = False
        self.facts = EngineFacts(
            engine="transformers",
            model=model_name(model),
            revision=revision,
            weights=weights_hash(model, config),
            tokenizer=tokenizer_hash(self.tokenizer),
            dtype=dtype,
            bos=self.tokenizer.convert_ids_to_tokens(self.prefix[0]) if self.prefix else "none",
            n_params=n_parameters(config),
            max_positions=getattr(config.get_text_config(), "max_position_embeddings", None),
        )
        vocabulary = config.get_text_config().vocab_size
        if len(self.tokenizer) > vocabulary:
            raise UserError(
                f"The tokenizer of {model} has {len(self.tokenizer)} tokens, its model only {vocabulary}; they do not "
                "belong together."
            )

    def _default_dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    def _weights_dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else self._compute

    @property
    def model(self) -> Any:
        """The network, loaded at its first use, on the device."""
        return self._loaded[0]

    @property
    def _head_is_plain(self) -> bool:
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Any, bool]:
        """(network, whether its head can be computed apart)."""
        loaded = self._from_pretrained()
        plain = head_is_plain(loaded, len(self.tokenizer))
        if self.packs and can_pack(self.device, self._compute):
            with self._autocast():
                self._packed = pack(loaded, self._compute, len(self.tokenizer))
            if not self._packed:
                loaded = self._from_pretrained()
        return loaded, plain

    def _from_pretrained(self) -> Any:
        try:
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                self._source, revision=self._revision, dtype=self._weights_dtype(), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise UserError(cannot_load("model", self._source, error)) from error
        return loaded.to(self.device).eval()

    @cached_property
    def _packed_tiles(self) -> list[Tile]:
        head = self.model.get_output_embeddings()
        try:
            return packed_tiles(head.weight, head.bias, self._compute, TILE_COLUMNS[self.device])
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        warnings.warn("Out of memory: the vocabulary head is read as it is, which is slower.", stacklevel=4)
        return self._plain_tiles()

    def _plain_tiles(self) -> list[Tile]:
        head = self.model.get_output_embeddings()
        return [partial(_product, *t) for t in cut_head(head.weight, head.bias, TILE_COLUMNS[self.device])]

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

    def _check_lengths(self, rows: Sequence[Row]) -> None:
        """UserError for a row that is longer than the model's positions: some models fail there, some go on badly."""
        most = self.facts.max_positions
        if most and max((r.n_inputs for r in rows), default=0) > most:
            raise UserError(
                f"A chunk with its context is longer than the model's {most} positions; give fewer --chunk-tokens or "
                "less --context."
            )

    # ---- scoring -------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return encode(self.tokenizer, texts)

    def first_bytes(self, texts: Sequence[str]) -> list[int]:
        return first_token_bytes(self.tokenizer, texts)

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        rows = [self._row(chunk, contexts[i] if contexts else NO_IDS) for i, chunk in enumerate(chunks)]
        self._check_lengths(rows)
        results: list[Nll] = [np.empty(0, np.float32)] * len(chunks)
        batches = self._batches(rows)
        for batch, values in zip(batches, self._computed([[rows[i] for i in b] for b in batches]), strict=True):
            ends = np.cumsum([rows[i].n_targets for i in batch])
            for i, part in zip(batch, np.split(values, ends[:-1]), strict=True):
                results[i] = part
        return results

    def _batches(self, rows: Sequence[Row]) -> list[NDArray[np.intp]]:
        """Which rows are computed together. On a CPU little text makes smaller batches, enough for all lanes that any
        machine may have: so they are the same everywhere."""
        lengths = [r.n_inputs for r in rows]
        share = max(FEW_TOKENS, sum(lengths) // (EACH * MOST)) if self.device == "cpu" else self.batch_tokens
        return length_buckets(lengths, self.batch_tokens, min(share, self.batch_tokens))

    def _computed(self, batches: Sequence[Sequence[Row]]) -> list[Nll]:
        """NLL of each batch, row after row; in lanes if there are enough batches, none of a row too long for their
        bound, and memory allows."""
        if len(batches) >= EACH * self.lanes > EACH and max(map(_positions, batches)) <= BATCH_TOKENS["cpu"]:
            self.work.lanes = self.lanes
            _ = self._packed_tiles  # made before lanes ask for it together
            try:
                return in_lanes(partial(self._in_any_thread, self._at_once), batches, self.lanes)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            warnings.warn("Out of memory: one batch is computed at a time from now on.", stacklevel=3)
            self.lanes = self.work.lanes = 1
        return [self._in_any_thread(self._fitting, rows) for rows in batches]

    @cached_property
    def lanes(self) -> int:
        """Batches computed at a time: on a CPU, by forward passes that leave the network as it was."""
        network = self.model
        if not self._packed or not self._head_is_plain or keeps_state(network):
            return 1
        return lanes_for(torch.get_num_threads(), 4 * BATCH_TOKENS["cpu"] * widest(network))

    def _in_any_thread(self, compute: Callable[[Sequence[Row]], torch.Tensor], rows: Sequence[Row]) -> Nll:
        """What `compute` gives; an error tells of which batch."""
        try:
            with torch.inference_mode(), self._autocast():
                return compute(rows).numpy()
        except Exception as error:
            error.add_note(f"In a batch of {len(rows)} chunks of up to {rows[0].n_inputs} tokens.")
            raise

    def _at_once(self, rows: Sequence[Row]) -> torch.Tensor:
        """`_batch_nll` of rows, longest first, on the CPU, counted."""
        values = self._batch_nll(rows).float().cpu()
        inputs = sum(r.n_inputs for r in rows)
        with self._counting:
            self.work.inputs += inputs
            self.work.padding += len(rows) * rows[0].n_inputs - inputs
        return values

    def _fitting(self, rows: Sequence[Row]) -> torch.Tensor:
        """`_at_once`, in halves where memory is too small; later batches are cut smaller."""
        positions = len(rows) * rows[0].n_inputs
        if len(rows) == 1 or positions <= self.batch_tokens:
            try:
                return self._at_once(rows)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise UserError(
                        f"There is not enough memory for one row of {positions} tokens on {self.device}; give fewer "
                        "--chunk-tokens or less --context, or a smaller model."
                    ) from error
            self.batch_tokens = max(1, positions // 2)
            self.work.halvings += 1
            warnings.warn(f"Out of memory: batches have at most {self.batch_tokens} tokens from now on.", stacklevel=3)
            if self.device == "cuda":
                torch.cuda.empty_cache()
        middle = (len(rows) + 1) // 2
        return torch.cat([self._fitting(rows[:middle]), self._fitting(rows[middle:])])

    def _row(self, chunk: Ids, context: Ids = NO_IDS) -> Row:
        return row_of(self.prefix, chunk, context)

    def _autocast(self) -> Any:
        if self._compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=self._compute)

    def _tensors(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(input ids [B, T], which positions are scored [B, T], the targets there [N]), on the device."""
        width = max(1, *(r.n_inputs for r in rows))
        inputs_BT = np.zeros((len(rows), width), dtype=np.int64)
        scored_BT = np.zeros((len(rows), width), dtype=bool)
        for i, row in enumerate(rows):
            inputs_BT[i, : row.n_inputs] = row.ids[:-1]
            scored_BT[i, row.start - 1 : row.n_inputs] = True
        targets_N = np.concatenate([r.ids[r.start :] for r in rows])
        tokens, mask, targets = (torch.from_numpy(a).to(self.device) for a in (inputs_BT, scored_BT, targets_N))
        return tokens, mask, targets

    def _batch_nll(self, rows: Sequence[Row], train: bool = False) -> torch.Tensor:
        """[N] NLL of all scored positions, row after row."""
        tokens_BT, mask_BT, targets_N = self._tensors(rows)
        if not self._head_is_plain:
            logits_NV = self.model(input_ids=tokens_BT, use_cache=False).logits[mask_BT]
            return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        hidden_Nd = self.model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state[mask_BT]
        head = self.model.get_output_embeddings()
        if train or not isinstance(head, torch.nn.Linear):
            return self._sliced_nll(hidden_Nd, targets_N, train)
        return tiled_nll(hidden_Nd, targets_N, [partial(self._logits, tile) for tile in self._tiles()])

    def _logits(self, tile: Tile, hidden_nd: torch.Tensor) -> torch.Tensor:
        return scaled_logits(self.model, tile(hidden_nd))

    def _tiles(self) -> list[Tile]:
        """The vocabulary head in tiles of columns, before what scales logits."""
        return self._packed_tiles if self._packed else self._plain_tiles()

    def _sliced_nll(self, hidden_Nd: torch.Tensor, targets_N: torch.Tensor, train: bool) -> torch.Tensor:
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


def _product(weight_cd: torch.Tensor, bias_c: torch.Tensor | None, hidden_nd: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(hidden_nd.to(weight_cd.dtype), weight_cd, bias_c)


def _positions(rows: Sequence[Row]) -> int:
    """Positions of a batch, padding included; rows are longest first."""
    return len(rows) * rows[0].n_inputs


def out_of_memory(error: Exception) -> bool:
    """True for the errors with which torch says that memory is out, on either device."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)
