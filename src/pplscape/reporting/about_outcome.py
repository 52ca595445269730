"""What the sections about the outcome and its reproduction say: plain values for the template."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pplscape.reporting import figures
from pplscape.reporting.costs import FORWARD_SHARE, Costs, costs_of
from pplscape.reporting.folder import STAGES, RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.law_view import sizes_of
from pplscape.reporting.style import FULL
from pplscape.reporting.verdict import advised, verdict_of, without_tokens
from pplscape.reporting.words import (
    NATS,
    number,
    percent,
    plural,
    seconds,
    significant,
    times,
    tokens,
    visible,
    with_interval,
)  # fmt: skip

Facts = Mapping[str, Any]
CONFIG_SHOWN = 20_000
"""Characters of a configuration on the page: a corpus may be thousands of files."""
FILES = (
    ("landscape", "landscape/landscape.json"),
    ("plan", "plan/plan.json"),
    ("pilot runs", "pilots/runs.jsonl"),
    ("law", "law/law.json"),
    ("selection", "selection/selection.json"),
    ("selected chunks", "selection/selected"),
    ("subset in the input's format", "selection/subset"),
    ("comparison", "comparison/comparison.json"),
)


def outcome_view(run: RunFolder, gallery: Gallery) -> dict[str, Any] | None:
    """Section 5; None before anything was compared."""
    facts = run.comparison
    if facts is None:
        return None
    compared = any(s["difference"] or s.get("change_general") for s in facts["strategies"])
    return {
        "figure": gallery.hang(partial(figures.paired_differences, facts), FULL) if compared else None,
        "caption": _outcome_caption(facts),
        "rows": strategy_rows(facts),
        "base": _base_row(facts.get("base")),
        "forgetting": forgetting_rows(facts),
        "forgetting_head": FORGETTING,
        "surprise": _surprise(run, facts),
    }


def _outcome_caption(facts: Facts) -> str:
    pairs = [s["difference"]["n"] for s in facts["strategies"] if s["difference"]]
    general = [s for s in facts["strategies"] if s.get("change_general")]
    text = f"Left of zero is better than ‘{facts['reference']}’ at equal tokens. "
    if pairs:
        text += (
            f"Large dots: means over {plural(max(pairs), 'paired seed')}, with intervals where there are two seeds "
            "or more; small dots: the seeds. "
        )
    if general:
        worst = max(general, key=lambda s: s["change_general"]["mean"])
        text += (
            f"General loss changed most under ‘{worst['strategy']}’: "
            f"{number(worst['change_general']['mean'], 3, True)} {NATS}; above zero is forgetting."
        )
    return visible(text)


def strategy_rows(facts: Facts) -> list[tuple[str, ...]]:
    """One row a strategy, best first: seeds, losses, differences with intervals."""
    order = sorted(facts["strategies"], key=lambda s: s["loss"])
    return [
        (
            visible(s["strategy"]),
            f"{s['n']}",
            number(s["loss"], 4),
            with_interval(s["difference"], digits=4, sign=True) if s["difference"] else "reference",
            number(s["bits_per_byte"], 4),
            with_interval(s.get("difference_bits_per_byte"), digits=4, sign=True),
            with_interval(s.get("change_general"), digits=3, sign=True),
        )
        for s in order
    ]


FORGETTING = (
    "strategy", "before", "after", "change [documents, 90 %]", "change [seeds, 90 %]", "− random [seeds, 90 %]",
)  # fmt: skip


def forgetting_rows(facts: Facts) -> list[tuple[str, ...]]:
    """Loss on general text before and after, one row a strategy, least forgetting first; the units are nats/token."""
    by_seed = {s["strategy"]: s for s in facts["strategies"]}
    return [
        (
            visible(row["strategy"]), number(row["before"], 4), number(row["after"], 4),
            with_interval(row["change"], digits=4, sign=True),
            with_interval(by_seed[row["strategy"]].get("change_general"), digits=4, sign=True),
            with_interval(by_seed[row["strategy"]].get("difference_general"), digits=4, sign=True)
            if row["strategy"] != facts["reference"] else "reference",
        )
        for row in sorted(facts.get("forgetting", []), key=lambda r: r["after"])
    ]  # fmt: skip


def _base_row(base: Facts | None) -> tuple[str, ...] | None:
    if base is None:
        return None
    loss, bits = number(base["loss"], 4), number(base["bits_per_byte"], 4)
    return ("before training", "", loss, "", bits, "", f"general loss {number(base.get('loss_general'), 3)}")


def _surprise(run: RunFolder, facts: Facts) -> str | None:
    """Predicted against measured for the selection's strategy."""
    predicted, selection = advised(run.selection), run.selection or {}
    used = selection.get("candidate") or selection.get("used")
    row = next((s for s in facts["strategies"] if s["strategy"] == used), None)
    gain = predicted.get("gain")
    if row is None or not row["difference"] or not gain or gain.get("mean") is None:
        return None
    measured = -row["difference"]["mean"]
    text = (
        f"The law had promised a gain of {with_interval(gain, digits=4)} {NATS} "
        f"on validation text; {number(measured, 4)} was measured on test text"
    )
    if gain.get("low") is not None and gain.get("high") is not None:
        inside = gain["low"] <= measured <= gain["high"]
        text += ", inside the promised interval" if inside else ", outside the promised interval"
    return text + "."


def cost_view(run: RunFolder) -> dict[str, Any]:
    """What scoring and pilots cost, and from which budget on they pay."""
    costs = costs_of(run)
    predicted = advised(run.selection)
    rows = []
    if costs.scored is not None:
        rows.append(_cost_row("scoring the pool", costs.scored, FORWARD_SHARE, costs.seconds_scoring))
    if costs.piloted is not None:
        rows.append(_cost_row("pilots", costs.piloted, 1.0, costs.seconds_piloting))
    if costs.budget is not None:
        expected = costs.seconds_per_token * costs.budget if costs.seconds_per_token else None
        rows.append(_cost_row("main run, expected", costs.budget, 1.0, expected))
    return {"rows": rows, "sentence": _break_even(run, costs, predicted)}


def _cost_row(name: str, count: int, weight: float, time: float | None) -> tuple[str, ...]:
    return name, tokens(count, unit=False), tokens(weight * count, unit=False), seconds(time)


def _break_even(run: RunFolder, costs: Costs, predicted: Facts) -> str | None:
    if costs.share is None:
        return None
    cost = f"Scoring and pilots cost {percent(costs.share) if costs.share < 3 else times(costs.share)} of the main run."
    found = verdict_of(run)
    if found.measured and found.light != "worth it":
        return f"{cost} No gain over random was measured beyond the noise, so at this budget they did not pay."
    if why := without_tokens(predicted):
        return f"{cost} There are no tokens to save: {why}."
    efficiency = predicted.get("efficiency") or {}
    if efficiency.get("factor") is None:
        return f"{cost} Whether they pay is known once a selection has been predicted."
    pays_from = costs.break_even(efficiency["factor"])
    if pays_from is None:
        return f"{cost} The law predicts no tokens saved, so they do not pay at any budget."
    saving = with_interval(efficiency, "factor", 2)
    return (
        f"{cost} If random needs {saving} times the tokens, they pay from a budget of about {tokens(pays_from)} on; "
        "a smaller model for the pilots, or a law used again, moves that down."
    )


def reproduce_view(run: RunFolder, out: Path) -> dict[str, Any]:
    """Section 6: commands, stages with hashes, versions, files, all runs."""
    versions: dict[str, str] = {}
    for facts in run.manifests.values():
        versions |= facts.get("run", {}).get("versions", {})
    return {
        "commands": run.commands,
        "config": visible(json.dumps(run.config, indent=1, ensure_ascii=False)[:CONFIG_SHOWN]) if run.config else None,
        "stages": [_stage_row(name, facts) for name, facts in sorted(run.manifests.items(), key=_order)],
        "versions": [(visible(k), visible(str(v))) for k, v in sorted(versions.items())],
        "files": [
            (label, os.path.relpath(run.path / name, out.parent), name)
            for label, name in FILES
            if (run.path / name).exists()
        ],
        "runs": [_run_row(r) for r in _by_regime(run)],
        "failed": len(run.failed),
    }


def _order(item: tuple[str, Facts]) -> tuple[int, str]:
    stage = item[1].get("stage")
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), item[0])


def _stage_row(name: str, facts: Facts) -> dict[str, str]:
    counts, clock = facts.get("counts", {}), facts.get("run", {})
    went = f"{counts['in']:,} → {counts['out']:,}" if isinstance(counts.get("in"), int) else ""
    return {
        "name": name,
        "stage": str(facts.get("stage", "")),
        "went": went,
        "seed": str(facts.get("seed", "")),
        "key": str(facts.get("key", ""))[:12],
        "seconds": seconds(clock.get("seconds")),
        "finished": str(clock.get("finished", "")),
        "config": visible(
            json.dumps(facts.get("config", {}), indent=1, sort_keys=True, ensure_ascii=False)[:CONFIG_SHOWN]
        ),
    }


def _by_regime(run: RunFolder) -> list[Facts]:
    order = {id(r): i for i, group in enumerate(sizes_of(run.ok)) for r in group}
    return sorted(run.runs, key=lambda r: (order.get(id(r), len(order)), r.get("loss") or 0.0))


def _run_row(row: Facts) -> dict[str, Any]:
    failed = row.get("status", "ok") != "ok" or row.get("loss") is None
    base = row.get("base_loss")
    return {
        "failed": failed,
        "reason": visible(str(row.get("reason") or "no loss was recorded")) if failed else "",
        "cells": [
            visible(str(row.get("regime", ""))),
            str(row.get("seed", "")),
            tokens(row.get("tokens"), unit=False),
            number(row.get("nll_mean")),
            number(row.get("nll_std")),
            significant(row.get("ppl_mean")),
            significant(row.get("ppl_std")),
            number(row.get("loss"), 4) + (f" ± {number(row['loss_se'], 4)}" if row.get("loss_se") else ""),
            number(base - row["loss"], 4, True) if base is not None and not failed else "–",
            number(row.get("loss_general"), 3),
        ],
    }
