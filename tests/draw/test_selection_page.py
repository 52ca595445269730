"""docs/selection.md: what it shows runs, every strategy and option is described, its table is the committed result."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pools import score_table
from test_docs import BLOCK, printed_by

import pplscape as ps
from pplscape.draw.strategies import STRATEGIES
from pplscape.draw.stream import read_selected

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/selection.md").read_text()


def ids(folder: str) -> set[tuple[str, int]]:
    table = read_selected(Path(folder))
    return set(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True))


def test_what_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores").mkdir()
    pq.write_table(score_table(4000), "scores/part-00000.parquet")
    Path("spoiled.txt").write_text("doc000003\ndoc000007\n")
    names: dict = {"ps": ps}
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == 3
    for _, language, code in blocks:
        printed_by(language, code, names)
    assert all(Path("run", name).exists() for name in ("selection.json", "summary.md", "selected"))
    found = json.loads(Path("quotas/selection.json").read_text())
    assert found["source_tokens"]["a"] == pytest.approx(0.5 * found["budget"], abs=256)
    assert not {d for d, _ in ids("quotas")} & {"doc000003", "doc000007"}
    assert ids("low-5") < ids("low-10")
    assert ids("maxent-5") < ids("maxent-10")
    drawn = json.loads(Path("maxent-10/selection.json").read_text())["achieved"]["nll"]
    assert (drawn["mean"], drawn["std"]) == pytest.approx((3.1, 0.6), rel=0.01)


def test_every_strategy_and_option_is_described() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    listed = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert listed >= {"auto", *STRATEGIES}
    for option in ("whole-documents", "nested", "contains", "quota", "force", "forbid", "replay", "replay-share",
                   "dos-spread", "dos-weights", "dos-stop", "export", "max-epochs", "band", "temperature"):  # fmt: skip
        assert f"--{option}" in PAGE, option


def test_the_table_is_the_committed_result() -> None:
    page = runpy.run_path(str(ROOT / "experiments/two_spikes.py"))
    found = json.loads((ROOT / "experiments/results/two_spikes.json").read_text())
    assert page["markdown"](found) in PAGE
    by = {r["strategy"]: r for r in found["draws"]}
    assert by["dos"]["near_a_spike"] > 0.9 > 0.5 > by["maxent"]["near_a_spike"]
    assert by["dos"]["kl"] > 5 * by["maxent"]["kl"]


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
