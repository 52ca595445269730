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
from pplscape.laws.noise import Noise
from pplscape.runs import RunTable

LARGEST = 0.1
SHARES = (0.1, 0.2)
METHODS = ("random", "d-optimal", "v-optimal")
LEAST_NOISE = 1e-3


@dataclass(frozen=True)
class Case:
    """One published table: what could be run [n], what is asked for [m]."""

    form: str
    runs: RunTable
    asked: RunTable
    cost: np.ndarray
    """[n]"""
    draws: int = 4
    """Draws of theta that a design is averaged over."""
    start: int = 8
    rounds: int = 6

    @property
    def setting(self) -> Setting:
        return setting_of(get_form(self.form), self.runs)


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, newline="") as handle:
        return list(csv.DictReader(handle))


def by_size(n_params: Any, tokens: Any, loss: Any) -> Case:
    """A case of the Chinchilla form that asks for the largest tenth by FLOPs."""
    table = RunTable(
        tokens=np.asarray(tokens, float), n_params=np.asarray(n_params, float), loss=np.asarray(loss, float)
    )
    flops = 6 * table.n_params * table.tokens
    order = np.argsort(flops, kind="stable")
    n = round(len(order) * (1 - LARGEST))
    return Case("chinchilla", table.take(order[:n]), table.take(order[n:]), flops[order[:n]])


def chinchilla(folder: Path) -> Case:
    rows = [r for r in rows_of(folder / "chinchilla_epoch", "chinchilla_245.csv") if r["in_fit240"] == "1"]
    return by_size(*([float(r[k]) for r in rows] for k in ("N", "D", "loss")))


def datablations(folder: Path) -> Case:
    rows = rows_of(folder / "datablations", "datablations_fit_set.csv")
    return by_size(*([float(r[k]) for r in rows] for k in ("N", "D_tokens", "loss")))


def gadre(folder: Path) -> Case:
    """Loss on C4, the three training sets put on one level by their mean ratio over models and sizes they share."""
    rows = rows_of(folder / "gadre_overtraining", "gadre_104_models.csv")
    place = {}
    for r in rows:
        place.setdefault((r["N"], r["D"]), {})[r["dataset"]] = np.log(float(r["loss_c4_val"]))
    shared = [p for p in place.values() if len(p) == 3]
    level = {d: np.mean([p[d] - np.mean(list(p.values())) for p in shared]) for d in shared[0]}
    loss = [float(r["loss_c4_val"]) / np.exp(level[r["dataset"]]) for r in rows]
    return by_size([float(r["N"]) for r in rows], [float(r["D"]) for r in rows], loss)


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
    share = parts["train"][0].mean(0)

    def table(weights: np.ndarray, loss: np.ndarray) -> RunTable:
        ones = np.ones(len(loss))
        base = np.log(50_257) * ones  # an untrained model knows nothing of the next token
        return RunTable(tokens=ones, bin_tokens=weights, bin_share=share, loss=loss, base_loss=base)

    runs, asked = (table(*parts[kind]) for kind in ("train", "test"))
    return Case("utility", runs, asked, runs.tokens, draws=1, start=24, rounds=3)


CASES: dict[str, Callable[[Path], Case]] = {
    "chinchilla_epoch": chinchilla, "datablations": datablations, "gadre": gadre, "regmix": regmix,
}  # fmt: skip


def log_losses(case: Case, theta: np.ndarray, asked: RunTable) -> np.ndarray:
    """ln of predicted losses [..., n] by theta [..., p]."""
    setting = case.setting
    return setting.form.evaluate(theta, setting.form.data(asked, setting.frame), setting.frame, jacobian=False)[0]


def errors(case: Case, theta: np.ndarray) -> np.ndarray:
    """MAE [R] on what is asked for, nats/token."""
    return np.abs(np.exp(log_losses(case, theta, case.asked)) - case.asked.loss).mean(1)


@dataclass
class Fits:
    """Fits of R repetitions to the runs they used so far, each round starting from the last."""

    case: Case
    theta: np.ndarray | None = None
    strength: np.ndarray | None = None

    def fresh(self, used: np.ndarray) -> np.ndarray:
        """theta [R, p] from a grid of starts, for runs in use [R, n]."""
        log_loss = np.broadcast_to(np.log(self.case.runs.loss), used.shape)
        self.theta, _, self.strength = fit_many(self.case.setting, log_loss, used.astype(float))
        return self.theta

    def again(self, used: np.ndarray) -> np.ndarray:
        if self.theta is None:
            return self.fresh(used)
        log_loss = np.broadcast_to(np.log(self.case.runs.loss), used.shape)
        weight = used.astype(float)
        self.theta, _, _ = fit_many(self.case.setting, log_loss, weight, warm=self.theta, strength=self.strength)
        return self.theta

    def noise(self, used: np.ndarray) -> np.ndarray:
        """Relative residual standard deviation [R] of the runs in use, p of them given up."""
        residual = log_losses(self.case, self.theta, self.case.runs) - np.log(self.case.runs.loss)
        free = np.maximum(used.sum(1) - self.theta.shape[1], 2)
        return np.maximum(np.sqrt((used * residual**2).sum(1) / free), LEAST_NOISE)

    def draws(self, used: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[R, S, p]: the fits, then refits to losses simulated around them."""
        more = self.case.draws - 1
        if not more:
            return self.theta[:, None]
        clean = np.repeat(log_losses(self.case, self.theta, self.case.runs), more, axis=0)
        simulated = clean + np.repeat(noise, more)[:, None] * rng.normal(size=clean.shape)
        weight, strength = np.repeat(used.astype(float), more, axis=0), np.repeat(self.strength, more)
        found, _, _ = fit_many(self.case.setting, simulated, weight, warm=self.theta, strength=strength)
        return np.concatenate([self.theta[:, None], found.reshape(len(used), more, -1)], axis=1)


def optimal(
    case: Case, used: np.ndarray, cost: np.ndarray, target: float, draws: np.ndarray, noise: float, strength: float,
    method: str,
) -> list[int]:  # fmt: skip
    """Runs that one repetition adds to `used` [n] until it has spent `target`, by D- or V-optimality."""
    setting = case.setting
    slopes = derivatives(setting, draws)[1]
    alone = np.arange(len(used)).astype(str)
    known = Knowledge.of(believed(setting, strength), slopes, alone, Noise(0.0, noise, 10.0), used.astype(float))
    score: Score = d_optimal
    if method == "v-optimal":
        log_loss, question = derivatives(setting, draws, case.asked)
        score = v_optimal(question * np.exp(log_loss)[..., None], np.full(len(case.asked), 1 / len(case.asked)))
    left = np.flatnonzero(~used)
    candidates = np.swapaxes(slopes[:, left], 0, 1)[:, :, None, :]
    taken, _ = greedy(known, candidates, cost[left], target - cost[used].sum(), score, again=False)
    return [int(left[i]) for i in taken]


def at_random(used: np.ndarray, cost: np.ndarray, target: float, rng: np.random.Generator) -> list[int]:
    """Runs in random order, each taken if it is still affordable."""
    left, taken = target - cost[used].sum(), []
    for i in rng.permutation(np.flatnonzero(~used)):
        if cost[i] <= left * (1 + 1e-12):
            taken.append(int(i))
            left -= cost[i]
    return taken


def starts(case: Case, repetitions: int) -> np.ndarray:
    """Runs in use at first [R, n]: a few of the cheaper half (of all, where all cost the same), at random."""
    n = len(case.runs)
    used = np.zeros((repetitions, n), bool)
    for r in range(repetitions):
        among = n // 2 if np.ptp(case.cost) > 0 else n
        used[r, np.random.default_rng([r, 0]).choice(among, case.start, replace=False)] = True
    return used


def measure(case: Case, variant: str, method: str, repetitions: int) -> dict[str, Any]:
    """Errors [R] at each share, and how many runs were used."""
    cost = np.full(len(case.runs), 1 / len(case.runs)) if variant == "count" else case.cost / case.cost.sum()
    used, fits = starts(case, repetitions), Fits(case)
    rngs = [np.random.default_rng([r, 1]) for r in range(repetitions)]
    begun = max(float(cost[u].sum()) for u in used)
    levels = sorted({*np.linspace(begun, SHARES[-1], case.rounds + 1)[1:-1], *(s for s in SHARES if s > begun)})
    found: dict[str, Any] = {}
    for level in levels:
        if method == "random":
            new = [at_random(u, cost, level, rng) for u, rng in zip(used, rngs, strict=True)]
        else:
            fits.again(used)
            noise = fits.noise(used)
            draws = fits.draws(used, noise, rngs[0])
            each = zip(used, draws, noise, fits.strength, strict=True)
            new = [optimal(case, u, cost, level, d, float(e), float(s), method) for u, d, e, s in each]
        for u, taken in zip(used, new, strict=True):
            u[taken] = True
        if level in SHARES:
            found[str(level)] = {
                "errors": errors(case, Fits(case).fresh(used)).tolist(),
                "runs": float(used.sum(1).mean()),
                "cost": float(np.mean([cost[u].sum() for u in used])),
                "flops": float(np.mean([case.cost[u].sum() for u in used]) / case.cost.sum()),
            }
    return found


def whole(case: Case) -> float:
    """The error of a fit to all runs that could be run: what no choice is meant to beat."""
    return float(errors(case, Fits(case).fresh(np.ones((1, len(case.runs)), bool)))[0])


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
            "repetitions": options.repetitions, "form": case.form, "could_run": len(case.runs),
            "asked_for": len(case.asked), "start": case.start, "all": whole(case), "variants": measured,
            "cpu_seconds": round(time.process_time() - begun, 1),
        }  # fmt: skip
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {results[name]['cpu_seconds']} CPU s", flush=True)
    print(table({name: results[name] for name in CASES if name in results}))


if __name__ == "__main__":
    main()
