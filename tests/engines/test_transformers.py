"""The engine: batches, BOS, context, training, errors. Architectures: test_architectures.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from pplscape.engines import likelihood, load_engine
from pplscape.engines.learner import TransformersLearner
from pplscape.engines.transformers import TransformersEngine
from pplscape.errors import UserError


def _chunks(n_vocabulary: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, n_vocabulary, n).astype(np.int32) for n in (40, 7, 23, 64, 1, 64, 2)]


def _reference(folder: str, ids: list[int]) -> np.ndarray:
    """NLL of ids[1:] from the plain model's full logits, one row, no batching."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    log_p = torch.log_softmax(logits, -1)
    return -np.array([log_p[i, t].item() for i, t in enumerate(ids[1:])])


def test_independent_of_batch_and_order(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    chunks = _chunks(len(engine.tokenizer))
    together = engine.nll(chunks)
    backwards = engine.nll(chunks[::-1])[::-1]
    engine.batch_tokens = 1
    alone = engine.nll(chunks)
    monkeypatch.setitem(likelihood.TILE_COLUMNS, engine.device, 5)
    monkeypatch.setitem(likelihood.TILE_ROWS, engine.device, 7)
    tiled = TransformersEngine(str(tiny_model_dir), dtype="float32").nll(chunks)
    for other in (backwards, alone, tiled):
        for a, b in zip(together, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("bos", "scored"), [("auto", 23), ("bos", 23), ("eos", 23), ("none", 22)])
def test_bos_policies(bos: str, scored: int, tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32", bos=bos)
    chunk = _chunks(len(engine.tokenizer))[2]
    (nll,) = engine.nll([chunk])
    assert len(nll) == scored
    prefix = [engine.tokenizer.bos_token_id] if bos != "none" else []
    np.testing.assert_allclose(nll, _reference(str(tiny_model_dir), [*prefix, *chunk.tolist()]), atol=1e-4)


def test_bos_is_never_doubled(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir))
    (ids,) = engine.encode(["The quick brown fox"])
    assert engine.tokenizer.bos_token_id not in ids


def test_training_reduces_loss_and_reset_restores_it(tiny_model_dir: Path) -> None:
    engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
    engine.reset()
    chunks = _chunks(len(engine.tokenizer))
    before = np.concatenate(engine.nll(chunks))
    for _ in range(5):
        engine.step(chunks, 1e-2)
    assert np.concatenate(engine.nll(chunks)).mean() < before.mean() - 0.1
    engine.reset()
    np.testing.assert_array_equal(np.concatenate(engine.nll(chunks)), before)


def test_a_step_weighs_tokens_not_batches(tiny_model_dir: Path) -> None:
    """Gradients of one step are the same whatever the micro-batches: losses are divided by all tokens of the step."""
    gradients = []
    for batch_tokens in (1, 10_000):
        engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
        engine.batch_tokens = batch_tokens
        engine.reset()
        engine.step(_chunks(len(engine.tokenizer)), 1e-3)
        gradients.append(torch.cat([p.flatten() for p in engine.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-5, rtol=0)


def test_snapshot_continues_exactly(tiny_model_dir: Path) -> None:
    engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
    engine.reset()
    chunks = _chunks(len(engine.tokenizer))
    engine.step(chunks, 1e-3)
    saved = engine.snapshot()
    first = [engine.step(chunks, 1e-3) for _ in range(3)]
    engine.restore(saved)
    assert [engine.step(chunks, 1e-3) for _ in range(3)] == first


def test_saved_model_loads_in_plain_transformers(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
    engine.reset()
    chunk = _chunks(len(engine.tokenizer))[0]
    engine.step([chunk], 1e-2)
    engine.save(tmp_path / "model")
    assert (tmp_path / "model/model.safetensors").exists()
    expected = _reference(str(tmp_path / "model"), [engine.tokenizer.bos_token_id, *chunk.tolist()])
    np.testing.assert_allclose(engine.nll([chunk])[0], expected, atol=1e-4)


def test_samples_are_deterministic(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir))
    first = engine.sample(2, 8, 1)
    assert first == engine.sample(2, 8, 1) != engine.sample(2, 8, 2)


def test_user_errors(tiny_model_dir: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot load the tokenizer"):
        load_engine("transformers", str(tmp_path))
    with pytest.raises(UserError, match="Cannot load the model"):
        load_engine("transformers", str(tiny_tokenizer_dir))
    with pytest.raises(UserError, match="BOS policy"):
        TransformersEngine(str(tiny_model_dir), bos="maybe")
    with pytest.raises(UserError, match="Unknown engine"):
        load_engine("abacus", str(tiny_model_dir))
    engine = TransformersEngine(str(tiny_model_dir))
    with pytest.raises(UserError, match="256 positions"):
        engine.nll([np.ones(257, np.int32)])
    learner = TransformersLearner(str(tiny_model_dir))
    learner.reset()
    with pytest.raises(UserError, match="256 positions"):
        learner.step([np.ones(257, np.int32)], 1e-3)


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path, dirs_exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model_dir)
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"has {size + 1} tokens, its model only {size}; they do not belong"):
        TransformersEngine(str(tmp_path))


def test_a_classifier_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = transformers.T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not a causal language model"):
        TransformersEngine(str(tmp_path))


def test_a_chat_model_is_warned_about(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = TransformersLearner(str(tiny_model_dir))
    engine.tokenizer.chat_template = "{{ messages }}"
    engine.save(tmp_path)
    with pytest.warns(UserWarning, match="chat template"):
        TransformersEngine(str(tmp_path))


def test_a_failed_step_leaves_nothing_behind(tiny_model_dir: Path) -> None:
    """After a step that diverged, reset gives the results of a fresh engine: no NaN gradients are carried on."""
    chunks = _chunks(400)
    fresh = TransformersLearner(str(tiny_model_dir), dtype="float32")
    fresh.reset()
    expected = [fresh.step(chunks, 1e-3) for _ in range(2)]
    engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
    engine.reset()
    with torch.no_grad():
        next(engine.model.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        engine.step(chunks, 1e-3)
    engine.reset()
    assert [engine.step(chunks, 1e-3) for _ in range(2)] == expected


def test_a_bidirectional_model_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not causal"):
        TransformersEngine(str(tmp_path)).nll([np.array([5, 6, 7], np.int32)])


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", TransformersEngine), ("float16", TransformersLearner)])
def test_unusable_dtypes_are_refused(dtype: str, kind: type[TransformersEngine], tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="choose one of auto, float32"):
        kind(str(tiny_model_dir), dtype=dtype)


def test_other_weights_are_another_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = TransformersLearner(str(tiny_model_dir), dtype="float32")
    engine.reset()
    engine.step(_chunks(400), 1e-2)
    engine.save(tmp_path / tiny_model_dir.name)
    assert TransformersEngine(str(tmp_path / tiny_model_dir.name)).facts.weights != engine.facts.weights


def test_context_is_read_but_not_scored(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    chunks = _chunks(len(engine.tokenizer))
    contexts = [c[: len(c) // 2] for c in reversed(chunks)]  # of many lengths, one of them empty
    found = engine.nll(chunks, contexts)
    for chunk, context, nll in zip(chunks, contexts, found, strict=True):
        whole = _reference(str(tiny_model_dir), [engine.tokenizer.bos_token_id, *context.tolist(), *chunk.tolist()])
        np.testing.assert_allclose(nll, whole[len(context) :], atol=1e-4)
    bare = TransformersEngine(str(tiny_model_dir), dtype="float32", bos="none").nll(chunks, contexts)
    for chunk, context, nll in zip(chunks, contexts, bare, strict=True):
        assert len(nll) == len(chunk) - (len(context) == 0)  # without BOS, context alone gives the first token its loss


def test_facts_need_no_weights(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    engine = TransformersEngine(str(tiny_model_dir))
    assert engine.facts.n_params == sum(p.numel() for p in loaded.parameters())
    assert engine.facts.weights
    with pytest.raises(TypeError):
        engine.nll(_chunks(len(engine.tokenizer)))
