"""Do 90 % intervals hold the truth 90 % of the time, with few trunks?

Simulates pilots of known laws (noise 0.005 nats, half of its variance shared by a trunk), fits the true form, counts:
mean = the true loss of a composition, run = the loss of a new run, E and aD = parameters. Compositions: every pilot at
every size, and random at 1x and 4x the largest size.

    python experiments/coverage_small.py [--data-sets 100] [--resamples 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from pplscape.laws.choose import obstacle
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import get_form
from pplscape.laws.law import law_of
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import Compositions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "laws"))
import worlds

CASES = (
    ("flat", "d-only:anchored"),
    ("paper", "paper"),
    ("extended", "extended"),
    ("quadratic", "quadratic"),
    ("utility", "utility"),
)
NOISE, SHARED, LEVEL = 0.005, 0.5, 0.9


def asked(runs: Compositions) -> Compositions:
    """Pilots at every size, then random at 1x and 4x the largest."""
    columns = {}
    for name in ("tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens"):
        values = getattr(runs, name)
        last = values[2:3] * (4.0 if name in ("tokens", "bin_tokens") else 1.0)
        columns[name] = np.concatenate([values, values[2:3], last])
    return Compositions(**columns)


def measure(truth: str, form: str, trunks: int, method: str, data_sets: int, resamples: int) -> dict[str, float]:
    """Share of intervals that hold the truth, and their median half width in nats."""
    hits: dict[str, list[float]] = {"mean": [], "run": [], "E": [], "aD": [], "width": [], "worst": []}
    each = []
    for seed in range(data_sets):
        runs = worlds.table(truth, trunks=trunks, noise=NOISE, shared=SHARED, seed=seed)
        points = asked(runs)
        clean = worlds.true_loss(truth, points, runs.bin_share)
        fit = fit_form(form, runs)
        law = law_of(fit, runs, uncertainty(fit, runs, resamples, seed, method), LEVEL)
        low, high = law.predict_interval(points, LEVEL, new_run=False)
        each.append((low <= clean) & (clean <= high))
        hits["width"].append(float(np.median(high - low) / 2))
        low, high = law.predict_interval(points, LEVEL)
        measured = clean + NOISE * np.random.default_rng([seed, 1]).normal(size=len(clean))
        hits["run"].append(float(np.mean((low <= measured) & (measured <= high))))
        for name, true in (("E", 2.2), ("aD", 0.3)):
            if name in law.params:
                interval = law.intervals[name]
                low, high = (interval["low"], interval["high"]) if isinstance(interval, dict) else interval
                hits[name].append(float(low <= true <= high))
    by_point = np.mean(each, axis=0)
    hits["mean"], hits["worst"] = [float(by_point.mean())], [float(by_point[np.abs(by_point - LEVEL).argmax()])]
    return {k: float(np.mean(v)) if v else float("nan") for k, v in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--trunks", type=int, nargs="*", default=[8, 12])
    parser.add_argument("--methods", nargs="*", default=["parametric", "wild"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"Coverage of {LEVEL:.0%} intervals, {options.data_sets} data sets, {options.resamples} refits each")
    print("| form | trunks | method | mean | worst point | new run | E | aD | half width, nats | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for truth, form in CASES:
        for trunks in options.trunks:
            if reason := obstacle(get_form(form), worlds.table(truth, trunks=trunks))[0]:
                print(f"| {form} | {trunks} | not fitted: {reason} | | | | | | | |")
                continue
            for method in options.methods:
                start = time.perf_counter()
                found = measure(truth, form, trunks, method, options.data_sets, options.resamples)
                seconds = time.perf_counter() - start
                cells = " | ".join(f"{found[k]:.1%}" for k in ("mean", "worst", "run", "E", "aD"))
                print(f"| {form} | {trunks} | {method} | {cells} | {found['width']:.4f} | {seconds:.0f} |", flush=True)
                rows.append({"form": form, "trunks": trunks, "method": method, "seconds": seconds, **found})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1).replace("NaN", "null") + "\n")


if __name__ == "__main__":
    main()
