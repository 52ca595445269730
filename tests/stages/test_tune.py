"""tune: the best of the rates tried, on the same random chunks; what diverges is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.tune import read_learning_rate, tune
from pplscape.training.schedule import Recipe

RECIPE = Recipe(warmup_tokens=64, step_tokens=64)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "dog", "loss", "twelve", "brown"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, 80))} for i in range(60)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return prepare(
        [str(folder / "c.jsonl")], model=str(tiny_tokenizer_dir), out=folder / "prepared", chunk_tokens=64,
        min_tokens=16, valid=800, test=800, near_duplicates="keep", overlap_share=1.0,
    )  # fmt: skip


def _tune(corpus: Path, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    folder = tune(corpus, model=str(model), out=out, engine="fake", recipe=RECIPE, **options)
    return json.loads((folder / "tune.json").read_text())


def test_the_best_rate_is_the_one_of_lowest_loss(corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    found = _tune(corpus, tiny_tokenizer_dir, tmp_path / "t", tokens=2000, rates=[1e-2, 1e-5, 1e-3])
    losses = {r["learning_rate"]: r["loss"] for r in found["runs"]}
    assert list(losses) == [1e-5, 1e-3, 1e-2]
    assert found["learning_rate"] == min(losses, key=lambda rate: losses[rate])
    assert losses[1e-5] < found["base_loss"]
    assert 2000 - 64 < found["tokens"] <= 2000
    assert read_learning_rate(tmp_path / "t") == found["learning_rate"]
    assert (found["note"] is None) == (found["learning_rate"] == 1e-3)


def test_rates_that_diverge_are_recorded(
    corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeEngine.step

    def diverges(self: FakeEngine, chunks: Any, learning_rate: float) -> dict[str, float]:
        if learning_rate > 5e-3:
            raise FloatingPointError("training loss is nan")
        return real(self, chunks, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", diverges)
    found = _tune(corpus, tiny_tokenizer_dir, tmp_path / "t", tokens=1000, rates=[1e-3, 1e-2])
    assert found["runs"][1] == {"learning_rate": 1e-2, "loss": None, "reason": "training loss is nan"}
    assert found["learning_rate"] == 1e-3
    assert read_manifest(tmp_path / "t")["counts"]["rejected"] == {"diverged": 1}
    with pytest.raises(UserError, match="diverged at every rate"):
        _tune(corpus, tiny_tokenizer_dir, tmp_path / "u", tokens=1000, rates=[1e-2, 2e-2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 10**9}, "must lie between"),
        ({"tokens": 1}, "must lie between"),
        ({"tokens": 500, "rates": [0.0]}, "above 0"),
    ],
)
def test_what_cannot_be_tuned(
    corpus: Path, tiny_tokenizer_dir: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        _tune(corpus, tiny_tokenizer_dir, tmp_path / "t", **options)
