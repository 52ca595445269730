"""How many pilot tokens does a decision take, and do branches save any? Worlds whose losses are known.

A synthetic pool with 5 bins (`tests/landscapes.py`) and three worlds: *flat* (every bin worth the same), *mild* and
*dirty*. Four sizes on a doubling grid up to half the budget, regimes at random from the planner's menu, three of them
random's own. The utility law is fitted and asked, at the budget, for the loss of every regime.

* *branches*: a trunk at a constant rate and a cooldown of 15 % at each size;
* *separate*: every size trained from the start: 1.66 times the tokens.

A run's relative noise is the same in both; the branches of a trunk share a part of its variance (`--shared`), separate
runs share nothing. Of every number of trunks and repetition, at the budget: root-mean-square error of the predicted
gains over random and mean error of the losses (of the better half of the regimes), regret of the regime that the law
calls best, and whether it truly beats random.

    python experiments/pilot_tokens.py run [--world dirty] [--repetitions 20] [--seconds 300]
    python experiments/pilot_tokens.py table

Results are kept as they come (results/pilot_tokens.jsonl): run again to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.adaptive import Menu, menu_of
from pplscape.design import trunk_tokens
from pplscape.landscape_facts import describe
from pplscape.laws.fit import fit_form
from pplscape.runs import RunTable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import landscapes

RESULTS = Path(__file__).parent / "results" / "pilot_tokens.jsonl"
SIZES = tuple(int(landscapes.BUDGET * f) for f in (1 / 16, 1 / 8, 1 / 4, 1 / 2))
COOLDOWN, NOISE, RANDOM = 0.15, 0.005, 3
TRUNKS = (8, 12, 16, 24, 32)
WORLDS = ("flat", "mild", "dirty")
SHARED = (0.5, 0.9)
"""Share of a run's noise variance that all branches of a trunk have in common."""


def tokens_of(design: str, trunks: int) -> int:
    """Pilot tokens of a design."""
    each = trunk_tokens(list(SIZES), COOLDOWN) if design == "branches" else sum(SIZES)
    return trunks * each


def pilots(menu: Menu, world: str, trunks: int, shared: float, seed: int) -> RunTable:
    """Runs of `trunks` regimes at all sizes; `shared` 0: separate ones."""
    rng = np.random.default_rng([seed, trunks])
    regimes = [0] * RANDOM + (1 + rng.permutation(len(menu.kinds) - 1)[: trunks - RANDOM]).tolist()
    clean = landscapes.pilots(menu, world, regimes, SIZES, noise=0.0)
    common, own = rng.normal(size=trunks), rng.normal(size=len(clean))
    noise = np.sqrt(shared) * np.repeat(common, len(SIZES)) + np.sqrt(1 - shared) * own
    group = clean.group if shared else np.array([f"run-{i}" for i in range(len(clean))])
    return replace(clean, loss=clean.loss * np.exp(NOISE * noise), group=group)


def one(menu: Menu, world: str, design: str, trunks: int, shared: float, seed: int) -> dict[str, Any]:
    """What a design of this many trunks finds."""
    runs = pilots(menu, world, trunks, shared if design == "branches" else 0.0, seed)
    here = menu.at(landscapes.BUDGET)
    told = np.exp(fit_form("utility", runs).log_loss(here))
    clean = landscapes.true_loss(world, here)
    best = int(told.argmin())
    near = clean <= np.median(clean)  # what a decision is between; the others are far off, whatever their error
    found = {
        "gain_error": np.sqrt(np.mean(((told[0] - told) - (clean[0] - clean))[near] ** 2)),
        "loss_error": np.abs(told - clean)[near].mean(), "regret": clean[best] - clean.min(),
    }  # fmt: skip
    return {
        "world": world, "design": design, "trunks": trunks, "shared": shared, "seed": seed,
        "tokens": tokens_of(design, trunks), **{k: round(float(v), 6) for k, v in found.items()},
        "wins": bool(clean[best] < clean[0]),
    }  # fmt: skip


def run(worlds: list[str], repetitions: int, seconds: float) -> None:
    begun = time.monotonic()
    facts = describe(landscapes.scored_pool(), landscapes.BUDGET, 5)
    menu = menu_of(facts, landscapes.BUDGET, None, 0)
    done = {tuple(r[k] for k in ("world", "design", "trunks", "shared", "seed")) for r in rows()}
    cells = [
        (world, design, trunks, shared if design == "branches" else 0.0, seed)
        for seed, world, trunks, shared in product(range(repetitions), worlds, TRUNKS, SHARED)
        for design in ("branches", "separate")
        if design == "branches" or shared == SHARED[0]
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as handle:
        for cell in cells:
            if cell in done:
                continue
            if time.monotonic() - begun > seconds:
                print("time is up: run again to go on")
                return
            handle.write(json.dumps(one(menu, *cell)) + "\n")
            handle.flush()
    print("complete")


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def median(values: list[float], spec: str = ".4f") -> str:
    """Median and its 95 % bootstrap interval."""
    draws = np.median(np.random.default_rng(0).choice(values, (4000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.median(values):{spec}} [{low:{spec}}, {high:{spec}}]"


def saved(found: list[dict[str, Any]], world: str, shared: float, key: str) -> str:
    """Tokens that separate runs need for what branches reach, as a multiple of theirs: the median error of gains or the
    mean regret, on a line in log-log over all designs, at the middle of the range of tokens that both have; with a 90 %
    bootstrap interval over repetitions."""
    middle_of = np.median if key == "gain_error" else np.mean
    tables = []
    for design, share in (("branches", shared), ("separate", 0.0)):
        of = [r for r in found if (r["world"], r["design"], r["shared"]) == (world, design, share)]
        sizes = sorted({r["tokens"] for r in of})
        by_size = [[r[key] for r in sorted(of, key=lambda r: r["seed"]) if r["tokens"] == t] for t in sizes]
        if len(sizes) < 3 or len({len(b) for b in by_size}) > 1:
            return ""
        tables.append((np.log(sizes), np.array(by_size)))
    (logs_b, table_b), (logs_s, table_s) = tables
    n, rng, middle = table_b.shape[1], np.random.default_rng(0), (logs_b[-1] + logs_s[0]) / 2
    times = []
    for draw in [np.arange(n), *rng.integers(n, size=(500, n))]:
        line_b, line_s = (
            np.polyfit(logs, np.log(np.maximum(middle_of(of[:, draw], axis=1), 1e-5)), 1)
            for logs, of in ((logs_b, table_b), (logs_s, table_s))
        )
        slope = (line_b[0] + line_s[0]) / 2
        times.append(float(np.exp((np.polyval(line_b, middle) - np.polyval(line_s, middle)) / slope)))
    low, high = np.quantile(times[1:], [0.05, 0.95])
    return f"{times[0]:.2f} [{low:.2f}, {high:.2f}]"


def table() -> None:
    found = rows()
    head = [
        "world", "design", "shared", "trunks", "tokens / budget", "error of gains", "error of losses", "mean regret",
        "right", "n",
    ]  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for key in dict.fromkeys((r["world"], r["design"], r["shared"], r["trunks"]) for r in sorted(
        found, key=lambda r: (WORLDS.index(r["world"]), r["design"], r["shared"], r["trunks"])
    )):  # fmt: skip
        of = [r for r in found if tuple(r[k] for k in ("world", "design", "shared", "trunks")) == key]
        right = np.mean([r["wins"] for r in of])
        cells = [key[0], key[1], f"{key[2]:g}", f"{key[3]}", f"{of[0]['tokens'] / landscapes.BUDGET:.1f}"]
        cells += [median([r[k] for r in of]) for k in ("gain_error", "loss_error")]
        cells += [f"{np.mean([r['regret'] for r in of]):.4f}"]
        print("| " + " | ".join([*cells, f"{right:.0%}", f"{len(of)}"]) + " |")
    print("\nTokens that separate runs need, as a multiple of those of branches, for the same\n")
    print("| world | shared | error of gains | mean regret |\n|---|---|---|---|")
    for world, shared in product(WORLDS[1:], SHARED):
        cells = [saved(found, world, shared, key) for key in ("gain_error", "regret")]
        print(f"| {world} | {shared:g} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--world", choices=WORLDS, nargs="*", default=list(WORLDS))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=300.0, help="stop after so long; results are kept")
    options = parser.parse_args()
    table() if options.what == "table" else run(options.world, options.repetitions, options.seconds)


if __name__ == "__main__":
    main()
