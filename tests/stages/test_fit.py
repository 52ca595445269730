"""The stage `fit`: any table of runs in, a law out; what is wrong with a table is said clearly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.errors import StaleOutput, UserError
from pplscape.laws.law import Law
from pplscape.runs import RunTable
from pplscape.stages.fit import fit, load_runs, read_runs

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))
import worlds

QUICK = ["constant", "d-only", "d-only:anchored", "quadratic"]


def rows_of(runs: RunTable) -> list[dict[str, Any]]:
    """Rows as `pplscape pilot` writes them."""
    assert runs.group is not None
    assert runs.regime is not None
    rows = []
    for i in range(len(runs)):
        row: dict[str, Any] = {"run_id": f"run-{i}", "group": str(runs.group[i]), "regime": str(runs.regime[i])}
        row |= {"tokens": int(runs.tokens[i]), "loss": float(runs.loss[i]), "base_loss": 4.8, "status": "ok"}
        row |= {k: float(getattr(runs, k)[i]) for k in ("nll_mean", "nll_std", "ppl_mean", "ppl_std")}
        assert runs.bin_tokens is not None
        rows.append(row | {"bin_tokens": runs.bin_tokens[i].tolist(), "bins_hash": "abc", "reason": None})
    return rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return rows_of(worlds.table("quadratic", trunks=9))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], names: list[str], delimiter: str = ",") -> Path:
    lines = [delimiter.join(names), *(delimiter.join(str(r[n]) for n in names) for r in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_stage_writes_a_law(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    runs = write(tmp_path / "runs.jsonl", rows)
    landscape = tmp_path / "landscape.json"
    bins = {"edges": [1.0, 2.0, 3.0, 4.0], "share": [0.2] * 5, "hash": "abc", "by_bin": []}
    low_edge = [[float(m), 0.01] for m in np.linspace(3, 9, 61)]  # narrow subsets, at every mean
    feasible = {"nll": [*low_edge, [9.0, 3.0], [3.0, 3.0]], "ppl": []}
    scoring = {"model": "demo", "tokenizer": "t", "chunk_tokens": 256}
    winsor = {"nll": [3.0, 8.0], "ppl": [20.0, 3000.0]}
    landscape.write_text(json.dumps({"bins": bins, "feasible": feasible, "winsor": winsor, "scoring": scoring}))
    out = fit(runs, out=tmp_path / "law", forms=QUICK, bootstrap=30, landscape=landscape)
    law = Law.from_json(out / "law.json")
    assert law.form == "quadratic"
    assert law.params["aD"] == pytest.approx(0.3, abs=0.02)
    assert (law.model, law.tokenizer, law.chunk_tokens, law.winsor) == ("demo", "t", 256, winsor)
    assert law.bins == {"edges": [1.0, 2.0, 3.0, 4.0], "share": [0.2] * 5, "hash": "abc"}
    assert [a.bins for a in law.alternatives] == [law.bins] * 3
    summary = (out / "summary.md").read_text()
    assert law.verdict in summary
    assert "| **quadratic** |" in summary
    assert law.diagnostics["profiles"]["parameters"].keys() == law.params.keys()
    assert law.optimum["cloud"]["kind"].count("interior") == 30 * law.optimum["shares"]["interior"]
    for name in ("predicted", "residuals", "forms", "profiles", "clouds", "plane", "surface"):
        assert f"[{name}.png]({name}.png)" in summary
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (out / f"{name}.svg").read_bytes()
    before = (out / "law.json").stat().st_mtime_ns
    fit(runs, out=tmp_path / "law", forms=QUICK, bootstrap=30, landscape=landscape)
    assert (out / "law.json").stat().st_mtime_ns == before
    with pytest.raises(StaleOutput):
        fit(runs, out=tmp_path / "law", forms=QUICK, bootstrap=31, landscape=landscape)


@pytest.mark.usefixtures("unsaved_figures")
def test_two_columns_are_enough(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write_csv(tmp_path / "mine.csv", rows, ["tokens", "loss"], ";")
    out = fit(path, out=tmp_path / "law", bootstrap=20)
    law = Law.from_json(out)
    assert law.form in ("constant", "d-only")
    skipped = {c["form"]: c["skipped"] for c in law.choice if c["skipped"]}
    assert skipped["paper"] == "needs ppl_mean, ppl_std"
    assert skipped["utility"] == "needs bin_tokens, base_loss"


def test_same_table_same_bytes(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "runs.jsonl", rows)
    for name in ("a", "b"):
        fit(path, out=tmp_path / name, forms=["d-only"], bootstrap=10)
    for file in ("law.json", "summary.md", "forms.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_columns_are_mapped(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    renamed = [
        {"D": r["tokens"], "val": r["loss"], "m": r["nll_mean"], "sd": r["nll_std"], "t": r["group"]}
        | {f"b{i}": b for i, b in enumerate(r["bin_tokens"] * 3)}
        for r in rows
    ]
    path = write_csv(tmp_path / "mine.csv", renamed, list(renamed[0]))
    mapping = {"loss": "val", "D": "D", "mu": "m", "sigma": "sd", "group": "t", "bins": "b*"}
    runs = read_runs(path, mapping, scale="nll")
    np.testing.assert_allclose(runs.nll_mean, [r["nll_mean"] for r in rows])
    assert runs.ppl_mean is None
    assert runs.bin_tokens is not None
    assert runs.bin_tokens.shape == (len(rows), 15)
    np.testing.assert_allclose(runs.bin_tokens[0, 10:], rows[0]["bin_tokens"])  # b10 after b9, not after b1


def test_parquet_reads_the_same(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "runs.parquet")
    one, other = read_runs(tmp_path / "runs.parquet"), read_runs(write(tmp_path / "runs.jsonl", rows))
    for name in ("loss", "tokens", "nll_std", "bin_tokens", "regime"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_bin_shares_come_from_the_random_runs(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "runs.jsonl", rows)
    np.testing.assert_allclose(load_runs(path).bin_share, [0.2] * 5, atol=1e-9)
    other = [{**r, "regime": f"mix-{i}"} for i, r in enumerate(rows)]
    runs = load_runs(write(tmp_path / "other.jsonl", other))
    assert any("bin shares are unknown" in w for w in runs.meta["warnings"])


def test_failed_and_broken_runs_are_counted(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    spoilt = [dict(r) for r in rows]
    spoilt[0] |= {"status": "failed", "loss": None, "reason": "out of memory"}
    spoilt[1]["loss"] = float("nan")
    spoilt[2]["loss"] = None
    runs = read_runs(write(tmp_path / "runs.jsonl", [*spoilt, spoilt[5]]))
    assert len(runs) == len(rows) - 3
    reasons = {s["run"]: s["reason"] for s in runs.meta["skipped"]}
    assert reasons == {
        "run-0": "failed: out of memory",
        "run-1": "loss is nan",
        "run-2": "loss is None",
        "run-5": "the same as run-5",
    }
    assert "4 runs left out" in runs.meta["warnings"][0]


def test_a_size_or_a_name_may_be_missing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """A run without a finite D is left out; runs without a trunk are not one trunk."""
    spoilt = [dict(r) for r in rows]
    spoilt[0]["tokens"], spoilt[1]["tokens"], spoilt[2]["tokens"] = None, float("nan"), float("inf")
    for row in spoilt[-2:]:
        row["group"] = None
    runs = read_runs(write(tmp_path / "runs.jsonl", spoilt))
    assert [s["reason"] for s in runs.meta["skipped"]] == ["D is None", "D is nan", "D is inf"]
    assert runs.group is not None
    assert len(set(runs.group[-3:].tolist())) == 3
    assert any(f"group is missing in 2 of {len(runs)} runs" in w for w in runs.meta["warnings"])
    nameless = read_runs(write(tmp_path / "n.jsonl", [r | {"group": None} for r in rows]))
    assert nameless.group is None


def test_runs_of_first_damage_are_left_out_and_named(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """A trunk above the base's loss but for its largest size; what goes by run stays with its run."""
    hurt = [r | {"pool_tokens": 10 * i, "base_loss": 4.8} for i, r in enumerate(rows)]
    size = max(r["tokens"] for r in hurt)
    for row in hurt:
        row["loss"] = 4.7 if row["tokens"] == size else 4.6 if row["group"] != "t4" else 5.2
    path = write(tmp_path / "runs.jsonl", hurt)
    runs, out = read_runs(path), [r["run_id"] for r in hurt if r["loss"] == 5.2]
    assert [s["run"] for s in runs.meta["skipped"]] == out
    assert any(f"2 runs left out: {out[0]} (above the base" in w for w in runs.meta["warnings"])
    assert runs.meta["run_id"] == [r["run_id"] for r in hurt if r["loss"] < 5]
    assert runs.meta["pool_tokens"] == [r["pool_tokens"] for r in hurt if r["loss"] < 5]
    assert len(read_runs(path, whole=True)) == len(hurt)


def broken(change: dict[str, Any], every: bool = True) -> Any:
    return lambda rows: [r | change if every or i == 0 else r for i, r in enumerate(rows)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [{k: v for k, v in r.items() if k != "loss"} for r in rows], "no column loss; it has: run_id"),
        (broken({"replay_share": 1.5}), "outside 0 to 1"),
        (broken({"loss": -0.1}, every=False), "losses of 0 or below"),
        (broken({"tokens": 0}, every=False), "D must be above 0"),
        (broken({"bins_hash": "other"}, every=False), "mixes runs with different bins"),
        (broken({"bin_tokens": [1.0, 2.0]}, every=False), "different numbers of bins"),
        (broken({"run_id": "run-1"}, every=False), "run_id run-1 occurs more than once"),
        (broken({"nll_std": 0.0}, every=False), "nll_std must be above 0; in 1 of"),
        (broken({"nll_mean": -1.0}, every=False), "nll_mean must be above 0"),
        (broken({"ppl_mean": 0.0}), "ppl_mean must be above 0"),
        (broken({"n_params": 0}), "n_params must be above 0"),
        (broken({"base_loss": 0}), "base_loss must be above 0"),
        (broken({"noise": -0.01}), "noise must be above 0"),
        (broken({"bin_tokens": [0.0] * 5}, every=False), "or none in any"),
        (broken({"bin_tokens": 5.0}, every=False), "must be a list of numbers"),
        (broken({"bin_tokens": ["a"] * 5}, every=False), "column bin_tokens holds something that is not a number"),
        (broken({"tokens": "1.5M"}, every=False), "column tokens holds something that is not a number"),
        (broken({"loss": float("nan")}), r"0 usable runs; a law needs 4.* left out: run-0 \(loss is nan\)"),
        (broken({"tokens": None}), r"0 usable runs; a law needs 4.* left out: run-0 \(D is None\)"),
        (broken({"nll_mean": "high"}, every=False), "holds something that is not a number"),
        (lambda rows: rows[:3], "3 usable runs; a law needs 4 or more"),
        (lambda rows: [], "holds no runs"),
        (
            lambda rows: [rows[0] | {"run_id": str(i), "loss": 3 + 1e-4 * i} for i in range(2001)],
            "2,001 runs; laws are fitted to 2,000 at most",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said(tmp_path: Path, rows: list[dict[str, Any]], spoil: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_runs(write(tmp_path / "runs.jsonl", spoil(rows)))


@pytest.mark.usefixtures("unsaved_figures")
def test_one_size_needs_forms_that_can_do_with_it(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "runs.jsonl", [r | {"tokens": 64_000} for r in rows if r["tokens"] == 64_000])
    with pytest.raises(UserError, match=r"have the same D \(64,000 tokens\); a law needs at least 3 sizes over 8x"):
        fit(path, out=tmp_path / "law")
    with pytest.raises(UserError, match="quadratic: all runs have the same D"):
        fit(path, out=tmp_path / "law", forms=["quadratic"])
    law = Law.from_json(fit(path, out=tmp_path / "law", forms=["gp", "constant"], bootstrap=10))
    assert any("says nothing of others" in w for w in law.warnings)


@pytest.mark.usefixtures("unsaved_figures")
def test_the_scale_asked_for_is_recorded(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "runs.jsonl", rows)
    for name, scale in (("own", None), ("nll", "nll")):
        law = Law.from_json(fit(path, out=tmp_path / name, forms=["quadratic", "paper"], bootstrap=0, scale=scale))
        assert law.asked_scale == law.alternatives[0].asked_scale == scale
        assert law.alternative("paper").scale == (scale or "ppl")


def test_bins_may_be_shares_and_r_is_the_domain(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    shares = [r | {"bin_tokens": (np.array(r["bin_tokens"]) / sum(r["bin_tokens"])).tolist(), "mix": 0.8} for r in rows]
    runs = read_runs(write(tmp_path / "runs.jsonl", shares), {"r": "mix"})
    assert "read as shares of D" in " ".join(runs.meta["warnings"])
    np.testing.assert_allclose(runs.bin_tokens.sum(1), runs.tokens)
    np.testing.assert_allclose(runs.domain_share, 0.8)
    replayed = read_runs(write(tmp_path / "runs.jsonl", [r | {"replay_share": 0.3} for r in rows]))
    np.testing.assert_allclose(replayed.domain_share, 0.7)


def test_what_should_not_be_mixed_is_warned_of(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    mixed = [
        r | {"schedule": f"s{i % 2}", "replay_share": 0.1 * (i % 2), "base_loss": 4.8 + i % 2, "regime": "random"}
        for i, r in enumerate(rows)
    ]
    mixed[0]["ppl_mean"] = None
    warnings = " ".join(read_runs(write(tmp_path / "runs.jsonl", mixed)).meta["warnings"])
    for words in ("different replay shares", "different schedules", "base_loss differs", "ppl_mean is missing in 1",
                  "Fewer than 4 regimes"):  # fmt: skip
        assert words in warnings


def test_adapters_and_whole_models_are_never_fitted_together(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    mixed = [r | {"schedule": json.dumps({"lora_rank": 8 * (i % 2)})} for i, r in enumerate(rows)]
    with pytest.raises(UserError, match="adapters"):
        read_runs(write(tmp_path / "runs.jsonl", mixed))


def test_unreadable_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no table of runs"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "bad.jsonl").write_text('{"loss": 1}\n{"loss"\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_runs(tmp_path / "bad.jsonl")
    (tmp_path / "bad.csv").write_text("tokens,loss\n1,2\n3\n")
    with pytest.raises(UserError, match="line 3: the number of fields"):
        read_runs(tmp_path / "bad.csv")
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_runs(tmp_path / "bad.parquet")
    pq.write_table(
        pa.table({"tokens": pa.array([], pa.float64()), "loss": pa.array([], pa.float64())}), tmp_path / "e.parquet"
    )
    with pytest.raises(UserError, match="0 usable runs"):
        read_runs(tmp_path / "e.parquet")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="holds no runs"):
        read_runs(tmp_path / "empty.csv")
    (tmp_path / "bins.csv").write_text("tokens,loss,b1,b2\n" + "".join(f"{i}e5,3,x,1\n" for i in range(1, 9)))
    with pytest.raises(UserError, match="bin_tokens holds something that is not a number"):
        read_runs(tmp_path / "bins.csv", {"bins": "b*"})
    (tmp_path / "ok.csv").write_text("tokens,loss\n1,2\n")
    with pytest.raises(UserError, match="does not know 'looss'"):
        read_runs(tmp_path / "ok.csv", {"looss": "loss"})


def test_another_landscape_is_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = write(tmp_path / "runs.jsonl", rows)
    with pytest.raises(UserError, match="binned otherwise"):
        load_runs(path, facts={"bins": {"edges": [], "share": [1.0], "hash": "xyz"}})
