"""What a selection costs before its run, in tokens' worth of training."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pplscape.manifest import read_json

from .cells import MATCHED

FORWARD = 1 / 3
"""A token scored, in tokens trained: one forward pass of a forward and a backward twice as dear."""
COSTED = ("run", "auto+likeness", "auto", *MATCHED)


def pilot_tokens(runs: Iterable[Mapping[str, Any]]) -> float:
    """Tokens trained by pilots: each trunk once, to its last run's end, and the cooldowns of its earlier runs.

    `runs`: rows of a pilots.jsonl.
    """
    trunks: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for r in runs:
        trunks[r["group"]].append((r["tokens"], json.loads(r["schedule"])["cooldown_share"]))
    total = 0.0
    for trunk in trunks.values():
        *earlier, last = sorted(trunk)
        total += last[0] + sum(tokens * share for tokens, share in earlier)
    return total


def break_even(cost: float, factor: float) -> float | None:
    """The length n of a run, in D, at which (factor - 1) n pays for `cost` (in D); None if it never does."""
    return cost / (factor - 1) if factor > 1 else None


def costs(pool: Path, arms: Mapping[str, Mapping[str, Any]], folders: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Of every arm of COSTED that has pilots, or needs none: scoring and pilots in units of D.

    `pool`: the pool's committed tables; `arms`: of the summary; `folders`: arm -> prefix of its pilots' table.
    """
    found = {}
    for name in COSTED:
        prefix = f"{folders[name]}-" if name in folders else ""
        runs = pool / f"{prefix}pilots.jsonl"
        free = name in MATCHED
        if name in arms and (free or runs.exists()):
            d = arms[name]["tokens"]
            trained = 0.0 if free else pilot_tokens(json.loads(line) for line in runs.read_text().splitlines())
            scored = FORWARD * read_json(pool / "pool.json", "pool")["tokens"]
            found[name] = {"scoring": scored / d, "pilots": trained / d}
    return found
