"""Fixtures for all tests: a tiny tokenizer and a tiny random model, made on the spot (nothing is downloaded)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; read when numpy and torch are first imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ON_RAY = ("test_on_ray", "test_select_on_ray", "test_pilot_workers")

settings.register_profile("shared-machine", deadline=None)  # first calls build tables; machines are shared
settings.load_profile("shared-machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` a file's tests run in one process, because their fixtures cost more than they do, and all
    that start Ray in the same one: two clusters at a time starve each other."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group("ray" if item.path.stem in ON_RAY else item.path.stem))


END = "<|endoftext|>"
SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Patients with heart failure were treated with a beta blocker for twelve weeks.",
    "def add(first, second):\n    return first + second\n",
    "In 1998 the court decided 12 of 345 cases; the others were dismissed.",
    "Perplexity is the exponential of the mean loss per token.",
)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of about 400 tokens, BOS = EOS = `<|endoftext|>`, loadable by AutoTokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    folder = tmp_path_factory.mktemp("tiny_tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama of width 32 (seed 0, fp32 safetensors) with the tiny tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    folder = tmp_path_factory.mktemp("tiny_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _unsaved() -> Iterator[None]:
    """Figures are drawn but not saved, which is half the time of `landscape` and `fit`; for tests of other things."""
    from pplscape.reporting.style import Drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drawing, "png", lambda drawing: b"png")
        patch.setattr(Drawing, "svg_file", lambda drawing: b"svg")
        yield


unsaved_figures = pytest.fixture(_unsaved)
figures_never_saved = pytest.fixture(_unsaved, scope="module")
"""Of a test, and of all tests of a file with their fixtures."""
