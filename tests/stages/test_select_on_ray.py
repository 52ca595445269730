"""select: the same ids and facts on 1, 2 and 5 threads and on Ray's workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from test_select import fitted, run, scores_table, write_scores  # noqa: F401

from pplscape.errors import UserError
from pplscape.manifest import read_manifest

PARTS, ROWS = 6, 15_000


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in test_select, in parts: each is a unit of work."""
    return write_scores(tmp_path_factory.mktemp("s") / "scores", scores_table(ROWS), parts=PARTS)


def contents(out: Path) -> dict[str, bytes]:
    """Every data file of a selection: selection.json, summary.md, selected/, rejected/."""
    return {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "manifest.json"
    }


STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"quotas": {"a": 0.3}, "forced": ["d1", "d7"], "forbidden": ["d3"]},
    "low": {},
    "band": {"band": (0.2, 0.8)},
    "maxent": {"target_mean": 4.4, "target_std": 0.4, "scale": "nll"},
    "allocate": {"law": "good utility"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_files_whoever_reads(
    strategy: str, scores: Path, fitted: dict[str, Path], tmp_path: Path, on_ray: None  # noqa: F811
) -> None:  # fmt: skip
    options = {"strategy": strategy, **STRATEGIES[strategy]}
    if "law" in options:
        options |= {"law": fitted[options["law"]], "runs": fitted["good runs"]}
    actors = 2 if strategy == "random" else 1  # several, once; that its job reaches an actor, for every strategy
    ways: list[dict[str, Any]] = [{"workers": n} for n in (1, 2, 5, 100)] + [{"executor": "ray", "workers": actors}]
    for way in ways:
        run(scores, tmp_path / str(way), **options, **way)
    first, *others = (contents(tmp_path / str(way)) for way in ways)
    tables = [name for name in first if name.startswith("selected/")]
    assert len(tables) == PARTS + 1, "what each part is certain of, and what was settled at the end"
    for other in others:
        assert other == first
    keys = {read_manifest(tmp_path / str(way))["key"] for way in ways}
    assert len(keys) == 1, "who reads is no part of the configuration"


def test_an_address_needs_ray(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass --executor ray as well"):
        run(scores, tmp_path / "o", strategy="low", address="there:1")
    assert not os.listdir(tmp_path)
