"""What --dry-run prints: what would be read, written and computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def dry(stage: str, reads: Sequence[Any], out: Path, cost: str = "no training, seconds") -> None:
    """Print one stage's plan."""
    typer.echo(f"dry run: {stage}\n  reads   {', '.join(str(r) for r in reads)}\n  writes  {out}\n  costs   {cost}")


def model_cost(model: str, tokens: int, train: bool, workers: int = 1) -> str:
    """Tokens, FLOPs and seconds of scoring or training, from the model's configuration; `workers` share them."""
    from pplscape.cost import SCORE_FLOPS, TRAIN_FLOPS, count_parameters, estimate
    from pplscape.flow import model_path

    cost = estimate(tokens, count_parameters(model_path(model)), TRAIN_FLOPS if train else SCORE_FLOPS)
    shared = f"; {workers} workers, each with such a processor: about {cost.seconds / workers:,.0f} s"
    return f"{cost}{shared if workers > 1 else ''}"


def input_tokens(inputs: Sequence[str]) -> int:
    """Tokens of a prepared folder; of other inputs, roughly."""
    from pplscape.cost import prepared_tokens
    from pplscape.stages.prepare import survey
    from pplscape.text.inputs import resolve_inputs

    return prepared_tokens(Path(inputs[0])) or int(survey(resolve_inputs(inputs))["tokens"])


def selected_tokens(subset: Path) -> int:
    """Tokens of a selection; 0 for other inputs."""
    import json

    found = subset / "selection.json"
    return int(json.loads(found.read_text())["tokens"]) if found.exists() else 0


def dry_flow(name: str, config: Any, out: Path) -> None:
    """Print a whole run's plan, stage by stage."""
    from pplscape.cost import count_parameters, flow_costs
    from pplscape.flow import model_path
    from pplscape.stages.prepare import survey
    from pplscape.text.inputs import resolve_inputs

    found = survey(resolve_inputs(config.corpus))
    pool = int(min(found["tokens"] * config.sample, config.limit_tokens or found["tokens"]))
    costs = flow_costs(config, pool, count_parameters(model_path(config.model)))
    total = sum(cost.seconds for _, cost in costs)
    lines = [*(f"{what}: {cost}" for what, cost in costs), f"about {total:,.0f} s"]
    dry(name, [f"{found['files']} files, about {pool:,} tokens"], out, "\n          ".join(lines))
