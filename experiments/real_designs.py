"""Which pilots to run on real text, and as branches or as separate runs? A pool of `experiments/evidence`.

Committed tables alone: the pool's pilots (12 trunks), more trunks of the same menu and separate runs of the same
regimes (more_pilots.py), and the valid losses of the arms at D, four times the largest pilot, which judge as in
real_pilots.py.

`adaptive`: a library of trunks stands for what could be run. From a start of five (one random) drawn anew in each
repetition, one trunk is added at a time up to twelve: by V-optimality for the decision, as `plan --adaptive` (fit,
refits, question, choice; then the measured losses are looked up), by D-optimality of the same law, at random, or in the
order of the fixed design (`plan` without runs). All see the same starts. The utility law is taken throughout.

`branches`: laws on parts of the pilots' regimes, measured as trunks with branches or as separate runs.

    python experiments/real_designs.py adaptive [--repetitions 60] [--seconds 480]
    python experiments/real_designs.py branches [--repetitions 200]
    python experiments/real_designs.py table

Repetitions are kept in experiments/results/real_adaptive.jsonl and real_branches.jsonl: run again to go on. All are
drawn from one library, one pool and one noise of its runs, so intervals are of the draw alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from real_pilots import HERE, arms_of, judge, lines, table_of

from pplscape.adaptive import DRAWS, Evidence, Menu, question_of
from pplscape.design import trunk_tokens
from pplscape.laws.fit import fit_form, setting_of
from pplscape.laws.information import Knowledge, Score, believed, d_optimal, derivatives, greedy, v_optimal
from pplscape.laws.law import law_of
from pplscape.laws.table import labels, noise_weights
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import Compositions, RunTable

RESULTS = HERE / "results"
FORM, START, MOST, REFITS = "utility", 5, 12, 64
METHODS = ("v-optimal", "d-optimal", "random", "fixed design")
POOL = HERE / "evidence" / "results" / "biomed" / "pool-30"
JUDGED = {"gain_error": 4, "loss_error": 3, "rank": 2, "regret": 4, "right": 2, "regret_quarter": 4}
"""What is reported, and its digits."""
HEADS = ("error of gains", "error of losses", "rank correlation", "regret", "beats random", "regret at D/4")
PARTS = (4, 5, 6, 7, 8, 10, 12)
SEEDS = 100
"""Of more_pilots.py: the seed of a separate run, modulo this, is that of its trunk."""
SAVED = ("loss_error", "regret")
Row = dict[str, Any]


class Real:
    """The tables: `library` of trunks, `separate` runs of the pilots' regimes, `arms` at D, the planner's menu."""

    def __init__(self) -> None:
        facts = json.loads((RESULTS / "real_menu.json").read_text())
        share = np.asarray(facts["bin_share"])
        self.pilots = [r for r in lines(POOL / "pilots.jsonl") if r["status"] == "ok"]
        old = {r["group"] for r in self.pilots}
        more = [r for r in lines(RESULTS / "real_library.jsonl") if r["status"] == "ok" and r["group"] not in old]
        self.seeds, arms = arms_of(lines(POOL.parent / "runs.jsonl"), POOL.name, self.pilots)
        self.library, self.arms = table_of(self.pilots + more, share), table_of(arms, share)
        apart = lines(RESULTS / "real_separate.jsonl")
        self.separate = table_of(apart, share) if apart else None
        self.separate_seeds = [r["seed"] for r in apart]
        self.trunks = np.unique(self.library.group)
        self.places, self.designed = facts["places"], facts["designed"]
        whole = Compositions(**{k: np.asarray(v) for k, v in facts["whole"].items()})
        self.menu = Menu(facts["kinds"], [None] * len(facts["kinds"]), whole)
        self.budget, self.sizes = facts["budget"], facts["sizes"]
        self.per_trunk = trunk_tokens(self.sizes, facts["cooldown_share"])
        largest = self.library.tokens > self.library.tokens.max() / 1.5
        self.largest = self.library.take(largest & (np.asarray(self.library.regime) != "random"))

    def place(self, trunk: str) -> int:
        """Of a trunk in the menu."""
        return int(self.places[str(self.library.regime[self.rows([trunk])[0]])])

    def rows(self, trunks: list[str]) -> np.ndarray:
        return np.flatnonzero(np.isin(self.library.group, trunks))

    def judged(self, runs: RunTable) -> Row:
        """By the arms at D, and the regret of the library's regime that the law calls best at D/4."""
        fit = fit_form(FORM, runs)
        called = int(np.argmin(fit.log_loss(self.largest)))
        quarter = float(self.largest.loss[called] - self.largest.loss.min())
        return judge(fit, self.arms) | {"regret_quarter": quarter}


def evidence_on(runs: RunTable, seed: int) -> Evidence:
    """As `adaptive.evidence_of`, without the choice among forms, which five trunks do not permit."""
    fit = fit_form(FORM, runs)
    refits = uncertainty(fit, runs, REFITS, seed)
    return Evidence(runs, fit, refits, law_of(fit, runs, refits))


def optimal(real: Real, used: list[str], seed: int, by: str) -> str:
    """The trunk of the library that `next_trunks` would run next if it had no other sizes and candidates."""
    evidence = evidence_on(real.library.take(real.rows(used)), seed)
    fit, runs = evidence.fit, evidence.runs
    setting, theta = setting_of(fit.form, runs, fit.delta), evidence.refits.draws[:DRAWS]
    known = Knowledge.of(
        believed(setting, fit.strength), derivatives(setting, theta)[1], labels(runs, "group"), evidence.refits.noise,
        noise_weights(runs),
    )  # fmt: skip
    left = [t for t in real.trunks.tolist() if t not in used]
    places = [real.place(t) for t in left]
    slopes = np.stack([derivatives(setting, theta, real.menu.at(s))[1][:, places] for s in real.sizes], axis=-2)
    score: Score = d_optimal
    if by == "v-optimal":
        question = question_of(evidence, real.menu, real.budget, float(runs.tokens.max()), theta)
        score = v_optimal(question.lines, question.weight)
    cost = np.ones(len(left))
    return left[greedy(known, np.swapaxes(slopes, 0, 1), cost, 1.0, score, most=1)[0][0]]


def chooser(real: Real, method: str, rng: np.random.Generator, seed: int) -> Callable[[list[str]], str]:
    """Which trunk to add to those in use."""
    if method.endswith("optimal"):
        return lambda used: optimal(real, used, seed, method)
    if method == "random":
        return lambda used: str(rng.choice(np.setdiff1d(real.trunks, used)))
    rank = {k: i for i, k in enumerate([0, *real.designed])}  # a plan begins with random
    return lambda used: min(np.setdiff1d(real.trunks, used).tolist(), key=lambda t: (rank[real.place(t)], t))


def adaptive(real: Real, repetitions: int, seconds: float, file: Path) -> None:
    begun, rows = time.monotonic(), lines(file) if file.exists() else []
    done = {(r["seed"], r["method"]) for r in rows}
    random = [t for t in real.trunks.tolist() if t.startswith("random")]
    others = np.setdiff1d(real.trunks, random)
    with open(file, "a") as handle:
        for seed in range(repetitions):
            rng = np.random.default_rng([seed, 0])
            start = [str(rng.choice(random)), *rng.choice(others, START - 1, False).tolist()]
            for method in METHODS:
                if (seed, method) in done:
                    continue
                if time.monotonic() - begun > seconds:
                    print("time is up: run again to go on")
                    return
                used, add = list(start), chooser(real, method, np.random.default_rng([seed, 1]), seed)
                found = []
                while True:
                    found.append(real.judged(real.library.take(real.rows(used))))
                    if len(used) == MOST:
                        break
                    used.append(add(used))
                handle.write(json.dumps({"seed": seed, "method": method, "trunks": used, "judged": found}) + "\n")
                handle.flush()
    print("complete")


def branches(real: Real, repetitions: int, file: Path) -> None:
    """Parts of n of the pilots' regimes (a quarter random), measured either way: what their laws say of the arms."""
    rows = lines(file) if file.exists() else []
    done = {(r["seed"], r["trunks"]) for r in rows}
    own = np.unique(np.array([r["group"] for r in real.pilots]))
    random = np.array([t for t in own if t.startswith("random")])
    separate = np.array([f"{r}-{s % SEEDS}" for r, s in zip(real.separate.regime, real.separate_seeds, strict=True)])
    with open(file, "a") as handle:
        for n in PARTS:
            for seed in range(repetitions if n < len(own) else 1):
                rng = np.random.default_rng([seed, n, 2])
                n_random = min(max(1, n // 4), len(random))
                part = [
                    *rng.choice(random, n_random, False),
                    *rng.choice(np.setdiff1d(own, random), n - n_random, False),
                ]
                if (seed, n) in done:
                    continue
                tables = {
                    "branches": real.library.take(real.rows(part)),
                    "separate": real.separate.take(np.flatnonzero(np.isin(separate, part))),
                }
                judged = {name: judge(fit_form(FORM, runs), real.arms) for name, runs in tables.items()}
                handle.write(json.dumps({"seed": seed, "trunks": n, **judged}) + "\n")
                handle.flush()


def interval(values: np.ndarray, digits: int, sign: str = "") -> str:
    """Mean and its 90 % bootstrap interval over repetitions."""
    spec = f"{sign}.{digits}f"
    if len(values) == 1:
        return f"{values[0]:{spec}}"
    means = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.quantile(means, [0.05, 0.95])
    return f"{values.mean():{spec}} [{low:{spec}}, {high:{spec}}]"


def adaptive_table(real: Real, rows: list[Row]) -> str:
    """Means over repetitions by method and number of trunks; paired differences to random choice."""
    text = [
        "## Adaptive and fixed designs\n",
        f"{len(real.trunks)} trunks in the library; {len({r['seed'] for r in rows})} repetitions; arms as in "
        f"real_pilots.py, seeds {', '.join(real.seeds)}.\n",
        "| trunks | tokens / D | added | " + " | ".join(HEADS) + " |",
        "|---" * (3 + len(HEADS)) + "|",
    ]
    columns = tuple(JUDGED)
    value = {(r["method"], START + i, r["seed"]): j for r in rows for i, j in enumerate(r["judged"])}
    seeds = sorted({r["seed"] for r in rows})

    def values(method: str, n: int, key: str) -> np.ndarray:
        return np.array([value[method, n, s][key] for s in seeds])

    for n in (START, 6, 7, 8, 10, MOST):
        for method in METHODS if n > START else METHODS[:1]:
            cells = [interval(values(method, n, c), JUDGED[c]) for c in columns]
            name = method if n > START else "(start)"
            text.append(f"| {n} | {n * real.per_trunk / real.budget:.1f} | {name} | " + " | ".join(cells) + " |")
    text += [f"\nPaired differences to random choice, each repetition's mean over {START + 1} to {MOST} trunks:\n"]
    text += ["| added | " + " | ".join(HEADS) + " | regret smaller |", "|---" * (len(columns) + 2) + "|"]
    steps = range(START + 1, MOST + 1)
    for method in [m for m in METHODS if m != "random"]:
        away = {c: np.mean([values(method, n, c) - values("random", n, c) for n in steps], axis=0) for c in columns}
        cells = [interval(away[c], JUDGED[c], "+") for c in columns]
        smaller = np.mean(away["regret"] < 0) + np.mean(away["regret"] == 0) / 2
        text.append(f"| {method} | " + " | ".join(cells) + f" | {smaller:.0%} |")
    return "\n".join(text)


def branches_table(real: Real, rows: list[Row]) -> str:
    """Means over parts; branches and separate runs of as many regimes, and of as many tokens."""
    separate = sum(real.sizes)
    columns, heads = tuple(JUDGED)[:-1], HEADS[:-1]
    text = [
        "## Branches and separate runs\n",
        "| regimes | measured as | tokens / D | " + " | ".join(heads) + " |",
        "|---" * (3 + len(heads)) + "|",
    ]

    def values(name: str, n: int, key: str) -> np.ndarray:
        return np.array([r[name][key] for r in sorted(rows, key=lambda r: r["seed"]) if r["trunks"] == n])

    for n in PARTS:
        for name, each in (("branches", real.per_trunk), ("separate", separate)):
            cells = [interval(values(name, n, c), JUDGED[c]) for c in columns]
            text.append(f"| {n} | {name} | {n * each / real.budget:.2f} | " + " | ".join(cells) + " |")
    text += ["\nSeparate runs of n regimes less branches of as many tokens (unpaired):\n",
             "| separate, branches | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]  # fmt: skip
    for n in PARTS:
        m = round(n * separate / real.per_trunk)
        if m in PARTS and m < max(PARTS):
            away = [values("separate", n, c) - values("branches", m, c) for c in columns]
            cells = [interval(a, JUDGED[c], "+") for a, c in zip(away, columns, strict=True)]
            text.append(f"| {n}, {m} | " + " | ".join(cells) + " |")
    text.append("\nTokens that separate runs need, as a multiple of those of branches, for the same\n")
    text += ["| error of losses | regret |", "|---" * len(SAVED) + "|"]
    text.append("| " + " | ".join(saved(real, values, key) for key in SAVED) + " |")
    return "\n".join([*text, "", noise_table(real)])


def saved(real: Real, values: Callable[[str, int, str], np.ndarray], key: str) -> str:
    """As in pilot_tokens.py: lines in log-log over the numbers of regimes, compared at the middle of the tokens that
    both have; 90 % bootstrap interval over parts. The whole set, of which there is one part, is left out."""
    sizes = [n for n in PARTS if n < max(PARTS)]
    each = {"branches": real.per_trunk, "separate": sum(real.sizes)}
    middle = np.log(sizes[-1] * each["branches"] * sizes[0] * each["separate"]) / 2
    tables = {name: np.array([values(name, n, key) for n in sizes]) for name in each}
    times, rng, count = [], np.random.default_rng(0), tables["branches"].shape[1]
    for draw in [np.arange(count), *rng.integers(count, size=(1000, count))]:
        fitted = [
            np.polyfit(np.log(np.array(sizes) * each[name]), np.log(np.maximum(t[:, draw].mean(1), 1e-5)), 1)
            for name, t in tables.items()
        ]
        slope = (fitted[0][0] + fitted[1][0]) / 2
        times.append(float(np.exp((np.polyval(fitted[0], middle) - np.polyval(fitted[1], middle)) / slope)))
    low, high = np.quantile(times[1:], [0.05, 0.95])
    return f"{times[0]:.2f} [{low:.2f}, {high:.2f}]"


def noise_table(real: Real) -> str:
    """Separate runs less branches, in ln L, over regimes: is either biased, and do sizes of a trunk err together?"""
    own = [r["group"] for r in real.pilots]
    groups = list(dict.fromkeys(own))
    by = {g: np.log([r["loss"] for r in real.pilots if r["group"] == g]) for g in groups}
    other: dict[str, dict[float, float]] = {}
    for name, seed, tokens, loss in zip(
        real.separate.regime, real.separate_seeds, real.separate.tokens, real.separate.loss, strict=True
    ):
        other.setdefault(f"{name}-{seed % SEEDS}", {})[tokens] = np.log(loss)
    away = np.array([[v for _, v in sorted(other[g].items())] - by[g] for g in groups])
    text = ["| size | separate - branch, % of the loss | sd |", "|---|---|---|"]
    for size, column in zip(real.sizes, away.T, strict=True):
        text.append(f"| {size:,} | {interval(100 * column, 2, '+')} | {100 * column.std(ddof=1):.2f} |")
    pairs = np.corrcoef(away.T)[np.triu_indices(len(real.sizes), 1)]
    return "\n".join([*text, f"\nCorrelation of these differences between sizes: {pairs.mean():.2f} on average "
                             f"({pairs.min():.2f} to {pairs.max():.2f})."])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("adaptive", "branches", "table"))
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after so long; results are kept")
    given = parser.parse_args()
    real = Real()
    files = {what: RESULTS / f"real_{what}.jsonl" for what in ("adaptive", "branches")}
    if given.what == "adaptive":
        adaptive(real, given.repetitions, given.seconds, files["adaptive"])
    elif given.what == "branches":
        branches(real, given.repetitions, files["branches"])
    else:
        tables = {"adaptive": adaptive_table, "branches": branches_table}
        print("\n\n".join(tables[k](real, lines(f)) for k, f in files.items() if f.exists()))


if __name__ == "__main__":
    main()
