"""Question 1: which law, fitted on pilots of at most D/4, predicts the arms at D?

Reads draws and laws of a pool (so it needs OUT) and writes one row a cell and form; errors are on valid, where the laws
were fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from pplscape.draw.stream import read_selected
from pplscape.laws.law import Law
from pplscape.manifest import read_json
from pplscape.runs import Compositions
from pplscape.statistics import Bins, moments, on_scale

from .cells import BY_BYTE, Cell, seen_by
from .promises import composition_of

Row = dict[str, Any]


def composition(selected: pa.Table, facts: dict[str, Any], n_params: float) -> Compositions:
    """One subset (schema.SELECTED) as the laws see it; `facts`: landscape.json."""
    times = np.asarray(selected["repeats"]).astype(np.int64)
    x, length = np.asarray(selected["nll"], dtype=float), np.asarray(selected["length"])
    bins = Bins(tuple(facts["bins"]["edges"]), tuple(facts["bins"]["share"]))
    columns: dict[str, Any] = {}
    for scale in ("nll", "ppl"):
        low, high = facts["winsor"][scale]
        shape = moments(np.repeat(on_scale(x, scale), times), (float(low), float(high)))
        columns |= {f"{scale}_mean": np.array([shape.mean]), f"{scale}_std": np.array([shape.std])}
    return Compositions(
        tokens=np.array([float((length * times).sum())]), unique_tokens=np.array([float(length.sum())]),
        bin_tokens=bins.tokens(x, length * times)[None].astype(float), n_params=np.array([n_params]),
        bin_unique_tokens=bins.tokens(x, length)[None].astype(float), **columns,
    )  # fmt: skip


Composed = Callable[[int, int, int], pa.Table]
"""`Bench.composition`: number, budget, seed -> schema.SELECTED."""


def predict(pool: Path, rows: Sequence[Row], composed: Composed) -> list[Row]:
    """Predictions of every fitted form for every cell that was trained itself, on no other text; where the draw is not
    kept, of the tokens by bin and the moments in its row. Random compositions are drawn again."""
    if not (pool / "law" / "law.json").exists():
        return []
    law, facts = Law.from_json(pool / "law" / "law.json"), read_json(pool / "landscape" / "landscape.json", "landscape")
    share = facts["bins"]["share"]
    n_params = float(facts["scoring"]["n_params"]) if "n_params" in (facts.get("scoring") or {}) else 0.0
    found = []
    for r in rows:
        cell = Cell(*(r[k] for k in ("experiment", "pool", "method", "seed", "size")))
        draw, kind = pool / "draws" / cell.file[:-5], cell.method.partition(":")
        if cell.method.startswith(BY_BYTE):  # its scores are in other units than the laws' bins
            continue
        if r["status"] != "ok" or cell.replay_share or "same_as" in r or r["pool"] != pool.name:
            continue
        if kind[0] == "composition":
            asked = composition(composed(int(kind[2]), r["budget"], cell.seed), facts, n_params)
        elif draw.exists():
            asked = composition(read_selected(draw), facts, n_params)
        elif r.get("bin_tokens") and len(r["bin_tokens"]) == len(share):
            asked = replace(composition_of(r, share), n_params=np.array([n_params]))
        else:
            continue
        for entry in (law, *law.alternatives):
            low, high = entry.predict_interval(asked) if entry.resamples else (np.full(1, np.nan),) * 2
            found.append(
                {
                    "cell": r["cell"],
                    "method": r["method"],
                    "seed": r["seed"],
                    "size": r["size"],
                    "loss_valid": r["loss_valid"],
                    "form": entry.form,
                    "chosen": entry.form == law.form,
                    "base_loss": law.base_loss,
                    "predicted": float(entry.predict(asked)[0]),
                    "low": float(low[0]),
                    "high": float(high[0]),
                    "extrapolates": bool(entry.extrapolates(asked)[0]),
                }
            )
    return found


def parted(predictions: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(arms, random compositions with random)."""
    drawn = [p for p in predictions if p["method"].startswith("composition:")]
    arms = [p for p in predictions if not p["method"].startswith("composition:")]
    return arms, drawn + [p for p in arms if p["method"] == "random"] if drawn else []


NOTHING = "no composition (random's measured loss)"
"""Baseline: every arm ends where random ends, which no law knows."""


SAME = 1e-9
"""Predictions no further apart, in nats/token, are one: means of the same number differ by rounding."""


def baseline(predictions: Sequence[Row]) -> list[Row]:
    """One row an arm's run, predicted to end at random's mean measured loss; none if random is not there."""
    runs = list({(p["method"], p["seed"]): p for p in predictions}.values())
    random_ = [p["loss_valid"] for p in runs if p["method"] == "random"]
    told = {"form": NOTHING, "predicted": float(np.mean(random_)), "low": np.nan, "high": np.nan} if random_ else {}
    return [p | told | {"chosen": False} for p in runs if told]


def judge(predictions: Sequence[Row], size: float = 1.0) -> dict[str, Row]:
    """Per form at one size, every method counted once: errors of losses and of gains over random, coverage, ranks.

    `mae_over_gain`: error over the mean improvement on the base model. `gain_error`: of the gain over random, which is
    paired by seed. `held`: arms whose mean loss lies within the mean interval; None where a form has no interval.
    `seen`: the same for the arms that choose by what bins of perplexity show (`seen_by`).
    """
    mine = [p for p in predictions if p["size"] == size]
    mine += baseline(mine)
    found = {}
    for form in dict.fromkeys(p["form"] for p in mine):
        these = [p for p in mine if p["form"] == form]
        found[form] = _judge(these) | {"seen": _judge([p for p in these if seen_by(p["method"]) == ""])}
    return found


def _judge(mine: Sequence[Row]) -> Row:
    """`mine`: predictions of one form."""
    arms: dict[str, dict[int, Row]] = defaultdict(dict)
    for p in mine:
        arms[p["method"]][p["seed"]] = p

    def mean(method: str, key: str, seeds: Iterable[int] | None = None) -> float:
        return float(np.mean([arms[method][s][key] for s in (arms[method] if seeds is None else seeds)]))

    said, true = (np.array([mean(m, key) for m in arms]) for key in ("predicted", "loss_valid"))
    mae = float(
        np.mean([np.mean([abs(p["predicted"] - p["loss_valid"]) for p in rows.values()]) for rows in arms.values()])
    )
    gains = []
    for method in arms:
        seeds = sorted(set(arms[method]) & set(arms.get("random", {})))
        if method != "random" and seeds:
            gain = {k: mean("random", k, seeds) - mean(method, k, seeds) for k in ("predicted", "loss_valid")}
            gains.append(abs(gain["predicted"] - gain["loss_valid"]))
    low, high = (np.array([mean(m, key) for m in arms]) for key in ("low", "high"))
    ranked = len(arms) > 2 and np.ptp(said) > SAME
    return {
        "methods": len(arms), "mae": mae, "mae_over_gain": mae / float(mine[0]["base_loss"] - true.mean()),
        "bias": float((said - true).mean()),
        "gain_error": float(np.mean(gains)) if gains else None,
        "held": None if np.isnan(low).any() else int(((low <= true) & (true <= high)).sum()),
        "spearman": float(stats.spearmanr(said, true).statistic) if ranked else None,
        "chosen": mine[0]["chosen"],
    }  # fmt: skip


def table(judged: dict[str, Row]) -> str:
    """Markdown, best first; in brackets: the arms that choose by what bins of perplexity show."""
    head = (
        "| form | arms | MAE, nats/token | of the improvement | bias | error of gains over random | rank correlation "
        "| 90 % interval holds |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for form, j in sorted(judged.items(), key=lambda item: item[1]["mae"]):
        lines.append(
            f"| {form}{' (chosen)' if j['chosen'] else ''} | {_both(j, 'methods', 'd')} | {_both(j, 'mae', '.4f')} | "
            f"{_both(j, 'mae_over_gain', '.1%')} | {_both(j, 'bias', '+.4f')} | {_both(j, 'gain_error', '.4f')} | "
            f"{_both(j, 'spearman', '.2f')} | {_both(j, 'held', 'd')} |"
        )
    return head + "\n".join(lines)


def _both(j: Row, key: str, form: str) -> str:
    told = ["–" if v is None else f"{v:{form}}" for v in (j[key], j["seen"][key])]
    return told[0] if told[0] == told[1] else f"{told[0]} ({told[1]})"
