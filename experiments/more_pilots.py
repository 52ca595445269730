"""More trunks, and separate runs, for a pool of `experiments/evidence`: what real_designs.py compares.

`library`: MORE regimes of the planner's menu that the pool's pilots lack, drawn at random, one trunk each at the plan's
sizes, and one trunk of the pilots once more. `separate`: the regimes of the pilots as runs of their own, one for each
size, with seeds of their own: nothing is shared between sizes but the model and the sub-pools.

    python experiments/more_pilots.py library  --pool FOLDER
    python experiments/more_pilots.py separate --pool FOLDER
    python experiments/more_pilots.py keep     --pool FOLDER

FOLDER holds prepared/, scores/, landscape/ and planned/ (plan.json of the pilots), and heldout/valid. Killed, both go
on after the last finished trunk when run again. `keep` writes the rows of all finished trunks to
experiments/results/real_library.jsonl and real_separate.jsonl, and the menu to real_menu.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import pplscape as ps
from pplscape.adaptive import Menu, menu_of
from pplscape.design import Fine, choose_regimes
from pplscape.flow import model_path
from pplscape.stages.pilot import read_plan
from pplscape.statistics import Bins

RESULTS = Path(__file__).parent / "results"
MODEL, MORE, CHECKED = "demo", 20, "tilt-2"
SEEDS = 100
"""A separate run of size i has seed SEEDS (i + 1) more than its trunk: other chunks, in another order."""
KEPT_OUT = ("bin_unique_tokens", "model", "weights", "proxy_of", "loss_general", "base_loss_general")
Row = dict[str, Any]


def places(pool: Path, regimes: list[Row]) -> dict[str, int]:
    """Name of each regime -> its place in the menu; SystemExit where it has none."""
    menu = the_menu(pool)
    of = {tuple(np.round(s, 9)): k for k, s in enumerate(menu.shares) if s is not None}
    found = {r["name"]: of.get(tuple(np.round(r["shares"], 9)), -1) if r["shares"] else 0 for r in regimes}
    if -1 in found.values():
        raise SystemExit("The menu is not that of the plan: another version of the landscape or of the planner.")
    return found


def the_menu(pool: Path) -> Menu:
    facts = json.loads((pool / "landscape" / "landscape.json").read_text())
    return menu_of(facts, read_plan(pool / "planned")["budget"], None, 0)


def library(pool: Path) -> list[Row]:
    """The plan with the trunk that is repeated and MORE others of the menu."""
    plan, menu = read_plan(pool / "planned"), the_menu(pool)
    left = np.setdiff1d(np.arange(1, len(menu.kinds)), list(places(pool, plan["regimes"]).values()))
    regimes = [r for r in plan["regimes"] if r["name"] == CHECKED]
    for k in np.random.default_rng(0).permutation(left)[:MORE]:
        moments = {f"target_{m}": float(getattr(menu.whole, f"nll_{m}")[k]) for m in ("mean", "std")}
        name = f"{menu.kinds[k]}-menu-{k}"
        regimes.append({"name": name, "kind": menu.kinds[k], "seed": 0, "shares": list(menu.shares[k])} | moments)
    return [plan | {"regimes": regimes}]


def separate(pool: Path) -> list[Row]:
    """A plan of one size for each size, the dearest first."""
    plan = read_plan(pool / "planned")
    return [
        plan | {"sizes": [size], "regimes": [r | {"seed": SEEDS * (i + 1) + r["seed"]} for r in plan["regimes"]]}
        for i, size in reversed(list(enumerate(plan["sizes"])))
    ]


PLANS = {"library": library, "separate": separate}


def train(what: str, pool: Path) -> None:
    heldout = [str(p) for p in sorted((pool / "heldout" / "valid").glob("*.jsonl"))]
    for number, plan in enumerate(PLANS[what](pool)):
        folder = pool / f"{what}-{number}"
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(plan))
        ps.pilot(
            folder, model=model_path(MODEL), scores=pool / "scores", corpus=pool / "prepared", out=folder / "pilots",
            heldout=heldout,
        )  # fmt: skip


def keep(pool: Path) -> None:
    regimes = read_plan(pool / "planned")["regimes"]
    for what in PLANS:
        rows: list[Row] = []
        for folder in sorted(pool.glob(f"{what}-*")):
            plan = read_plan(folder)["regimes"]
            done = folder / "pilots" if (folder / "pilots").exists() else folder / "pilots.partial"
            files = [done / "trunks" / f"{r['name']}-{r['seed']}.jsonl" for r in plan]
            lines = [line for f in files if f.exists() for line in f.read_text().splitlines()]
            rows += [{k: v for k, v in json.loads(line).items() if k not in KEPT_OUT} for line in lines]
            regimes += plan
        (RESULTS / f"real_{what}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (RESULTS / "real_menu.json").write_text(json.dumps(menu_facts(pool, regimes)) + "\n")


def menu_facts(pool: Path, regimes: list[Row]) -> Row:
    """What real_designs.py needs of the menu: compositions, places of the regimes, the order of a fixed design."""
    plan, menu = read_plan(pool / "planned"), the_menu(pool)
    facts = json.loads((pool / "landscape" / "landscape.json").read_text())
    fine = Fine(*(np.asarray(facts["fine_bins"][k], float) for k in ("share", "mean", "variance")))
    coarse = Bins.from_json(facts["bins"]).of_cells(fine.mean)
    order = choose_regimes(fine, coarse, plan["depletion"], len(menu.kinds) - 1, 3, 0)
    designed = places(pool, [{"name": r.name, "shares": r.shares} for r in order if r.shares])
    columns = ("tokens", "unique_tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens")
    return {
        "budget": plan["budget"], "sizes": plan["sizes"], "cooldown_share": plan["cooldown_share"],
        "bin_share": facts["bins"]["share"],
        "kinds": menu.kinds, "whole": {c: getattr(menu.whole, c).tolist() for c in columns},
        "places": places(pool, regimes), "designed": list(designed.values()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=[*PLANS, "keep"])
    parser.add_argument("--pool", type=Path, required=True)
    given = parser.parse_args()
    if given.what == "keep":
        keep(given.pool)
    else:
        train(given.what, given.pool)


if __name__ == "__main__":
    main()
