"""train: killed for real it ends in the same weights, a run that diverges keeps its last good weights, trackers."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from train_jobs import kill, start

from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import read_manifest
from pplscape.stages.train import train
from pplscape.training.schedule import Recipe

RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=64, replay_share=0.25)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "dog", "loss", "twelve", "brown"]
    path = tmp_path_factory.mktemp("text") / "t.jsonl"
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, 60))} for i in range(60)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def _arguments(text: Path, model: Path, out: Path) -> dict[str, Any]:
    return {
        "subset": str(text), "model": str(model), "out": str(out), "general": [str(text)], "chunk_tokens": 32,
        "dtype": "float32", "checkpoint_seconds": 0,
    }  # fmt: skip


def _data(out: Path) -> dict[str, str]:
    return read_manifest(out)["files"]


def test_killed_anywhere_the_weights_are_those_of_an_undisturbed_run(
    text: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(**_arguments(text, tiny_model_dir, tmp_path / "whole"), recipe=RECIPE)
    arguments = _arguments(text, tiny_model_dir, tmp_path / "killed")
    checkpoints = tmp_path / "killed.partial" / "checkpoints"
    seen: list[int] = []
    for wanted in (3, 9):
        (process,) = start(arguments | {"recipe": RECIPE})
        while not any(int(p.name[5:]) >= wanted for p in checkpoints.glob("step-*")):
            assert process.is_alive(), "the run ended before it was killed"
            time.sleep(0.01)
        kill([process])
        assert process.exitcode == -signal.SIGKILL
        seen.append(max(int(p.name[5:]) for p in checkpoints.glob("step-*")))
    assert seen[0] < seen[1]  # the second start went on where the first was killed
    train(**arguments, recipe=RECIPE)
    assert _data(tmp_path / "killed") == _data(tmp_path / "whole")
    counts = [read_manifest(tmp_path / name)["counts"] for name in ("whole", "killed")]
    facts = [c.pop("facts") for c in counts]  # they hold the folder's name
    assert facts[0]["tokens"] == counts[0]["tokens"]
    assert counts[0] == counts[1]
    assert counts[0]["replay_tokens"] > 0


def test_a_run_that_diverges_keeps_its_last_good_weights(
    text: Path, tiny_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = FakeEngine.step, [0]

    def diverges(self: FakeEngine, chunks: Any, learning_rate: float) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 6:
            raise FloatingPointError("training loss is nan")
        return real(self, chunks, learning_rate)

    monkeypatch.setattr(FakeEngine, "step", diverges)
    arguments = _arguments(text, tiny_tokenizer_dir, tmp_path / "t") | {"engine": "fake"}
    with pytest.raises(UserError, match=r"diverged .*nan.*last-good"):
        train(**arguments, recipe=RECIPE)
    steps = [json.loads(line) for line in (tmp_path / "t.partial/train.jsonl").read_text().splitlines()]
    assert len(steps) == 5
    kept = FakeEngine(str(tmp_path / "t.partial/last-good"))
    assert kept.counts.sum() > FakeEngine(str(tiny_tokenizer_dir)).counts.sum()
    assert not (tmp_path / "t").exists()


def test_figures_go_to_the_tracker_and_its_failure_costs_nothing(
    text: Path, tiny_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    wandb = ModuleType("wandb")

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            if step == 4:
                raise ConnectionError("the service is down")
            logged.append((figures, step))

        def finish(self) -> None: ...

    wandb.init = lambda **_: Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    arguments = _arguments(text, tiny_tokenizer_dir, tmp_path / "t") | {"engine": "fake", "tracker": "wandb"}
    with pytest.warns(UserWarning, match="the service is down"):
        out = train(**arguments, recipe=RECIPE)
    steps = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert logged == [(steps[i], i + 1) for i in range(3)]
    assert len(steps) > 4
    assert steps[-1]["tokens"] == read_manifest(out)["counts"]["tokens"]


@pytest.mark.parametrize(("tracker", "says"), [("paper", "Unknown tracker"), ("trackio", "pip install trackio")])
def test_trackers_that_cannot_be_used(
    text: Path, tiny_tokenizer_dir: Path, tmp_path: Path, tracker: str, says: str
) -> None:
    arguments = _arguments(text, tiny_tokenizer_dir, tmp_path / "t") | {"engine": "fake", "tracker": tracker}
    with pytest.raises(UserError, match=says):
        train(**arguments, recipe=RECIPE)


def test_cosine_known_values() -> None:
    recipe = Recipe(learning_rate=1.0, warmup_tokens=0, decay="cosine")
    assert [recipe.cooled(0, done, 100) for done in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert recipe.cooled(0, 100 // 3, 100) == pytest.approx(0.5 * (1 + np.cos(np.pi * 33 / 100)))
    with pytest.raises(UserError, match="sqrt, cosine"):
        Recipe(decay="linear")
