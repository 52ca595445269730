"""A whole synthetic run: a known world of per-bin utilities, everything but the trained losses by the real stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from pplscape.design import draw_trunk
from pplscape.draw.pool import Pool
from pplscape.manifest import StageFolder
from pplscape.paired import compare_arms
from pplscape.schema import SCORES
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.pilot import regime_of
from pplscape.stages.plan import plan
from pplscape.stages.select import select
from pplscape.statistics import Bins, moments, on_scale

EVIL = '</script><script>window.injected = true</script><img src=x onerror=alert(1)> & "quoted" \x00\x07 $x$'
WORTH = np.array([0.15, 0.5, 1.0, 1.6, 1.7, -0.6])
"""True worth of a token of each bin, lowest perplexity first; the last one is noise."""
BASE, FLOOR, BASE_GENERAL = 4.88, 2.6, 3.70


def write_scores(folder: Path, last_source: str = EVIL, n: int = 2400, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, n, p=[0.44, 0.28, 0.2, 0.08])
    x = np.array([4.6, 4.95, 5.35, 8.2])[kind] + rng.normal(size=n) * np.array([0.35, 0.45, 0.5, 0.7])[kind]
    length = np.clip(rng.normal(190, 70, n), 64, 256).astype(np.int32)
    source = np.array(["abstracts", "__init__", "textbooks", last_source])[kind]
    table = pa.table(
        {
            "doc_id": [f"doc-{i // 3}" for i in range(n)],
            "chunk_index": np.arange(n, dtype=np.int32) % 3,
            "char_start": np.arange(n) % 3 * 800,
            "char_end": np.arange(n) % 3 * 800 + 800,
            "length": length,
            "n_tokens": length,
            "n_bytes": (length * 3.9).astype(np.int32),
            "nll_sum": x * length,
            "source": source,
        },
        schema=SCORES,
    )
    facts = {"model": "models/base-2m", "tokenizer": "0123456789abcdef", "chunk_tokens": 256, "n_params": 2_600_000}
    with StageFolder(folder, stage="score", version=1, config=facts, inputs={}) as stage:
        stage.write_table("part-00000.parquet", table)
        counts = {"in": n + 7, "out": n, "rejected": {"not_finite": 7}, "tokens": {"in": 1, "out": 1, "rejected": 900}}
        stage.finish({**counts, "facts": facts})
    return folder


def true_loss(tokens: float, share: np.ndarray, noise: float) -> float:
    """The world's law: saturating worth of each bin, anchored at the base model's loss."""
    used = float(np.sum(WORTH / 6 * 2.0 * -np.expm1(-share * 6 * tokens / 60_000 / 2.0)))
    return FLOOR + (BASE - FLOOR) * (1 + 1.4 * used) ** -0.35 + noise


def run_row(facts: dict, pool: Pool, regime, index, size: int, rng, trunk_noise: float) -> dict:
    bins = Bins(tuple(facts["bins"]["edges"]), tuple(facts["bins"]["share"]))
    x, length = pool.x[index], pool.length[index]
    shapes = {s: moments(on_scale(x, s), tuple(facts["winsor"][s])) for s in ("nll", "ppl")}
    per_bin = bins.tokens(x, length)
    loss = true_loss(float(length.sum()), per_bin / per_bin.sum(), trunk_noise + rng.normal(scale=0.003))
    return {
        "run_id": f"{regime.group}-{size}", "group": regime.group, "regime": regime.name, "seed": regime.seed,
        "tokens": int(length.sum()), "pool_tokens": int(pool.tokens), "unique_tokens": int(length.sum()),
        "ppl_mean": shapes["ppl"].mean, "ppl_std": shapes["ppl"].std, "nll_mean": shapes["nll"].mean,
        "nll_std": shapes["nll"].std, "bin_tokens": per_bin.tolist(), "bin_unique_tokens": per_bin.tolist(),
        "bins_hash": bins.hash, "replay_share": 0.0, "loss": loss, "loss_se": 0.011,
        "loss_general": BASE_GENERAL + 0.3 * (BASE - loss), "base_loss": BASE, "base_loss_general": BASE_GENERAL,
        "n_params": 2_600_000, "epochs": 1.0, "lr": 1e-3, "schedule": "{}", "status": "ok", "reason": None,
    }  # fmt: skip


def write_pilots(run: Path, evil: str) -> None:
    facts = json.loads((run / "landscape/landscape.json").read_text())
    content = json.loads((run / "plan/plan.json").read_text())
    pool = Pool.read(run / "scores")
    fine = Bins(tuple(facts["fine_bins"]["edges"]), tuple(facts["fine_bins"]["share"])).of(pool.x)
    rng = np.random.default_rng(5)
    rows = []
    for regime in map(regime_of, content["regimes"]):
        order, membership = pool.uniforms(regime.seed), pool.uniforms(99)
        trunk = draw_trunk(
            regime, fine, pool.length, order, membership, content["sizes"], content["cooldown_share"],
            content["depletion"],
        )  # fmt: skip
        noise = float(rng.normal(scale=0.004))
        rows += [run_row(facts, pool, regime, trunk.of(i), s, rng, noise) for i, s in enumerate(content["sizes"])]
    rows[-1] |= {"status": "failed", "reason": f"FloatingPointError: loss is nan {evil}", "loss": None, "loss_se": None}
    with StageFolder(run / "pilots", stage="pilot", version=1, config={"model": "base"}, inputs={}) as stage:
        stage.write_jsonl("runs.jsonl", rows)
        stage.finish({"in": len(rows), "out": len(rows) - 1, "rejected": {"failed": 1}})


def comparison(seed: int = 3) -> dict:
    rng = np.random.default_rng(seed)
    arms = [
        {
            "strategy": "base",
            "seed": 0,
            "tokens": 0,
            "loss": BASE,
            "bits_per_byte": 1.805,
            "loss_valid": BASE,
            "loss_general": BASE_GENERAL,
        }
    ]
    shift = {"random": 0.0, "allocate": -0.035, "dos": 0.006, "low": 0.09}
    for s in range(4):
        common = 4.02 + rng.normal(scale=0.006)
        for name, gain in shift.items():
            loss = common + gain + rng.normal(scale=0.004)
            arms.append({"strategy": name, "seed": s, "tokens": 100_000, "loss": loss, "bits_per_byte": loss * 0.37,
                         "loss_valid": loss,
                         "loss_general": BASE_GENERAL + 0.4 + gain / 2 + rng.normal(scale=0.01)})  # fmt: skip
    return compare_arms(arms)


def make_run(run: Path, bootstrap: int = 20, evil: str = EVIL) -> Path:
    scores = write_scores(run / "scores", evil)
    landscape(scores, budget="25%", n_bins=6, out=run / "landscape")
    facts_file = run / "landscape/landscape.json"
    facts = json.loads(facts_file.read_text())
    text = "Patients with chronic heart failure were randomised to receive either the study drug or placebo.\n"
    facts["samples"] = [
        [{"doc_id": f"d{b}", "chunk_index": i, "source": "abstracts", "nll": (r["low"] + r["high"]) / 2,
          "text": evil if i == 2 else text * 3} for i in range(3)]
        for b, r in enumerate(facts["bins"]["by_bin"])
    ]  # fmt: skip
    facts_file.write_text(json.dumps(facts))
    plan(run / "landscape", budget="25%", pilot_tokens=900_000, out=run / "plan", designed=9, random_seeds=3)
    write_pilots(run, evil)
    forms = ["d-only", "paper", "quadratic", "utility", "chinchilla"]
    fit(run / "pilots/runs.jsonl", out=run / "law", bootstrap=bootstrap, landscape=facts_file, forms=forms)
    select(scores, budget="25%", strategy="auto", law=run / "law/law.json", runs=run / "pilots/runs.jsonl",
           out=run / "selection", resamples=bootstrap)  # fmt: skip
    with StageFolder(run / "comparison", stage="compare", version=1, config={}, inputs={}) as stage:
        stage.write_json("comparison.json", comparison())
        stage.finish({"in": 13, "out": 13, "rejected": {}})
    return run


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_runs(path: Path, change) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
