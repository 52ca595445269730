"""Rounds of pilots on the fake engine, by the commands that docs/adaptive-planning.md shows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pplscape import cli
from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.laws.law import Law
from pplscape.laws.read import read_runs
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan, summary
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.training.schedule import Recipe

pytestmark = pytest.mark.usefixtures("figures_never_saved")
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=64)
FORMS = ["d-only:anchored", "monotone", "utility"]
DOC = Path(__file__).parents[2] / "docs" / "adaptive-planning.md"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> Path:
    """A prepared and scored corpus with its landscape and a first round of pilots."""
    folder = tmp_path_factory.mktemp("bench")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "dog", "loss", "twelve", "brown"]
    texts = [" ".join(rng.choice(words[: rng.integers(2, 11)], 120)) for _ in range(250)]
    (folder / "c.jsonl").write_text("".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    base = FakeEngine(str(tiny_tokenizer_dir))
    base.step(base.encode(["the fox the dog " * 100]), 1e-3)
    base.save(folder / "base")
    prepare(
        [str(folder / "c.jsonl")], model=str(folder / "base"), out=folder / "prepared", chunk_tokens=64, min_tokens=16,
        valid=1500, test=1500, near_duplicates="keep", overlap_share=1.0,
    )  # fmt: skip
    score(folder / "prepared", model=str(folder / "base"), engine="fake", out=folder / "scores")
    landscape(folder / "scores", budget="20%", out=folder / "landscape", n_bins=3)
    plan(
        folder / "landscape", budget="20%", pilot_tokens=40_000, out=folder / "plan", designed=6, random_seeds=2,
        recipe=RECIPE,
    )  # fmt: skip
    run(folder, "plan", "pilots")
    return folder


def run(folder: Path, planned: str, out: str) -> Path:
    return pilot(
        folder / planned, model=str(folder / "base"), scores=folder / "scores", corpus=folder / "prepared",
        out=folder / out, engine="fake",
    )  # fmt: skip


def planned(path: Path) -> dict[str, Any]:
    return json.loads((path / "plan.json").read_text())


def test_a_plan_whose_smallest_runs_are_warm_up_says_so(bench: Path) -> None:
    smallest = planned(bench / "plan")["sizes"][0]
    recipe = Recipe(warmup_tokens=smallest // 2, step_tokens=RECIPE.step_tokens)
    warned = plan(bench / "landscape", budget="20%", pilot_tokens=40_000, out=bench / "warmed", recipe=recipe)
    assert ("Warning: warm-up" in summary(warned)) == (3 * recipe.warmup_tokens > planned(warned)["sizes"][0])
    assert "--warmup-tokens" in summary(warned)
    told = summary(bench / "plan")
    assert "Warning: warm-up" not in told
    assert f"expected: gains over random to {planned(bench / 'plan')['design']['expected_error']:.2g} times" in told


def test_a_second_round_adds_to_the_first(bench: Path) -> None:
    again = plan(
        bench / "landscape", budget="20%", pilot_tokens=20_000, out=bench / "second", runs=bench / "pilots",
        forms=FORMS, recipe=RECIPE,
    )  # fmt: skip
    content, first = planned(again), planned(bench / "plan")
    assert set(content) == set(first) | {"adaptive"}
    assert content["cost"]["tokens"] <= 20_000
    assert content["design"]["trunks"] == len(content["regimes"]) > 0
    assert content["adaptive"]["state"] in ("settled", "flat", "open")
    assert content["adaptive"]["sentence"] in summary(again)
    pilots = run(bench, "second", "pilots-second")
    rows = [json.loads(line) for line in (pilots / "runs.jsonl").read_text().splitlines()]
    assert len(rows) == content["design"]["runs"]
    assert all(r["status"] == "ok" for r in rows)
    old = read_runs(bench / "pilots")
    both = read_runs([bench / "pilots", pilots])
    assert len(both) == len(old) + len(rows)
    assert old.group is not None
    assert not {r["group"] for r in rows} & set(old.group)
    law = fit([bench / "pilots", pilots], out=bench / "law", forms=FORMS, bootstrap=20, landscape=bench / "landscape")
    assert Law.from_json(law).diagnostics["n_runs"] == len(both)
    third = plan(
        bench / "landscape", budget="20%", pilot_tokens=20_000, out=bench / "third", runs=[bench / "pilots", pilots],
        forms=FORMS, recipe=RECIPE,
    )  # fmt: skip
    assert planned(third)["adaptive"]["earlier_trunks"] == 8 + len(content["regimes"])
    assert not {f"{r['name']}-{r['seed']}" for r in planned(third)["regimes"]} & set(both.group)  # type: ignore[arg-type]
    chosen = select(
        bench / "scores", budget="20%", law=law / "law.json", runs=[bench / "pilots", pilots], out=bench / "selection",
        resamples=10,
    )  # fmt: skip
    assert json.loads((chosen / "selection.json").read_text())["gate"] is not None


def test_pilots_of_another_recipe_are_refused(bench: Path) -> None:
    other = Recipe(learning_rate=2e-3, warmup_tokens=64, step_tokens=64)
    with pytest.raises(UserError, match=r"trained with learning_rate 0\.001; give the same"):
        plan(
            bench / "landscape", budget="20%", pilot_tokens=20_000, out=bench / "other", runs=bench / "pilots",
            recipe=other,
        )  # fmt: skip


def test_a_plan_from_a_proxys_runs_says_whose_decision_it_is(bench: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (bench / "pilots" / "runs.jsonl").read_text().splitlines()]
    said = []
    for proxy_of in ("base", None):
        told = [r | {"model": "small", "weights": "w", "proxy_of": proxy_of} for r in rows]
        (tmp_path / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told))
        found = plan(
            bench / "landscape", budget="20%", pilot_tokens=20_000, out=tmp_path / str(proxy_of), forms=["utility"],
            runs=tmp_path / "runs.jsonl", recipe=RECIPE,
        )  # fmt: skip
        said.append(summary(found))
    assert "These runs are of small, a proxy" in said[0]
    assert "not of base" in said[0]
    assert "for small too (`pilot --proxy`)" in said[0]
    assert "proxy" not in said[1]


def test_tables_of_runs_are_joined(bench: Path, tmp_path: Path) -> None:
    lines = (bench / "pilots" / "runs.jsonl").read_text().splitlines(keepends=True)
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    parts[0].write_text("".join(lines[:12]))
    parts[1].write_text("".join(lines[12:]))
    whole, joined = read_runs(bench / "pilots"), read_runs(parts)
    np.testing.assert_array_equal(whole.loss, joined.loss)
    np.testing.assert_array_equal(whole.bin_tokens, joined.bin_tokens)
    changed = json.loads(lines[0]) | {"loss": 1.0}
    parts[1].write_text("".join([*lines[12:], json.dumps(changed)]))
    with pytest.raises(UserError, match=r"a\.jsonl \+ .*b\.jsonl: run_id .* occurs more than once"):
        read_runs(parts)
    parts[1].write_text('{"tokens": 5, "loss": 3.0}\n')
    lonely = read_runs(parts)
    assert len(lonely) == 13
    assert lonely.nll_mean is None
    assert any("nll_mean is missing in 1 of 13 runs" in w for w in lonely.meta["warnings"])
    with pytest.raises(UserError, match="There is no table of runs"):
        fit([bench / "pilots", tmp_path / "none"], out=tmp_path / "law")


def test_the_commands_shown_run(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second plan on; the first round ran in the fixture."""
    shown = DOC.read_text().split("<!-- commands -->")[1].split("```")[1].splitlines()[1:]
    commands = [shlex.split(line) for line in shown if line.startswith("pplscape")]
    assert [c[1] for c in commands] == ["plan", "pilot", "plan", "pilot", "fit", "select"]
    for name in ("landscape", "scores", "prepared", "pilots", "base"):
        (tmp_path / name).symlink_to(bench / name)
    monkeypatch.chdir(tmp_path)
    more = {
        "plan": ["--learning-rate", "1e-3", "--warmup-tokens", "64", "--step-tokens", "64"],
        "pilot": ["--engine", "fake"],
        "fit": ["--form", ",".join(FORMS), "--bootstrap", "20"],
    }
    for command in commands[2:]:
        arguments = [a.replace("MODEL", "base") for a in command[1:]] + more.get(command[1], [])
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
    assert Law.from_json(tmp_path / "law-2").diagnostics["n_trunks"] > 8
    assert (tmp_path / "selection" / "selection.json").exists()
