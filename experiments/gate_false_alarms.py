"""How often does the gate leave random although composition does not matter? And how often when it does?

A synthetic pool (log-perplexity: 90 % around 4.5, 10 % noise around 7) is planned exactly as `pplscape plan` would, its
pilots are drawn as `pplscape pilot` would, and only their losses are simulated, with trunk and run noise. In the *flat*
world every bin is worth the same; in the *dirty* world the noise is worth nothing and the middle is worth more. Each
repetition fits all laws, lets `auto` select, and asks the gate. Writes one JSON line a repetition (those that are there
are not run again) and prints the rates.

    python experiments/gate_false_alarms.py --repetitions 100 --out experiments/results/gate_false_alarms.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import beta as beta_distribution

from pplscape.design import Fine, choose_regimes, choose_sizes, draw_trunk
from pplscape.draw.auto import challenger
from pplscape.draw.census import take_census
from pplscape.draw.options import Options
from pplscape.draw.pool import Pool
from pplscape.draw.scores import Scores
from pplscape.draw.selection import Selection, edges_of, judge_of
from pplscape.laws.build import build
from pplscape.runs import RunTable
from pplscape.statistics import make_bins, moments, on_scale

BASE, FLOOR, BETA, SCALE = 4.5, 3.0, 0.35, 6.0
DIRTY = (0.4, 0.8, 1.2, 1.6, -0.2)
COOLDOWN = 0.2


def make_pool(seed: int, n: int) -> Pool:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.9, rng.normal(4.5, 0.6, n), rng.normal(7, 0.4, n))
    length = np.where(rng.random(n) < 0.85, 256, rng.integers(64, 256, n))
    return Pool.of([f"doc-{i // 4:06d}" for i in range(n)], np.arange(n) % 4, length, x)


def simulate(
    pool: Pool, budget: int, worth: np.ndarray, designed: int, noise: float, seed: int
) -> tuple[RunTable, dict]:
    """Pilots of a world where a token of bin b is worth `worth[b]`; `noise`: relative, half trunk and half run."""
    rng = np.random.default_rng(seed + 10_000)
    bins = make_bins(pool.x, pool.length, len(worth))
    fine_bins = make_bins(pool.x, pool.length, 4 * len(worth))
    fine = Fine.of(fine_bins, pool.x, pool.length)
    depletion = budget / pool.tokens
    sizes = choose_sizes(10 * budget, designed + 3, COOLDOWN, budget, 64)
    regimes = choose_regimes(fine, bins.of(fine.mean), depletion, designed, 3, seed)
    limits = {s: pool.limits(s) for s in ("nll", "ppl")}
    rows = []
    for regime in regimes:
        trunk = draw_trunk(
            regime, fine_bins.of(pool.x), pool.length, pool.uniforms(regime.seed), pool.uniforms(7001), sizes, COOLDOWN,
            depletion,
        )  # fmt: skip
        common = rng.normal(0, noise / np.sqrt(2))
        for i in range(len(sizes)):
            index = trunk.of(i)
            x, length = pool.x[index], pool.length[index]
            per_bin = bins.tokens(x, length)
            shape = {s: moments(on_scale(x, s), limits[s]) for s in limits}
            gain = 1 + SCALE * float(worth @ per_bin) / budget
            loss = FLOOR + (BASE - FLOOR) * max(gain, 0.1) ** -BETA
            loss *= np.exp(common + rng.normal(0, noise / np.sqrt(2)))
            rows.append((regime, length.sum(), shape, per_bin, loss))
    runs = RunTable(
        tokens=np.array([float(r[1]) for r in rows]),
        **{f"{s}_{m}": np.array([getattr(r[2][s], m) for r in rows]) for s in limits for m in ("mean", "std")},
        bin_tokens=np.array([r[3] for r in rows]),
        loss=np.array([r[4] for r in rows]),
        base_loss=np.full(len(rows), BASE),
        group=np.array([r[0].group for r in rows]),
        regime=np.array([r[0].name for r in rows]),
        bin_share=np.asarray(bins.share),
        meta={"warnings": []},
    )
    return runs, {"bins": {"edges": bins.edges, "share": bins.share, "hash": bins.hash}, "winsor": limits}


def write_scores(pool: Pool, path: Path) -> Scores:
    """The pool as a score file."""
    ones, source = np.ones(len(pool), dtype=np.int32), pa.repeat("", len(pool))
    columns = {"length": pool.length, "n_tokens": ones, "nll_sum": pool.x, "source": source}
    table = pool.spans(np.arange(len(pool)))
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return Scores.read(path, workers=1)


def one(world: str, seed: int, arguments: argparse.Namespace) -> dict:
    started = time.process_time()
    pool = make_pool(seed, arguments.chunks)
    budget = int(pool.tokens * arguments.depletion)
    worth = np.asarray(DIRTY) if world == "dirty" else np.ones(len(DIRTY))
    runs, context = simulate(pool, budget, worth, arguments.designed, arguments.noise, seed)
    law, _ = build(runs, None, bootstrap=0, seed=seed)
    law = replace(law, **context, alternatives=[replace(a, **context) for a in law.alternatives])
    with tempfile.TemporaryDirectory() as folder:
        scores = write_scores(pool, Path(folder) / "scores.parquet")
        census = take_census(scores, edges_of(law))
        judge = judge_of(scores, census, law, runs, challenger(law).form, arguments.resamples, seed)
        selection = Selection(scores, census, budget, seed, Options(), judge)
        content, _ = selection.run("auto")
        forced = {s: _forced(selection, s) for s in ("allocate", "maxent")} if arguments.forced else {}
    true = {s: _true_loss(content, worth, budget, s) for s in ("bin_tokens", "pool_bin_tokens")}
    gate = content["gate"] or {"passes": False, "p10": None}
    return {
        "world": world, "seed": seed, "form": law.form, "decider": judge.form, "candidate": content["candidate"],
        "used": content["used"],
        "passes": gate["passes"], "p10": gate["p10"], "cpu_seconds": round(time.process_time() - started, 2),
        "true_gain": true["pool_bin_tokens"] - true["bin_tokens"], "forced": forced,
    }  # fmt: skip


def _forced(selection: Selection, strategy: str) -> bool:
    """The gate's verdict on a strategy that the chosen law did not ask for."""
    return bool(selection.run(strategy)[0]["gate"]["passes"])


def _true_loss(content: dict, worth: np.ndarray, budget: int, key: str) -> float:
    tokens = np.asarray(content[key], dtype=float)
    gain = 1 + SCALE * float(worth @ (tokens * content["tokens"] / tokens.sum())) / budget
    return FLOOR + (BASE - FLOOR) * gain**-BETA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=4000)
    parser.add_argument("--designed", type=int, default=7)
    parser.add_argument("--depletion", type=float, default=0.12)
    parser.add_argument("--noise", type=float, default=0.003, help="relative noise of one run")
    parser.add_argument("--forced", action="store_true", help="also ask about allocate and maxent where not chosen")
    parser.add_argument("--worlds", default="flat,dirty")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    earlier = [json.loads(line) for line in lines]
    for world in arguments.worlds.split(","):
        rows = [r for r in earlier if r["world"] == world]
        with open(arguments.out, "a") as file:
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.repetitions):
                if any(r["seed"] == seed for r in rows):
                    continue
                rows.append(one(world, seed, arguments))
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
        passed = sum(r["passes"] for r in rows)
        low, high = beta_distribution.ppf([0.05, 0.95], passed + 0.5, len(rows) - passed + 0.5)
        for strategy in rows[0]["forced"]:
            wrong = sum(r["forced"][strategy] for r in rows)
            print(f"{world}: {strategy} asked for, gate passed in {wrong} of {len(rows)}")
        rate = f"{passed / len(rows):.1%}; 90 % interval {low:.1%}-{high:.1%}"
        print(f"{world}: gate passed in {passed} of {len(rows)} ({rate})")


if __name__ == "__main__":
    main()
