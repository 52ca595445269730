"""Pilots of a proxy and what may follow from them: refusals, planted worlds on the fake engine, and the gate of select.

The pool has two kinds of text, the valid text both. The base knows one kind, so the other is worth more to it, and the
regimes are tilts between the two. A small model of the same schooling agrees with it; one that knows the other kind
finds the opposite regimes best.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pplscape.cli import app
from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.law import Law
from pplscape.manifest import read_manifest
from pplscape.schema import RUN_FIELDS
from pplscape.stages.fit import fit, in_context, load_runs, read_landscape
from pplscape.stages.landscape import landscape
from pplscape.stages.pilot import part_of, pilot, read_plan
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.stages.transfer import once, transfer
from pplscape.training.schedule import Recipe

KINDS = (
    "patients treated heart failure weeks blocker twelve beta",
    "court decided cases dismissed others 1998 fox dog",
)
RECIPE = Recipe(learning_rate=2e-4, warmup_tokens=64, step_tokens=128)
SCHOOLING = {"base": (6, 0), "small": (2, 0), "other": (0, 6)}
"""Documents of each kind that a model has learned."""


def texts(kind: int, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng([kind, seed])
    return [" ".join(rng.choice(KINDS[kind].split(), 120)) for _ in range(n)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> dict[str, Path]:
    """Three models, a plan by the base's scores, and the pilots of all three."""
    folder = tmp_path_factory.mktemp("bench")
    mixed = [t for pair in zip(texts(0, 90, 0), texts(1, 90, 0), strict=True) for t in pair]
    rows = "".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(mixed))
    (folder / "c.jsonl").write_text(rows)
    found = {}
    for name, counts in SCHOOLING.items():
        model = FakeEngine(str(tiny_tokenizer_dir))
        for kind, n in enumerate(counts):
            if n:
                model.step(model.encode(texts(kind, n, 1)), 1e-3)
        model.save(folder / name)
        found[name] = folder / name
    options: dict[str, Any] = {"near_duplicates": "keep", "overlap_share": 1.0, "min_tokens": 8}
    found["prepared"] = prepare(
        [str(folder / "c.jsonl")], model=str(found["base"]), out=folder / "prepared", chunk_tokens=24, valid=2000,
        test=500, **options,
    )  # fmt: skip
    found["scores"] = score(found["prepared"], model=str(found["base"]), engine="fake", out=folder / "scores")
    found["landscape"] = landscape(found["scores"], budget="30%", out=folder / "landscape", n_bins=4)
    found["plan"] = plan(
        found["landscape"], budget="30%", pilot_tokens=102_000, out=folder / "plan", designed=7, random_seeds=10,
        recipe=RECIPE,
    )  # fmt: skip
    largest = read_plan(found["plan"])["sizes"][1]
    for name in SCHOOLING:
        found[f"{name} runs"] = _pilot(found, name, folder / f"{name}-runs", largest=largest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplscape.stages.transfer.REFITS", 5)
        known: dict[str, Any] = {"landscape": found["landscape"]}
        found["trusted"] = transfer(found["small runs"], found["base runs"], out=folder / "trusted", **known)
        found["against"] = transfer(found["other runs"], found["base runs"], out=folder / "against", **known)
    facts = read_landscape(found["landscape"])
    runs = load_runs(found["small runs"], facts=facts)
    law = in_context(build(runs, ["utility"], bootstrap=0)[0], runs, facts)  # `fit` without its plots
    found["law"] = folder / "law.json"
    found["law"].write_text(json.dumps(law.to_json()))
    return found


def _pilot(bench: dict[str, Path], name: str, out: Path, **options: Any) -> Path:
    return pilot(
        bench["plan"], model=str(bench[name]), scores=bench["scores"], corpus=bench["prepared"], out=out,
        engine="fake", **({"proxy": name != "base"} | options),
    )  # fmt: skip


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def _verdict(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "transfer.json").read_text())
    return found


def test_a_proxy_runs_the_same_chunks_and_says_whose_losses_it_records(bench: dict[str, Path]) -> None:
    base, small = _rows(bench["base runs"]), _rows(bench["small runs"])
    assert all(set(r) == set(RUN_FIELDS) for r in small)
    assert {(r["model"], r["proxy_of"]) for r in base} == {("base", None)}
    assert {(r["model"], r["proxy_of"]) for r in small} == {("small", "base")}
    assert {r["weights"] for r in base} != {r["weights"] for r in small}
    seen = ("run_id", "tokens", "pool_tokens", "unique_tokens", "nll_mean", "nll_std", "bin_tokens", "bins_hash")
    assert [[r[k] for k in seen] for r in small] == [[r[k] for k in seen] for r in base]
    assert all(a["loss"] != b["loss"] for a, b in zip(base, small, strict=True))


def test_what_may_not_stand_in_is_refused(bench: dict[str, Path], tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match=r"other weights.*--proxy"):
        _pilot(bench, "small", tmp_path / "p", proxy=False)
    with pytest.raises(UserError, match="leave --proxy out"):
        _pilot(bench, "base", tmp_path / "p", proxy=True)
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    other.add_tokens(["patients"])
    other.save_pretrained(tmp_path / "alien")
    with pytest.raises(UserError, match=r"another tokenizer.*same family"):
        _pilot({**bench, "alien": tmp_path / "alien"}, "alien", tmp_path / "p")
    assert not (tmp_path / "p.partial").exists()


def test_a_part_of_a_plan(bench: dict[str, Path]) -> None:
    whole = read_plan(bench["plan"])
    assert part_of(whole) == whole
    names = [r["name"] for r in whole["regimes"]]
    some = part_of(whole, ["random", names[-1]], repeats=2, largest=whole["sizes"][1])
    assert [(r["name"], r["seed"]) for r in some["regimes"]] == [
        *(("random", s) for s in range(10)), (names[-1], 0), (names[-1], 1),
    ]  # fmt: skip
    assert some["sizes"] == whole["sizes"][:2]
    assert some["cost"]["tokens"] < whole["cost"]["tokens"] / 4
    with pytest.raises(UserError, match="no regime tilt-99"):
        part_of(whole, ["tilt-99"])
    with pytest.raises(UserError, match="No size of the plan is within 3 tokens"):
        part_of(whole, largest=3)


def test_runs_of_a_part_are_those_of_the_whole(bench: dict[str, Path], tmp_path: Path) -> None:
    name = next(r["name"] for r in read_plan(bench["plan"])["regimes"] if r["name"] != "random")
    part = _rows(
        _pilot(bench, "base", tmp_path / "p", regimes=[name], repeats=2, largest=read_plan(bench["plan"])["sizes"][1])
    )
    whole = [r for r in _rows(bench["base runs"]) if r["regime"] == name]
    assert [r for r in part if r["seed"] == 0] == whole
    assert len(part) == 2 * len(whole)


def test_runs_of_two_models_are_not_fitted_together(bench: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mixes runs of different models \(small .*base .*fit each apart"):
        fit([bench["small runs"], bench["base runs"]], out=tmp_path / "law")
    assert not (tmp_path / "law").exists()


def test_a_ranking_that_transfers_and_one_that_is_reversed(bench: dict[str, Path], tmp_path: Path) -> None:
    trusted = _verdict(bench["trusted"])
    assert trusted["verdict"]["light"] == "trust"
    assert trusted["sizes"][-1]["agreement"]["spearman"]["mean"] > 0.8
    assert trusted["laws"]["correlation"] > 0.5
    summary = (bench["trusted"] / "summary.md").read_text()
    assert summary.startswith("# small in place of base: trust")
    assert (bench["trusted"] / "gains.png").stat().st_size > 1000
    reversed_ = _verdict(bench["against"])
    assert reversed_["verdict"]["light"] == "do not trust"
    assert reversed_["sizes"][-1]["agreement"]["spearman"]["mean"] < -0.5
    few = [r for r in _rows(bench["base runs"]) if r["regime"] in ("random", "tilt-0")]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(r) + "\n" for r in few))
    found = _verdict(transfer(bench["small runs"], tmp_path / "few.jsonl", out=tmp_path / "f"))["verdict"]
    assert found["light"] == "too few runs to say"
    assert "more regimes on base" in found["settle"]


def test_a_trunk_given_twice_counts_once(bench: dict[str, Path], tmp_path: Path) -> None:
    """Here with another run_id and a few tokens more, as from a plan of slightly other sizes."""
    rows, runs = _rows(bench["small runs"]), load_runs(bench["small runs"])
    again = [r | {"run_id": f"again-{i}", "tokens": r["tokens"] + 1} for i, r in enumerate(rows[:5])]
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(r) + "\n" for r in again))
    both = load_runs([bench["small runs"], tmp_path / "again.jsonl"])
    assert len(both) == len(runs) + 5
    kept = once(both)
    assert len(kept) == len(runs)
    assert sorted(kept.loss) == sorted(runs.loss)
    assert {r["run_id"] for r in again} < set(kept.meta["run_id"])
    pools = {r["run_id"]: r["pool_tokens"] for r in rows + again}
    assert [pools[i] for i in kept.meta["run_id"]] == kept.meta["pool_tokens"]
    nameless = replace(both, group=None)
    assert once(nameless) is nameless


def test_runs_that_laws_leave_out_are_compared(
    bench: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A regime that first harms the base: no law of the base follows that, but it speaks against the proxy."""
    monkeypatch.setattr("pplscape.stages.transfer.REFITS", 5)
    rows = _rows(bench["base runs"])
    name = next(r["regime"] for r in rows if r["regime"] != "random")
    least, base = min(r["tokens"] for r in rows if r["regime"] == name), max(r["loss"] for r in rows) + 0.1
    hurt = [r | {"base_loss": base} for r in rows]
    first = next(r for r in hurt if r["regime"] == name and r["tokens"] == least)
    first["loss"] = 2 * base
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in hurt))
    assert first["run_id"] not in load_runs(tmp_path / "runs.jsonl").meta["run_id"]
    compared = _verdict(transfer(bench["small runs"], tmp_path / "runs.jsonl", out=tmp_path / "t"))["sizes"][0]
    assert name in [r["regime"] for r in compared["regimes"]]
    assert name not in compared["untried"]


def test_the_two_tables_must_belong_together(bench: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Both tables are runs of base"):
        transfer(bench["base runs"], bench["base runs"], out=tmp_path / "t")
    with pytest.raises(UserError, match="base made the scores"):
        transfer(bench["base runs"], bench["small runs"], out=tmp_path / "t")
    rows = [r | {"bins_hash": "elsewhere"} for r in _rows(bench["base runs"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="different landscapes"):
        transfer(bench["small runs"], tmp_path / "rows.jsonl", out=tmp_path / "t")
    rows = _rows(bench["base runs"])
    name = max((r for r in rows if r["regime"] != "random"), key=lambda r: max(r["bin_tokens"]) / r["tokens"])["regime"]
    rows = [r | {"bin_tokens": r["bin_tokens"][::-1]} if r["regime"] == name else r for r in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match=f"Regime {name} is not the same in the two tables"):
        transfer(bench["small runs"], tmp_path / "rows.jsonl", out=tmp_path / "t")


def test_a_proxys_law_says_so_and_decides_only_when_it_is_trusted(bench: dict[str, Path], tmp_path: Path) -> None:
    law = Law.from_json(bench["law"])
    assert law.trained is not None
    assert (law.model, law.trained["model"], law.trained["proxy_of"]) == ("base", "small", "base")
    assert any("one of small, not of base" in w for w in law.warnings)
    options: dict[str, Any] = {"budget": "10%", "strategy": "allocate", "law": bench["law"]}
    with pytest.raises(UserError, match=r"law is of runs of small, not of base: .*pplscape transfer"):
        select(bench["scores"], **options, out=tmp_path / "s")
    chosen = select(bench["scores"], **options, transfer=bench["trusted"], out=tmp_path / "s")
    content = json.loads((chosen / "selection.json").read_text())
    assert content["law"]["trained"]["proxy_of"] == "base"
    assert "those of small, not of base" in content["warnings"][0]
    assert "losses of small, a proxy, not of base" in (chosen / "summary.md").read_text()
    with pytest.raises(UserError, match="compares other with base; this law needs a comparison of small with base"):
        select(bench["scores"], **options, transfer=bench["against"], out=tmp_path / "s2")
    with pytest.raises(UserError, match="law is of runs of small, --runs are of base"):
        select(
            bench["scores"], **options, transfer=bench["trusted"], runs=bench["base runs"] / "runs.jsonl",
            out=tmp_path / "s2",
        )  # fmt: skip
    few = transfer(bench["small runs"], _pilot(bench, "base", tmp_path / "p", regimes=["random"]), out=tmp_path / "few")
    with pytest.raises(UserError, match="may not decide for base: Too few runs"):
        select(bench["scores"], **options, transfer=few, out=tmp_path / "s3")


def test_the_bases_own_law_needs_no_transfer(bench: dict[str, Path], tmp_path: Path) -> None:
    base = read_manifest(bench["scores"])["counts"]["facts"]
    content = json.loads(bench["law"].read_text())
    content["trained"] = {"model": "base", "weights": base["weights"], "proxy_of": None}
    (tmp_path / "law.json").write_text(json.dumps(content | {"warnings": []}))
    law = tmp_path / "law.json"
    chosen = select(bench["scores"], budget="10%", strategy="allocate", law=law, out=tmp_path / "s")
    assert not any("proxy" in w for w in json.loads((chosen / "selection.json").read_text())["warnings"])


def test_commands(bench: dict[str, Path], tmp_path: Path) -> None:
    runs = [str(bench["small runs"]), str(bench["base runs"])]
    done = CliRunner().invoke(
        app, ["transfer", *runs, "--out", str(bench["trusted"]), "--landscape", str(bench["landscape"])]
    )
    assert done.exit_code == 0, done.output
    assert "Trust small in place of base" in done.stdout
    name = read_plan(bench["plan"])["regimes"][-1]["name"]
    asked = ["pilot", str(bench["plan"]), "--model", str(bench["small"]), "--proxy", "--engine", "fake"]
    asked += ["--scores", str(bench["scores"]), "--corpus", str(bench["prepared"]), "--out", str(tmp_path / "p")]
    assert CliRunner().invoke(app, [*asked, "--regimes", name, "--repeats", "2"]).exit_code == 0
    assert read_manifest(tmp_path / "p")["counts"]["out"] == 2 * 4
    more = [f"{runs[0]},{tmp_path / 'p'}", runs[1], "--out", str(tmp_path / "t")]
    done = CliRunner().invoke(app, ["transfer", *more])
    assert done.exit_code == 0, done.output
    rows = _verdict(tmp_path / "t")["sizes"][-1]["regimes"]
    assert {r["regime"]: r["runs"] for r in rows}[name] == [2, 1]  # the seed that both folders hold counts once
