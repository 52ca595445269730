"""plan: which pilots to run on this landscape, and what they will cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.cost import estimate
from pplscape.design import Fine, choose_regimes, choose_sizes, diagnose, trunk_tokens
from pplscape.draw.budget import parse_budget
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_json
from pplscape.statistics import Bins
from pplscape.training.schedule import Recipe

VERSION = 1


def plan(
    landscape: Path | str, *, budget: str | int, pilot_tokens: int, out: Path | str, designed: int = 9,
    random_seeds: int = 3, recipe: Recipe | None = None, n_params: int | None = None, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/plan.json: regimes, sizes, depletion, design diagnostics, tokens and FLOPs. Nothing is trained.

    `pilot_tokens`: domain tokens to spend on all pilots; `designed`: regimes besides the random ones;
    `n_params`: for the FLOPs (6 x parameters x tokens).
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
    with StageFolder(
        Path(out), stage="plan", version=VERSION, config=config, inputs={"landscape": landscape}, seed=seed,
        overwrite=overwrite,
    ) as folder:  # fmt: skip
        if not folder.finished:
            content = make_plan(facts, tokens, pilot_tokens, designed, random_seeds, recipe, n_params, seed)
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
    coarse_bins = Bins(tuple(facts["bins"]["edges"]), tuple(facts["bins"]["share"]))
    depletion = budget / facts["tokens"]
    sizes = choose_sizes(pilot_tokens, designed + random_seeds, recipe.cooldown_share, budget, recipe.step_tokens)
    regimes = choose_regimes(fine, coarse_bins.of(fine.mean), depletion, designed, random_seeds, seed)
    trained = len(regimes) * trunk_tokens(sizes, recipe.cooldown_share)
    return {
        "budget": budget,
        "pool_tokens": facts["tokens"],
        "depletion": depletion,
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
        "design": diagnose(regimes, sizes),
        "cost": {"tokens": trained, "flops": 6 * n_params * trained if n_params else None},
        "bins": facts["bins"],
        "fine_bins": {k: fine_facts[k] for k in ("edges", "share")},
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
        flops = f", {cost['flops']:.2e} FLOPs, about {expected:,.0f} s on this CPU, measuring them not counted"
    return "\n".join(
        [
            *lines,
            f"sizes (tokens): {sizes}; sub-pools keep D/pool at {content['depletion']:.1%}",
            f"{design['runs']} runs on {design['trunks']} trunks: {cost['tokens']:,} tokens{flops}",
            f"condition number {design['condition_number']:.1f}, VIF {design['vif']:.2f}, "
            f"correlation of mean and spread {design['mean_std_correlation']:+.2f}",
        ]
    )
