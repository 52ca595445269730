"""F1, F4 and F8 from the table of runs: what would show that the picture of moments, bowls or gates is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from .contrasts import REJECT, of_draws, of_interaction, of_optimum
from .statistics import Floats, holm, paired
from .words import p_text

Row = dict[str, Any]
MATCHED = 0.05
"""Two shapes share their moments if mean and spread differ by at most this share of the spread."""
FALSE_ALARMS = 0.1
"""The gate's goal in a flat world."""


def same_moments(rows: Iterable[Row]) -> dict[str, Any]:
    """F1: paired differences of the test loss between shapes that share mean and spread."""
    losses: dict[str, dict[int, float]] = defaultdict(dict)
    reached: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for r in rows:
        shape = r["method"].removeprefix("shape:")
        losses[shape][r["seed"]] = r["loss_test"]
        reached[shape].append((r["nll_mean"], r["nll_std"]))
    moments = {s: tuple(np.mean(m, axis=0).round(4).tolist()) for s, m in reached.items()}
    pairs = {
        (a, b): paired([losses[a][s] - losses[b][s] for s in sorted(set(losses[a]) & set(losses[b]))])
        for a, b in combinations(sorted(losses), 2)
        if set(losses[a]) & set(losses[b])
    }
    adjusted = holm({f"{a} − {b}": p.p for (a, b), p in pairs.items() if p.p is not None})
    return {
        "moments": moments,
        "pairs": {
            (name := f"{a} − {b}"): {**vars(p), "holm": adjusted.get(name), "matched": matched(moments[a], moments[b])}
            for (a, b), p in pairs.items()
        },
    }


def matched(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two (mean, spread) agree to MATCHED of their mean spread."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= MATCHED * (a[1] + b[1]) / 2


def monotone(x: Floats, y: Floats, at: float) -> float:
    """Isotonic regression of y [n] on ascending x [n], rising or falling, whichever fits better, read at `at`."""
    fits = [isotonic_regression(y, increasing=rising).x for rising in (True, False)]
    return float(np.interp(at, x, min(fits, key=lambda fit: float(((fit - y) ** 2).sum()))))


def left_out_errors(mean: Floats, loss: Floats) -> dict[str, float]:
    """Root mean squared error of isotonic regression (either direction) and of a parabola, each inner level left out.

    `mean`, `loss` [levels], ascending means. The ends are not left out: there both would be judged by extrapolation.
    """
    errors: dict[str, list[float]] = defaultdict(list)
    for k in range(1, len(mean) - 1):
        x, y = np.delete(mean, k), np.delete(loss, k)
        errors["monotone"].append(loss[k] - monotone(x, y, mean[k]))
        errors["bowl"].append(loss[k] - np.polynomial.Polynomial.fit(x, y, 2)(mean[k]))
    return {shape: float(np.sqrt(np.mean(np.square(e)))) for shape, e in errors.items()}


def bowl_or_monotone(rows: Iterable[Row]) -> dict[str, Any]:
    """F4: is the best inner level below both ends? Paired tests over seeds; errors of both shapes beside them."""
    at: dict[str, list[float]] = defaultdict(list)
    losses: dict[str, dict[int, float]] = defaultdict(dict)
    for r in rows:
        at[r["method"]].append(r["nll_mean"])
        losses[r["method"]][r["seed"]] = r["loss_test"]
    names = sorted(at, key=lambda name: float(np.mean(at[name])))
    means = np.array([np.mean(at[n]) for n in names])
    loss = np.array([np.mean(list(losses[n].values())) for n in names])
    best = names[1 + int(np.argmin(loss[1:-1]))]
    ends = {}
    for end in (names[0], names[-1]):
        shared = sorted(set(losses[best]) & set(losses[end]))
        if shared:
            ends[end] = vars(paired([losses[best][s] - losses[end][s] for s in shared]))
    below = [e["p"] is not None and e["p"] < REJECT and e["mean"] < 0 for e in ends.values()]
    return {
        "errors": left_out_errors(means, loss),
        "levels": dict(zip(names, loss.tolist(), strict=True)),
        "best": best,
        "ends": ends,
        "bowl": len(below) == 2 and all(below),
    }


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """One or two sentences each."""
    say = {
        "F1": _of_moments, "F2": of_interaction, "F3": of_optimum, "F4": _of_means, "F7": of_draws, "F8": _of_gate,
    }  # fmt: skip
    return {name: sentence(found[name]) for name, sentence in say.items() if name in found}


def _of_moments(found: Mapping[str, Any]) -> str:
    pairs = found["pairs"]
    apart = [n for n, p in pairs.items() if p["holm"] is not None and p["holm"] < REJECT]
    shown = [n for n in apart if pairs[n]["matched"]]
    unlike = [n for n, p in pairs.items() if not p["matched"]]
    halves = [np.ptp(p["t"]) / 2 for n, p in pairs.items() if n not in apart and p["t"]]
    words = []
    if shown:
        words.append(
            f"Shapes with the same two moments end at different losses ({', '.join(shown)}): "
            "two moments are not enough."
        )
    elif set(pairs) - set(unlike):
        words.append("No pair of shapes with the same two moments could be told apart.")
    if unlike:
        words.append(
            f"Mean or spread that were reached differ by more than {MATCHED:.0%} of the spread in {', '.join(unlike)}: "
            "such a pair says nothing of shape."
        )
    if halves:
        words.append(f"Half widths of the 90 % intervals, where not told apart: up to {max(halves):.4f} nats/token.")
    return " ".join(words)


def _of_means(found: Mapping[str, Any]) -> str:
    e, best = found["errors"], found["best"].partition(":")[2]
    p = " and ".join(p_text(x["p"]) for x in found["ends"].values())
    told = "is" if found["bowl"] else "is not shown to be"
    return (
        f"{'A bowl' if found['bowl'] else 'No bowl is shown'}: the best inner level ({best}) {told} below both ends "
        f"(paired p {p}). Errors at left-out levels: {e['monotone']:.4f} isotonic, {e['bowl']:.4f} parabola."
    )


def _of_gate(found: Mapping[str, Any]) -> str:
    n, alarms = found["worlds"], found["alarms"]
    allowed = int(stats.binom.ppf(1 - REJECT, n, FALSE_ALARMS))
    return (
        f"The gate opened in {alarms} of {n} flat worlds. With the goal of {FALSE_ALARMS:.0%} up to {allowed} are to "
        f"be expected (probability {stats.binom.cdf(allowed, n, FALSE_ALARMS):.0%}): "
        f"the goal is {'missed' if alarms > allowed else 'not contradicted'}."
    )
