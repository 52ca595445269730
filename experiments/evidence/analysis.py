"""From the committed runs to tables and figures; nothing here trains or reads the data folder.

    python -m evidence analyse --domain biomed      (from experiments/)

writes results/<domain>/summary.json, docs/images/evidence-*.png and the tables between the markers of docs/results.md.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv

from pplscape.manifest import write_atomic

from . import predictions, promises
from .across import dose, dose_text, law_beyond_mix, law_beyond_mix_table, transferred, transferred_text
from .cells import BANDS, CHOOSE, LARGER, LIKENED, REPLAY, SIMPLE, SWEEP_SEEDS, chosen_band, plan
from .contrasts import changed_draws, interaction, moved_optimum
from .costs import costs
from .falsify import bowl_or_monotone, same_moments, verdicts
from .figures import curve_figure, differences_figure
from .statistics import document_interval, efficiency, efficiency_interval, holm, of_arm, paired
from .words import SECTIONS

Row = dict[str, Any]
Figure = Callable[["Table", Path], None]
ROOT = Path(__file__).parents[2]
NOISES = 3.0
"""A gain of the best composition below so many standard deviations of a seed has no regrets."""
BRIDGE = "again"
"""Experiment of the cells that were run once more, with newer code."""


class Table:
    """The runs of one pool."""

    def __init__(self, rows: Iterable[Row], pool: str, test: Mapping[str, Sequence[Any]] | None = None):
        """`test`: n_tokens and source [documents], in the order of the rows' `nll_test`."""
        self.pool, self.test = pool, test
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
    def curve(self) -> dict[float, dict[int, float]]:
        """Random's test losses: size -> seed -> loss."""
        found: dict[float, dict[int, float]] = defaultdict(dict)
        for r in self.ok:
            if r["method"] == "random" and r["experiment"] == "primary":
                found[r["size"]][r["seed"]] = r["loss_test"]
        return dict(sorted(found.items()))

    @cached_property
    def simple(self) -> dict[str, int]:
        """Candidates for the best simple method -> how many of the sweep's seeds they have."""
        losses = defaultdict(list)
        for r in self.ok:
            if r["experiment"] == CHOOSE:
                losses[r["method"]].append(r["loss_valid"])
        chosen = len(losses) == len(BANDS)
        band = chosen_band({m: float(np.mean(x)) for m, x in losses.items()}) if chosen else "band"
        return {m: sum(s in self.arms.get(m, {}) for s in range(SWEEP_SEEDS)) for m in (*SIMPLE, band)}

    @cached_property
    def best_simple(self) -> str | None:
        """The simple method with the lowest mean valid loss over the sweep's seeds, of those that have them all."""
        means = {
            m: np.mean([self.arms[m][s]["loss_valid"] for s in range(SWEEP_SEEDS)])
            for m, n in self.simple.items()
            if n == SWEEP_SEEDS
        }
        return min(means, key=lambda m: means[m]) if means else None

    def shared(self, method: str, reference: str) -> list[int]:
        """Seeds that both arms have, ascending."""
        return sorted(set(self.arms.get(method, {})) & set(self.arms.get(reference, {})))

    def differences(self, method: str, reference: str, key: str = "loss_test") -> list[float]:
        """Paired by seed, in ascending seeds."""
        return [self.arms[method][s][key] - self.arms[reference][s][key] for s in self.shared(method, reference)]

    def trained(self, method: str) -> frozenset[tuple[int, str]]:
        """What an arm's runs trained: equal for arms that made the same decisions."""
        return frozenset((s, r.get("trained_as", r["cell"])) for s, r in self.arms[method].items())

    def failures(self) -> list[Row]:
        return [r for r in self.all if r["status"] != "ok"]


def summarise(table: Table) -> dict[str, Any]:
    """Every statistic of the protocol that the runs so far allow."""
    references = {"random": "random", "oracle": "oracle", "best_simple": table.best_simple}
    found = {name: _arm(table, name, references) for name in table.arms}
    for key, reference in references.items():
        compared = {n: a[key] for n, a in found.items() if n not in ("random", "oracle", reference)}
        _adjust(table, {n: c for n, c in compared.items() if c and c["p"] is not None})
    noise, best = _noise(table), _compositions(table)
    for name, arm in found.items():
        if best and name != "random":
            arm["regret"] = _regret(table, name, best, noise)
    return {
        "base": table.base["loss_test"] if table.base else None,
        "base_general": table.base["loss_general"] if table.base else None,
        "best_simple": table.best_simple,
        "simple": table.simple,
        "seed_noise": noise,
        "curve": {f"{s:g}": list(v.values()) for s, v in table.curve.items()},
        "arms": found,
        "commits": _commits(table),
        "missing": _missing(table),
        "compositions": best,
        "falsified": _falsified(table),
        "replay": _replayed(table),
        "transferred": transferred(table.ok, table.arms) if any(r["experiment"] == LARGER for r in table.ok) else {},
        "failures": [{k: r.get(k) for k in ("cell", "reason")} for r in table.failures()],
    }


def _arm(table: Table, name: str, references: Mapping[str, str | None]) -> dict[str, Any]:
    rows = table.arms[name]
    losses = {s: rows[s]["loss_test"] for s in sorted(rows)}
    mean = {
        k: float(np.mean([r[k] for r in rows.values()]))
        for k in ("tokens", "loss_test", "loss_valid", "bits_per_byte_test", "loss_general", "share_clean")
    }
    shut = sum(r.get("used") == "random" for r in rows.values() if r.get("gate"))
    found: dict[str, Any] = {"n": len(rows), **mean, "as_random": shut}
    found |= {key: _against(table, name, other) for key, other in references.items()}
    general = table.differences(name, "random", "loss_general")
    found["general"] = vars(paired(general)) if general and name != "random" else None
    gain, oracle = table.differences(name, "random"), table.differences("oracle", "random")
    if name != "random" and gain and oracle:
        found["share_of_oracle"] = float(np.mean(gain) / np.mean(oracle))
    curve = of_arm(losses, table.curve)
    if len(curve) > 1 and name != "random":
        means = [float(np.mean(list(v.values()))) for v in curve.values()]
        ends = efficiency_interval(losses, curve)
        found["efficiency"] = {
            **vars(efficiency(mean["loss_test"], list(curve), means)),
            "interval": [vars(end) for end in ends] if ends else None,
        }
    return found


def _against(table: Table, name: str, other: str | None) -> dict[str, Any] | None:
    """Paired statistics of the difference to another arm, and what of it is the test text's own (by source, too)."""
    if other is None or name == other or not table.shared(name, other):
        return None
    found = vars(paired(table.differences(name, other)))
    if table.test is None:
        return found
    a, b = table.arms[name], table.arms[other]
    nll = np.mean([np.subtract(a[s]["nll_test"], b[s]["nll_test"]) for s in table.shared(name, other)], axis=0)
    tokens, source = np.asarray(table.test["n_tokens"], dtype=float), np.asarray(table.test["source"])
    parts = {s: source == s for s in sorted(set(table.test["source"]))}
    return found | {
        "documents": document_interval(nll, tokens),
        "sources": {
            s: {
                "n": int(mine.sum()), "mean": float(nll[mine].sum() / tokens[mine].sum()),
                "documents": document_interval(nll[mine], tokens[mine]),
            }
            for s, mine in parts.items()
        },
    }  # fmt: skip


def _adjust(table: Table, compared: Mapping[str, dict[str, Any]]) -> None:
    """Holm's p beside every p; arms whose runs are the same runs count once."""
    twins: dict[frozenset[tuple[int, str]], list[str]] = defaultdict(list)
    for name in compared:
        twins[table.trained(name)].append(name)
    adjusted = holm({names[0]: compared[names[0]]["p"] for names in twins.values()})
    for names in twins.values():
        for name in names:
            compared[name]["holm"] = adjusted[names[0]]


def _noise(table: Table) -> float | None:
    """Standard deviation of random's test loss over seeds."""
    losses = [r["loss_test"] for r in table.arms.get("random", {}).values()]
    return float(np.std(losses, ddof=1)) if len(losses) > 1 else None


def _compositions(table: Table) -> dict[str, Any] | None:
    """The composition that is best on valid, and gains over random at the same seeds (means over a composition's)."""
    random_ = table.arms.get("random", {})
    gains: dict[str, dict[str, dict[int, float]]] = defaultdict(dict)
    for name, rows in table.of("compositions").items():
        for key in ("loss_valid", "loss_test"):
            gains[key][name] = {s: random_[s][key] - r[key] for s, r in rows.items() if s in random_}
    on_valid, on_test = (
        {name: float(np.mean(list(g.values()))) for name, g in gains[key].items() if g}
        for key in ("loss_valid", "loss_test")
    )
    if not on_test:
        return None
    best = max(on_valid, key=lambda name: on_valid[name])
    return {
        "n": len(on_test), "best": best, "gain": on_test[best], "largest_on_test": max(on_test.values()),
        "median": float(np.median(list(on_test.values()))), "better_than_random": sum(g > 0 for g in on_test.values()),
        "gains": {str(seed): gain for seed, gain in sorted(gains["loss_test"][best].items())},
    }  # fmt: skip


def _regret(table: Table, name: str, best: Mapping[str, Any], noise: float | None) -> dict[str, Any] | None:
    random_, arm = table.arms["random"], table.arms[name]
    known = {int(s): gain for s, gain in best["gains"].items()}
    seeds = [s for s in known if s in random_ and s in arm]
    gains = [random_[s]["loss_test"] - arm[s]["loss_test"] for s in seeds]
    return regret(gains, [known[s] for s in seeds], noise) if seeds else None


def regret(gains: Sequence[float], best: Sequence[float], noise: float | None) -> dict[str, Any] | None:
    """What an arm lacks of the best composition's gain over random, as a share of it; None where that is within noise.

    `gains`, `best` [seeds]: nats/token below random, of the arm and of the composition at the same seeds; `noise`:
    standard deviation of random's loss over seeds. `interval`: t interval of what is missing, from 3 seeds on; the best
    composition's mean gain is taken as known.
    """
    gain = float(np.mean(best))
    if noise is None or gain <= NOISES * noise:
        return None
    missing = paired(np.subtract(best, gains).tolist())
    ends = [end / gain for end in missing.t] if missing.t else None
    return {"n": missing.n, "share": missing.mean / gain, "interval": ends}


def _commits(table: Table) -> dict[str, Any]:
    """How many of the arms' rows (random's curve included) each commit made, and what runs made again say.

    `after`: commits whose first row is newer than the last run made again, so that nothing ties them to the others.
    """
    rows = sorted((r for r in table.ok if r["experiment"] == "primary"), key=lambda r: r.get("finished", ""))
    made: dict[str, int] = defaultdict(int)
    for r in rows:
        made[r.get("revision", "unknown")] += 1
    bridged = {r.get("revision", "unknown") for r in table.ok if r["experiment"].startswith(BRIDGE)}
    last = max((r.get("finished", "") for r in table.ok if r["experiment"].startswith(BRIDGE)), default="")
    before = {r.get("revision", "unknown") for r in rows if r.get("finished", "") <= last}
    first = {(r["method"], r["seed"], r["size"]): r for r in rows}
    again = [
        {
            "method": r["method"], "seed": r["seed"], "revision": r.get("revision", "unknown"),
            "of": was.get("revision", "unknown"), "difference": r["loss_test"] - was["loss_test"],
        }
        for r in table.ok
        if r["experiment"].startswith(BRIDGE) and (was := first.get((r["method"], r["seed"], r["size"])))
    ]  # fmt: skip
    return {"rows": dict(made), "again": again, "after": [c for c in made if c not in before | bridged]}


def _missing(table: Table) -> list[dict[str, Any]]:
    """Cells of the protocol's plan that have no row: method, experiment, size and seeds."""
    band = next(m for m in table.simple if m not in SIMPLE)
    if band not in BANDS:
        return []
    there = {(r["experiment"], r["method"], r["seed"], r["size"]) for r in table.all}
    seeds: dict[tuple[str, str, float], list[int]] = defaultdict(list)
    for c in plan(table.pool, band):
        if (c.experiment, c.method, c.seed, c.size) not in there:
            seeds[c.experiment, c.method, c.size].append(c.seed)
    return [{"experiment": e, "method": m, "size": size, "seeds": s} for (e, m, size), s in seeds.items()]


def _replayed(table: Table) -> dict[str, Any]:
    """Arms with replay, each against the same draw without, paired by seed: what is remembered, and what it costs."""
    found: dict[str, Any] = {}
    for name, rows in table.of("replay").items():
        plain = table.arms.get(name.partition(REPLAY)[0], {})
        seeds = sorted(set(rows) & set(plain))
        if seeds:
            found[name] = {
                "tokens": float(np.mean([rows[s]["replay_tokens"] / rows[s]["tokens"] for s in seeds])),
                **{
                    key: vars(paired([rows[s][f"loss_{key}"] - plain[s][f"loss_{key}"] for s in seeds]))
                    for key in ("test", "general")
                },
                "loss_general": float(np.mean([rows[s]["loss_general"] for s in seeds])),
            }
    return found


def _falsified(table: Table) -> dict[str, Any]:
    """F1 to F4, F7 and F8, where they ran."""
    of = {name: [r for r in table.ok if r["experiment"] == name] for name in ("F1", "F2", "F3", "F4", "F7", "F8")}
    found: dict[str, Any] = {}
    if of["F1"]:
        found["F1"] = same_moments(of["F1"])
    if contrast := interaction(of["F2"]) if of["F2"] else None:
        found["F2"] = contrast
    if moved := moved_optimum(of["F3"], of["F4"]):
        found["F3"] = moved
    if len({r["method"] for r in of["F4"]}) > 3:
        found["F4"] = bowl_or_monotone(of["F4"])
    if changed := changed_draws(of["F7"], table.arms):
        found["F7"] = changed
    if of["F8"]:
        alarms = sum(bool(r["gate"] and r["gate"]["passes"]) for r in of["F8"])
        found["F8"] = {"worlds": len(of["F8"]), "alarms": alarms}
    return found | {"verdicts": verdicts(found)}


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`; text without the marker is unchanged."""
    pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)


def read_promises(file: Path) -> list[Row]:
    """Rows of `promises.promised`; the law of perplexity alone has an empty name."""
    return [r | {"law": r["law"] or ""} for r in pyarrow.csv.read_csv(file).to_pylist()]


def analyse(results: Path, domain: str, page: Path = ROOT / "docs" / "results.md") -> None:
    """Summaries, figures and the page's tables, for every pool there are runs of."""
    rows = [json.loads(line) for line in (results / domain / "runs.jsonl").read_text().splitlines()]
    test = json.loads((results / domain / "heldout.json").read_text())["test"]
    text, summaries = page.read_text() if page.exists() else "", {}
    for pool in sorted({r["pool"] for r in rows}):
        table = Table(rows, pool, test)
        if not table.arms:
            continue
        summary = summaries[pool] = summarise(table)
        summary["costs"] = costs(results / domain / pool, summary["arms"], LIKENED)
        key = f"{domain}-{pool}"
        predicted = results / domain / pool / "predictions.csv"
        if predicted.exists():
            arms, drawn = predictions.parted(pyarrow.csv.read_csv(predicted).to_pylist())
            summary["laws"] = predictions.judge(arms)
            text = fill(text, f"{key}-laws", predictions.table(summary["laws"]))
            if drawn:
                summary["laws_of_compositions"] = predictions.judge(drawn)
                told = predictions.table(summary["laws_of_compositions"])
                text = fill(text, f"{key}-composition-laws", told)
        for name, make in SECTIONS.items():
            text = fill(text, f"{key}-{name}", make(summary))
        text = fill(text, f"{key}-larger", transferred_text(summary["transferred"]))
        figures: tuple[tuple[str, Figure], ...] = (("differences", differences_figure), ("curve", curve_figure))
        for name, draw in figures:
            draw(table, ROOT / "docs" / "images" / f"evidence-{key}-{name}.png")
    said = [r for file in sorted((results / domain).glob("pool-*/promises.csv")) for r in read_promises(file)]
    text = fill(text, f"{domain}-promises", promises.promises_text(promises.kept(said)))
    text = fill(text, f"{domain}-dose", dose_text(dose(rows)))
    text = fill(text, f"{domain}-mix", law_beyond_mix_table(law_beyond_mix(rows)))
    write_atomic(results / domain / "summary.json", (json.dumps(summaries, indent=1) + "\n").encode())
    if text:
        write_atomic(page, text.encode())
