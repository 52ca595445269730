"""What the README shows is true: its files exist, its configuration is valid, CI runs its test command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pplscape.config import load_config, parse_config
from pplscape.manifest import sha256_file

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 2
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_configuration_shown_is_valid() -> None:
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown
    assert parse_config(yaml.safe_load(shown[1].replace("20e6", "20.0e+6")), "README").budget == "10%"


def test_both_commands_make_their_own_environment() -> None:
    for marker in ("demo", "test"):
        command = README.split(f"<!-- {marker} -->")[1].split("```")[1].splitlines()[1]
        assert command.startswith("python3 -m venv .venv")
        assert "-c constraints.txt" in command


def test_constraints_hold_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_valid(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLSCAPE_DATA", "/data")
    assert load_config(recipe).corpus[0].startswith("/data/biomed/")


def test_the_embedded_model_is_small_and_whole() -> None:
    folder = ROOT / "src/pplscape/embedded/base-2.6m"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 15_000_000
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md"} <= {p.name for p in folder.iterdir()}
    assert len(sha256_file(folder / "model.safetensors")) == 64
