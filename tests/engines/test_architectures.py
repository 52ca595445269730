"""Every token's likelihood equals that of the plain model, architecture by architecture."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CONFIGURATIONS, SCALED, WINDOW, Reference, build, chunks_of

from pplscape.engines import transformers as module
from pplscape.engines.transformers import TransformersEngine

TOLERANCE = 1e-4
"""nats/token"""


@pytest.fixture(scope="module")
def folders(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("architectures")
    return {name: build(name, tiny_tokenizer_dir, base / name) for name in CONFIGURATIONS}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_full_logit_reference(name: str, folders: dict[str, str]) -> None:
    """Tokens and chunks, in one batch of many lengths, each after BOS and after left context."""
    reference = Reference(folders[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no silent change to full logits
        engine = TransformersEngine(folders[name], dtype="float32")
        chunks = chunks_of(len(engine.tokenizer))
        found = engine.nll(chunks)
    expected = [reference.nll([*engine.prefix, *c.tolist()]) for c in chunks]
    assert np.concatenate(expected).std() > 0.5, "the model must tell tokens apart"
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=TOLERANCE)
        assert abs(f.mean(dtype=np.float64) - e.mean()) < TOLERANCE
    contexts = [c[:9] for c in reversed(chunks)]
    for chunk, context, f in zip(chunks, contexts, engine.nll(chunks, contexts), strict=True):
        whole = reference.nll([*engine.prefix, *context.tolist(), *chunk.tolist()])
        np.testing.assert_allclose(f, whole[len(context) :], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_chunk_does_not_depend_on_its_neighbours(name: str, folders: dict[str, str]) -> None:
    """Alone, in another order, beside other texts: nothing attends across, no padding is read."""
    engine = TransformersEngine(folders[name], dtype="float32")
    chunks, others = (chunks_of(len(engine.tokenizer), seed) for seed in (0, 1))
    together = engine.nll(chunks)
    mixed = [engine.nll([*others, c, *others[:2]])[len(others)] for c in chunks[:3]]
    for found in (engine.nll(chunks[::-1])[::-1], [engine.nll([c])[0] for c in chunks], mixed):
        for a, b in zip(found, together, strict=False):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SCALED)
def test_a_forgotten_scale_or_cap_would_be_seen(
    name: str, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(folders[name], dtype="float32")
    chunks = chunks_of(len(engine.tokenizer))
    ours = np.concatenate(engine.nll(chunks))
    monkeypatch.setattr(module, "scaled_logits", lambda model, logits: logits)
    assert abs(np.concatenate(engine.nll(chunks)) - ours).mean() > 1000 * TOLERANCE


@pytest.mark.parametrize("name", ["mistral-window", "gemma2", "gemma3", "cohere2"])
def test_a_forgotten_window_would_be_seen(name: str, folders: dict[str, str]) -> None:
    """With a window that holds the whole text the same weights give another answer: the window is really in use."""
    reference = Reference(folders[name])
    (chunk,) = chunks_of(300, lengths=(64,))
    narrow = reference.nll(chunk.tolist())
    reference.model.config.sliding_window = 1000
    for layer in reference.model.modules():
        if getattr(layer, "sliding_window", None):
            layer.sliding_window = 1000
    wide = reference.nll(chunk.tolist())
    np.testing.assert_allclose(narrow[: WINDOW - 2], wide[: WINDOW - 2], atol=TOLERANCE)
    assert abs(narrow - wide)[2 * WINDOW :].mean() > 1000 * TOLERANCE


def test_an_unknown_scale_falls_back_to_the_models_own_logits(
    tiny_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that multiplies by what no configuration names: warned of, and still right."""
    folder = build("llama-untied", tiny_tokenizer_dir, tmp_path / "m")
    original = torch.nn.Module.__call__
    factor = 1.7

    def scaled(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        found = original(self, *args, **kwargs)
        if type(self).__name__ == "LlamaForCausalLM":
            found.logits = found.logits * factor
        return found

    monkeypatch.setattr(torch.nn.Module, "__call__", scaled)
    engine = TransformersEngine(folder, dtype="float32")
    chunks = chunks_of(len(engine.tokenizer))
    with pytest.warns(UserWarning, match="full logits are used"):
        found = engine.nll(chunks)
    reference = Reference(folder)
    for f, c in zip(found, chunks, strict=True):
        np.testing.assert_allclose(f, reference.nll([*engine.prefix, *c.tolist()]), rtol=0, atol=TOLERANCE)
