"""Where the gate is shut and a target is known: which arms are measured, and what is advised after they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pplscape.cli.whole import _advice
from pplscape.config import parse_config
from pplscape.flow import Flow

LAW = {"form": "utility:power"}


@pytest.mark.parametrize(
    ("used", "candidate", "measured"),
    [
        ("matched", "allocate", ["random", "matched", "allocate", "mid"]),
        ("random", "allocate", ["random", "allocate", "mid"]),
        ("allocate", "allocate", ["random", "allocate", "mid"]),
        ("matched", None, ["random", "matched", "mid"]),
    ],
)
def test_what_was_selected_is_the_first_rival(
    used: str, candidate: str | None, measured: list[str], tmp_path: Path
) -> None:
    """The verdict is about the first; the law's choice is measured, too, where the gate did not let it pass."""
    config = {"model": "m", "corpus": ["c"], "budget": "10%", "pilots": {"tokens": 1e6}, "baselines": ["mid"]}
    flow = Flow(parse_config(config, "here"), tmp_path, False)
    flow.chosen = {"used": used, "candidate": candidate, "law": LAW}
    assert flow.strategies() == measured


@pytest.mark.parametrize(
    ("law", "mix", "advised"),
    [
        ((-0.05, -0.06, -0.04), (-0.03, -0.04, -0.02), True),
        ((-0.05, -0.06, -0.04), (-0.08, -0.09, -0.07), False),  # what lies on disk is better
        ((-0.05, -0.12, +0.02), (-0.03, -0.04, -0.02), False),  # not told from random
        ((-0.05, None, None), (-0.03, None, None), False),  # one pair of runs
    ],
)
def test_the_laws_choice_is_advised_where_it_was_measured_to_be_better(
    law: tuple[Any, ...], mix: tuple[Any, ...], advised: bool, tmp_path: Path
) -> None:
    def row(name: str, told: tuple[Any, ...] | None) -> dict[str, Any]:
        return {"strategy": name, "difference": dict(zip(("mean", "low", "high"), told, strict=True)) if told else None}

    files: dict[str, Any] = {
        "selection/selection.json": {"used": "matched", "candidate": "allocate", "law": LAW, "budget": 1000},
        "comparison/comparison.json": {"strategies": [row("random", None), row("matched", mix), row("allocate", law)]},
        "landscape/landscape.json": {"bins": {"axis": "likeness"}},
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    (tmp_path / "located").mkdir()
    said = _advice(tmp_path)
    assert (said is not None) == advised
    if said:
        assert "--strategy allocate --form utility:power" in said
        assert f"--toward {tmp_path / 'located'}" in said
