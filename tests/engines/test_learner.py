"""The learner: adapters, recomputed activations, memory that runs out, state on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError

from pplscape.engines.fused import LinearCrossEntropy
from pplscape.engines.head import head_is_linear
from pplscape.engines.learner import BETAS, CLIP_NORM, WEIGHT_DECAY, TransformersLearner
from pplscape.errors import UserError
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.loop import Progressed, constant_steps, cooldown_steps, train_steps
from pplscape.training.schedule import Recipe

Chunks = list[np.ndarray]


def _chunks(n: int = 6) -> Chunks:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 300, rng.integers(4, 40)).astype(np.int32) for _ in range(n)]


def _learner(folder: Path, **options: Any) -> TransformersLearner:
    learner = TransformersLearner(str(folder), dtype="float32", **options)
    learner.reset()
    return learner


def _weights(learner: TransformersLearner) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def test_a_branch_is_the_separate_run_of_its_length(tiny_model_dir: Path) -> None:
    """Bit for bit, also the one that is taken after another branch was trained and the trunk went on."""
    chunks, recipe = _chunks(24), Recipe(learning_rate=1e-3, warmup_tokens=40, step_tokens=60)
    ends, trunk, at, branches, done = (10, 20), _learner(tiny_model_dir), Progressed(), [], 0
    for end in ends:
        train_steps(trunk, constant_steps(chunks[done:end], recipe, at.tokens), recipe, at)
        kept, branch, done = trunk.snapshot(), at.copy(), end
        train_steps(trunk, cooldown_steps(chunks[end : end + 4], recipe, branch.tokens), recipe, branch)
        branches.append(_weights(trunk))
        trunk.restore(kept)
    for end, expected in zip(ends, branches, strict=True):
        alone, at = _learner(tiny_model_dir), Progressed()
        for segment in (chunks[:10], chunks[10:end]):
            train_steps(alone, constant_steps(segment, recipe, at.tokens), recipe, at)
        train_steps(alone, cooldown_steps(chunks[end : end + 4], recipe, at.tokens), recipe, at)
        assert all(torch.equal(a, b) for a, b in zip(_weights(alone).values(), expected.values(), strict=True))


def test_state_on_disk_continues_exactly(tiny_model_dir: Path, tmp_path: Path) -> None:
    chunks = _chunks()
    first = _learner(tiny_model_dir)
    first.step(chunks, 1e-3)
    first.batch_tokens = 64
    first.save_state(tmp_path)
    expected = [first.step(chunks, 1e-3) for _ in range(3)]
    second = TransformersLearner(str(tiny_model_dir), dtype="float32")
    second.load_state(tmp_path)
    assert second.batch_tokens == 64  # other micro-batches would round otherwise
    assert [second.step(chunks, 1e-3) for _ in range(3)] == expected
    assert all(torch.equal(a, b) for a, b in zip(_weights(first).values(), _weights(second).values(), strict=True))
    second.reset()
    anew = _learner(tiny_model_dir)
    anew.batch_tokens = 64
    assert second.step(chunks, 1e-3) == anew.step(chunks, 1e-3)


def test_a_full_disk_is_said_and_the_state_before_is_kept(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = _learner(tiny_model_dir)
    learner.step(_chunks(), 1e-3)
    with pytest.raises(OSError, match="No such file"):  # what the library cannot write is an error of its own
        learner.save_state(tmp_path / "missing")
    checkpoints = Checkpoints(tmp_path / "states")
    checkpoints.save(learner, 1, {"tokens": 7})

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pplscape.engines.learner.save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*step-000000002: .*No space left.*Free some space"):
        checkpoints.save(learner, 2, {"tokens": 9})
    assert [p.name for p in (tmp_path / "states").iterdir()] == ["step-000000001"]
    assert checkpoints.load(learner) == (1, {"tokens": 7})


def test_steps_on_rows_of_mixed_length_are_those_of_plain_training(tiny_model_dir: Path) -> None:
    """Against transformers' own loss over one padded batch, torch's AdamW and clipping: every token of a step weighs
    the same, whatever rows and micro-batches it lies in; three steps, losses and weights."""
    chunks = _chunks(12)
    ours = _learner(tiny_model_dir)
    ours.batch_tokens = 64  # several micro-batches with different numbers of tokens
    plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for p in plain.parameters():
        groups[p.dim() > 1].append(p)
    optimizer = torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": WEIGHT_DECAY}, {"params": groups[False], "weight_decay": 0.0}],
        lr=1e-3, betas=BETAS,
    )  # fmt: skip
    width = 1 + max(len(c) for c in chunks)
    ids, labels = torch.zeros(len(chunks), width, dtype=torch.long), torch.full((len(chunks), width), -100)
    for i, chunk in enumerate(chunks):
        ids[i, 0] = ours.prefix[0]
        ids[i, 1 : 1 + len(chunk)] = labels[i, 1 : 1 + len(chunk)] = torch.from_numpy(chunk.astype(np.int64))
    mask = torch.arange(width) <= torch.tensor([[len(c)] for c in chunks])
    for _ in range(3):
        loss = plain(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), CLIP_NORM)
        facts = ours.step(chunks, 1e-3)
        assert facts["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert facts["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(_weights(ours)[name], parameter.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_gradients(tiny_model_dir: Path, dtype: str) -> None:
    found = []
    for recompute in (False, True):
        learner = TransformersLearner(str(tiny_model_dir), dtype=dtype, gradient_checkpointing=recompute)
        learner.reset()
        facts = [learner.step(_chunks(), 1e-3) for _ in range(2)]
        found.append((facts, _weights(learner)))
        assert not learner.model.training
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1].values(), found[1][1].values(), strict=True))


@pytest.mark.parametrize("slice_rows", [1, 7, 64])
def test_the_fused_head_is_cross_entropy_with_its_gradients(slice_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (20,), generator=generator)
    expected = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum") / 7
    ours = LinearCrossEntropy.apply(hidden, weight, targets, slice_rows) / 7
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    by_autograd = torch.autograd.grad(expected, (hidden, weight))
    for a, b in zip(torch.autograd.grad(ours, (hidden, weight)), by_autograd, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scale", "linear"), [(1.0, True), (0.25, False)])
def test_a_step_is_that_of_autograd_through_full_logits(
    tiny_tokenizer_dir: Path, tmp_path: Path, scale: float, linear: bool
) -> None:
    """On a model whose head is a plain product, and on one (Granite) that scales its logits."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = transformers.GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, logits_scaling=1 / scale, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    learner, chunks = _learner(tmp_path), _chunks()
    assert head_is_linear(learner.model) is linear
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    losses = []
    for chunk in chunks:
        ids = torch.tensor([[learner.tokenizer.bos_token_id, *chunk.tolist()]])
        losses.append(torch.nn.functional.cross_entropy(reference(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
    mean = sum(losses) / sum(len(c) for c in chunks)
    mean.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1e9)
    facts = learner.step(chunks, 1e-3)
    assert facts["loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert facts["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_dropout_stays_off_when_activations_are_recomputed(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    """GPT-2's configuration asks for dropout, which training mode would switch on."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.5, embd_pdrop=0.5,
        attn_pdrop=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain, recomputed = _learner(tmp_path), _learner(tmp_path, gradient_checkpointing=True)
    assert plain.step(_chunks(), 1e-3) == recomputed.step(_chunks(), 1e-3)


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, starved = _learner(tiny_model_dir), _learner(tiny_model_dir)
    real, computed, midway = starved._linear_total, [], []

    def small_memory(rows: Any) -> torch.Tensor:
        size = sum(len(r.ids) for r in rows)
        if size > 100 or (len(computed) == 1 and not midway):  # once after a part of the gradient
            midway.extend(computed)
            raise torch.OutOfMemoryError("CUDA out of memory")
        computed.append(size)
        return real(rows)

    monkeypatch.setattr(starved, "_linear_total", small_memory)
    expected = whole.step(_chunks(), 1e-3)
    assert starved.step(_chunks(), 1e-3) == pytest.approx(expected, rel=1e-5)
    assert midway
    assert starved.batch_tokens < whole.batch_tokens
    for a, b in zip(_weights(whole).values(), _weights(starved).values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = _learner(tiny_model_dir)

    def broken(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(learner, "_linear_total", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        learner.step(_chunks(), 1e-3)


def test_weights_stay_fp32_under_bfloat16(tiny_model_dir: Path) -> None:
    """A rate at which no weight in bfloat16 (8 bits) would move: fp32 weights and optimiser do."""
    learner = TransformersLearner(str(tiny_model_dir), dtype="bfloat16")
    learner.reset()
    before = _weights(learner)
    learner.step(_chunks(), 1e-6)
    for name, weight in _weights(learner).items():
        assert weight.dtype == torch.float32
        if weight.dim() > 1:
            assert not torch.equal(weight, before[name])
            assert (weight.bfloat16() != before[name].bfloat16()).float().mean() < 0.1
    assert all(v.dtype == torch.float32 for s in learner.optimizer.state.values() for v in s.values())


def test_a_step_that_is_not_finite_changes_no_weight(tiny_model_dir: Path) -> None:
    learner = _learner(tiny_model_dir)
    learner.step(_chunks(), 1e-3)
    before = _weights(learner)
    learner.step(_chunks(), 1e30)  # throws the weights far away
    bad = _weights(learner)
    with pytest.raises(FloatingPointError, match="loss is"):
        learner.step(_chunks(), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(bad.values(), _weights(learner).values(), strict=True))
    learner.reset()
    learner.step(_chunks(), 1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), _weights(learner).values(), strict=True))


def test_adapters_learn_beside_frozen_weights_and_are_merged_when_saved(tiny_model_dir: Path, tmp_path: Path) -> None:
    learner = _learner(tiny_model_dir, lora_rank=4)
    chunks = _chunks()
    untrained = _learner(tiny_model_dir).nll(chunks)
    np.testing.assert_allclose(np.concatenate(learner.nll(chunks)), np.concatenate(untrained), atol=1e-6)
    trained = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)
    for _ in range(5):
        learner.step(chunks, 1e-2)
    after = np.concatenate(learner.nll(chunks))
    assert after.mean() < np.concatenate(untrained).mean() - 0.05
    learner.save(tmp_path / "model")
    merged = TransformersLearner(str(tmp_path / "model"), dtype="float32")
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    np.testing.assert_allclose(np.concatenate(merged.nll(chunks)), after, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(learner.nll(chunks)), after)  # saving merged a copy
    learner.reset()
    np.testing.assert_allclose(np.concatenate(learner.nll(chunks)), np.concatenate(untrained), atol=1e-6)


def test_adapters_begin_alike(tiny_model_dir: Path) -> None:
    first = _learner(tiny_model_dir, lora_rank=4)
    torch.manual_seed(123)
    second = _learner(tiny_model_dir, lora_rank=4)
    assert first.step(_chunks(), 1e-3) == second.step(_chunks(), 1e-3)
    assert [first.step(_chunks(), 1e-3)] == [second.step(_chunks(), 1e-3)]
