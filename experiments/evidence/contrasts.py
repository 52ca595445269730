"""F2, F3 and F7 from the table of runs: does spread help where the mean is low, does the optimum move with D, and does
another measure of perplexity choose other text?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .cells import CORNERS, unchanged
from .statistics import Floats, paired
from .words import interval_text, p_text

Row = dict[str, Any]
REJECT = 0.05
"""Of p values: what is shown."""
FEWEST_LEVELS = 6
"""Of F3: a parabola through the inner ones is then a fit."""


def by_seed(rows: Iterable[Row], key: str = "loss_test") -> dict[str, dict[int, float]]:
    """method -> seed -> loss."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for r in rows:
        found[r["method"]][r["seed"]] = r[key]
    return dict(found)


def interaction(rows: Iterable[Row]) -> dict[str, Any] | None:
    """F2: loss with a wide minus with a narrow spread, at the low and at the high mean, and the second minus the first
    (arXiv 2512.21515 says: below 0, above 0, above 0); paired by seed. None unless all corners share a seed."""
    rows = list(rows)
    losses = by_seed(rows)
    corners = [losses.get(f"corner:{c}", {}) for c in CORNERS]
    seeds = sorted(set.intersection(*(set(c) for c in corners)))
    if not seeds:
        return None
    narrow_low, wide_low, narrow_high, wide_high = (np.array([c[s] for s in seeds]) for c in corners)
    reached = {
        c: [float(np.mean([r[k] for r in rows if r["method"] == f"corner:{c}"])) for k in ("nll_mean", "nll_std")]
        for c in CORNERS
    }
    return {
        "reached": reached,
        "low": vars(paired((wide_low - narrow_low).tolist())),
        "high": vars(paired((wide_high - narrow_high).tolist())),
        "contrast": vars(paired((wide_high - narrow_high - wide_low + narrow_low).tolist())),
    }


def vertex(mean: Floats, loss: Floats) -> float | None:
    """Where the parabola through losses [levels] is lowest; None if it is not a bowl, or not lowest among the levels.

    The two ends are left out: losses rise there much faster than any parabola.
    """
    bend, slope = np.polyfit(mean[1:-1], loss[1:-1], 2)[:2]
    place = -slope / (2 * bend) if bend > 0 else np.nan
    return float(place) if mean[0] < place < mean[-1] else None


def moved_optimum(small: Iterable[Row], large: Iterable[Row]) -> dict[str, Any] | None:
    """F3: the best mean of log-perplexity with fewer tokens and with D, by seed; None unless a seed has both."""
    tables = {name: list(rows) for name, rows in (("small", small), ("large", large))}
    found: dict[str, dict[int, float]] = {}
    best: dict[str, str] = {}
    complete: list[set[int]] = []
    for name, rows in tables.items():
        losses, means = by_seed(rows), by_seed(rows, "nll_mean")
        if len(losses) < FEWEST_LEVELS or set(losses) != {r["method"] for r in tables["large"]}:
            return None
        levels = sorted(losses, key=lambda m: float(m.partition(":")[2]))
        seeds = set.intersection(*(set(losses[m]) for m in levels))
        complete.append(seeds)
        places = {s: [np.array([t[m][s] for m in levels]) for t in (means, losses)] for s in seeds}
        found[name] = {s: v for s, (x, y) in places.items() if (v := vertex(x, y)) is not None}
        best[name] = min(levels, key=lambda m: float(np.mean(list(losses[m].values())))).partition(":")[2]
    seeds = sorted(set(found["small"]) & set(found["large"]))
    if not seeds:
        return None
    moved = paired([found["large"][s] - found["small"][s] for s in seeds])
    left = len(set.intersection(*complete)) - len(seeds)
    return {"best": best, "moved": vars(moved), "left_out": left} | {
        n: float(np.mean([v[s] for s in seeds])) for n, v in found.items()
    }


def changed_draws(rows: Iterable[Row], arms: Mapping[str, Mapping[int, Row]]) -> dict[str, Any]:
    """F7: by method, what its draw has in common with the arm's it changes, and what it loses or gains."""
    found = {}
    tables: dict[str, dict[int, Row]] = defaultdict(dict)
    for r in rows:
        tables[r["method"]][r["seed"]] = r
    for method, mine in sorted(tables.items()):
        own = arms.get(unchanged(method), {})
        seeds = sorted(set(mine) & set(own))
        if seeds:
            found[method] = {
                "of": unchanged(method),
                **{k: float(np.mean([mine[s][k] for s in seeds])) for k in ("overlap", "overlap_of_seeds")},
                "clean": [float(np.mean([t[s]["share_clean"] for s in seeds])) for t in (mine, own)],
                "loss": vars(paired([mine[s]["loss_test"] - own[s]["loss_test"] for s in seeds])),
            }
    return found


def shown(found: Mapping[str, Any]) -> int:
    """-1, 1: below, above 0 (t test at REJECT); 0: not shown."""
    return int(np.sign(found["mean"])) if found["p"] is not None and found["p"] < REJECT else 0


def of_interaction(found: Mapping[str, Any]) -> str:
    says = {-1: "lowers", 0: "is not shown to change", 1: "raises"}
    verdict = {
        1: "Spread and mean interact as the paper says",
        0: "No interaction of spread and mean is shown",
        -1: "Spread and mean interact the other way round than the paper says",
    }[shown(found["contrast"])]
    low, high = found["low"], found["high"]
    return (
        f"{verdict} (contrast {interval_text(found['contrast'])}, p {p_text(found['contrast']['p'])}): more spread "
        f"{says[shown(low)]} the loss where the mean is low ({interval_text(low)}) and {says[shown(high)]} it where "
        f"the mean is high ({interval_text(high)})."
    )


def of_optimum(found: Mapping[str, Any]) -> str:
    moved, best = found["moved"], found["best"]
    how = {1: "moves up", 0: "is not shown to move", -1: "moves down"}[shown(moved)]
    return (
        f"The optimum {how} with D: from a quarter of D to D the best mean of log-perplexity goes from "
        f"{found['small']:.3f} to {found['large']:.3f} nats (moved by {interval_text(moved)}; the best levels are the "
        f"quantiles {best['small']} and {best['large']}; {found['left_out']} seeds without a bowl left out)."
    )


def of_draws(found: Mapping[str, Any]) -> str:
    words = []
    for method, f in found.items():
        words.append(
            f"`{method}` shares {f['overlap']:.0%} of its tokens with `{f['of']}` at the same seed (two seeds of that: "
            f"{f['overlap_of_seeds']:.0%}); its loss minus that arm's is {interval_text(f['loss'])}, its clean share "
            f"{f['clean'][0]:.2f} instead of {f['clean'][1]:.2f}."
        )
    return " ".join(words)
