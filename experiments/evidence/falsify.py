"""F1 and F4 from the table of runs: what would show that two moments, or a bowl in the mean, are the wrong picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from .statistics import Floats, holm, paired

Row = dict[str, Any]


def same_moments(rows: Iterable[Row]) -> dict[str, Any]:
    """F1: paired differences of the test loss between shapes that share mean and spread."""
    losses: dict[str, dict[int, float]] = defaultdict(dict)
    moments: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for r in rows:
        shape = r["method"].removeprefix("shape:")
        losses[shape][r["seed"]] = r["loss_test"]
        moments[shape].append((r["nll_mean"], r["nll_std"]))
    pairs = {
        f"{a} − {b}": paired([losses[a][s] - losses[b][s] for s in sorted(set(losses[a]) & set(losses[b]))])
        for a, b in combinations(sorted(losses), 2)
        if set(losses[a]) & set(losses[b])
    }
    adjusted = holm({name: p.p for name, p in pairs.items() if p.p is not None})
    return {
        "moments": {s: tuple(np.mean(m, axis=0).round(4).tolist()) for s, m in moments.items()},
        "pairs": {name: {**vars(p), "holm": adjusted.get(name)} for name, p in pairs.items()},
    }


def left_out_errors(mean: Floats, loss: Floats, level: Sequence[Any]) -> dict[str, float]:
    """Root mean squared error of a line and of a parabola in the mean, each level left out in turn.

    `mean`, `loss` [n]: runs; `level` [n]: runs of one level are left out together. The ends are not left out: there a
    parabola would be judged by its extrapolation.
    """
    levels = np.asarray(level)
    at = {name: float(mean[levels == name].mean()) for name in np.unique(levels)}
    inner = sorted(at, key=lambda name: at[name])[1:-1]
    found = {}
    for word, degree in (("monotone", 1), ("bowl", 2)):
        errors = []
        for name in inner:
            out = levels == name
            curve = np.polynomial.Polynomial.fit(mean[~out], loss[~out], degree)
            errors.append(loss[out] - curve(mean[out]))
        found[word] = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    return found


def bowl_or_monotone(rows: Iterable[Row]) -> dict[str, Any]:
    """F4: which shape predicts left-out means better, and where the measured minimum stands."""
    table = [(r["nll_mean"], r["loss_test"], r["method"]) for r in rows]
    mean, loss = (np.array([t[k] for t in table], dtype=float) for k in (0, 1))
    level = [t[2] for t in table]
    per = {name: float(np.mean([x for x, n in zip(loss, level, strict=True) if n == name])) for name in set(level)}
    best = min(per, key=lambda name: per[name])
    ordered = sorted(per, key=lambda name: float(mean[np.asarray(level) == name].mean()))
    return {
        "errors": left_out_errors(mean, loss, level),
        "levels": {name: per[name] for name in ordered},
        "best": best,
        "inside": best not in (ordered[0], ordered[-1]),
    }


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    """One sentence each."""
    words = {}
    if "F1" in found:
        differing = [n for n, p in found["F1"]["pairs"].items() if p["holm"] is not None and p["holm"] < 0.05]
        words["F1"] = (
            f"Shapes with the same two moments end at different losses ({', '.join(differing)}): two moments are not "
            "enough."
            if differing
            else "No pair of shapes with the same two moments could be told apart."
        )
    if "F4" in found:
        e = found["F4"]["errors"]
        better = "bowl" if e["bowl"] < e["monotone"] else "monotone"
        words["F4"] = (
            f"Left-out means are predicted better by a {better} shape (errors {e['bowl']:.4f} bowl, "
            f"{e['monotone']:.4f} monotone), and the best level stands "
            f"{'inside' if found['F4']['inside'] else 'at an end'}."
        )
    if "F8" in found:
        words["F8"] = f"The gate opened in {found['F8']['alarms']} of {found['F8']['worlds']} flat worlds."
    return words
