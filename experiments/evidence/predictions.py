"""Question 1: which law, fitted on pilots of at most D/4, predicts the arms at D?

Reads draws and laws of a pool (so it needs OUT) and writes one row a cell and form; errors are on valid, where the laws
were fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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

from .cells import Cell

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


def predict(pool: Path, rows: Sequence[Row]) -> list[Row]:
    """Predictions of every fitted form for every cell that was trained itself and whose draw is kept."""
    if not (pool / "law" / "law.json").exists():
        return []
    law, facts = Law.from_json(pool / "law" / "law.json"), read_json(pool / "landscape" / "landscape.json", "landscape")
    n_params = float(facts["scoring"]["n_params"]) if "n_params" in (facts.get("scoring") or {}) else 0.0
    found = []
    for r in rows:
        draw = pool / "draws" / Cell(*(r[k] for k in ("experiment", "pool", "method", "seed", "size"))).file[:-5]
        if r["status"] != "ok" or "same_as" in r or r["pool"] != pool.name or not draw.exists():
            continue
        asked = composition(read_selected(draw), facts, n_params)
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


def judge(predictions: Sequence[Row], size: float = 1.0) -> dict[str, Row]:
    """Per form at one size, every method counted once: error, as a share of the gain, coverage, rank correlation."""
    found = {}
    for form in dict.fromkeys(p["form"] for p in predictions):
        mine = [p for p in predictions if p["form"] == form and p["size"] == size]
        if not mine:
            continue
        error, covered, means = defaultdict(list), defaultdict(list), defaultdict(list)
        for p in mine:
            error[p["method"]].append(p["predicted"] - p["loss_valid"])
            covered[p["method"]].append(p["low"] <= p["loss_valid"] <= p["high"])
            means[p["method"]].append((p["predicted"], p["loss_valid"]))
        pairs = np.array([np.mean(v, axis=0) for v in means.values()])
        gain = float(mine[0]["base_loss"] - np.mean(pairs[:, 1]))
        mae = float(np.mean([np.mean(np.abs(v)) for v in error.values()]))
        found[form] = {
            "methods": len(error), "mae": mae, "mae_over_gain": mae / gain,
            "bias": float(np.mean([np.mean(v) for v in error.values()])),
            "coverage": float(np.mean([np.mean(v) for v in covered.values()])),
            "spearman": float(stats.spearmanr(*pairs.T).statistic) if len(pairs) > 2 else None,
            "chosen": mine[0]["chosen"],
        }  # fmt: skip
    return found


def table(judged: dict[str, Row]) -> str:
    """Markdown, best first."""
    head = (
        "| form | arms | MAE, nats/token | of the gain | bias | rank correlation | 90 % interval holds |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    lines = []
    for form, j in sorted(judged.items(), key=lambda item: item[1]["mae"]):
        rank = "–" if j["spearman"] is None or np.isnan(j["spearman"]) else f"{j['spearman']:.2f}"
        lines.append(
            f"| {form}{' (chosen)' if j['chosen'] else ''} | {j['methods']} | {j['mae']:.4f} | "
            f"{j['mae_over_gain']:.1%} | {j['bias']:+.4f} | {rank} | {j['coverage']:.0%} |"
        )
    return head + "\n".join(lines)
