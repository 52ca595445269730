"""How fast laws are fitted, beside plain SciPy in the same run.

1. The Chinchilla protocol on Epoch AI's table (240 runs; arXiv 2404.10102): 4,500 starts, 4,000 bootstraps. SciPy in
   three dresses: plain (L-BFGS-B from every start, BFGS from the grid's best for bootstraps, no gradient given), as in
   the published notebook (the bootstraps with a gradient; ours is analytic, the notebook's automatic and slower), and
   all with analytic gradients. SciPy's seconds are those of random subsamples of starts and bootstraps, scaled up.
   pplscape: the amounts (A, B, E) of each start are replaced by the best for its exponents (variable projection).
   4,500 starts then are 25 different ones, and equal starts end alike: each is polished once and counts for all starts
   that it stands for. Whether that is a short cut is measured: the objective that every start and bootstrap ends at,
   beside where SciPy ends from the same start and with the same resampled runs. "Every copy polished" does the 25 over
   and over, 4,500 times.
2. The published form with 2,000 refits over 40 runs.

One core: OMP_NUM_THREADS=1 python benchmarks/fitting.py (PPLSCAPE_DATA names the folder of law_tables).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.optimize import minimize

from pplscape.laws.fit import QUICK, fit_form, problem_of, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.polish import polish
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import RunTable

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "fitting-speed.md"
sys.path.insert(0, str(ROOT / "tests" / "laws"))
import worlds  # noqa: E402

DELTA = 1e-3
NAMES = ("A", "B", "E", "alpha", "beta")
GRID_BEST = 0.00101827403
"""Huber sum of the best of the published grid."""
STARTS = np.array(
    [
        [a, b, e, alpha, beta]
        for alpha, beta, e, a, b in product(
            *[np.arange(0, 2.5, 0.5)] * 2, np.arange(-1, 1.5, 0.5), *[np.arange(0, 30, 5)] * 2
        )
    ]
)
LEAST_EXPONENT = 0.1
"""What a start's exponent of 0 becomes, as in the fitter's own grid: amounts of two constants are not unique."""
BOOTSTRAPS = 4000
REPEATS = 3


def chinchilla_runs() -> RunTable:
    data = os.environ.get("PPLSCAPE_DATA")
    if not data:
        raise SystemExit("Set PPLSCAPE_DATA to the folder that holds law_tables.")
    with open(Path(data) / "law_tables" / "chinchilla_epoch" / "chinchilla_245.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["in_fit240"] == "1"]
    n, d, loss = (np.array([float(row[k]) for row in rows]) for k in ("N", "D", "loss"))
    return RunTable(tokens=d, n_params=n, loss=loss)


def objective(params: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> float:
    """Huber sum in the log-sum-exp form, as a notebook writes it."""
    a, b, e, alpha, beta = params
    difference = log_loss - np.log(np.exp(a - alpha * log_n) + np.exp(b - beta * log_d) + np.exp(e))
    size = np.abs(difference)
    return np.sum(np.where(size <= DELTA, 0.5 * difference**2, DELTA * (size - 0.5 * DELTA)))


def gradient(params: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    a, b, e, alpha, beta = params
    by_n, by_d, floor = np.exp(a - alpha * log_n), np.exp(b - beta * log_d), np.exp(e)
    loss = by_n + by_d + floor
    slope = np.clip(np.log(loss) - log_loss, -DELTA, DELTA) / loss
    return np.array([slope @ by_n, slope @ by_d, slope.sum() * floor, -slope @ (by_n * log_n), -slope @ (by_d * log_d)])


def scipy_protocol(
    runs: RunTable,
    counts: np.ndarray,
    best: np.ndarray,
    sample: int,
    grid: dict[str, Any],
    bootstrap: dict[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """Seconds of the whole protocol from `sample` starts and as many bootstraps, the best objective among them, and
    where each ended: `ends`, (index, objective) of starts and of bootstraps."""
    logs = (np.log(runs.n_params), np.log(runs.tokens), np.log(runs.loss))
    rng = np.random.default_rng(seed)
    start = time.process_time()
    starts = rng.choice(len(STARTS), sample, replace=False)
    found = [minimize(objective, STARTS[i], args=logs, **grid).fun for i in starts]
    by_start = (time.process_time() - start) / sample
    resamples = rng.choice(len(counts), sample, replace=False)
    indices = [np.repeat(np.arange(len(runs)), counts[i]) for i in resamples]
    start = time.process_time()
    refound = [
        minimize(objective, best, args=tuple(x[index] for x in logs), method="BFGS", **bootstrap).fun
        for index in indices
    ]
    by_bootstrap = (time.process_time() - start) / sample
    return {
        "starts_seconds": by_start * len(STARTS),
        "bootstraps_seconds": by_bootstrap * BOOTSTRAPS,
        "objective": float(min(found)),
        "ends": ((starts, np.array(found)), (resamples, np.array(refound))),
        "note": f"scaled up from {sample} starts and {sample} bootstraps a round",
    }


def ours(runs: RunTable, counts: np.ndarray, merged: bool) -> dict[str, Any]:
    form = get_form("chinchilla")
    setting = setting_of(form, runs, DELTA)
    log_loss = np.log(runs.loss)
    start = time.process_time()
    pairs, member = np.unique(STARTS[:, 3:], axis=0, return_inverse=True)
    projected = form.project(np.maximum(pairs, LEAST_EXPONENT), setting.data, runs.loss)
    starts = projected if merged else projected[np.ravel(member)]
    weight = np.ones((len(starts), len(runs)))
    grid = problem_of(setting, np.broadcast_to(log_loss, weight.shape), weight, np.zeros(len(starts)))
    theta, value = polish(grid, starts, 200, 1e-12)
    best = theta[value.argmin()]
    middle = time.process_time()
    many = problem_of(setting, np.broadcast_to(log_loss, counts.shape), counts.astype(float), np.zeros(len(counts)))
    draws, refound = polish(many, np.broadcast_to(best, (len(counts), 5)), *QUICK)
    end = time.process_time()
    return {
        "starts_seconds": middle - start,
        "bootstraps_seconds": end - middle,
        "objective": float(value.min()),
        "errors": form.params(draws, setting.frame).std(0, ddof=1).tolist(),
        "ends": (value[np.ravel(member)] if merged else value, refound),
        "note": "all starts, each different one once; all bootstraps" if merged else "all starts and bootstraps",
    }


def chinchilla(sample: int) -> list[dict[str, Any]]:
    """A row a fitter: every round runs all of them once, SciPy on other starts and bootstraps each time."""
    runs = chinchilla_runs()
    counts = np.random.default_rng(0).multinomial(len(runs), np.full(len(runs), 1 / len(runs)), BOOTSTRAPS)
    best = fit_form("chinchilla", runs, DELTA).theta
    ours(runs, counts[:400], True)  # the first call pays for imports and caches
    rounds: dict[str, list[dict[str, Any]]] = {}
    for number in range(REPEATS):
        for name, merged in (("pplscape", True), ("pplscape, every copy polished", False)):
            rounds.setdefault(name, []).append(ours(runs, counts, merged))
        for name, grid, bootstrap in (
            ("SciPy, plain", {}, {}),
            ("SciPy as published", {}, {"jac": gradient}),
            ("SciPy, analytic gradients", {"jac": gradient}, {"jac": gradient}),
        ):
            grid = {"method": "L-BFGS-B", **grid}
            part = scipy_protocol(runs, counts, best, sample // REPEATS, grid, bootstrap, number)
            rounds.setdefault(name, []).append(part)
    rows = [{"name": name, **middle_of(found)} for name, found in rounds.items()]
    for row in rows:
        row["seconds"] = row["starts_seconds"] + row["bootstraps_seconds"]
        row["objective"] = min(found["objective"] for found in rounds[row["name"]])
        row["above_grid_best"] = row["objective"] - GRID_BEST
    for row in rows:
        row["times"], row["times_every_copy"] = (row["seconds"] / rows[i]["seconds"] for i in (0, 1))
        if row["name"].startswith("SciPy"):
            row |= beside(rows[0]["ends"], [found["ends"] for found in rounds[row["name"]]])
    return [{k: v for k, v in row.items() if k != "ends"} for row in rows]


def middle_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of some measurements with the median of all seconds."""
    return found[0] | {k: statistics.median(row[k] for row in found) for k in found[0] if k.endswith("seconds")}


def beside(reached: Sequence[np.ndarray], ends: Sequence[Any]) -> dict[str, Any]:
    """Of starts and of bootstraps: the most that we end above SciPy, and the share that we end 1e-6 below."""
    above = [
        np.concatenate([reached[kind][at] - theirs for at, theirs in (end[kind] for end in ends)]) for kind in (0, 1)
    ]
    return {"ours_above": [float(a.max()) for a in above], "ours_below": [float(np.mean(a < -1e-6)) for a in above]}


def paper_law() -> dict[str, Any]:
    """Fit and 2,000 refits of the published form to 40 runs: 10 trunks of 4 sizes."""
    runs = worlds.table("paper", trunks=10, sizes=(64e3, 128e3, 256e3, 512e3), noise=0.005)
    start = time.process_time()
    uncertainty(fit_form("paper", runs), runs, 2000)
    return {"seconds": time.process_time() - start, "runs": len(runs), "refits": 2000}


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["fitter", "4,500 starts, s", "4,000 bootstraps, s", "sum, s", "x ours", "x every copy"]
    head += ["best above published sum", "ours above theirs, start by start; bootstrap by bootstrap"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in rows:
        seconds = [f"{r[k]:.2f}" for k in ("starts_seconds", "bootstraps_seconds", "seconds")]
        times = [f"{r[k]:.1f}" for k in ("times", "times_every_copy")]
        cells = [f"{r['name']} ({r['note']})", *seconds, *times, f"{r['above_grid_best']:+.1e}"]
        cells.append("; ".join(f"at most {value:+.1e}" for value in r["ours_above"]) if "ours_above" in r else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: Sequence[dict[str, Any]], paper: dict[str, Any], versions: dict[str, str]) -> str:
    """docs/results/fitting-speed.md."""
    ours_row, plain = rows[0], next(r for r in rows if r["name"] == "SciPy, plain")
    protocol = __doc__.partition("1. ")[2].partition("\n2. ")[0].replace("\n   ", " ")
    errors = ", ".join(f"{name} {e:.4g}" for name, e in zip(NAMES, ours_row["errors"], strict=True))
    return "\n".join(
        [
            "# How fast laws are fitted",
            "",
            "    PPLSCAPE_DATA=... OMP_NUM_THREADS=1 python benchmarks/fitting.py",
            "",
            f"CPU seconds on one core, shared with other work: medians of {REPEATS} rounds of all fitters in turn. "
            + ", ".join(f"{k} {v}" for k, v in versions.items())
            + ".",
            "",
            protocol,
            "",
            table(rows),
            "",
            f"**{plain['times']:.0f}x against plain SciPy** ({plain['times_every_copy']:.0f}x with every copy of a "
            "start polished; promised: 100x for the whole protocol, no objective above by more than 1e-6). "
            + compared(plain),
            "",
            f"Standard errors of the 4,000 bootstraps: {errors} (published: 124.5, 1293, 0.0257, 0.0154, 0.0206).",
            "",
            f"Published form of mean and spread, {paper['runs']} runs, {paper['refits']:,} refits: "
            f"{paper['seconds']:.2f} s (promised: below 3 s).",
            "",
        ]
    )


def compared(row: dict[str, Any]) -> str:
    """Where we end beside where SciPy ends, in words."""
    texts = []
    for what, above, below in zip(("start", "bootstrap"), row["ours_above"], row["ours_below"], strict=True):
        verdict = "No" if above <= 1e-6 else "**Not every**"
        end = "ends more than" if above <= 1e-6 else "ends less than"
        texts.append(
            f"{verdict} {what} {end} 1e-6 above where SciPy ends (at most {above:+.1e}); "
            f"{below:.0%} end more than 1e-6 below."
        )
    return " ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=400, help="SciPy's starts and bootstraps that are really run")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "fitting.json")
    options = parser.parse_args()
    rows, paper = chinchilla(options.sample), middle_of([paper_law() for _ in range(REPEATS)])
    print("CPU seconds on one core; ours: medians of", REPEATS)
    print(table(rows))
    print(f"Published form, {paper['runs']} runs, {paper['refits']} refits: {paper['seconds']:.2f} s")
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    value = {"chinchilla": rows, "paper_law": paper, "repeats": REPEATS, "versions": versions}
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(value, indent=1) + "\n")
    PAGE.write_text(page(rows, paper, versions))


if __name__ == "__main__":
    main()
