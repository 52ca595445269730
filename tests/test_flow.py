"""The whole flow on the fake engine: it runs, resumes after real kills, and every number follows from the files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pplscape
from pplscape.config import load_config
from pplscape.draw.strategies import BY_TEXT
from pplscape.engines.fake import FakeEngine
from pplscape.flow import Flow
from pplscape.manifest import MANIFEST, read_manifest
from pplscape.reporting.terminal import summary as terminal_summary
from pplscape.schema import LIKENED


def write_corpus(path: Path, n: int = 260) -> None:
    """Documents of two kinds: repetitive (soon known) and varied (worth learning), some of them noise."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in ("ba", "ko", "mi", "tu", "sel", "dor") for b in ("n", "ra", "lim", "t", "vo", "xe")]
    rows = []
    for i in range(n):
        vocabulary = words[: rng.integers(2, len(words))]
        text = " ".join(rng.choice(vocabulary, rng.integers(150, 260)))
        if i % 7 == 0:
            text = "".join(chr(c) for c in rng.integers(33, 126, len(text)))
        rows.append({"id": f"doc-{i}", "text": text, "metadata": {"kind": i % 3}})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def write_base(tokenizer_dir: Path, folder: Path) -> Path:
    """A fake base model that has read the first documents of the corpus' first words."""
    base = FakeEngine(str(tokenizer_dir))
    base.reset()
    base.step(base.encode(["ban kora milim tut selvo dorxe " * 200]), 1e-3)
    base.save(folder)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    write_corpus(folder / "corpus.jsonl")
    base = write_base(tiny_tokenizer_dir, folder / "base")
    content = {
        "model": str(base), "corpus": [str(folder / "corpus.jsonl")], "budget": "12%", "engine": "fake",
        "pilots": {"tokens": 60_000, "designed": 5, "random_seeds": 3}, "bins": 4, "chunk_tokens": 64, "min_tokens": 16,
        "training": {"learning_rate": "auto", "tune_tokens": 2000, "warmup_tokens": 256, "step_tokens": 256},
        "bootstrap": 60,
        "valid_tokens": 8000, "test_tokens": 8000, "arm_seeds": 2,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pplscape.run(config, out=out)
    return out


def stage_folders(out: Path) -> list[Path]:
    return sorted(p.parent for p in out.rglob(MANIFEST))


def data_files(out: Path) -> dict[str, dict[str, str]]:
    """sha256 of every data file, by stage; the report embeds times and is left out."""
    folders = [f for f in stage_folders(out) if f.name != "report"]
    return {str(f.relative_to(out)): read_manifest(f)["files"] for f in folders}


def test_every_stage_leaves_a_manifest(whole: Path) -> None:
    stages = {read_manifest(f)["stage"] for f in stage_folders(whole)}
    assert stages >= {
        "prepare", "score", "landscape", "plan", "pilot", "fit", "select", "train", "evaluate", "compare",
    }  # fmt: skip
    assert (whole / "report" / "report.html").stat().st_size > 10_000


def test_pilots_and_arms_are_trained_at_the_rate_that_was_found(whole: Path) -> None:
    rate = json.loads((whole / "tune/tune.json").read_text())["learning_rate"]
    pilots = [json.loads(line) for line in (whole / "pilots/runs.jsonl").read_text().splitlines()]
    assert {r["lr"] for r in pilots} == {rate}
    arms = [read_manifest(f) for f in stage_folders(whole) if f.parent.name == "arms"]
    assert {m["config"]["recipe"]["learning_rate"] for m in arms} == {rate}


def test_runs_follow_the_contract(whole: Path) -> None:
    from pplscape.schema import RUN_FIELDS

    rows = [json.loads(line) for line in (whole / "pilots/runs.jsonl").read_text().splitlines()]
    assert all(set(r) == set(RUN_FIELDS) for r in rows)
    assert len(rows) == 8 * 4
    assert all(r["status"] == "ok" for r in rows)
    assert all(r["loss"] < r["base_loss"] for r in rows if r["regime"] == "random")
    for r in rows:
        assert sum(r["bin_tokens"]) == r["tokens"] == r["unique_tokens"]


def test_arms_are_equal_in_tokens_and_within_budget(whole: Path) -> None:
    budget = json.loads((whole / "selection/selection.json").read_text())["budget"]
    arms = json.loads((whole / "comparison/comparison.json").read_text())["arms"]
    assert len(arms) >= 2
    assert all(budget - 64 < a["tokens"] <= budget for a in arms)


def test_the_subset_is_in_the_inputs_format(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "selection/subset/corpus.jsonl").read_text().splitlines()]
    assert rows
    assert all(set(r) == {"id", "text", "metadata"} for r in rows)


def test_a_second_run_does_nothing(whole: Path, config: Path) -> None:
    before = {f: (f / MANIFEST).stat().st_mtime_ns for f in stage_folders(whole) if f.name != "report"}
    pplscape.run(config, out=whole)
    assert before == {f: (f / MANIFEST).stat().st_mtime_ns for f in before}


def test_killed_anywhere_the_data_files_are_the_same(whole: Path, config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pplscape", "run", str(config), "--out", str(tmp_path / "run")]
    for delay in (1.5, 2.5, 3.5, 4.5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert data_files(tmp_path / "run") == data_files(whole)


def test_another_configuration_in_the_same_folder_is_refused(whole: Path, config: Path) -> None:
    command = [sys.executable, "-m", "pplscape", "run", str(config), "seed=5", "--out", str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another configuration" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("unsaved_figures")
def test_pilots_in_rounds(config: Path, tmp_path: Path) -> None:
    """The second round is planned by the law of the first and its runs join the fit; a settled decision ends them."""
    path = pplscape.run(
        config, out=tmp_path / "run", overrides=["pilots.rounds=2", "pilots.tokens=80000", "arm_seeds=1"]
    )
    run = tmp_path / "run"
    planned = json.loads((run / "plan-2/plan.json").read_text())
    first, second = (json.loads((run / p / "plan.json").read_text())["cost"]["tokens"] for p in ("plan", "plan-2"))
    assert first <= 40_000
    law = json.loads((run / "law/law.json").read_text())
    n_first = len((run / "pilots/runs.jsonl").read_text().splitlines())
    if planned["adaptive"]["state"] == "open":
        n_second = len((run / "pilots-2/runs.jsonl").read_text().splitlines())
        assert n_second > 0
        assert second <= 40_000
    else:
        n_second = 0
        assert not (run / "pilots-2").exists()
    assert law["diagnostics"]["n_runs"] == n_first + n_second
    assert path.exists()


@pytest.mark.parametrize("strategy", BY_TEXT)
def test_arms_of_strategies_that_look_at_text(strategy: str, config: Path, whole: Path, tmp_path: Path) -> None:
    for name in ("prepared", "scores", "selection"):
        shutil.copytree(whole / name, tmp_path / name)
    drawn = Flow(load_config(config), tmp_path, False)._draw(strategy, 1)
    assert json.loads((drawn / "selection.json").read_text())["used"] == strategy


@pytest.mark.usefixtures("unsaved_figures")
def test_a_second_axis_from_landscape_to_selection(config: Path, tmp_path: Path) -> None:
    """Likeness to the held-out text: all stages see its levels; without, or with too few chunks, none."""
    write_corpus(tmp_path / "held.jsonl", 90)
    held = [f"heldout=[{tmp_path / 'held.jsonl'}]", "valid_tokens=3000", "test_tokens=3000"]
    small = [*held, "bins=3", "levels=2", "bootstrap=0", "resamples=5"]
    out = tmp_path / "run"
    flow = Flow(load_config(config, [*small, "second_axis=likeness"]), out, overwrite=False)
    flow.landscape()
    flow.law()
    flow.selection()
    law = json.loads((out / "law" / "law.json").read_text())
    assert (len(law["bins"]["share"]), law["bins"]["axis"]) == (6, "likeness")
    assert len(json.loads((out / "selection" / "selection.json").read_text())["bin_tokens"]) == 6
    assert read_manifest(out / "likened")["counts"]["in"] == read_manifest(out / "scores")["counts"]["in"]
    assert "likeness 2 of 2" in (out / "selection" / "summary.md").read_text()
    assert read_manifest(out / "located")["counts"]["out"] == read_manifest(out / "target")["counts"]["out"]
    assert flow.target == out / "located"
    assert Flow(load_config(config, [*held, "second_axis=none"]), out, overwrite=False).target == out / "target"
    assert Flow(load_config(config), out, overwrite=False).target is None
    for options, axis in (([], None), (held, "likeness"), ([*held, "bins=50"], None)):
        assert Flow(load_config(config, options), out, overwrite=False).axis == axis


def test_a_target_of_two_documents_says_nothing_and_stops_nothing(config: Path, tmp_path: Path) -> None:
    """One for valid, one for test: scored, not located, and known before the pilots."""
    write_corpus(tmp_path / "held.jsonl", 2)
    held = [f"heldout=[{tmp_path / 'held.jsonl'}]", "valid_tokens=100", "test_tokens=100"]
    small = [*held, "bins=3", "levels=2", "second_axis=likeness"]
    flow = Flow(load_config(config, small), tmp_path / "run", overwrite=False)
    flow.landscape()
    assert flow.axis == "likeness"
    assert flow.target == tmp_path / "run" / "target"
    assert not (tmp_path / "run" / "located").exists()


@pytest.mark.usefixtures("unsaved_figures")
def test_likeness_that_cannot_cut_the_bins_is_done_without(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value of likeness for all chunks: the flow says so, goes on, and a second run finds its folders."""

    def constant(scores: Path, *, out: Path, **_: object) -> None:
        table = pq.read_table(scores / "part-00000.parquet")
        columns = {n: table[n] for n in table.column_names} | {"likeness": pa.array(np.zeros(len(table)))}
        shutil.copytree(scores, out, dirs_exist_ok=True)
        pq.write_table(pa.table([columns[f.name] for f in LIKENED], schema=LIKENED), out / "part-00000.parquet")

    monkeypatch.setattr("pplscape.flow.liken", constant)
    for name in ("prepared", "scores", "tune"):
        shutil.copytree(whole / name, tmp_path / name)
    chosen = load_config(config, ["second_axis=likeness", "forms=[utility]", "bootstrap=0", "resamples=2"])
    for again in (False, True):
        flow = Flow(chosen, tmp_path, overwrite=False)
        with warnings.catch_warnings() if again else pytest.warns(UserWarning, match="Likeness has too few"):
            flow.landscape()
    flow.law()
    flow.selection()
    assert json.loads((tmp_path / "law" / "law.json").read_text())["bins"].get("levels") is None
    assert "Likeness has too few different values for 3 levels" in terminal_summary(tmp_path)


@pytest.mark.usefixtures("unsaved_figures")
def test_learnability_through_the_flow(config: Path, tmp_path: Path) -> None:
    chosen = load_config(config, ["second_axis=learnability", "levels=2", "bins=3", "probe_tokens=5000"])
    flow = Flow(chosen, tmp_path, overwrite=False)
    flow.landscape()
    assert json.loads((tmp_path / "landscape" / "landscape.json").read_text())["bins"]["axis"] == "learnability"
    assert read_manifest(tmp_path / "probed")["counts"]["facts"]["probe"]["trained_tokens"] == 10_000
