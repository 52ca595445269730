"""The verdict: one of three lights, one sentence, four numbers. Measured where there are measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplscape.draw.gate import LEAST_SEEDS
from pplscape.paired import verdict as measured_verdict
from pplscape.reporting.costs import costs_of
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.words import (
    GLUE,
    NATS,
    NOTHING,
    interval,
    number,
    percent,
    plural,
    times,
    tokens,
    with_interval,
)

Facts = Mapping[str, Any]
LIGHTS = {
    "worth it": "Worth it",
    "inside the noise": "Inside the noise: use random",
    "not enough pilots": "Not enough pilots to tell",
}
UNKNOWN = "No verdict yet"


@dataclass(frozen=True)
class Number:
    """One of the four numbers: what it is, predicted with interval, and measured where it has been."""

    label: str
    value: str
    detail: str
    measured: str = ""


@dataclass(frozen=True)
class Verdict:
    light: str | None
    """A key of LIGHTS; None before there is a selection."""
    measured: bool
    sentence: str
    noise: str
    numbers: list[Number]

    @property
    def title(self) -> str:
        return LIGHTS[self.light] if self.light else UNKNOWN

    @property
    def slug(self) -> str:
        """The light as a CSS class."""
        return (self.light or "none").replace(" ", "-")


def verdict_of(run: RunFolder) -> Verdict:
    """The verdict that the files of the run support now."""
    light, sentence, measured = _light(run)
    return Verdict(light, measured, sentence, noise_floor(run), four_numbers(run))


def _light(run: RunFolder) -> tuple[str | None, str, bool]:
    if run.comparison and any(s["difference"] for s in run.comparison["strategies"]):
        return measured_verdict(run.comparison["strategies"])["light"], _measured_sentence(run.comparison), True
    if run.selection is None:
        return None, "Nothing has been selected yet, so there is nothing to advise.", False
    gate, predicted = run.selection.get("gate"), advised(run.selection)
    if gate is None:
        why = "no law could be asked" if run.law is None else "the law could not be put to the test of its resamples"
        return "not enough pilots", f"The selection was drawn, but {why}: nothing says that it beats random.", False
    gain = (predicted or {}).get("gain")
    text = f"Predicted gain over random at equal tokens: {with_interval(gain)} {NATS}." if gain else ""
    if gate.get("passes"):
        return (
            "worth it",
            f"{text} {_reason(gate)} No arm has been trained yet, so this is a prediction.".strip(),
            False,
        )
    if run.selection["used"] == "matched":
        text += " Instead of the law's choice random text in the target's mix was selected."
    untold = gate.get("p10") is None or random_trunks(run) < LEAST_SEEDS
    light = "not enough pilots" if untold else "inside the noise"
    return light, f"{text} {_reason(gate)} No arm has been trained yet, so this is a prediction.".strip(), False


def random_trunks(run: RunFolder) -> int:
    """Separately trained random pilots: the gate and the noise floor rest on them."""
    return len({r["group"] for r in run.ok if str(r["regime"]).startswith("random")})


def _reason(gate: Facts) -> str:
    reason = str(gate.get("reason") or "").strip()
    return reason if not reason or reason.endswith(".") else f"{reason}."


def _measured_sentence(comparison: Facts) -> str:
    best = next(s for s in comparison["strategies"] if s["difference"])  # the one that the light is about
    d = best["difference"]
    side = "lower" if d["mean"] < 0 else "higher"
    text = f"‘{best['strategy']}’ ends at {number(abs(d['mean']), 4)} {NATS} {side} loss on held-out text than random"
    if d["low"] is None:
        return f"{text}, in one pair of runs: a single pair cannot show its noise."
    ends = f"{number(d['low'], 4, True)} to {number(d['high'], 4, True)}"
    method = d["method"].replace("%", f"{GLUE}%")
    end = f"{text} at equal tokens ({method} interval of the difference {ends}, {plural(d['n'], 'paired seed')})."
    if d["low"] <= 0 <= d["high"]:
        end += " The interval includes zero: the two cannot be told apart."
    elif d["mean"] > 0:
        end += " Random is better."
    return end


def advised(selection: Facts | None) -> Facts:
    """What the law expects of its own choice, also where the gate kept `auto` from it; empty without a law."""
    selection = selection or {}
    return selection.get("candidate_predicted") or selection.get("predicted") or {}


def without_tokens(predicted: Facts) -> str | None:
    """Why nothing is said of tokens saved: the chosen law does not know them. None where it does, or without a law."""
    if not predicted.get("form") or predicted.get("efficiency"):
        return None
    return f"by the {predicted['form']} law tokens change nothing"


def best_rival(comparison: Facts) -> Facts | None:
    """The strategy with the lowest loss relative to random, if any was compared."""
    rivals = [s for s in comparison["strategies"] if s["difference"]]
    return min(rivals, key=lambda s: s["difference"]["mean"], default=None)


def noise_floor(run: RunFolder) -> str:
    """How much random pilots differ by seed alone: the yardstick for every gain."""
    groups: dict[float, list[float]] = {}
    for row in run.ok:
        if str(row["regime"]).startswith("random"):
            groups.setdefault(round(np.log(row["tokens"]) / 0.05), []).append(row["loss"])
    repeated = {k: v for k, v in groups.items() if len(v) > 1}
    if not repeated:
        return ""
    losses = repeated[max(repeated)]
    spread = float(np.std(losses, ddof=1))
    return (
        f"Yardstick: {plural(len(losses), 'random pilot')} of the largest size differ by a standard deviation of "
        f"{number(spread, 4)} {NATS} between seeds (mean {number(float(np.mean(losses)), 4)})."
    )


def four_numbers(run: RunFolder) -> list[Number]:
    """Predicted loss of selection and random, tokens saved, cost of finding out."""
    selection, predicted = run.selection or {}, advised(run.selection)
    candidate = selection.get("candidate")
    used = candidate or selection.get("used")
    kept_back = candidate and candidate != selection.get("used")
    label = f"Loss with the law’s choice ‘{candidate}’, not taken" if kept_back else "Loss with the selection"
    costs = costs_of(run)
    by = f", {predicted['form']} law" if predicted.get("form") else ""
    return [
        _loss_number(label, predicted.get("selection"), measured_loss(run, used), by),
        _loss_number("Loss with random", predicted.get("random"), measured_loss(run, "random"), by),
        Number("Tokens random needs for the same loss", *_saved(predicted, run.budget)),
        Number("Scoring and pilots, as a share of the main run", *_cost(costs.share, costs.overhead)),
    ]


def measured_loss(run: RunFolder, strategy: str | None) -> Facts | None:
    """The comparison's row of a strategy."""
    rows = (run.comparison or {}).get("strategies", [])
    return next((s for s in rows if s["strategy"] == strategy), None)


def _loss_number(label: str, predicted: Facts | None, measured: Facts | None, by: str) -> Number:
    value = number(predicted.get("loss")) if predicted else NOTHING
    detail = f"predicted, {NATS}{by}" if predicted else "not predicted: no law"
    if predicted and predicted.get("low") is not None:
        detail = f"predicted {interval(predicted['low'], predicted['high'])} {NATS}{by}"
    told = ""
    if measured:
        same_text = measured.get("loss_valid")  # what the law predicts; the test text has a level of its own
        where = "the same text" if same_text is not None else "test text"
        told = f"measured {number(measured['loss'] if same_text is None else same_text)} on {where} "
        told += f"({plural(measured['n'], 'seed')})"
    return Number(label, value, detail, told)


def _saved(predicted: Facts, budget: int | None) -> tuple[str, str]:
    efficiency = predicted.get("efficiency")
    if not efficiency or efficiency.get("factor") is None or budget is None:
        return NOTHING, without_tokens(predicted) or "not predicted"
    factor, censored = efficiency["factor"], efficiency.get("censored")
    extra = (factor - 1) * budget
    ends = interval(efficiency.get("low"), efficiency.get("high"), 2)
    word = f"would save {tokens(extra)}" if extra >= 0 else f"would waste {tokens(-extra)}"
    bound = {"above": "at least ", "below": "at most "}.get(censored or "", "")
    return f"{bound}{times(factor)}", f"predicted {ends}; {word}".replace(" ;", ";")


def _cost(share: float | None, overhead: float | None) -> tuple[str, str]:
    if share is None:
        return NOTHING, "known once scores and pilots exist"
    return (percent(share) if share < 3 else times(share)), f"as much as training on {tokens(overhead)}"
