"""Is it right to stop when `plan --adaptive` says so, and does its second round tell more than a random one?

A synthetic pool with 5 bins (`tests/landscapes.py`); 12 trunks of 4 sizes as a first round, relative noise 1 %, half of
its variance shared by a trunk; then 8 more trunks: as planned, or regimes of the same menu at random, same sizes and
tokens. Error: of the predicted gains over random at the budget, root mean square, weighted as the plan's question is.
Worlds: *flat* (every bin worth the same), *mild* (0.8 to 1.2), *dirty* (0.4 to 1.6, noise below 0).

    python experiments/adaptive_worlds.py [--repetitions 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.adaptive import Evidence, Menu, evidence_of, menu_of, next_trunks, question_of
from pplscape.design import trunk_tokens
from pplscape.landscape_facts import describe
from pplscape.laws.fit import fit_form
from pplscape.runs import RunTable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import landscapes

FORMS, NOISE, TRUNKS, COOLDOWN, LEAST = ("d-only:anchored", "utility"), 0.01, 8, 0.15, 64
STATES = ("settled", "open", "flat")


def together(first: RunTable, second: RunTable) -> RunTable:
    columns = ("tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens", "unique_tokens", "loss",
               "base_loss", "group", "regime", "seed")  # fmt: skip
    return replace(first, **{k: np.concatenate([getattr(first, k), getattr(second, k)]) for k in columns})


def one(menu: Menu, world: str, seed: int) -> dict[str, Any]:
    """State after the first round; error of the gains after it and after either second round."""
    first = landscapes.pilots(menu, world, noise=NOISE, seed=seed)
    evidence = evidence_of(first, FORMS, seed=seed)
    tokens = TRUNKS * trunk_tokens(list(landscapes.SIZES), COOLDOWN)
    found = next_trunks(evidence, menu, landscapes.BUDGET, tokens, COOLDOWN, LEAST)
    here = menu.at(landscapes.BUDGET)
    question = question_of(evidence, menu, landscapes.BUDGET, landscapes.SIZES[-1], evidence.refits.draws[:2])
    clean = landscapes.true_loss(world, here)
    weight, rng = best_shares(evidence, menu, question.allowed), np.random.default_rng([seed, 1])

    def error(runs: RunTable) -> float:
        losses = np.exp(fit_form(evidence.fit.form, runs).log_loss(here))
        wrong = (losses[0] - losses) - (clean[0] - clean)
        return float(np.sqrt(weight @ wrong**2))

    chance = rng.integers(len(menu.kinds), size=len(found.chosen)).tolist()
    rounds = {
        name: error(together(first, landscapes.pilots(menu, world, k, found.sizes, NOISE, seed + 10_000, "-b")))
        for name, k in (("planned", found.chosen), ("random", chance))
    }
    true_best = float((clean[0] - clean).max())
    decision = found.decision
    return {
        "world": world, "seed": seed, "state": decision.state, "gain": decision.gain, "sure": decision.sure,
        "settles": decision.settles, "largest": decision.largest, "true_best": true_best, "first": error(first),
        "largest_size": found.sizes[-1], "trunks": len(found.chosen), **rounds,
    }  # fmt: skip


def best_shares(evidence: Evidence, menu: Menu, allowed: np.ndarray) -> np.ndarray:
    """How often the refits call each selection the best [K]."""
    _, draws = evidence.losses(menu.at(landscapes.BUDGET))
    return np.bincount(np.where(allowed, draws, np.inf).argmin(1), minlength=draws.shape[1]) / len(draws)


def median(values: np.ndarray, spec: str = ".4f") -> str:
    draws = np.median(np.random.default_rng(0).choice(values, (4000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.median(values):{spec}} [{low:{spec}}, {high:{spec}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--worlds", nargs="*", default=["flat", "mild", "dirty"])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "adaptive_worlds.json")
    options = parser.parse_args()
    facts = describe(landscapes.scored_pool(), landscapes.BUDGET, 5)
    menu = menu_of(facts, landscapes.BUDGET, None, 0)
    rows = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(r["world"], r["seed"]) for r in rows}
    begun = time.process_time()
    for world in options.worlds:
        rows += [one(menu, world, s) for s in range(options.repetitions) if (world, s) not in done]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{time.process_time() - begun:.0f} CPU s")
    head = [
        "world",
        "best true gain",
        *STATES,
        "bound held",
        "after one round",
        "planned",
        "random",
        "planned - random",
    ]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for world in dict.fromkeys(r["world"] for r in rows):
        of = [r for r in rows if r["world"] == world]
        value = {k: np.array([r[k] for r in of]) for k in ("first", "planned", "random", "largest", "true_best")}
        states = [f"{sum(r['state'] == s for r in of)} of {len(of)}" for s in STATES]
        held = f"{np.mean(value['largest'] >= value['true_best']):.0%}"
        cells = [world, f"{of[0]['true_best']:.4f}", *states, held, *(median(value[k]) for k in ("first", "planned"))]
        cells += [median(value["random"]), median(value["planned"] - value["random"], "+.4f")]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
