"""--config and --set of single stages: the same configuration as `run`, under what is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pplscape.stages.fit
import pplscape.stages.plan
import pplscape.stages.prepare
import pplscape.stages.score
import pplscape.stages.select
import pplscape.stages.train
from pplscape.cli import app
from pplscape.errors import UserError

TEXT = """
model: some/model
corpus: [a.jsonl, b.jsonl]
budget: 10%
chunk_tokens: 128
bos: none
score_dtype: bfloat16
forms: [paper, utility]
pilots: {tokens: 300k, designed: 4}
training: {learning_rate: 3e-4, step_tokens: 8192}
seed: 7
""".replace("300k", "300000")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a stage was called with; no stage runs."""
    seen: dict[str, Any] = {}

    def record(*inputs: Any, **options: Any) -> Path:
        seen.update(options, inputs=inputs[0])
        raise UserError("stop")

    for stage in ("prepare", "score", "plan", "fit", "select", "train"):
        monkeypatch.setattr(getattr(pplscape.stages, stage), stage, record)
    return seen


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_values_come_from_the_file(config: str, called: dict[str, Any]) -> None:
    run("prepare", "--config", config, "--out", "o")
    assert called["inputs"] == ["a.jsonl", "b.jsonl"]
    assert (called["model"], called["chunk_tokens"], called["seed"]) == ("some/model", 128, 7)


def test_set_wins_over_the_file_and_what_is_typed_over_both(config: str, called: dict[str, Any]) -> None:
    arguments = ["train", "subset", "--out", "o", "--set", "training.step_tokens=1024", "--config", config]
    run(*arguments, "--set", "training.learning_rate=5e-4", "--learning-rate", "9e-4")
    recipe = called["recipe"]
    assert (recipe.learning_rate, recipe.step_tokens, called["bos"]) == (9e-4, 1024, "none")


def test_nested_and_renamed_keys(config: str, called: dict[str, Any]) -> None:
    run("plan", "landscape", "--config", config, "--out", "o")
    assert (called["budget"], called["pilot_tokens"], called["designed"]) == ("10%", 300_000, 4)
    run("fit", "runs.csv", "--config", config, "--out", "o")
    assert called["forms"] == ["paper", "utility"]
    run("score", "prepared", "--config", config, "--out", "o")
    assert called["dtype"] == "bfloat16"


def test_set_alone_needs_no_file(called: dict[str, Any]) -> None:
    run("score", "prepared", "--model", "m", "--out", "o", "--set", "context=64")
    assert (called["context"], called["dtype"]) == (64, "auto")


def test_quotas_and_lists_of_ids(called: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a=1\n\nb\n")
    run(
        "select", "scores", "--budget", "2M", "--out", "o", "--quota", "x=y=0.25", "--forbid", str(tmp_path / "ids.txt")
    )
    assert (called["quotas"], called["forced"], called["forbidden"]) == ({"x=y": 0.25}, [], ["a=1", "b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "colour=red"], "colour: .*Known keys"),
        (["--set", "training.learning_rate=-1"], r"training.learning_rate\S*: .*greater than 0"),
        (["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
    ],
)
def test_faults_are_user_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["train", "s", "--out", "o", "--model", "m", *arguments], catch_exceptions=False)
