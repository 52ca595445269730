"""F5 and F6: the same arms on pools with more and more dirt, and with a larger model; and what the law adds to the mix
of the target on each pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from .cells import LARGER, MATCHED
from .contrasts import by_seed, shown
from .statistics import paired
from .words import interval_text, table_text

Row = dict[str, Any]
FEWEST_METHODS = 4
"""That a rank correlation is worth saying of."""
FOLLOWED = ("random", "oracle", "auto+likeness", "run")


def dirt_of(pool: str) -> float:
    """0.3 of `pool-30`."""
    return int(pool.removeprefix("pool-")) / 100


def dose(rows: Sequence[Row]) -> dict[str, Any]:
    """F5: losses at D over the share of dirt, and random's step from each share to the next, paired by seed."""
    primary = [r for r in rows if r["status"] == "ok" and r["experiment"] == "primary" and r["size"] == 1]
    pools = sorted({r["pool"] for r in primary if r["method"] == "random"}, key=dirt_of)
    losses = {p: by_seed(r for r in primary if r["pool"] == p and r["method"] in FOLLOWED) for p in pools}
    steps = {}
    for a, b in pairwise(pools):
        seeds = sorted(set(losses[a]["random"]) & set(losses[b]["random"]))
        if seeds:
            steps[f"{a} to {b}"] = vars(paired([losses[b]["random"][s] - losses[a]["random"][s] for s in seeds]))
    means = {p: {m: float(np.mean(list(v.values()))) for m, v in found.items()} for p, found in losses.items()}
    return {"means": means, "steps": steps}


def dose_text(found: Mapping[str, Any]) -> str:
    """The verdict and the table."""
    if len(found["means"]) < 2:
        return "Not run yet."
    ways = [shown(step) for step in found["steps"].values()]
    verdict = (
        "Every step in dirt raises random's loss"
        if ways and all(w > 0 for w in ways)
        else "Not every step in dirt is shown to raise random's loss"
    )
    steps = "; ".join(f"{name}: {interval_text(step)}" for name, step in found["steps"].items())
    rows = [
        (f"{dirt_of(p):.0%}", *(f"{means[m]:.4f}" if m in means else "–" for m in FOLLOWED))
        for p, means in found["means"].items()
    ]
    return f"**F5.** {verdict} ({steps}).\n\n{table_text(('dirt', *FOLLOWED), rows)}"


def transferred(rows: Sequence[Row], arms: Mapping[str, Mapping[int, Row]]) -> dict[str, Any]:
    """F6: differences to random of the same draws with the larger model (`rows`) and with the base (`arms`)."""
    larger = by_seed(r for r in rows if r["experiment"] == LARGER)
    found: dict[str, Any] = {}
    for method, mine in larger.items():
        seeds = sorted(set(mine) & set(larger.get("random", {})) & set(arms.get(method, {})) & set(arms["random"]))
        if method != "random" and seeds:
            found[method] = {
                "larger": vars(paired([mine[s] - larger["random"][s] for s in seeds])),
                "base": vars(paired([arms[method][s]["loss_test"] - arms["random"][s]["loss_test"] for s in seeds])),
            }
    pairs = [(f["base"]["mean"], f["larger"]["mean"]) for f in found.values()] + [(0.0, 0.0)]
    rank = float(stats.spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) >= FEWEST_METHODS else None
    return {"methods": found, "rank": rank, "random": float(np.mean(list(larger["random"].values())))} if found else {}


def transferred_text(found: Mapping[str, Any]) -> str:
    """The verdict and the table, by what the base model gains."""
    if not found:
        return "Not run yet."
    methods = sorted(found["methods"].items(), key=lambda item: item[1]["base"]["mean"])
    better = [m for m, f in methods if shown(f["larger"]) < 0]
    known = found["rank"] is not None and np.isfinite(found["rank"])
    rank = f"Spearman correlation of the arms' means, random among them, {found['rank']:.2f}. " if known else ""
    told = ", ".join(f"`{m}`" for m in better) or "none"
    rows = [(m, f["larger"]["n"], interval_text(f["base"]), interval_text(f["larger"])) for m, f in methods]
    head = ("arm", "seeds", "base − random [t, 90 %]", "larger − random [t, 90 %]")
    return (
        f"{rank}Below random with the larger model (p < 0.05 each, not adjusted for their number): {told}. "
        f"Random ends at {found['random']:.4f} there.\n\n"
        f"{table_text(head, rows)}"
    )


def law_beyond_mix(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What random text in the target's mix gains, and what the law adds to it: paired by seed, a row a pool and arm."""
    primary = [r for r in rows if r["status"] == "ok" and r["experiment"] == "primary" and r["size"] == 1]
    found = []
    for pool in sorted({r["pool"] for r in primary}, key=dirt_of):
        losses = by_seed(r for r in primary if r["pool"] == pool)
        for matched, arm in MATCHED.items():
            told = {}
            for name, a, b in (("mix", matched, "random"), ("law", arm, matched)):
                seeds = sorted(set(losses.get(a, {})) & set(losses.get(b, {})))
                told[name] = vars(paired([losses[a][s] - losses[b][s] for s in seeds])) if seeds else None
            shut = all(
                r.get("used") in ("random", "matched") for r in primary if (r["pool"], r["method"]) == (pool, arm)
            )
            if told["mix"]:
                found.append({"pool": pool, "arm": arm, **told, "shut": bool(told["law"]) and shut})
    return found


def law_beyond_mix_table(found: Sequence[Mapping[str, Any]]) -> str:
    """One line a pool and arm; the seeds are those of the differences."""
    head = ("dirt", "bins and text of", "seeds", "mix − random [t, 90 %]", "seeds", "law − mix [t, 90 %]")
    rows = [
        (
            f"{dirt_of(f['pool']):.0%}", f"`{f['arm']}`", f["mix"]["n"], interval_text(f["mix"]),
            f["law"]["n"] if f["law"] else "–", "gate shut" if f["shut"] else interval_text(f["law"]),
        )
        for f in found
    ]  # fmt: skip
    return table_text(head, rows) if rows else "Not run yet."
