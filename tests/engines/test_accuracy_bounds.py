"""In 16 bits the engine is as exact as the committed table says, and bounds by that table see a loss of precision.

The mean error of a token hardly depends on the text (within a tenth for a trained model, a quarter for random ones);
the largest one, and chunks of random models, do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGURATIONS, Reference, build

from pplscape.engines import transformers as module
from pplscape.engines.dtype import CHUNK_ERROR
from pplscape.engines.likelihood import tiled_nll
from pplscape.engines.transformers import TransformersEngine
from pplscape.flow import model_path

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks/results/accuracy.json").read_text())
TABLE = {(r["model"], r["dtype"]): r for r in [*FOUND["architectures"], *FOUND["embedded"]]}
SLACK = {"absolute": 1.15, "chunk": 2.0}
"""The embedded model's errors over the table's: of tokens and of chunks' means."""
RANDOM_SLACK = 1.5
"""The same of tokens, random weights."""

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the table was measured on a CPU")
both = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
Text = list[np.ndarray]


@pytest.fixture(scope="module")
def text() -> Text:
    """A text that stays as it is, in ten chunks of tokens."""
    (ids,) = TransformersEngine(model_path("demo")).encode([(ROOT / "LICENSE").read_text()])
    return [ids[i : i + 150] for i in range(0, 1500, 150)]


@pytest.fixture(scope="module")
def expected(text: Text) -> Text:
    return plain(model_path("demo"), text)


def plain(folder: str, chunks: Text) -> Text:
    model, prefix = Reference(folder), TransformersEngine(folder).prefix
    return [model.nll([*prefix, *c.tolist()]) for c in chunks]


def errors(folder: str, dtype: str, chunks: Text, expected: Text) -> dict[str, float]:
    """Mean error of a token and of a chunk's mean, nats/token."""
    off = [f - e for f, e in zip(TransformersEngine(folder, dtype=dtype).nll(chunks), expected, strict=True)]
    return {"absolute": abs(np.concatenate(off)).mean(), "chunk": np.mean([abs(o.mean()) for o in off])}


@both
def test_the_embedded_model(dtype: str, text: Text, expected: Text) -> None:
    found = errors(model_path("demo"), dtype, text, expected)
    for name, slack in SLACK.items():
        assert found[name] < slack * TABLE["embedded", dtype][name], name


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_architectures(name: str, text: Text, tmp_path: Path) -> None:
    folder = build(name, Path(model_path("demo")), tmp_path / name)
    chunks = [c[:100] for c in text]
    reference = plain(folder, chunks)
    for dtype in ("float16", "bfloat16"):
        found = errors(folder, dtype, chunks, reference)
        assert found["absolute"] < RANDOM_SLACK * TABLE[name, dtype]["absolute"], dtype


def low_log_softmax(hidden: Any, targets: Any, tiles: Any) -> Any:
    logits = torch.cat([tile(hidden) for tile in tiles], dim=-1).bfloat16()
    return -torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def low_result(*given: Any) -> Any:
    return tiled_nll(*given).bfloat16()


def shifted(*given: Any) -> Any:
    """By what `--dtype auto` would still take."""
    return tiled_nll(*given) + CHUNK_ERROR


@both
@pytest.mark.parametrize(
    ("defect", "name"), [(low_log_softmax, "absolute"), (low_result, "absolute"), (shifted, "chunk")]
)
def test_a_loss_of_precision_is_seen(
    defect: Callable[..., Any], name: str, dtype: str, text: Text, expected: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "tiled_nll", defect)
    found = errors(model_path("demo"), dtype, text, expected)
    assert found[name] > SLACK[name] * TABLE["embedded", dtype][name]
