"""How often would the safe gate let a selection through, in worlds where perplexity does (not) matter?

In every simulated data set the best composition is picked by the best law that sees composition, from candidates that
the pilots cover; the form is then chosen again in resamples (`laws.choose.resampled`). The gate passes if the 10th
percentile of predicted L_random - L_selected is above 0. In a flat world every pass is a false alarm.

    python experiments/gate_small.py [--data-sets 100] [--resamples 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from pplscape.laws.choose import choose, resampled
from pplscape.runs import Compositions, RunTable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "laws"))
import worlds

FORMS = ("constant", "d-only", "d-only:anchored", "paper", "extended", "quadratic", "utility")
NOISE, SHARED = 0.005, 0.5


def candidates() -> tuple[Compositions, np.ndarray]:
    """Random, then tilts over a finer grid than the pilots', all at the largest size; and the pool's bin shares."""
    x = worlds.pool()
    grid = [(m, s) for s in (0.3, 0.5, 0.8) for m in np.linspace(4.4, 5.8, 8)]
    weights = [np.ones_like(x)] + [np.exp(-0.5 * ((x - m) / s) ** 2) + 0.02 for m, s in grid]
    return worlds.compositions(x, np.asarray(weights), np.full(len(weights), worlds.LARGEST))


def one(truth: str, trunks: int, seed: int, resamples: int, rule: str) -> tuple[bool, float, bool]:
    """(gate passes, true gain of the selection in nats, chosen form sees composition)."""
    runs: RunTable = worlds.table(truth, trunks=trunks, noise=NOISE, shared=SHARED, seed=seed)
    points, share = candidates()
    choice = choose(runs, FORMS, rule=rule)
    seeing = [t for t in choice.fitted if t.form.uses_composition]
    chosen = choice.trial(choice.chosen)
    law = chosen if chosen.form.uses_composition else min(seeing, key=lambda t: float(t.errors(runs.loss).mean()))
    assert law.fit is not None
    best = int(law.fit.log_loss(points).argmin())
    found = resampled(runs, FORMS, points.take([best, 0]), resamples, seed, rule=rule)
    gain = found.losses[:, 1] - found.losses[:, 0]
    true = worlds.true_loss(truth, points, share)
    return bool(np.quantile(gain, 0.1) > 0), float(true[0] - true[best]), chosen.form.uses_composition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--trunks", type=int, nargs="*", default=[8, 12])
    parser.add_argument("--truths", nargs="*", default=["flat", "utility", "quadratic"])
    parser.add_argument("--rules", nargs="*", default=["one-se", "min"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| world | trunks | rule | gate passes | chosen law sees composition | mean true gain if passed, nats | s |")
    print("|---|---|---|---|---|---|---|")
    for truth in options.truths:
        for trunks in options.trunks:
            for rule in options.rules:
                start = time.perf_counter()
                found = [one(truth, trunks, seed, options.resamples, rule) for seed in range(options.data_sets)]
                passed = np.array([f[0] for f in found])
                gains = np.array([f[1] for f in found])
                seen = np.mean([f[2] for f in found])
                gain = float(gains[passed].mean()) if passed.any() else 0.0
                seconds = time.perf_counter() - start
                print(
                    f"| {truth} | {trunks} | {rule} | {passed.mean():.1%} | {seen:.1%} | {gain:.4f} | {seconds:.0f} |",
                    flush=True,
                )
                row = {"world": truth, "trunks": trunks, "rule": rule, "passes": float(passed.mean())}
                rows.append(row | {"sees_composition": float(seen), "gain": gain, "seconds": seconds})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
