"""How many pilots does a decision on real text take? Laws on parts of the pilots, against what was measured at D.

Reads the committed tables of `experiments/evidence` alone: the pilots of a pool (12 trunks, 4 sizes up to D/4) and the
valid losses of the arms at D. Of every number of trunks, REPETITIONS parts of the pilots are drawn (a quarter of the
trunks random ones, at least one); each part's law is asked for the arms' losses at D. Reported are, as means over parts
with 90 % of the parts between the bounds: the error of the predicted gains over random, of the losses as a share of the
improvement over the base model, the rank correlation over arms, the regret of the arm that the law calls best (against
the best measured), and how often that arm beats random. `chance` takes one of the arms at random. Four of the arms were
made by laws of these same pilots, so what is asked here is no new text.

    python experiments/real_pilots.py [--domain biomed] [--pool pool-30]

Prints the table and draws docs/images/pilots-DOMAIN-POOL.png: information against pilot tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pplscape.laws.fit import Fit, fit_form
from pplscape.laws.forms import get_form
from pplscape.runs import RunTable

HERE = Path(__file__).parent
FORMS = ("utility", "utility:power", "quadratic", "d-only:anchored")
ARMS = ("random", "mid", "band:0.4,0.9", "paper+dos", "paper+maxent", "utility+allocate", "utility+hedged")
TRUNKS = (4, 6, 8, 10, 12)
REPETITIONS = 30
Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table_of(rows: list[Row], share: np.ndarray) -> RunTable:
    columns = ("tokens", "loss", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens", "base_loss")
    data = {c: np.array([r[c] for r in rows], float) for c in columns}
    return RunTable(
        **data, group=np.array([r["group"] for r in rows]), regime=np.array([r["regime"] for r in rows]),
        bin_share=share, meta={"warnings": []},
    )  # fmt: skip


def arms_of(rows: list[Row], pool: str, pilots: list[Row]) -> tuple[list[str], list[Row]]:
    """Arms of which all seeds that any arm finished are there: mean composition and mean valid loss at D."""
    mine = [
        r for r in rows if r["status"] == "ok" and (r["experiment"], r["pool"], r["size"]) == ("primary", pool, 1.0)
    ]
    seeds = {m: {r["seed"] for r in mine if r["method"] == m} for m in ARMS}
    shared = set.intersection(*seeds.values())
    found = []
    for method in ARMS:
        these = [r for r in mine if r["method"] == method and r["seed"] in shared]
        mean = {
            k: float(np.mean([r[k] for r in these])) for k in ("tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std")
        }
        bins = np.mean([r["bin_tokens"] for r in these], axis=0)
        found.append(
            mean | {"loss": float(np.mean([r["loss_valid"] for r in these])), "bin_tokens": bins, "group": method,
                    "regime": method, "base_loss": pilots[0]["base_loss"]}
        )  # fmt: skip
    return [str(s) for s in sorted(shared)], found


def judge(fit: Fit, arms: RunTable) -> Row:
    """What a fit says of the arms, random first, against what was measured."""
    predicted = np.exp(fit.log_loss(arms))
    gains, true = predicted[0] - predicted[1:], arms.loss[0] - arms.loss[1:]
    best = int(np.argmin(predicted))
    flat = not fit.form.uses_composition
    return {
        "gain_error": float(np.abs(gains - true).mean()),
        "loss_error": float(np.abs(predicted - arms.loss).mean() / (arms.base_loss - arms.loss).mean()),
        "rank": np.nan if flat else float(spearmanr(predicted, arms.loss).statistic),
        "regret": np.nan if flat else float(arms.loss[best] - arms.loss.min()),
        "right": np.nan if flat else float(arms.loss[best] < arms.loss[0]),
    }


def chance(loss: np.ndarray) -> Row:
    """Means over arms, random (first of `loss` [arms]) among them: what taking any of them would give."""
    return {"regret": float((loss - loss.min()).mean()), "right": float((loss < loss[0]).mean())}


def parts(groups: np.ndarray, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of each part of n trunks; the whole if n is all."""
    trunks = np.unique(groups)
    random = np.array([t for t in trunks if t.startswith("random")])
    designed = np.setdiff1d(trunks, random)
    found = []
    for _ in range(REPETITIONS if n < len(trunks) else 1):
        n_random = min(max(1, n // 4), len(random))
        taken = [*rng.choice(random, n_random, False), *rng.choice(designed, n - n_random, False)]
        found.append(np.flatnonzero(np.isin(groups, taken)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", default="biomed")
    parser.add_argument("--pool", default="pool-30")
    given = parser.parse_args()
    folder = HERE / "evidence" / "results" / given.domain
    pilots = [r for r in lines(folder / given.pool / "pilots.jsonl") if r["status"] == "ok"]
    seeds, arms = arms_of(lines(folder / "runs.jsonl"), given.pool, pilots)
    share = np.full(len(pilots[0]["bin_tokens"]), 1 / len(pilots[0]["bin_tokens"]))  # bins of equal tokens
    runs, asked = table_of(pilots, share), table_of(arms, share)
    rows, rng = [], np.random.default_rng(0)
    for n in TRUNKS:
        for part in parts(np.asarray(runs.group), n, rng):
            tokens = float(
                sum(max(runs.tokens[part][np.asarray(runs.group)[part] == g]) for g in set(runs.group[part]))
            )
            for form in FORMS:
                said = judge(fit_form(form, runs.take(part)), asked)
                rows.append({"form": form, "trunks": n, "tokens": tokens} | said)
    print(page(rows, asked, seeds))
    budget = float(np.mean(asked.tokens))
    draw(rows, budget, HERE.parent / "docs" / "images" / f"pilots-{given.domain}-{given.pool}.png")


def page(rows: list[Row], arms: RunTable, seeds: list[str]) -> str:
    text = [
        f"Arms: {', '.join(ARMS)}; seeds {', '.join(seeds)}; measured gains over random "
        + ", ".join(f"{arms.loss[0] - loss:.3f}" for loss in arms.loss[1:]) + " nats/token.\n",
        "| form | trunks | error of gains | error of losses | rank correlation | regret | beats random |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    luck = chance(arms.loss)
    text.append(f"| chance | 0 | – | – | – | {luck['regret']:.4f} | {luck['right']:.0%} |")
    for form in FORMS:
        for n in TRUNKS:
            mine = [r for r in rows if (r["form"], r["trunks"]) == (form, n)]

            def cell(key: str, digits: int, mine: list[Row] = mine) -> str:
                values = np.array([r[key] for r in mine])
                if np.isnan(values).all():
                    return "–"
                low, high = np.nanquantile(values, [0.05, 0.95])
                span = f" [{low:.{digits}f}, {high:.{digits}f}]" if len(values) > 1 else ""
                return f"{np.nanmean(values):.{digits}f}{span}"

            right = np.array([r["right"] for r in mine])
            share = "–" if np.isnan(right).all() else f"{np.nanmean(right):.0%}"
            text.append(
                f"| {form} | {n} | {cell('gain_error', 4)} | {cell('loss_error', 3)} | {cell('rank', 2)} "
                f"| {cell('regret', 4)} | {share} |"
            )
    return "\n".join(text)


def draw(rows: list[Row], budget: float, path: Path) -> None:
    """Error of gains and regret against pilot tokens: means over parts, 90 % of the parts shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    forms = [f for f in FORMS if get_form(f).uses_composition]
    what = {"gain_error": "error of predicted gains, nats/token", "regret": "regret, nats/token"}
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for axes, (key, label) in zip(panels, what.items(), strict=True):
        for form in forms:
            mine = [[r for r in rows if (r["form"], r["trunks"]) == (form, n)] for n in TRUNKS]
            at = [np.mean([r["tokens"] for r in part]) / budget for part in mine]
            values = [np.array([r[key] for r in part]) for part in mine]
            (line,) = axes.plot(at, [np.mean(v) for v in values], "o-", ms=4, label=form)
            ends = np.array([np.quantile(v, [0.05, 0.95]) for v in values])
            axes.fill_between(at, *ends.T, color=line.get_color(), alpha=0.15, lw=0)
        axes.set_xlabel("trunk tokens / budget")
        axes.set_ylabel(label)
        axes.set_ylim(0, 0.05)
    panels[0].legend()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
