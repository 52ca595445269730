"""Which runs would one have needed? V-optimality against D-optimality and chance on published tables of runs.

The largest runs of each table (by FLOPs, a tenth) are what one wants to predict; the others are what one could have
run. From a start of eight runs, drawn from the cheaper half, runs are added in rounds (fit, choose, look up their
losses, refit) up to 10 % and 20 % of the table: of its runs (*count*: every run costs the same) or of its FLOPs
(*cost*: worth is counted per FLOP). Every method sees the same starts. The error is that of the refitted law on the
largest runs, MAE in nats/token. RegMix has one size: its held-out mixtures are asked for, and only *count* applies.

    PPLSCAPE_DATA=... python experiments/adaptive_design.py [--repetitions 40] [--tables NAME ...] [--json FILE]

Prints the table of docs/results/adaptive-design.md. Finished tables are kept in FILE: run again to resume.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.laws.fit import Setting, fit_many, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.information import Knowledge, Score, believed, d_optimal, derivatives, greedy, v_optimal
from pplscape.laws.uncertainty import Noise
from pplscape.runs import RunTable

START, ROUNDS, LARGEST = 8, 6, 0.1
SHARES = (0.1, 0.2)
METHODS = ("random", "d-optimal", "v-optimal")
LEAST_NOISE = 1e-3


@dataclass(frozen=True)
class Case:
    """One published table: `runs` [n], the first `n_could` of them could be run, the others are asked for."""

    name: str
    form: str
    runs: RunTable
    cost: np.ndarray
    n_could: int
    draws: int
    start: int = START


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as handle:
        return list(csv.DictReader(handle))


def by_size(name: str, n_params: Any, tokens: Any, loss: Any) -> Case:
    """A case of the Chinchilla form that asks for the largest tenth by FLOPs."""
    n_params, tokens, loss = (np.asarray(v, float) for v in (n_params, tokens, loss))
    flops = 6 * n_params * tokens
    order = np.argsort(flops, kind="stable")
    runs = RunTable(tokens=tokens[order], n_params=n_params[order], loss=loss[order])
    return Case(name, "chinchilla", runs, flops[order], round(len(order) * (1 - LARGEST)), draws=4)


def chinchilla(folder: Path) -> Case:
    rows = [r for r in rows_of(folder / "chinchilla_epoch", "chinchilla_245.csv") if r["in_fit240"] == "1"]
    return by_size("chinchilla_epoch", *([float(r[k]) for r in rows] for k in ("N", "D", "loss")))


def datablations(folder: Path) -> Case:
    rows = rows_of(folder / "datablations", "datablations_fit_set.csv")
    return by_size("datablations", *([float(r[k]) for r in rows] for k in ("N", "D_tokens", "loss")))


def gadre(folder: Path) -> Case:
    """Loss on C4, the three training sets put on one level by their mean ratio over models and sizes they share."""
    rows = rows_of(folder / "gadre_overtraining", "gadre_104_models.csv")
    place = {}
    for r in rows:
        place.setdefault((r["N"], r["D"]), {})[r["dataset"]] = np.log(float(r["loss_c4_val"]))
    shared = [p for p in place.values() if len(p) == 3]
    level = {d: np.mean([p[d] - np.mean(list(p.values())) for p in shared]) for d in shared[0]}
    loss = [float(r["loss_c4_val"]) / np.exp(level[r["dataset"]]) for r in rows]
    return by_size("gadre", [float(r["N"]) for r in rows], [float(r["D"]) for r in rows], loss)


def regmix(folder: Path) -> Case:
    """Pile-CC loss of the 1M-parameter proxies by mixture of 17 domains; asked for: the 256 held-out mixtures."""
    parts = {}
    for kind in ("train", "test"):
        mixes = {r["index"]: r for r in rows_of(folder / "regmix", f"{kind}_mixture_1m.csv")}
        losses = {r["index"]: r for r in rows_of(folder / "regmix", f"{kind}_pile_loss_1m.csv")}
        names = [k for k in next(iter(mixes.values())) if k != "index"]
        index = [i for i in mixes if i in losses]
        weights = np.array([[float(mixes[i][k]) for k in names] for i in index])
        loss = np.array([float(losses[i]["metric/the_pile_pile_cc_val_loss"]) for i in index])
        parts[kind] = (weights / weights.sum(1, keepdims=True), loss)
    weights, loss = (np.concatenate([parts[k][i] for k in ("train", "test")]) for i in (0, 1))
    n = len(parts["train"][1])
    share = parts["train"][0].mean(0)
    base = np.full(len(loss), np.log(50_257))  # an untrained model knows nothing of the next token
    ones = np.ones(len(loss))
    runs = RunTable(tokens=ones, bin_tokens=weights, bin_share=share, loss=loss, base_loss=base)
    return Case("regmix", "utility", runs, ones, n, draws=1, start=24)


CASES: dict[str, Callable[[Path], Case]] = {
    "chinchilla_epoch": chinchilla, "datablations": datablations, "gadre": gadre, "regmix": regmix,
}  # fmt: skip


def fitted(case: Case, setting: Setting, weight: np.ndarray, warm: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(theta [R, p], strength [R]) of fits to the runs in use, weight [R, n]; `warm` [W, p] instead of a grid."""
    theta, _, strength = fit_many(setting, np.broadcast_to(np.log(case.runs.loss), weight.shape), weight, warm=warm)
    return theta, strength


def errors(case: Case, setting: Setting, theta: np.ndarray) -> np.ndarray:
    """MAE [R] on what is asked for, nats/token."""
    predicted = np.exp(case_log_loss(setting, theta)[:, case.n_could :])
    return np.abs(predicted - case.runs.loss[case.n_could :]).mean(1)


def case_log_loss(setting: Setting, theta: np.ndarray) -> np.ndarray:
    return setting.form.evaluate(theta, setting.data, setting.frame, jacobian=False)[0]


def refits(
    case: Case, setting: Setting, weight: np.ndarray, theta: np.ndarray, strength: np.ndarray, noise: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Draws of theta [R, S, p]: refits to losses simulated around each fit; the fit itself is the first."""
    n_draws = case.draws - 1
    if n_draws == 0:
        return theta[:, None]
    clean = np.repeat(case_log_loss(setting, theta), n_draws, axis=0)
    simulated = clean + np.repeat(noise, n_draws)[:, None] * rng.normal(size=clean.shape)
    draws, _, _ = fit_many(
        setting, simulated, np.repeat(weight, n_draws, axis=0), warm=theta, strength=np.repeat(strength, n_draws)
    )
    return np.concatenate([theta[:, None], draws.reshape(len(theta), n_draws, -1)], axis=1)


def noise_of(case: Case, setting: Setting, weight: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Relative residual standard deviation [R] of the runs in use, p of them given up."""
    residual = case_log_loss(setting, theta) - np.log(case.runs.loss)
    free = np.maximum(weight.sum(1) - theta.shape[1], 2)
    return np.maximum(np.sqrt((weight * residual**2).sum(1) / free), LEAST_NOISE)


def extend(
    case: Case, setting: Setting, used: np.ndarray, cost: np.ndarray, target: float, draws: np.ndarray, noise: float,
    strength: float, method: str,
) -> list[int]:  # fmt: skip
    """Runs that one repetition adds to `used` [n_could] until it has spent `target`, by D- or V-optimality."""
    _, slopes = derivatives(setting, draws)
    n = case.n_could
    known = Knowledge.of(
        believed(setting, strength),
        slopes[:, :n],
        np.arange(n).astype(str),
        Noise(0.0, noise, 10.0),
        used.astype(float),
    )
    losses = np.exp(case_log_loss(setting, draws))
    question = slopes[:, n:] * losses[:, n:, None]
    score: Score = d_optimal
    if method == "v-optimal":
        score = v_optimal(question, np.full(question.shape[1], 1 / question.shape[1]))
    left = np.flatnonzero(~used)
    candidates = np.swapaxes(slopes[:, left], 0, 1)[:, :, None, :]
    taken, _ = greedy(known, candidates, cost[left], target - cost[:n][used].sum(), score, again=False)
    return [int(left[i]) for i in taken]


def at_random(used: np.ndarray, cost: np.ndarray, target: float, rng: np.random.Generator) -> list[int]:
    """Runs in random order, each taken if it is still affordable."""
    left, taken = target - cost[: len(used)][used].sum(), []
    for i in rng.permutation(np.flatnonzero(~used)):
        if cost[i] <= left * (1 + 1e-12):
            taken.append(int(i))
            left -= cost[i]
    return taken


def starts(case: Case, repetitions: int) -> np.ndarray:
    """Runs in use at first [R, n_could]: a few of the cheaper half, at random."""
    used = np.zeros((repetitions, case.n_could), bool)
    cheap = case.n_could // 2 if np.ptp(case.cost) > 0 else case.n_could
    for r in range(repetitions):
        used[r, np.random.default_rng([r, 0]).choice(cheap, case.start, replace=False)] = True
    return used


def measure(case: Case, variant: str, method: str, repetitions: int) -> dict[str, Any]:
    """Errors [R] at each share, and how many runs were used."""
    setting = setting_of(get_form(case.form), case.runs)
    cost = np.ones(len(case.cost)) if variant == "count" else case.cost / case.cost[: case.n_could].sum()
    total = float(cost[: case.n_could].sum())
    used, warm = starts(case, repetitions), None
    begun = np.array([cost[: case.n_could][u].sum() for u in used])
    rngs = [np.random.default_rng([r, 1]) for r in range(repetitions)]
    found: dict[str, Any] = {}
    levels = np.linspace(float(begun.max()), SHARES[-1] * total, ROUNDS + 1)[1:]
    levels = np.unique(np.append(levels, [share * total for share in SHARES]))
    for level in levels[levels >= begun.max()]:
        if method == "random":
            new = [at_random(u, cost, level, rng) for u, rng in zip(used, rngs, strict=True)]
        else:
            weight = _weight(case, used)
            theta, strength = fitted(case, setting, weight, warm)
            warm, noise = theta, noise_of(case, setting, weight, theta)
            draws = refits(case, setting, weight, theta, strength, noise, rngs[0])
            new = [
                extend(case, setting, u, cost, level, d, float(e), float(s), method)
                for u, d, e, s in zip(used, draws, noise, strength, strict=True)
            ]
        for u, taken in zip(used, new, strict=True):
            u[taken] = True
        for share in SHARES:
            if np.isclose(level, share * total):
                theta, _ = fitted(case, setting, _weight(case, used), None)
                found[str(share)] = {
                    "errors": errors(case, setting, theta).tolist(), "runs": float(used.sum(1).mean()),
                    "cost": float(np.mean([cost[: case.n_could][u].sum() for u in used]) / total),
                }  # fmt: skip
    return found


def _weight(case: Case, used: np.ndarray) -> np.ndarray:
    return np.concatenate([used, np.zeros((len(used), len(case.runs) - case.n_could), bool)], axis=1).astype(float)


def whole(case: Case) -> float:
    """The error of a fit to all runs that could be run: what no choice is meant to beat."""
    setting = setting_of(get_form(case.form), case.runs)
    theta, _ = fitted(case, setting, _weight(case, np.ones((1, case.n_could), bool)), None)
    return float(errors(case, setting, theta)[0])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval over repetitions: a few fits to few runs explode."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    return float(np.median(values)), *(float(q) for q in np.quantile(np.median(draws, axis=1), [0.025, 0.975]))


def table(results: dict[str, Any]) -> str:
    """Markdown: error by method, and paired differences to V-optimality."""
    head = ["table", "cost of", "share", "runs", *METHODS, "v - random", "v better", "v - d", "v better", "all runs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, entry in results.items():
        for variant, by_method in entry["variants"].items():
            for share in SHARES:
                if str(share) not in by_method["random"]:
                    continue
                each = {m: np.asarray(by_method[m][str(share)]["errors"]) for m in METHODS}
                counts = [by_method[m][str(share)]["runs"] for m in METHODS]
                runs = f"{counts[0]:.0f}" if np.ptp(counts) < 0.5 else " / ".join(f"{c:.0f}" for c in counts)
                cells = [name, {"count": "a run", "cost": "a FLOP"}[variant], f"{share:.0%}", runs]
                cells += [_cell(each[m]) for m in METHODS]
                for other in ("random", "d-optimal"):
                    difference = each["v-optimal"] - each[other]
                    cells += [
                        _cell(difference, "+.4f"),
                        f"{np.mean(difference < 0) + np.mean(difference == 0) / 2:.0%}",
                    ]
                lines.append("| " + " | ".join([*cells, f"{entry['all']:.4f}"]) + " |")
    return "\n".join(lines)


def _cell(values: np.ndarray, spec: str = ".4f") -> str:
    middle, low, high = interval(values)
    return f"{middle:{spec}} [{low:{spec}}, {high:{spec}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--tables", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "adaptive_design.json")
    options = parser.parse_args()
    folder = Path(os.environ["PPLSCAPE_DATA"]) / "law_tables"
    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    for name in options.tables:
        if results.get(name, {}).get("repetitions") == options.repetitions:
            continue
        begun = time.process_time()
        case = CASES[name](folder)
        variants = ("count", "cost") if np.ptp(case.cost) > 0 else ("count",)
        measured = {v: {m: measure(case, v, m, options.repetitions) for m in METHODS} for v in variants}
        results[name] = {
            "repetitions": options.repetitions, "form": case.form, "could_run": case.n_could,
            "asked_for": len(case.runs) - case.n_could, "start": case.start, "all": whole(case), "variants": measured,
            "cpu_seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results[name]['cpu_seconds']} CPU s", flush=True)
    print(table({name: results[name] for name in CASES if name in results}))


if __name__ == "__main__":
    main()
