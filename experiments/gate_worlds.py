"""What does `auto` gain, and how often does the gate leave random where nothing can be gained?

A synthetic pool (log-perplexity: 90 % around 4.5, 10 % noise around 7) is planned as `pplscape plan` would, its
pilots are drawn as `pplscape pilot` would, and only their losses are simulated, with trunk and run noise. Truth is a
worth for each of 20 bins, finer than the law's 10, with or without falling returns in a bin (exponent of the tokens):

    flat      every bin is worth the same, no falling returns: nothing can be gained or lost
    diverse   every bin is worth the same, falling returns: random is best, leaving it costs
    mild      the best bin is worth 1.7 times the worst, falling returns
    high      worth rises with perplexity from 0.6 to 1.4, falling returns
    real      worths as found on medical text (noise in the last bin), falling returns
    dirty     one fifth of the bins is noise, the others differ by four times, no falling returns

Each repetition fits all laws to 12 trunks x 4 sizes up to D/4, lets `auto` select and asks the gate. One JSON line a
repetition; those that are there are not run again.

    python experiments/gate_worlds.py --repetitions 20
    python experiments/gate_worlds.py table
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import beta as beta_distribution

from pplscape.design import Fine, choose_regimes, choose_sizes, draw_trunk
from pplscape.draw.auto import challenger
from pplscape.draw.census import take_census
from pplscape.draw.options import Options
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility, solve
from pplscape.draw.scores import Scores
from pplscape.draw.selection import Selection, edges_of, judge_of
from pplscape.laws.build import build
from pplscape.runs import RunTable
from pplscape.statistics import make_bins, moments, on_scale

BASE, FLOOR, BETA, SCALE = 4.5, 3.0, 0.35, 6.0
COOLDOWN, DEPLETION, DESIGNED, SEEDS, BINS, TRUE_BINS = 0.15, 0.1, 9, 3, 10, 20
PILOT_TOKENS = 3.4
"""In multiples of the budget: sizes reach a quarter of it."""
NOISE = 0.004
"""Relative noise of a run, half of its variance shared by a trunk."""
AT = (np.arange(TRUE_BINS) + 0.5) / TRUE_BINS
REAL = np.array([3.0, 7.5, 9.6, 11.8, 13.7, 12.3, 12.9, 14.6, 8.8, -1.2])
WORLDS: dict[str, tuple[np.ndarray, float]] = {
    "flat": (np.ones(TRUE_BINS), 1.0),
    "diverse": (np.ones(TRUE_BINS), 0.7),
    "mild": (1 + 0.25 * np.cos((AT - 0.55) * 2 * np.pi), 0.7),
    "high": (0.6 + 0.8 * AT, 0.7),
    "real": (np.repeat(REAL / REAL.mean(), 2), 0.7),
    "dirty": (np.repeat([0.4, 0.8, 1.2, 1.6, -0.2], 4), 1.0),
}
PAGE_HEAD = """# `auto` in worlds where we know the answer

    python experiments/gate_worlds.py
    python experiments/gate_worlds.py table

Synthetic losses; pools, regimes and draws made by the program itself. 12 trunks x 4 sizes up to D/4, relative noise
0.4 % a run, 10 bins. Gains over random in nats/token, means over seeds. *achievable*: the best allocation by the truth;
*auto*: what `auto` took, 0 where the gate stayed shut; *candidate*, *not hedged*: what was put before the gate, and the
same without hedge; *losses*: share of seeds in which `auto` left random and lost. *flat*, *diverse*: random is best.

| world | seeds | achievable | auto | left random [90 %] | losses | candidate | not hedged |
|---|---|---|---|---|---|---|---|"""
RESULTS = Path(__file__).parent / "results" / "gate_worlds.jsonl"
PAGE = RESULTS.with_suffix(".md")


def true_loss(share: np.ndarray, world: str) -> float:
    """Loss after training on `share` [TRUE_BINS] tokens of each bin, in multiples of the budget."""
    worth, power = WORLDS[world]
    gain = 1 + SCALE * float(worth @ (np.maximum(share, 0) * TRUE_BINS) ** power) / TRUE_BINS
    return FLOOR + (BASE - FLOOR) * max(gain, 0.1) ** -BETA


def achievable(world: str) -> float:
    """Gain over random of the best allocation, by the convex program on the truth."""
    worth, power = WORLDS[world]
    share = np.full(TRUE_BINS, 1 / TRUE_BINS)
    best = solve(Utility(worth, share, "power", power, 1.0), share / DEPLETION, 1.0).tokens
    return true_loss(share, world) - true_loss(best, world)


def make_pool(seed: int, n: int = 4000) -> Pool:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.9, rng.normal(4.5, 0.6, n), rng.normal(7, 0.4, n))
    length = np.where(rng.random(n) < 0.85, 256, rng.integers(64, 256, n))
    return Pool.of([f"doc-{i // 4:06d}" for i in range(n)], np.arange(n) % 4, length, x)


def simulate(pool: Pool, budget: int, world: str, seed: int) -> tuple[RunTable, dict[str, Any]]:
    """Pilots of a world, and what a law must be told of the pool."""
    rng = np.random.default_rng(seed + 10_000)
    bins, fine_bins, truth = (make_bins(pool.x, pool.length, k) for k in (BINS, 4 * BINS, TRUE_BINS))
    fine = Fine.of(fine_bins, pool.x, pool.length)
    sizes = choose_sizes(round(PILOT_TOKENS * budget), DESIGNED + SEEDS, COOLDOWN, budget, 64)
    limits = {s: pool.limits(s) for s in ("nll", "ppl")}
    rows = []
    for regime in choose_regimes(fine, bins.of(fine.mean), DEPLETION, DESIGNED, SEEDS, seed):
        trunk = draw_trunk(
            regime, fine_bins.of(pool.x), pool.length, pool.uniforms(regime.seed), pool.uniforms(7001), sizes, COOLDOWN,
            DEPLETION,
        )  # fmt: skip
        common = rng.normal(0, NOISE / np.sqrt(2))
        for i in range(len(sizes)):
            x, length = pool.x[trunk.of(i)], pool.length[trunk.of(i)]
            shape = {s: moments(on_scale(x, s), limits[s]) for s in limits}
            loss = true_loss(truth.tokens(x, length) / budget, world)
            loss *= np.exp(common + rng.normal(0, NOISE / np.sqrt(2)))
            rows.append((regime, length.sum(), shape, bins.tokens(x, length), loss))
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


def one(world: str, seed: int, resamples: int) -> dict[str, Any]:
    started = time.process_time()
    pool = make_pool(seed)
    budget = int(pool.tokens * DEPLETION)
    runs, context = simulate(pool, budget, world, seed)
    law, _ = build(runs, None, bootstrap=resamples, seed=seed)
    law = replace(law, **context, alternatives=[replace(a, **context) for a in law.alternatives])
    with tempfile.TemporaryDirectory() as folder:
        scores = write_scores(pool, Path(folder) / "scores.parquet")
        census = take_census(scores, edges_of(law))
        judge = judge_of(scores, census, law, runs, challenger(law).form, resamples, seed)
        selection = Selection(scores, census, budget, seed, Options(hedge=None), judge)
        content, _ = selection.run("auto")
        wish, plain = content["candidate"] or "random", replace(selection, options=Options(hedge=0.0))
        gains = {
            "candidate_gain": gain_of(selection, wish, world),
            "not_hedged": gain_of(plain, wish, world),
        }
    gate = content["gate"] or {"passes": False, "p10": None}
    return {
        "world": world, "seed": seed, "form": law.form, "decider": judge.form, "candidate": content["candidate"],
        "used": content["used"], "passes": gate["passes"], "p10": gate["p10"],
        "hedge": selection.hedge if wish == "allocate" else None,
        "predicted": (content["candidate_predicted"] or content["predicted"])["gain"]["mean"], **gains,
        "cpu_seconds": round(time.process_time() - started, 2),
    }  # fmt: skip


def gain_of(selection: Selection, strategy: str, world: str) -> float:
    """True gain over random at equal tokens of what a strategy takes."""
    taken, truth = selection.take(strategy), make_pool(selection.seed)
    bins = make_bins(truth.x, truth.length, TRUE_BINS)
    tokens = bins.tokens(taken.sample.x, taken.sample.length * taken.sample_times)
    return true_loss(np.full(TRUE_BINS, 1 / TRUE_BINS), world) - true_loss(tokens / tokens.sum(), world)


def table(rows: list[dict[str, Any]]) -> str:
    """The committed page."""
    lines = [PAGE_HEAD]
    for world in WORLDS:
        mine = [r for r in rows if r["world"] == world]
        if not mine:
            continue
        passed = sum(r["passes"] for r in mine)
        low, high = beta_distribution.ppf([0.05, 0.95], passed + 0.5, len(mine) - passed + 0.5)
        took = [r["candidate_gain"] if r["passes"] else 0.0 for r in mine]
        lost = np.mean([g < -1e-4 for g in took])
        means = [np.mean([r[k] for r in mine]) for k in ("candidate_gain", "not_hedged")]
        lines.append(
            f"| {world} | {len(mine)} | {achievable(world):.4f} | {np.mean(took):+.4f} | {passed / len(mine):.0%} "
            f"[{low:.0%}, {high:.0%}] | {lost:.0%} | {means[0]:+.4f} | {means[1]:+.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", nargs="?", choices=["run", "table"], default="run")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    if arguments.verb == "table":
        PAGE.write_text(table(rows))
        print(PAGE.read_text())
        return
    done = {(r["world"], r["seed"]) for r in rows}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.repetitions):
        for world in arguments.worlds.split(","):
            if (world, seed) not in done:
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(one(world, seed, arguments.resamples)) + "\n")


if __name__ == "__main__":
    main()
