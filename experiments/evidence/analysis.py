"""From the committed runs to tables and figures; nothing here trains or reads the data folder.

    python -m evidence analyse --domain biomed      (from experiments/)

writes results/<domain>/summary.json, docs/images/evidence-*.png and the tables between the markers of docs/results.md.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv

from pplscape.manifest import write_atomic

from . import predictions
from .cells import BANDS, SIMPLE, SWEEP_SEEDS
from .falsify import bowl_or_monotone, same_moments, verdicts
from .statistics import FEWEST, document_interval, efficiency, efficiency_interval, holm, paired

Row = dict[str, Any]
Figure = Callable[["Table", Path], None]
ROOT = Path(__file__).parents[2]
NOISES = 3.0
"""A gain of the best composition below so many standard deviations of a seed has no regrets."""


class Table:
    """The runs of one pool."""

    def __init__(self, rows: Iterable[Row], pool: str, test_tokens: Sequence[int] | None = None):
        """`test_tokens` [documents]: scored tokens, in the order of the rows' `nll_test`."""
        self.test_tokens = test_tokens
        self.all = [r for r in rows if r["pool"] == pool]
        self.ok = [r for r in self.all if r["status"] == "ok"]

    def of(self, experiment: str, size: float = 1.0) -> dict[str, dict[int, Row]]:
        """method -> seed -> row."""
        found: dict[str, dict[int, Row]] = defaultdict(dict)
        for r in self.ok:
            if r["experiment"] == experiment and r["size"] == size:
                found[r["method"]][r["seed"]] = r
        return dict(found)

    @cached_property
    def arms(self) -> dict[str, dict[int, Row]]:
        return {m: rows for m, rows in self.of("primary").items() if m != "base"}

    @cached_property
    def base(self) -> Row | None:
        return next((r for r in self.ok if r["method"] == "base"), None)

    @cached_property
    def curve(self) -> dict[float, list[float]]:
        """Random's test losses by size."""
        found: dict[float, list[float]] = defaultdict(list)
        for r in self.ok:
            if r["method"] == "random" and r["experiment"] == "primary":
                found[r["size"]].append(r["loss_test"])
        return dict(sorted(found.items()))

    @cached_property
    def best_simple(self) -> str | None:
        """The simple method with the lowest mean valid loss over the sweep's seeds, of those that have them all."""
        means = {
            m: np.mean([rows[s]["loss_valid"] for s in range(SWEEP_SEEDS)])
            for m, rows in self.arms.items()
            if (m in SIMPLE or m in BANDS) and all(s in rows for s in range(SWEEP_SEEDS))
        }
        return min(means, key=lambda m: means[m]) if means else None

    def differences(self, method: str, reference: str, key: str = "loss_test") -> list[float]:
        """Paired by seed, in ascending seeds."""
        a, b = self.arms.get(method, {}), self.arms.get(reference, {})
        return [a[s][key] - b[s][key] for s in sorted(set(a) & set(b))]

    def failures(self) -> list[Row]:
        return [r for r in self.all if r["status"] != "ok"]


def summarise(table: Table) -> dict[str, Any]:
    """Every statistic of the protocol that the runs so far allow."""
    found = {name: _arm(table, name) for name in table.arms}
    tested = {n: a["random"]["p"] for n, a in found.items() if n != "oracle" and a["random"] and a["random"]["p"]}
    for name, p in holm(tested).items():
        found[name]["random"]["holm"] = p
    noise, best = _noise(table), _compositions(table)
    for arm in found.values():
        if best and arm["random"]:
            arm["regret"] = regret(-arm["random"]["mean"], best["gain"], noise)
    return {
        "base": table.base["loss_test"] if table.base else None,
        "best_simple": table.best_simple,
        "seed_noise": noise,
        "curve": {f"{s:g}": v for s, v in table.curve.items()},
        "arms": found,
        "compositions": best,
        "falsified": _falsified(table),
        "failures": [{k: r.get(k) for k in ("cell", "reason")} for r in table.failures()],
    }


def regret(gain: float, best: float, noise: float | None) -> float | None:
    """1 - gain / best: what is missing of the best composition's gain over random; None where that is within noise.

    `gain`, `best`: nats/token below random; `noise`: standard deviation of random's loss over seeds.
    """
    return None if noise is None or best <= NOISES * noise else 1.0 - gain / best


def _arm(table: Table, name: str) -> dict[str, Any]:
    rows = table.arms[name]
    losses = [rows[s]["loss_test"] for s in sorted(rows)]
    against = {
        other: vars(paired(d)) if (d := table.differences(name, other)) and name != other else None
        for other in ("random", "oracle", table.best_simple or "")
    }
    found: dict[str, Any] = {
        "n": len(rows), "tokens": float(np.mean([r["tokens"] for r in rows.values()])),
        "loss_test": float(np.mean(losses)), "loss_valid": float(np.mean([r["loss_valid"] for r in rows.values()])),
        "bits_per_byte_test": float(np.mean([r["bits_per_byte_test"] for r in rows.values()])),
        "loss_general": float(np.mean([r["loss_general"] for r in rows.values()])),
        "share_clean": float(np.mean([r["share_clean"] for r in rows.values()])),
        "as_random": sum("same_as" in r and "/random/" in r["same_as"] for r in rows.values()),
        "random": against["random"], "oracle": against["oracle"], "best_simple": against.get(table.best_simple or ""),
    }  # fmt: skip
    if name != "random" and against["random"]:
        found["documents"] = _documents(table, name)
        gain, oracle = against["random"]["mean"], table.differences("oracle", "random")
        found["share_of_oracle"] = gain / float(np.mean(oracle)) if oracle else None
    if len(table.curve) > 1 and name != "random":
        sizes = list(table.curve)
        found["efficiency"] = vars(
            efficiency(float(np.mean(losses)), sizes, [np.mean(v) for v in table.curve.values()])
        )
        if len(losses) >= FEWEST:
            found["efficiency"]["interval"] = efficiency_interval(losses, table.curve)
    return found


def _documents(table: Table, name: str) -> tuple[float, float] | None:
    """Interval from documents, of the mean difference to random over seeds."""
    if table.test_tokens is None:
        return None
    a, b = table.arms[name], table.arms["random"]
    seeds = sorted(set(a) & set(b))
    difference = np.mean([np.subtract(a[s]["nll_test"], b[s]["nll_test"]) for s in seeds], axis=0)
    return document_interval(difference, np.asarray(table.test_tokens, dtype=float))


def _noise(table: Table) -> float | None:
    """Standard deviation of random's test loss over seeds."""
    losses = [r["loss_test"] for r in table.arms.get("random", {}).values()]
    return float(np.std(losses, ddof=1)) if len(losses) > 1 else None


def _compositions(table: Table) -> dict[str, Any] | None:
    """The composition that is best on valid, and its gain on test over random of the same seed."""
    random_ = table.arms.get("random", {})
    rows = [r for r in table.ok if r["experiment"] == "compositions" and r["seed"] in random_]
    if not rows:
        return None
    best = min(rows, key=lambda r: r["loss_valid"])
    gains = {r["method"]: random_[r["seed"]]["loss_test"] - r["loss_test"] for r in rows}
    return {
        "n": len(rows), "best": best["method"], "gain": gains[best["method"]], "largest_on_test": max(gains.values()),
        "median": float(np.median(list(gains.values()))), "better_than_random": sum(g > 0 for g in gains.values()),
    }  # fmt: skip


def _falsified(table: Table) -> dict[str, Any]:
    """F1, F4 and F8, where they ran."""
    of = {name: [r for r in table.ok if r["experiment"] == name] for name in ("F1", "F4", "F8")}
    found: dict[str, Any] = {}
    if of["F1"]:
        found["F1"] = same_moments(of["F1"])
    if len({r["method"] for r in of["F4"]}) > 3:
        found["F4"] = bowl_or_monotone(of["F4"])
    if of["F8"]:
        alarms = sum(bool(r["gate"] and r["gate"]["passes"]) for r in of["F8"])
        found["F8"] = {"worlds": len(of["F8"]), "alarms": alarms}
    return found | {"verdicts": verdicts(found)}


# ---- words and pictures ----------------------------------------------------------------------------------------------


def _interval(found: dict[str, Any] | None, which: str = "t") -> str:
    if not found:
        return "–"
    if not found[which]:
        return f"{found['mean']:+.4f} (n = {found['n']})"
    return f"{found['mean']:+.4f} [{found[which][0]:+.4f}, {found[which][1]:+.4f}]"


def _factor(found: dict[str, Any] | None) -> str:
    if not found:
        return "–"
    text = f"{found['censored']}{found['factor']:.2f}"
    return f"{text} [{found['interval'][0]:.2f}, {found['interval'][1]:.2f}]" if found.get("interval") else text


def arms_table(summary: dict[str, Any]) -> str:
    """Markdown; arms by test loss."""
    head = (
        "| arm | seeds | test loss | − random [t, 90 %] | BCa, 90 % | Holm p | − oracle [t, 90 %] | DEF [90 %] | clean "
        "| general loss |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for name, a in sorted(summary["arms"].items(), key=lambda item: item[1]["loss_test"]):
        gap = a["random"]
        bca = f"[{gap['bca'][0]:+.4f}, {gap['bca'][1]:+.4f}]" if gap and gap["bca"] else "–"
        p = f"{gap['holm']:.3f}" if gap and "holm" in gap else "–"
        mark = " (best simple)" if name == summary["best_simple"] else ""
        mark += f" (gate shut in {a['as_random']})" if name.startswith(("auto", "run")) and a["as_random"] else ""
        cells = (
            f"{name}{mark}", a["n"], f"{a['loss_test']:.4f}", _interval(gap), bca, p, _interval(a["oracle"]),
            _factor(a.get("efficiency")), f"{a['share_clean']:.2f}", f"{a['loss_general']:.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if summary["base"]:
        lines.append(f"| before training | | {summary['base']:.4f} | | | | | | | |")
    return head + "\n".join(lines)


def against_simple_table(summary: dict[str, Any]) -> str:
    """Markdown: the law arms against the best simple baseline."""
    name = summary["best_simple"]
    if name is None:
        return "Not run yet: no simple baseline has three seeds."
    lines = [
        f"| {arm} | {a['best_simple']['n']} | {_interval(a['best_simple'])} |"
        for arm, a in summary["arms"].items()
        if a["best_simple"] and arm not in ("random", name)
    ]
    return f"| arm | seeds | − {name} [t, 90 %] |\n|---|---|---|\n" + "\n".join(lines)


def compositions_text(summary: dict[str, Any]) -> str:
    """What random compositions reach, and the regret of every arm."""
    best = summary["compositions"]
    if not best:
        return "Not run yet."
    lines = [
        f"Of {best['n']} random compositions of ten bins of perplexity (one seed) {best['better_than_random']} are "
        f"better than random; their median gain is {best['median']:+.4f} nats/token. The one that is best on valid "
        f"({best['best']}) gains "
        f"{best['gain']:+.4f} on test (largest of all on test {best['largest_on_test']:+.4f})."
    ]
    told = [(n, a["regret"]) for n, a in summary["arms"].items() if a.get("regret") is not None]
    if not told:
        return f"{lines[0]} That is within {NOISES:g} standard deviations of a seed: no regrets are given."
    lines += ["", "| arm | regret, share of that gain |", "|---|---|"]
    return "\n".join(lines + [f"| {n} | {r:+.0%} |" for n, r in sorted(told, key=lambda item: item[1])])


def falsified_text(summary: dict[str, Any]) -> str:
    """Verdicts of F1, F4, F8 with their figures."""
    found = summary["falsified"]
    blocks = [f"**{name}.** {sentence}" for name, sentence in found["verdicts"].items()]
    if "F1" in found:
        lines = ["| F1: pair of shapes | difference of test loss [t, 90 %] | Holm p |", "|---|---|---|"]
        for name, p in found["F1"]["pairs"].items():
            told = "–" if p["holm"] is None else f"{p['holm']:.3f}"
            lines.append(f"| {name} | {_interval(p)} | {told} |")
        shapes = (f"{s} {m[0]:.3f}, {m[1]:.3f}" for s, m in found["F1"]["moments"].items())
        blocks += ["\n".join(lines), f"Mean and spread of log-perplexity that were reached: {'; '.join(shapes)}."]
    if "F4" in found:
        lines = ["| F4: mean at this quantile of the pool | test loss |", "|---|---|"]
        lines += [f"| {name.partition(':')[2]} | {loss:.4f} |" for name, loss in found["F4"]["levels"].items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) or "Not run yet."


def failures_list(summary: dict[str, Any]) -> str:
    return "\n".join(f"* {f['cell']}: {f['reason']}" for f in summary["failures"]) or "None so far."


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "arms": arms_table, "simple": against_simple_table, "compositions": compositions_text, "falsified": falsified_text,
    "failures": failures_list,
}  # fmt: skip
"""Marker on the page -> what stands there."""


def differences_figure(table: Table, path: Path) -> None:
    """Every seed's difference to random, the mean and its t interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in table.arms if n != "random" and table.differences(n, "random")]
    names.sort(key=lambda n: float(np.mean(table.differences(n, "random"))), reverse=True)
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(names) + 1.2), layout="constrained")
    for y, name in enumerate(names):
        d = table.differences(name, "random")
        found = paired(d)
        axes.plot(d, [y] * len(d), "o", ms=4, alpha=0.45, color="tab:green" if name == "oracle" else "tab:blue")
        if found.t:
            axes.plot(found.t, [y, y], "-", lw=2, color="black")
        axes.plot(found.mean, y, "|", ms=14, mew=2, color="black")
    axes.axvline(0, color="grey", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("test loss − random, nats/token (points: seeds; bar: mean, 90 % t interval)")
    _save(figure, path)


def curve_figure(table: Table, path: Path) -> None:
    """Random's loss over D, and where the arms stand."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for size, losses in table.curve.items():
        axes.plot([size] * len(losses), losses, "o", ms=4, color="grey", alpha=0.5)
    axes.plot(list(table.curve), [np.mean(v) for v in table.curve.values()], "-", color="grey", label="random")
    for name, rows in table.arms.items():
        if name != "random":
            axes.plot(1, np.mean([r["loss_test"] for r in rows.values()]), "_", ms=16, mew=2, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(table.curve), [f"{s:g}" for s in table.curve])
    axes.minorticks_off()
    axes.set_xlabel("tokens, multiples of D")
    axes.set_ylabel("test loss, nats/token")
    axes.legend(fontsize=7, ncol=2)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`; text without the marker is unchanged."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)


def analyse(results: Path, domain: str, page: Path = ROOT / "docs" / "results.md") -> None:
    """Summaries, figures and the page's tables, for every pool there are runs of."""
    rows = [json.loads(line) for line in (results / domain / "runs.jsonl").read_text().splitlines()]
    tokens = json.loads((results / domain / "heldout.json").read_text())["test"]["n_tokens"]
    text, summaries = page.read_text() if page.exists() else "", {}
    for pool in sorted({r["pool"] for r in rows}):
        table = Table(rows, pool, tokens)
        if not table.arms:
            continue
        summary = summaries[pool] = summarise(table)
        key = f"{domain}-{pool}"
        predicted = results / domain / pool / "predictions.csv"
        if predicted.exists():
            summary["laws"] = predictions.judge(pyarrow.csv.read_csv(predicted).to_pylist())
            text = fill(text, f"{key}-laws", predictions.table(summary["laws"]))
        for name, make in SECTIONS.items():
            text = fill(text, f"{key}-{name}", make(summary))
        figures: tuple[tuple[str, Figure], ...] = (("differences", differences_figure), ("curve", curve_figure))
        for name, draw in figures:
            draw(table, ROOT / "docs" / "images" / f"evidence-{key}-{name}.png")
    write_atomic(results / domain / "summary.json", (json.dumps(summaries, indent=1) + "\n").encode())
    if text:
        write_atomic(page, text.encode())
