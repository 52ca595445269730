"""select: exact tokens, contract of selection.json, the gate's consequences, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.draw.pool import Pool
from pplscape.draw.stream import read_selected
from pplscape.errors import StaleOutput, UserError
from pplscape.laws.build import build
from pplscape.laws.law import Law
from pplscape.manifest import StageFolder
from pplscape.runs import RunTable
from pplscape.schema import RUN_FIELDS, SCORES, SELECTED
from pplscape.stages.prepare import prepare
from pplscape.stages.select import select
from pplscape.statistics import make_bins, moments
from pplscape.text.prepared import Prepared

FACTS = {"model": "tiny", "tokenizer": "abc", "chunk_tokens": 256}
WORTH = np.array([0.2, 1.0, 2.0, 2.0, -0.5])
N = 1500


def scores_table(n: int = N, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.85, rng.normal(4.5, 0.5, n), rng.normal(7, 0.4, n))
    length = rng.integers(64, 257, n)
    return pa.table(
        {
            "doc_id": [f"d{i // 5}" for i in range(n)], "chunk_index": np.arange(n) % 5, "char_start": np.arange(n),
            "char_end": np.arange(n) + 1, "length": length, "n_tokens": length, "n_bytes": length * 4,
            "nll_sum": x * length, "source": ["ab"[i // 5 % 2] for i in range(n)],
        }
    ).cast(SCORES)  # fmt: skip


def write_scores(folder: Path, table: pa.Table, parts: int = 1, facts: dict[str, Any] | None = None) -> Path:
    with StageFolder(folder, stage="score", version=1, config={}, inputs={}) as stage:
        size = -(-len(table) // parts)
        for i in range(parts):
            stage.write_table(f"part-{i:05d}.parquet", table.slice(i * size, size))
        stage.finish({"in": len(table), "out": len(table), "facts": facts or FACTS})
    return folder


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scores(tmp_path_factory.mktemp("s") / "scores", scores_table())


def pilots(pool: Pool, noise: float = 0.001, worth: np.ndarray = WORTH) -> list[dict[str, Any]]:
    """runs.jsonl of a world with these bin utilities: ten trunks, three sizes."""
    rng, bins = np.random.default_rng(0), make_bins(pool.x, pool.length, len(worth))
    share, limits = np.asarray(bins.share), {s: pool.limits(s) for s in ("nll", "ppl")}
    rows = []
    for trunk in range(12):
        mixed = share if trunk < 3 else rng.dirichlet(np.full(len(share), 1.0))
        weight = (mixed / share)[bins.of(pool.x)] * pool.length
        shape = {s: moments(pool.values(s), limits[s], weight) for s in limits}
        for tokens in (4000, 12_000, 32_000):
            gain = 1 + 3 * float(worth @ mixed) * tokens / 32_000
            loss = (3 + 1.5 * max(gain, 0.2) ** -0.4) * np.exp(rng.normal(0, noise))
            row = dict.fromkeys(RUN_FIELDS) | {
                "run_id": f"{trunk}-{tokens}", "group": f"t-{trunk}", "regime": "random" if trunk < 3 else f"m-{trunk}",
                "seed": trunk, "tokens": tokens, "bin_tokens": (mixed * tokens).tolist(), "bins_hash": bins.hash,
                "loss": loss, "base_loss": 4.5, "status": "ok", "n_params": 1000,
                **{f"{s}_{m}": getattr(shape[s], m) for s in limits for m in ("mean", "std")},
            }  # fmt: skip
            rows.append(row)
    return rows


def table_of(rows: list[dict[str, Any]], share: Any) -> RunTable:
    names = ("tokens", "loss", "base_loss", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens")
    columns: dict[str, Any] = {k: np.array([r[k] for r in rows], dtype=float) for k in names}
    labels = {k: np.array([r[k] for r in rows]) for k in ("group", "regime")}
    return RunTable(**columns, **labels, bin_share=np.asarray(share), meta={"warnings": []})


@pytest.fixture(scope="module")
def fitted(scores: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pilots and law.json of a world where composition matters, and of one where it does not."""
    folder, pool, found = tmp_path_factory.mktemp("laws"), Pool.read(scores), {}
    bins = make_bins(pool.x, pool.length, 5)
    context = {
        "bins": {"edges": bins.edges, "share": bins.share, "hash": bins.hash}, "model": "tiny", "tokenizer": "abc",
        "winsor": {s: pool.limits(s) for s in ("nll", "ppl")}, "chunk_tokens": 256,
    }  # fmt: skip
    for world, worth, form in (
        ("good", WORTH, "utility"),
        ("flat", np.ones(5), "utility"),
        ("good", WORTH, "extended"),
    ):
        rows = pilots(pool, worth=worth)
        law, _ = build(table_of(rows, bins.share), ["d-only", form], bootstrap=20)
        law = replace(law.alternative(form), choice=law.choice, alternatives=[law.alternative("d-only")])
        law = replace(law, **context, alternatives=[replace(a, **context) for a in law.alternatives])
        found[f"{world} {form}"] = folder / f"{world}-{form}.json"
        found[f"{world} {form}"].write_text(json.dumps(law.to_json()))
        found[f"{world} runs"] = folder / f"{world}.jsonl"
        found[f"{world} runs"].write_text("".join(json.dumps(r) + "\n" for r in rows))
    return found


def selection(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "selection.json").read_text())


def selected(folder: Path) -> pa.Table:
    return read_selected(folder)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def run(scores: Path, out: Path, **options: Any) -> dict[str, Any]:
    return selection(select(scores, out=out, **{"budget": "20%", "resamples": 30, **options}))


def test_auto_follows_the_law_when_the_gate_passes(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    found = run(scores, tmp_path / "o", law=fitted["good utility"], runs=fitted["good runs"])
    table, pool = selected(tmp_path / "o"), Pool.read(scores)
    assert table.schema == SELECTED
    assert (found["strategy"], found["used"], found["candidate"]) == ("auto", "allocate", "allocate")
    assert found["tokens"] == int(np.sum(table["length"].to_numpy() * table["repeats"].to_numpy()))
    assert 0 <= found["budget"] - found["tokens"] < 256
    assert found["budget"] == pool.tokens // 5
    assert sum(found["bin_tokens"]) == sum(found["source_tokens"].values()) == found["tokens"]
    assert sum(found["pool_bin_tokens"]) == sum(found["pool_source_tokens"].values()) == pool.tokens
    assert found["bin_tokens"][4] == 0
    assert found["gate"]["passes"]
    assert found["gate"]["p10"] > 0
    assert found["gate"]["resamples"] == 30
    seen = found["predicted"]
    assert seen["selection"]["low"] < seen["selection"]["loss"] < seen["selection"]["high"]
    assert seen["gain"]["law"] == pytest.approx(seen["random"]["loss"] - seen["selection"]["loss"])
    assert seen["gain"]["low"] < seen["gain"]["mean"] < seen["gain"]["high"]
    assert seen["efficiency"]["factor"] > 1.2
    assert len(found["budget_curve"]) >= 8
    assert found["budget_curve"][0]["tokens"] < found["budget"] / 7.5 < found["budget_curve"][-1]["tokens"]
    assert all(p["selection"]["loss"] < p["random"]["loss"] for p in found["budget_curve"])
    assert {s["taken"] for s in found["samples"]} == {True, False}
    achieved = moments(pool.x, pool.limits("nll"), np.isin(pool.x, table["nll"].to_numpy()).astype(float))
    assert found["achieved"]["nll"]["mean"] == pytest.approx(achieved.mean)
    assert found["kl_to_pool"] > 0.1


def test_auto_stays_random_in_a_flat_world(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    found = run(scores, tmp_path / "o", law=fitted["flat utility"], runs=fitted["flat runs"])
    assert (found["used"], found["candidate"], found["gate"]["passes"]) == ("random", "allocate", False)
    assert found["candidate_predicted"] is not None
    assert any("was not taken" in w for w in found["warnings"])
    assert selected(tmp_path / "o").equals(
        selected(select(scores, strategy="random", budget="20%", out=tmp_path / "r"))
    )


@pytest.mark.parametrize(("documents", "used"), [(40, "matched"), (3, "random")])
def test_a_shut_gate_leaves_the_targets_mix(
    scores: Path, fitted: dict[str, Path], tmp_path: Path, documents: int, used: str
) -> None:
    """A target without the noise of the pool's upper bins; three documents do not tell where they lie."""
    table = scores_table(4000, seed=9)
    x = table["nll_sum"].to_numpy() / table["n_tokens"].to_numpy()
    inside = table.filter(pa.array(x < np.quantile(x, 0.8)))
    named = inside["doc_id"].to_pylist()
    few = set(sorted(set(named))[:documents])
    target = write_scores(tmp_path / "target", inside.filter(pa.array([d in few for d in named])))
    flat = {"law": fitted["flat utility"], "runs": fitted["flat runs"]}
    found = run(scores, tmp_path / "o", toward=target, **flat)
    assert (found["used"], found["candidate"], found["gate"]["passes"]) == (used, "allocate", False)
    assert any("random text in the target's mix" in w for w in found["warnings"]) == (used == "matched")
    noisy = found["bin_tokens"][4] / found["tokens"]
    if used == "matched":
        assert noisy < 0.05
        assert found["candidate_predicted"] is not None
        assert "target text's mix" in (tmp_path / "o" / "summary.md").read_text()
    else:
        assert noisy == pytest.approx(0.2, abs=0.05)
        assert any("too few to say where it lies" in w for w in found["warnings"])
    good = run(scores, tmp_path / "g", toward=target, law=fitted["good utility"], runs=fitted["good runs"])
    assert (good["used"], good["gate"]["passes"]) == ("allocate", True)


def test_a_target_drawn_as_the_pool_is_leaves_nearly_random_text(
    scores: Path, fitted: dict[str, Path], tmp_path: Path
) -> None:
    """Its mix differs from the pool's by chance alone: by a few per cent of the tokens, of any bin."""
    target = write_scores(tmp_path / "target", scores_table(1500, seed=11))
    found = run(scores, tmp_path / "o", toward=target, law=fitted["flat utility"], runs=fitted["flat runs"])
    share = np.array(found["bin_tokens"]) / found["tokens"]
    pool = np.array(found["pool_bin_tokens"]) / found["pool_tokens"]
    assert 0.5 * np.abs(share - pool).sum() < 0.06
    assert not any("utility decided" in w for w in found["warnings"])


def test_whole_documents_know_no_mix(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    target = write_scores(tmp_path / "target", scores_table(1500, seed=11))
    flat = {"law": fitted["flat utility"], "runs": fitted["flat runs"], "whole_documents": True}
    assert run(scores, tmp_path / "o", toward=target, **flat)["used"] == "random"
    with pytest.raises(UserError, match="cannot take whole documents"):
        run(scores, tmp_path / "m", toward=target, strategy="matched", **flat)


def test_losses_come_from_the_law_that_was_chosen(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    """Another form may decide, by `auto` or by name; what a reader is told is the chosen law's."""
    law = Law.from_json(fitted["good utility"])
    chosen = replace(law.alternative("d-only"), choice=law.choice, alternatives=[replace(law, alternatives=[])])
    (tmp_path / "law.json").write_text(json.dumps(chosen.to_json()))
    random = run(scores, tmp_path / "r", law=tmp_path / "law.json", runs=fitted["good runs"], strategy="random")
    for name, asked in (("a", {}), ("b", {"strategy": "allocate", "form": "utility"})):
        found = run(scores, tmp_path / name, law=tmp_path / "law.json", runs=fitted["good runs"], **asked)
        seen = found["predicted"]
        assert (found["used"], seen["form"], seen["decider"]) == ("allocate", "d-only", "utility")
        assert seen["random"]["loss"] == pytest.approx(random["predicted"]["random"]["loss"], rel=1e-3)
        assert seen["selection"]["loss"] == pytest.approx(seen["random"]["loss"], abs=1e-3)
        assert seen["gain"]["mean"] > 0.005
        assert seen["gain"]["law"] > 0.005
        assert any("predicted by the chosen law (d-only)" in w for w in found["warnings"])


def test_auto_needs_pilots_and_law(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    found = run(scores, tmp_path / "o", law=fitted["good utility"])
    assert found["used"] == "random"
    assert "--runs" in found["gate"]["reason"]
    bare = run(scores, tmp_path / "p")
    assert (bare["used"], bare["gate"], bare["predicted"], bare["candidate"]) == ("random", None, None, None)


def test_explicit_strategies_are_obeyed_with_the_verdict(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    flat = run(scores, tmp_path / "a", strategy="allocate", law=fitted["flat utility"], runs=fitted["flat runs"])
    assert (flat["used"], flat["gate"]["passes"]) == ("allocate", False)
    law = {"law": fitted["good extended"], "runs": fitted["good runs"]}
    for strategy in ("maxent", "dos"):
        found = run(scores, tmp_path / strategy, strategy=strategy, **law)
        assert found["used"] == strategy
        assert found["target"]["scale"] == "ppl"
        assert found["achieved"]["ppl"]["mean"] == pytest.approx(found["target"]["mean"], rel=0.03)
        assert found["gate"]["p10"] is not None
    mine = run(scores, tmp_path / "m", strategy="maxent", target_mean=4.4, target_std=0.4, scale="nll", **law)
    assert mine["target"] == {"mean": 4.4, "std": 0.4, "scale": "nll"}
    assert mine["achieved"]["nll"]["mean"] == pytest.approx(4.4, rel=2e-3)


def test_every_strategy_has_an_outlook(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    law = {"law": fitted["good utility"], "strategy": "band", "band": (0.3, 0.6)}
    found = run(scores, tmp_path / "b", **law)
    assert found["gate"] is None
    assert found["budget_curve"][-1]["tokens"] <= 0.3 * Pool.read(scores).tokens
    assert found["predicted"]["gain"]["mean"] > 0
    full = run(
        scores, tmp_path / "f", strategy="full", budget=None, law=fitted["good utility"], runs=fitted["good runs"]
    )
    assert (full["gate"], full["budget_curve"]) == (None, [])
    twice = run(scores, tmp_path / "t", strategy="allocate", budget="90%", max_epochs=2.0, law=fitted["good utility"])
    assert max(selected(tmp_path / "t")["repeats"].to_pylist()) == 2
    assert twice["tokens"] > twice["unique_tokens"]


def test_a_thinned_curve_agrees_with_the_whole(
    scores: Path, fitted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    law = {"law": fitted["good utility"], "strategy": "allocate"}
    whole = run(scores, tmp_path / "w", **law)["budget_curve"]
    monkeypatch.setattr("pplscape.draw.stream.SAMPLE_CHUNKS", 700)
    thin = run(scores, tmp_path / "t", **law)["budget_curve"]
    for a, b in zip(whole, thin, strict=True):
        assert b["tokens"] == pytest.approx(a["tokens"], rel=0.05)
        assert b["selection"]["loss"] == pytest.approx(a["selection"]["loss"], abs=0.01)


def test_same_ids_whatever_the_parts(tmp_path: Path) -> None:
    table = scores_table(300)
    shuffled = table.take(np.random.default_rng(0).permutation(300))
    folders = [write_scores(tmp_path / "a", table), write_scores(tmp_path / "b", shuffled, parts=4)]
    for strategy in ("random", "stratified", "low"):
        first, second = (
            selected(select(f, strategy=strategy, budget="30%", out=tmp_path / f"{f.name}-{strategy}")) for f in folders
        )
        assert first.equals(second)


def test_rejected_scores_are_counted(tmp_path: Path) -> None:
    rows = scores_table(100).to_pydict()
    rows["nll_sum"][7] = float("nan")
    folder = write_scores(tmp_path / "s", pa.table(rows, schema=SCORES))
    out = select(folder, strategy="full", out=tmp_path / "o")
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["in"], counts["out"], counts["left"], counts["rejected"]) == (100, 99, 0, {"score_not_finite": 1})
    assert pq.read_table(out / "rejected/part-00000.parquet")["row"].to_pylist() == [7]
    assert any("1 scored chunks were left out" in w for w in selection(out)["warnings"])


def test_text_is_cut_back(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    texts = [f"Case {i} " + " ".join(f"word{(i * 7 + j * j) % 911}" for j in range(40)) for i in range(60)]
    source.write_text("".join(json.dumps({"id": str(i), "text": t, "kept": i}) + "\n" for i, t in enumerate(texts)))
    chunking = {"chunk_tokens": 64, "min_tokens": 16}
    corpus = prepare([str(source)], model=str(tiny_tokenizer_dir), out=tmp_path / "prepared", **chunking)
    chunks = Prepared(corpus).chunks("pool")
    n = len(chunks)
    extra = {"n_tokens": chunks["length"], "nll_sum": pa.array(np.random.default_rng(0).normal(300, 30, n))}
    table = pa.table({f.name: extra[f.name] if f.name in extra else chunks[f.name] for f in SCORES}).cast(SCORES)
    folder = write_scores(tmp_path / "scores", table)
    out = select(folder, strategy="random", budget="40%", out=tmp_path / "o", corpus=corpus)
    written = [json.loads(line) for path in sorted((out / "subset").rglob("*.jsonl")) for line in lines(path)]
    assert set(written[0]) == {"id", "text", "kept"}
    wanted = "".join(sorted("".join(Prepared(corpus).texts("pool", selected(out)))))
    assert "".join(sorted("".join(r["text"] for r in written))) == wanted
    assert all(s["text"] for s in selection(out)["samples"])


def test_runs_twice_without_work_and_refuses_another_configuration(scores: Path, tmp_path: Path) -> None:
    first = run(scores, tmp_path / "o", strategy="low")
    assert run(scores, tmp_path / "o", strategy="low") == first
    with pytest.raises(StaleOutput):
        run(scores, tmp_path / "o", strategy="high")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "Unknown strategy 'best'"),
        ({"budget": "200%"}, "above the .* tokens of the pool"),
        ({"budget": "lots"}, "Cannot read the budget"),
        ({"budget": None}, "Pass --budget"),
        ({"strategy": "full"}, "takes the whole pool"),
        ({"strategy": "dos"}, "pass --law, or --target-mean"),
        ({"strategy": "allocate"}, "pass --law"),
        ({"form": "paper"}, "pass --law as well"),
        ({"target_std": 1.0}, "needs --target-mean"),
        ({"target_mean": float("nan")}, "must be finite"),
        ({"scale": "bits"}, "--scale is ppl or nll"),
        ({"law": "nowhere/law.json"}, "nowhere/law.json does not exist"),
    ],
)
def test_bad_requests_get_one_sentence(scores: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(scores, tmp_path / "o", **options)


def test_nothing_is_mixed(scores: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    law = Law.from_json(fitted["good utility"])
    for name, other in (("model", "large"), ("tokenizer", "xyz"), ("chunk_tokens", 512)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(replace(law, **{name: other}).to_json()))
        with pytest.raises(UserError, match="nothing may be mixed"):
            run(scores, tmp_path / name, law=path)
    rows = [json.loads(line) | {"bins_hash": "other"} for line in lines(fitted["good runs"])]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="different landscapes"):
        run(scores, tmp_path / "o", law=fitted["good utility"], runs=tmp_path / "runs.jsonl")


def test_killed_in_the_middle_and_run_again(tmp_path: Path) -> None:
    """SIGKILL while the second file is written; the next run gives the bytes of an undisturbed one."""
    scores = write_scores(tmp_path / "scores", scores_table(30_000), parts=3)
    code = f"""
import os, signal
import pyarrow.parquet as pq
from pplscape.stages.select import select
write, calls = pq.write_table, []
def killed(table, path, **options):
    calls.append(path)
    if len(calls) == 2:
        open(path, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, path, **options)
pq.write_table = killed
select({str(scores)!r}, strategy="random", budget="40%", out={str(tmp_path / "o")!r}, workers=1)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    left = sorted(p.name for p in (tmp_path / "o.partial/selected").iterdir())
    assert left == ["part-00000.parquet", "part-00001.parquet.tmp"]
    contents = []
    for out in (tmp_path / "o", tmp_path / "undisturbed"):
        select(scores, strategy="random", budget="40%", out=out, workers=2)
        files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json")
        contents.append([(p.relative_to(out), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 6
