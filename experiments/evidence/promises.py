"""Question 1 as a user has it: what laws on the bins of a selection say of it, and what came.

As `select` tells it: losses by the chosen law, gains over random by the one that decides. Reads laws of a pool (so it
needs OUT); compositions are those of the rows, also where an earlier law drew them. Losses are on valid, where laws are
fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.draw.auto import challenger
from pplscape.laws.law import Law
from pplscape.laws.uncertainty import middle
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
    """A cell's subset as the laws see it; random's tokens by bin, which its row has for other bins, by `share` [K]."""
    tokens = np.array([float(row["tokens"])])
    bins = np.asarray(share) * tokens if row["method"] == "random" else np.asarray(row["bin_tokens"], dtype=float)
    moments = {k: np.array([row[k]]) for k in ("nll_mean", "nll_std", "ppl_mean", "ppl_std")}
    return Compositions(tokens=tokens, unique_tokens=tokens, bin_tokens=bins[None], **moments)


def promised(pool: Path, rows: Sequence[Row]) -> list[Row]:
    """One row a cell of random and of each arm that a law of `pool` sees."""
    mine = [r for r in rows if (r["pool"], r["experiment"], r["size"], r["status"]) == (pool.name, "primary", 1, "ok")]
    found = []
    for part in ("", *LIKENED.values()):
        if not (pool / part / "law" / "law.json").exists():
            continue
        law = Law.from_json(pool / part / "law" / "law.json")
        share = read_json(pool / part / "landscape" / "landscape.json", "landscape")["bins"]["share"]
        arms = [r for r in mine if seen_by(r["method"]) == part and (part or r["method"] in PLAIN)]
        drawn = {r["seed"]: r for r in mine if r["method"] == "random"} if arms else {}
        pairs = [(r, drawn[r["seed"]]) for r in (*drawn.values(), *arms) if r["seed"] in drawn]
        found += [{"law": part, "form": law.form, **said(law, r, other, share)} for r, other in pairs]
    return found


def said(law: Law, row: Row, drawn: Row, share: Sequence[float]) -> Row:
    """What `law` says of one cell, and of its gain over random (`drawn`) of as many tokens."""
    asked, random = composition_of(row, share), composition_of(drawn | {"tokens": row["tokens"]}, share)
    low, high = law.predict_interval(asked, new_run=False)
    decider = challenger(law)
    gain = float((decider.predict(random) - decider.predict(asked))[0])
    gains = np.exp(decider.draw_log_losses(random)) - np.exp(decider.draw_log_losses(asked))
    ends = [float(side[0]) for side in middle(gains, law.covered)]
    return {
        **{k: row[k] for k in ("pool", "method", "seed", "loss_valid")}, "base_loss": law.base_loss,
        "predicted": float(law.predict(asked)[0]), "low": float(low[0]), "high": float(high[0]),
        "decider": decider.form, "gain": gain, "gain_low": min(ends[0], gain), "gain_high": max(ends[1], gain),
    }  # fmt: skip


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
                "law": law or "perplexity", "pool": pool, "method": method,
                **{k: next(iter(these.values()))[k] for k in ("form", "decider")},
                "seeds": len(these), "miss": (mean["predicted"] - loss) / (mean["base_loss"] - loss),
                "holds": mean["low"] <= loss <= mean["high"], "measured_gain": gain,
                "gain_holds": bool(gain) and mean["gain_low"] <= gain["mean"] <= mean["gain_high"], **mean,
            }
        )  # fmt: skip
    return found


_NUMBERS = ("loss_valid", "base_loss", "predicted", "low", "high", "gain", "gain_low", "gain_high")


def promises_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Sentences and the table; random, which is predicted by every law, is not counted among the arms."""
    if not found:
        return "Not run yet."
    head = (
        "dirt", "arm", "law of", "seeds", "loss", "said [90 %]", "miss, of the improvement", "gain over random",
        "said [90 %]",
    )  # fmt: skip
    rows = []
    for f in sorted(found, key=lambda f: (dirt_of(f["pool"]), f["law"], -f["gain"])):
        gain = f["measured_gain"]
        ends = f"[{f['gain_low']:+.3f}, {f['gain_high']:+.3f}]{_out(f['gain_holds'])}"
        told = f"{f['gain']:+.3f} {ends} ({f['decider']})" if gain else "–"
        rows.append(
            (
                f"{dirt_of(f['pool']):.0%}", f["method"], f["law"], f["seeds"],
                f"{f['loss_valid']:.3f}",
                f"{f['predicted']:.3f} [{f['low']:.3f}, {f['high']:.3f}]{_out(f['holds'])} ({f['form']})",
                f"{f['miss']:+.1%}", f"{gain['mean']:+.3f} {ends_text(gain['t'])}" if gain else "–", told,
            )
        )  # fmt: skip
    arms = [f for f in found if f["measured_gain"]]
    miss, losses, gains = (
        np.mean([abs(f["miss"]) for f in arms]), sum(f["holds"] for f in arms), sum(f["gain_holds"] for f in arms)
    )  # fmt: skip
    return (
        f"Of {len(arms)} arms: mean miss {miss:.1%} of the improvement; 90 % intervals hold {losses} losses and "
        f"{gains} gains (! where not).\n\n{table_text(head, rows)}"
    )


def _out(holds: bool) -> str:
    return "" if holds else " !"
