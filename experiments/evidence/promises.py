"""Question 1 as a user has it: what the law that a selection was made with says of it, and what came.

Reads laws of a pool (so it needs OUT); compositions are those of the rows. Losses are on valid, where laws are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.laws.law import Law
from pplscape.manifest import read_json
from pplscape.runs import Compositions

from .across import dirt_of
from .cells import LIKENED, seen_by
from .statistics import paired
from .words import ends_text, table_text

Row = dict[str, Any]
PLAIN = ("auto",)
"""Arms of the law on perplexity alone that are a user's selections; `predictions` has them all."""


def composition_of(row: Row, share: Sequence[float]) -> Compositions:
    """A cell's subset as the laws see it; random's tokens per bin, which its row has for other bins, by `share` [K]."""
    tokens = np.array([float(row["tokens"])])
    bins = np.asarray(share) * tokens if row["method"] == "random" else np.asarray(row["bin_tokens"], dtype=float)
    moments = {k: np.array([row[k]]) for k in ("nll_mean", "nll_std", "ppl_mean", "ppl_std")}
    return Compositions(tokens=tokens, unique_tokens=tokens, bin_tokens=bins[None], **moments)


def promised(pool: Path, rows: Sequence[Row]) -> list[Row]:
    """One row a cell of random and of each arm that a law of `pool` sees: the chosen law's loss and gain over random.

    `gain_low`, `gain_high`: 5 % and 95 % of the law's refits.
    """
    mine = [r for r in rows if (r["pool"], r["experiment"], r["size"], r["status"]) == (pool.name, "primary", 1, "ok")]
    found = []
    for part in ("", *LIKENED.values()):
        if not (pool / part / "law" / "law.json").exists():
            continue
        law = Law.from_json(pool / part / "law" / "law.json")
        share = read_json(pool / part / "landscape" / "landscape.json", "landscape")["bins"]["share"]
        arms = [r for r in mine if seen_by(r["method"]) == part and (part or r["method"] in PLAIN)]
        drawn = [r for r in mine if r["method"] == "random"] if arms else []
        found += [{"law": part, "form": law.form, **said(law, r, share)} for r in drawn + arms]
    return found


def said(law: Law, row: Row, share: Sequence[float]) -> Row:
    """What `law` says of one cell."""
    asked = composition_of(row, share)
    random = composition_of(row | {"method": "random"}, share)
    told: Row = {k: row[k] for k in ("pool", "method", "seed", "loss_valid")} | {"base_loss": law.base_loss}
    told |= {"predicted": float(law.predict(asked)[0])}
    told |= {"gain": float(law.predict(random)[0]) - told["predicted"]}
    low, high = law.predict_interval(asked, new_run=False)
    gains = np.exp(law.draw_log_losses(random))[:, 0] - np.exp(law.draw_log_losses(asked))[:, 0]
    ends = [float(v) for v in np.quantile(gains, [0.05, 0.95])]
    return told | {"low": float(low[0]), "high": float(high[0]), "gain_low": ends[0], "gain_high": ends[1]}


def kept(rows: Sequence[Row]) -> list[Row]:
    """By law and arm: means over seeds, the miss as a share of the improvement, and whether the intervals hold."""
    found = []
    for law, pool, method in dict.fromkeys((r["law"], r["pool"], r["method"]) for r in rows):
        these = {r["seed"]: r for r in rows if (r["law"], r["pool"], r["method"]) == (law, pool, method)}
        drawn = {r["seed"]: r for r in rows if (r["law"], r["pool"], r["method"]) == (law, pool, "random")}
        mean = {k: float(np.mean([r[k] for r in these.values()])) for k in _NUMBERS}
        loss = mean["loss_valid"]
        seeds = sorted(set(these) & set(drawn)) if method != "random" else []
        gain = vars(paired([drawn[s]["loss_valid"] - these[s]["loss_valid"] for s in seeds])) if seeds else None
        found.append(
            {
                "law": law or "perplexity", "form": next(iter(these.values()))["form"], "pool": pool, "method": method,
                "seeds": len(these), "miss": (mean["predicted"] - loss) / (mean["base_loss"] - loss),
                "holds": mean["low"] <= loss <= mean["high"], "measured_gain": gain,
                "gain_holds": bool(gain) and mean["gain_low"] <= gain["mean"] <= mean["gain_high"], **mean,
            }
        )  # fmt: skip
    return found


_NUMBERS = ("loss_valid", "base_loss", "predicted", "low", "high", "gain", "gain_low", "gain_high")


def promises_text(found: Sequence[Mapping[str, Any]]) -> str:
    """One sentence and the table."""
    if not found:
        return "Not run yet."
    head = (
        "dirt", "arm", "law of", "seeds", "loss", "said [90 %]", "miss, of the improvement", "gain over random",
        "said [90 %]",
    )  # fmt: skip
    rows = []
    for f in sorted(found, key=lambda f: (dirt_of(f["pool"]), f["law"], -f["gain"])):
        gain = f["measured_gain"]
        told = f"{f['gain']:+.3f} [{f['gain_low']:+.3f}, {f['gain_high']:+.3f}]{_out(f['gain_holds'])}" if gain else "–"
        rows.append(
            (
                f"{dirt_of(f['pool']):.0%}", f["method"], f"{f['law']} ({f['form']})", f["seeds"],
                f"{f['loss_valid']:.3f}",
                f"{f['predicted']:.3f} [{f['low']:.3f}, {f['high']:.3f}]{_out(f['holds'])}", f"{f['miss']:+.1%}",
                f"{gain['mean']:+.3f} {ends_text(gain['t'])}" if gain else "–", told,
            )
        )  # fmt: skip
    gains = [f for f in found if f["measured_gain"]]
    return (
        f"Mean miss {np.mean([abs(f['miss']) for f in found]):.1%} of the improvement; intervals hold "
        f"{sum(f['holds'] for f in found)} of {len(found)} losses and {sum(f['gain_holds'] for f in gains)} of "
        f"{len(gains)} gains (! where not).\n\n{table_text(head, rows)}"
    )


def _out(holds: bool) -> str:
    return "" if holds else " !"
