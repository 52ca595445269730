"""plan: which pilots to run on this landscape, and what they will cost; with earlier runs, which to run next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.adaptive import describe, evidence_of, menu_of, next_trunks, regimes_of
from pplscape.cost import estimate
from pplscape.design import (
    Fine,
    Regime,
    candidates,
    choose_regimes,
    choose_sizes,
    diagnose,
    expected_error,
    most_shares,
    trunk_tokens,
)
from pplscape.draw.budget import parse_budget
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_json
from pplscape.runs import RunTable
from pplscape.stages.fit import Tables, load_runs, tables_of
from pplscape.statistics import Bins
from pplscape.training.schedule import Recipe

VERSION, ADAPTIVE_VERSION = 1, 4
"""Of first plans, and of those that follow runs."""


def plan(
    landscape: Path | str, *, budget: str | int, pilot_tokens: int, out: Path | str, designed: int = 9,
    random_seeds: int = 3, recipe: Recipe | None = None, n_params: int | None = None,
    runs: Tables | None = None, forms: Sequence[str] | None = None, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/plan.json: regimes, sizes, depletion, design diagnostics, tokens and FLOPs. Nothing is trained.

    `pilot_tokens`: domain tokens to spend on all pilots; `designed`: regimes besides the random ones;
    `n_params`: for the FLOPs (6 x parameters x tokens). `runs`: tables of the pilots that ran already; the plan is
    then adaptive: only the trunks to run next, chosen for the decision at this budget by the law that `forms` (default
    all) give on those runs (`pplscape.adaptive`); `designed` and `random_seeds` have no say.
    """
    landscape, recipe = Path(landscape), recipe or Recipe()
    file = landscape / "landscape.json" if landscape.is_dir() or not landscape.suffix else landscape
    facts = read_json(file, f"landscape SCORES --budget T --out {landscape}")
    tokens = parse_budget(budget, facts["tokens"])
    if tokens > facts["tokens"]:
        raise UserError(
            f"The budget of {tokens:,} tokens is more than the pool's {facts['tokens']:,}; give at most that."
        )
    config = {
        "budget": tokens, "pilot_tokens": pilot_tokens, "designed": designed, "random_seeds": random_seeds,
        "recipe": asdict(recipe), "n_params": n_params,
    }  # fmt: skip
    inputs: dict[str, Path | str] = {"landscape": landscape}
    if runs is not None:
        config |= {"designed": None, "random_seeds": None, "forms": list(forms) if forms else None}
        inputs |= tables_of(runs)
    version = VERSION if runs is None else ADAPTIVE_VERSION
    with StageFolder(
        Path(out), stage="plan", version=version, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            if runs is None:
                content = make_plan(facts, tokens, pilot_tokens, designed, random_seeds, recipe, n_params, seed)
            else:
                ran = load_runs(list(tables_of(runs).values()), facts=facts)
                content = make_next_plan(facts, ran, tokens, pilot_tokens, forms, recipe, n_params, seed)
            folder.write_json("plan.json", content)
            folder.finish({"trunks": len(content["regimes"]), "runs": content["design"]["runs"]})
    return Path(out)


def make_plan(
    facts: dict[str, Any], budget: int, pilot_tokens: int, designed: int, random_seeds: int, recipe: Recipe,
    n_params: int | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The content of plan.json from that of landscape.json; a pure function."""
    fine_facts = facts["fine_bins"]
    fine = Fine(*(np.asarray(fine_facts[k], dtype=float) for k in ("share", "mean", "variance")))
    bins = Bins.from_json(facts["bins"])
    depletion = budget / facts["tokens"]
    sizes = choose_sizes(pilot_tokens, designed + random_seeds, recipe.cooldown_share, budget, recipe.step_tokens)
    coarse = bins.of_cells(fine.mean)
    regimes = choose_regimes(fine, coarse, depletion, designed, random_seeds, seed, bins.n_levels)
    menu = [s for _, s in candidates(fine, coarse, most_shares(fine, depletion), seed, bins.n_levels)]
    trunks = [fine.share if r.shares is None else np.asarray(r.shares) for r in regimes]
    member = np.eye(bins.n)[coarse]
    error = expected_error(np.stack(trunks) @ member, np.stack(menu) @ member, fine.share @ member, len(sizes))
    design = diagnose(regimes, sizes) | {"expected_error": error}
    return _content(facts, budget, regimes, sizes, recipe, n_params) | {"design": design}


def make_next_plan(
    facts: dict[str, Any], runs: RunTable, budget: int, pilot_tokens: int, forms: Sequence[str] | None, recipe: Recipe,
    n_params: int | None, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The content of plan.json for the trunks to run after `runs`; a pure function."""
    _check_comparable(runs, recipe)
    menu = menu_of(facts, budget, None if runs.n_params is None else float(np.median(runs.n_params)), seed)
    evidence = evidence_of(runs, forms, seed=seed)
    found = next_trunks(evidence, menu, budget, pilot_tokens, recipe.cooldown_share, 2 * recipe.step_tokens)
    regimes = regimes_of(found.chosen, menu, runs)
    content = _content(facts, budget, regimes, found.sizes, recipe, n_params)
    return content | describe(found, regimes, runs)


def _check_comparable(runs: RunTable, recipe: Recipe) -> None:
    """UserError for runs that were not planned here, or were trained otherwise than the next ones would be."""
    if runs.nll_mean is None or runs.nll_std is None:
        raise UserError("--runs lacks nll_mean and nll_std; adaptive planning needs the runs.jsonl of pplscape pilot.")
    now = asdict(recipe)
    for text in {s for s in runs.meta.get("schedule", []) if str(s).startswith("{")}:
        changed = [f"{k} {v}" for k, v in json.loads(text).items() if now.get(k) != v]
        if changed:
            raise UserError(
                f"The runs were trained with {', '.join(changed)}; give the same, or new losses cannot be compared."
            )


def _content(
    facts: dict[str, Any], budget: int, regimes: list[Regime], sizes: list[int], recipe: Recipe, n_params: int | None
) -> dict[str, Any]:
    """plan.json but for its diagnostics."""
    trained = len(regimes) * trunk_tokens(sizes, recipe.cooldown_share)
    fine_facts = facts["fine_bins"]
    return {
        "budget": budget,
        "pool_tokens": facts["tokens"],
        "depletion": budget / facts["tokens"],
        "sizes": sizes,
        "cooldown_share": recipe.cooldown_share,
        "learning_rate": recipe.learning_rate,
        "recipe": asdict(recipe),
        "regimes": [
            {
                "name": r.name, "kind": r.kind, "seed": r.seed, "shares": r.shares, "target_mean": r.mean,
                "target_std": r.std,
            }
            for r in regimes
        ],
        "cost": {"tokens": trained, "flops": 6 * n_params * trained if n_params else None},
        "bins": facts["bins"],
        "fine_bins": {k: fine_facts[k] for k in ("edges", "levels", "axis", "share") if k in fine_facts},
        "winsor": {scale: facts["scale"][scale]["winsor"] for scale in ("nll", "ppl")},
    }  # fmt: skip


def summary(folder: Path) -> str:
    """The plan as a table for the terminal: regimes, their targets, tokens, FLOPs, design diagnostics."""
    content = json.loads((folder / "plan.json").read_text())
    design, cost = content["design"], content["cost"]
    lines = [f"{'regime':<14}{'seed':>5}{'mean':>8}{'std':>8}   (log-perplexity, nats/token)"]
    lines += [
        f"{r['name']:<14}{r['seed']:>5}{r['target_mean']:>8.3f}{r['target_std']:>8.3f}" for r in content["regimes"]
    ]
    sizes = ", ".join(f"{s:,}" for s in content["sizes"])
    flops = ""
    if cost["flops"]:
        expected = estimate(cost["tokens"], cost["flops"] // cost["tokens"], 1).seconds
        flops = f", {cost['flops']:.2e} FLOPs, about {expected:,.0f} s"
        flops += f" ({expected / 3600:.2f} hours) on this CPU, measuring them not counted"
    return "\n".join(
        [
            *lines,
            f"sizes (tokens): {sizes}; sub-pools keep D/pool at {content['depletion']:.1%}",
            f"{design['runs']} runs on {design['trunks']} trunks: {cost['tokens']:,} tokens{flops}",
            f"condition number {design['condition_number']:.1f}, VIF {design['vif']:.2f}, "
            f"correlation of mean and spread {design['mean_std_correlation']:+.2f}",
            *_expected(design),
            *([content["adaptive"]["sentence"]] if "adaptive" in content else []),
            *_warnings(content),
        ]
    )


def _expected(design: dict[str, Any]) -> list[str]:
    """What a first plan will tell, before anything runs; what a next one will, is in its decision."""
    if "expected_error" not in design:
        return []
    return [
        f"expected: gains over random to {design['expected_error']:.2g} times the noise of a run, if the bins' worths "
        "add up and a trunk's branches share half of their noise"
    ]


def _warnings(content: dict[str, Any]) -> list[str]:
    """A pilot that is mostly warm-up says little about larger runs."""
    smallest, warmup = content["sizes"][0], content["recipe"]["warmup_tokens"]
    if 3 * warmup <= smallest:
        return []
    return [
        f"Warning: warm-up takes {min(1, warmup / smallest):.0%} of the smallest runs; a law will read that as slow "
        f"learning. Give --warmup-tokens {smallest // 4:,} or less, or more pilot tokens."
    ]
