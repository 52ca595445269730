"""Scoring with vLLM, for models that need tensor parallelism: the log-probabilities of a prompt's own tokens.

Before it is trusted, the first chunks are scored by the transformers engine as well; where the two differ by more than
TOLERANCE, nothing is scored. Prompts are token ids (text would get a second BOS). The prefix cache is off: it holds no
log-probabilities. vLLM makes the logits [tokens of a step, vocabulary] of a prompt at once and does not count them when
it divides up the memory, so the tokens of a step are few and a part of the GPU is left free.

Not run on a GPU; what was tried is in docs/results/vllm.md.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pplscape.engines.base import Ids, Nll, encode
from pplscape.engines.transformers import NO_IDS, Row, TransformersEngine, row_of
from pplscape.errors import UserError
from pplscape.text.tokenizer import first_token_bytes

INSTALL = "pip install 'pplscape[vllm]'"
CHECKED_CHUNKS = 8
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
"""Nats per token that the mean of a checked chunk may differ by."""
LOGIT_BYTES, STEP_TOKENS = 2**30, (512, 8192)
"""Upper bound on a step's logits (fp32), and the range of the tokens of a step that follow from it."""
GPU_SHARE = 0.8
"""Of the GPU's memory, for weights and cache."""
LENGTH = 4096
"""Positions that are provided for at least; more where the first chunks need more."""
ROWS_AT_ONCE = 512
"""Bounds the dictionaries that vLLM returns, one a token."""


class VllmEngine:
    """The facts and token ids of a `TransformersEngine`, the scores of vLLM; see the module's docstring.

    UserError: vLLM is not installed; its scores are not those of transformers; a row longer than is provided for.
    """

    def __init__(self, model: str, *, revision: str | None = None, dtype: str = "auto", bos: str = "auto"):
        if importlib.util.find_spec("vllm") is None:
            raise UserError(f"Engine vllm needs vLLM; install it with: {INSTALL}")
        self._model, self._revision = model, revision
        self._reference: TransformersEngine | None = TransformersEngine(model, revision=revision, dtype=dtype, bos=bos)
        self.tokenizer, self.prefix = self._reference.tokenizer, self._reference.prefix
        self.facts = replace(self._reference.facts, engine="vllm")
        self._llm: Any = None
        self._length = 0

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return encode(self.tokenizer, texts)

    def first_bytes(self, texts: Sequence[str]) -> list[int]:
        return first_token_bytes(self.tokenizer, texts)

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        rows = [row_of(self.prefix, chunk, contexts[i] if contexts else NO_IDS) for i, chunk in enumerate(chunks)]
        if self._llm is None and rows:
            self._start(chunks, contexts, rows)
        return self._score(rows)

    def sample(self, n: int, length: int, seed: int) -> list[str]:
        if self._llm is None:
            self._load(length + 1)
        start = {"prompt_token_ids": self.prefix or [0]}
        told = [self._parameters(max_tokens=length, temperature=1.0, seed=seed + i) for i in range(n)]
        written = self._llm.generate([start] * n, told, use_tqdm=False)
        ids = [list(w.outputs[0].token_ids) for w in written]
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _start(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None, rows: Sequence[Row]) -> None:
        """Load vLLM and compare its first chunks with those of transformers, whose memory is freed before."""
        assert self._reference is not None
        few = slice(CHECKED_CHUNKS)
        wanted = self._reference.nll(chunks[few], contexts[few] if contexts else None)
        self._reference = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._load(max(len(row.ids) for row in rows) + 1)
        found = self._score(rows[few])
        apart = [abs(float(a.mean() - b.mean())) for a, b in zip(found, wanted, strict=True) if len(a)]
        if not max(apart, default=0.0) <= TOLERANCE[self.facts.dtype]:  # also where it is not a number
            raise UserError(
                f"vLLM scores {self._model} {max(apart):.2g} nats/token apart from transformers, more than the "
                f"{TOLERANCE[self.facts.dtype]:g} that {self.facts.dtype} allows; use --engine transformers, or "
                "another --dtype or version of vLLM."
            )

    def _load(self, length: int) -> None:
        from vllm import LLM

        longest = self.facts.max_positions or length
        self._length = min(longest, max(LENGTH, length))
        step = int(np.clip(LOGIT_BYTES // (4 * len(self.tokenizer)), *STEP_TOKENS))
        self._llm = LLM(
            model=self._model,
            revision=self._revision,
            dtype=self.facts.dtype,
            tensor_parallel_size=max(1, torch.cuda.device_count()),
            enable_prefix_caching=False,
            enable_chunked_prefill=True,
            max_model_len=self._length,
            max_num_batched_tokens=step,
            max_num_seqs=min(256, step),
            gpu_memory_utilization=GPU_SHARE,
            trust_remote_code=False,
        )

    def _score(self, rows: Sequence[Row]) -> list[Nll]:
        longest = max((len(row.ids) for row in rows), default=0)
        if longest >= self._length and rows:
            raise UserError(
                f"A chunk of {longest} tokens with its context does not fit the {self._length} positions that vLLM was "
                "started with, one of which it writes to; give fewer --chunk-tokens or less --context."
            )
        found: list[Nll] = []
        for at in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[at : at + ROWS_AT_ONCE]
            prompts = [{"prompt_token_ids": row.ids.tolist()} for row in some]
            told = self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=0)
            outputs = self._llm.generate(prompts, told, use_tqdm=False)
            found += [_targets(o.prompt_logprobs, r.ids, r.start) for o, r in zip(outputs, some, strict=True)]
        return found

    @staticmethod
    def _parameters(**told: Any) -> Any:
        from vllm import SamplingParams

        return SamplingParams(detokenize=False, **told)


def _targets(logprobs: Sequence[Any], ids: NDArray[np.int64], start: int) -> Nll:
    """-ln p of ids[start:]. `logprobs`: of every token but the first (None) a dictionary by id, which holds the token
    itself and, where asked for, likelier ones."""
    if len(logprobs) != len(ids) or logprobs[0] is not None:
        raise UserError("This version of vLLM returns prompt_logprobs in another form; use --engine transformers.")
    return np.array([-logprobs[i][int(ids[i])].logprob for i in range(start, len(ids))], dtype=np.float32)
