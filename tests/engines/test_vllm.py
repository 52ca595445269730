"""Engine vllm against a stand-in with vLLM's interface (0.32): same scores as transformers, distrust, pitfalls."""

from __future__ import annotations

import importlib.machinery
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from pplscape.engines import load_engine
from pplscape.engines import vllm as engine_module
from pplscape.engines.transformers import TransformersEngine
from pplscape.errors import UserError


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    prompt_logprobs: int | None = None
    detokenize: bool = True
    seed: int | None = None


@dataclass
class Completion:
    token_ids: tuple[int, ...]


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[Completion]


class LLM:
    """vLLM's answers, computed by transformers: `prompt_logprobs=k` gives each token and the k likeliest."""

    started: ClassVar[list[dict[str, Any]]] = []
    shift = 0.0

    def __init__(self, model: str, max_model_len: int, **told: Any):
        assert told["enable_prefix_caching"] is False, "cached prefixes have no log-probabilities"
        LLM.started.append({"max_model_len": max_model_len, **told})
        self.length, self.engine = max_model_len, TransformersEngine(model, bos="none")

    def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool = True) -> list[RequestOutput]:
        told = params if isinstance(params, list) else [params] * len(prompts)
        return [self._one(p["prompt_token_ids"], t) for p, t in zip(prompts, told, strict=True)]

    def _one(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if len(ids) + 1 > self.length:  # as vLLM: a prompt leaves room for one token
            raise ValueError(f"The prompt (length {len(ids)}) is longer than the maximum model length {self.length}.")
        import torch

        with torch.inference_mode():
            logits = self.engine.model(input_ids=torch.tensor([ids])).logits[0].float()
        log_p = torch.log_softmax(logits, -1) + self.shift
        found: list[dict[int, Logprob] | None] = [None]
        for row, token in zip(log_p[:-1], ids[1:], strict=True):
            rank = int((row > row[token]).sum()) + 1
            best = row.topk(params.prompt_logprobs or 0).indices.tolist()
            top = {i: Logprob(float(row[i]), k) for k, i in enumerate(best, 1)}
            found.append({token: Logprob(float(row[token]), rank)} | top)
        written = tuple([int(log_p[-1].argmax())] * params.max_tokens)
        return RequestOutput(ids, found if params.prompt_logprobs is not None else None, [Completion(written)])


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "started", [])
    return LLM


TEXTS = ["The quick brown fox jumps over the lazy dog.", "a", "In 1998 the court decided 12 of 345 cases; " * 3]


@pytest.mark.parametrize("bos", ["auto", "none"])
def test_same_scores_as_transformers(bos: str, tiny_model_dir: Path, vllm: type[LLM]) -> None:
    engine = load_engine("vllm", str(tiny_model_dir), bos=bos)
    other = TransformersEngine(str(tiny_model_dir), bos=bos)
    ids = engine.encode(TEXTS)
    contexts = engine.encode(["", "the dog ", "lazy"])
    for found, wanted in (
        (engine.nll(ids), other.nll(ids)), (engine.nll(ids, contexts), other.nll(ids, contexts)),
    ):  # fmt: skip
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, atol=1e-4)
    assert engine.nll([]) == []
    assert len(vllm.started) == 1
    assert engine.facts.engine == "vllm"
    assert {k: v for k, v in vars(engine.facts).items() if k != "engine"} == {
        k: v for k, v in vars(other.facts).items() if k != "engine"
    }


def test_likelier_tokens_beside_a_token_are_not_taken_for_it() -> None:
    likelier = {7: Logprob(-0.1, 1), 3: Logprob(-2.5, 9)}
    found = engine_module._targets([None, likelier, {5: Logprob(-1.0, 1)}], np.array([0, 3, 5]), 1)
    np.testing.assert_allclose(found, [2.5, 1.0])


def test_other_scores_than_those_of_transformers_are_refused(
    tiny_model_dir: Path, vllm: type[LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine("vllm", str(tiny_model_dir))
    monkeypatch.setattr(vllm, "shift", -0.01)
    with pytest.raises(UserError, match=r"0.01 nats/token apart from transformers, more than the 0.001 that float32"):
        engine.nll(engine.encode(TEXTS))
    monkeypatch.setattr(vllm, "shift", float("nan"))
    broken = load_engine("vllm", str(tiny_model_dir))
    with pytest.raises(UserError, match="apart from transformers"):
        broken.nll(broken.encode(TEXTS))


def test_a_form_that_is_not_known_is_refused() -> None:
    for logprobs in ([{0: Logprob(-1.0)}, {1: Logprob(-1.0)}], [None]):
        with pytest.raises(UserError, match="in another form"):
            engine_module._targets(logprobs, np.array([0, 1]), 1)


def test_a_row_that_leaves_no_room_is_refused(tiny_model_dir: Path) -> None:
    engine = load_engine("vllm", str(tiny_model_dir))
    chunk = np.arange(1, 256, dtype=np.int32)
    with pytest.raises(UserError, match="256 tokens with its context does not fit the 256 positions"):
        engine.nll([chunk[:10], chunk])
    assert len(load_engine("vllm", str(tiny_model_dir)).nll([chunk[:254]])[0]) == 254


def test_logits_of_a_step_are_bounded(tiny_model_dir: Path, vllm: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine("vllm", str(tiny_model_dir))
    monkeypatch.setattr(engine_module, "LOGIT_BYTES", 4 * 1000 * len(engine.tokenizer))
    engine.nll(engine.encode(TEXTS))
    (told,) = vllm.started
    assert told["max_num_batched_tokens"] == 1000
    assert told["gpu_memory_utilization"] < 0.9
    assert told["max_model_len"] == 256, "the model's positions"


def test_writes_text(tiny_model_dir: Path) -> None:
    written = load_engine("vllm", str(tiny_model_dir)).sample(2, 5, seed=0)
    assert len(written) == 2
    assert all(isinstance(w, str) for w in written)


def test_missing_package(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install it with: pip install 'pplscape\[vllm\]'"):
        load_engine("vllm", str(tiny_model_dir))
