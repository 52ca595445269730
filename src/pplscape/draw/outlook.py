"""What a law expects of a selection: loss, gain over random, tokens saved, at this and other budgets.

Everything is asked of the law in one call, and of the resamples in one call, so that gains are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplscape.draw.describe import scaled, stack
from pplscape.draw.gate import Verdict, judge
from pplscape.runs import Compositions
from pplscape.statistics import Floats

LEVEL = 0.9
QUANTILES = ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)
REACH = 8.0
"""Tokens saved are looked for between 1/REACH and REACH times the budget, and censored beyond."""
Predict = Callable[[Compositions], Floats]
Interval = Callable[[Compositions], tuple[Floats, Floats]]


@dataclass(frozen=True)
class Oracle:
    """How losses (nats/token) are predicted for n compositions."""

    predict: Predict
    """[n] by the law that was chosen"""
    interval: Interval
    """(low [n], high [n]) at LEVEL, by the same law"""
    resampled: Predict | None
    """[B, n] with the law chosen again in every resample; None without pilots."""
    seeds: int
    """Random-regime seeds among the pilots."""
    form: str = ""
    """Of the law that was chosen."""
    decider: Predict | None = None
    """[n] by the law that decided the selection, where it is another one: the chosen law may see no composition."""
    decider_form: str = ""


@dataclass(frozen=True)
class Outlook:
    """`predicted`, `gate` and `budget_curve` of selection.json."""

    predicted: dict[str, Any]
    gate: Verdict
    curve: list[dict[str, Any]]


def budgets(budget: int, most: int, n: int = 9) -> list[int]:
    """`n` budgets from D/8 to 2D, evenly spaced in the logarithm, at most `most` tokens."""
    return sorted({int(b) for b in np.geomspace(max(budget / 8, 1), min(2 * budget, most), n)})


def look(
    oracle: Oracle,
    selected: Compositions,
    tokens: float,
    pool: Compositions,
    curve: Sequence[tuple[Compositions, float]],
) -> Outlook:
    """Outlook of one selection against random with `tokens` tokens (its own, or the budget it left unspent on purpose).

    `pool`: the whole pool as one composition, of which a random draw is a share; beyond one epoch it repeats.
    `curve`: the selection at other budgets, each with the tokens that random is given. Losses are the chosen law's,
    whichever law decided the selection; gains and tokens saved are those of the resamples, or, without pilots, of the
    law that decided.
    """
    grid = tokens * np.geomspace(1 / REACH, REACH, 49)
    whole = float(pool.tokens[0])
    rows = [selected, scaled(pool, [tokens / whole, *(grid / whole)])]
    for other, spent in curve:
        rows += [other, scaled(pool, [spent / whole])]
    asked = stack(rows)
    loss, (low, high) = oracle.predict(asked), oracle.interval(asked)
    told = oracle.decider(asked) if oracle.decider else loss
    draws = oracle.resampled(asked) if oracle.resampled else None

    def at(i: int) -> dict[str, Any]:
        return {"loss": number(loss[i]), "low": number(low[i]), "high": number(high[i])}

    def gains(i: int) -> Floats | None:
        return None if draws is None else draws[:, i + 1] - draws[:, i]

    end = 2 + len(grid)
    predicted = {
        "selection": at(0),
        "random": at(1),
        "gain": _gain(float(told[1] - told[0]), gains(0)),
        "efficiency": None
        if np.ptp(loss[2:end]) == 0  # by the chosen law tokens change nothing: none are saved, none are wasted
        else efficiency(grid / tokens, told[2:end], told[0], draws),
        "level": LEVEL,
        "form": oracle.form,
        "decider": oracle.decider_form or oracle.form,
    }
    points = [
        {
            "tokens": int(spent),
            "selection": at(i),
            "random": at(i + 1),
            "gain": _gain(float(told[i + 1] - told[i]), gains(i)),
        }
        for i, (_, spent) in zip(range(end, len(loss), 2), curve, strict=True)
    ]
    return Outlook(predicted, judge(gains(0), oracle.seeds), points)


def efficiency(factors: Floats, random_loss: Floats, loss: float, draws: Floats | None) -> dict[str, Any]:
    """How many times the tokens random needs for the selection's loss; `draws` [B, 2 + grid] as in `look`.

    Censored (at `factors`' ends) when random does not reach the loss, or is better already, within the grid.
    """
    factor = crossing(factors, random_loss, loss)
    found: dict[str, Any] = {"factor": factor, "low": None, "high": None, "censored": _censored(factors, factor)}
    if draws is not None:
        each = [crossing(factors, d[2 : 2 + len(factors)], d[0]) for d in draws if np.all(np.isfinite(d))]
        if each:
            found["low"], found["factor"], found["high"] = (float(q) for q in np.quantile(each, QUANTILES))
            found["censored"] = _censored(factors, found["factor"])
    return found


def crossing(factors: Floats, random_loss: Floats, loss: float) -> float:
    """Where a falling curve [n] over `factors` [n] first reaches `loss`, interpolated in log factor; ends if never."""
    falling = np.minimum.accumulate(random_loss)
    below = np.flatnonzero(falling <= loss)
    if not len(below):
        return float(factors[-1])
    i = int(below[0])
    if i == 0:
        return float(factors[0])
    step = falling[i - 1] - falling[i]
    part = (falling[i - 1] - loss) / step if step > 0 else 1.0
    return float(factors[i - 1] * (factors[i] / factors[i - 1]) ** part)


def number(value: float) -> float | None:
    """A JSON number, or null when it is not finite."""
    return float(value) if np.isfinite(value) else None


def _gain(by_law: float, draws: Floats | None) -> dict[str, Any]:
    """Gain over random: `mean` is the median over resamples. The figure of the law that decided, `law`, is kept beside
    it: on the selection that was optimised under that very law it is too good (winner's curse).
    """
    good = None if draws is None else draws[np.isfinite(draws)]
    if good is None or not len(good):
        return {"mean": number(by_law), "law": number(by_law), "low": None, "high": None}
    low, middle, high = np.quantile(good, QUANTILES)
    return {"mean": float(middle), "law": number(by_law), "low": float(low), "high": float(high)}


def _censored(factors: Floats, factor: float) -> str | None:
    return "above" if factor >= factors[-1] else "below" if factor <= factors[0] else None
