"""The export that docs/exporting.md shows runs as it stands, and its table of formats is complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import World

from pplscape.formats import FORMATS

DOCS = (Path(__file__).parents[2] / "docs/exporting.md").read_text()


def test_the_shown_export_runs(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run/landscape").mkdir(parents=True)
    (tmp_path / "run/selection").symlink_to(world.selection)
    (tmp_path / "run/prepared").symlink_to(world.prepared)
    histogram = {"edges": [0, 5, 10], "counts": [[3, 1]]}
    (tmp_path / "run/landscape/landscape.json").write_text(json.dumps({"histogram": histogram}))
    monkeypatch.chdir(tmp_path)
    shown = DOCS.split("<!-- export -->\n```python\n")[1].split("```")[0]
    exec(shown, {"MODEL": str(world.tokenizer)})
    for line in re.findall(r"^    export/([\w./<>-]+)", DOCS, re.MULTILINE):
        name = line.replace("<format>", "megatron").rstrip("/")
        assert (tmp_path / "export" / name).exists(), name


def test_every_format_is_described() -> None:
    assert all(f"`{name}`" in DOCS for name in FORMATS)
