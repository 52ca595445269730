"""Configuration files: numbers, overrides, environment variables, faults in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pplscape.config import load_config, parse_config
from pplscape.errors import UserError

TEXT = "model: demo\ncorpus: [a.jsonl]\nbudget: 10%\npilots: {tokens: 1e6}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    return path


def test_exponent_numbers_are_numbers(config: Path) -> None:
    assert load_config(config).pilots.tokens == 1_000_000


def test_dotted_overrides(config: Path) -> None:
    found = load_config(config, ["training.learning_rate=3e-4", "pilots.designed=5", "general=[x.txt]"])
    assert (found.training.learning_rate, found.pilots.designed, found.general) == (3e-4, 5, ["x.txt"])


def test_environment_variables_are_filled_in(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert load_config(config, ["corpus=['${SOMEWHERE}/a']"]).corpus == ["/data/a"]
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(UserError, match="environment variable"):
        load_config(config, ["corpus=['${SOMEWHERE}/a']"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pilots.tokens=-1", "pilots.tokens: .*greater than 0"),
        ("colour=red", "colour: .*Known keys: model, corpus"),
        ("corpus=[]", "corpus: "),
        ("nonsense", "key=value"),
    ],
)
def test_faults_name_the_field(config: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(config, [change])


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no configuration file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "evil.yaml").write_text("model: !!python/object/apply:os.system [echo]")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "evil.yaml")


def test_a_draw_towards_a_target_needs_one() -> None:
    plain = {"model": "m", "corpus": ["c.jsonl"], "budget": "10%", "pilots": {"tokens": 1e6}, "baselines": ["matched"]}
    with pytest.raises(UserError, match="give it as heldout"):
        parse_config(plain, "here")
    assert parse_config({**plain, "heldout": ["wanted.jsonl"]}, "here").baselines == ["matched"]
