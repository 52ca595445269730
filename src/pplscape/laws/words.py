"""A law in words: diagnostics, verdict, summary.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplscape.laws.choose import Choice, Trial
from pplscape.laws.forms.base import Floats
from pplscape.laws.law import Law
from pplscape.laws.scores import paired
from pplscape.laws.table import labels, left_out_units
from pplscape.runs import RunTable

PAPER = "arXiv 2512.21515"
MOST_PARAMETERS = 24
"""Longer parameter tables are cut in summary.md; law.json has all."""


def verdict(choice: Choice, law: Law, runs: RunTable) -> str:
    """One paragraph: which law, why, how good, what it means for the choice of data."""
    chosen = choice.trial(choice.chosen)
    assert chosen.scores is not None
    parts = [choice.reason[0].upper() + choice.reason[1:], _accuracy(chosen), _against_size(choice, runs)]
    if choice.chosen == "constant":
        parts.append("Not even the number of tokens explains these losses: more or larger pilots are needed.")
    if law.optimum["kind"] != "none":
        parts.append(optimum_words(law.optimum))
    return " ".join(p for p in parts if p)


def _accuracy(trial: Trial) -> str:
    assert trial.scores is not None
    share = trial.scores["mae_over_gain"]
    relative = f", {share:.1%} of the improvement over the base model" if share is not None else ""
    coverage = trial.scores["coverage"]
    return (
        f"It predicts left-out runs to {trial.scores['cv_mae']:.4f} nats/token{relative}; its "
        f"{trial.scores['level']:.0%} intervals hold {coverage:.0%} of the runs of left-out regimes."
    )


def _against_size(choice: Choice, runs: RunTable) -> str:
    """What composition adds to D, with the standard error of the difference."""
    nulls = [t for t in choice.fitted if not t.form.uses_composition]
    laws = [t for t in choice.fitted if t.form.uses_composition]
    if not nulls or not laws:
        return "No law of composition could be fitted." if not laws else ""
    null, best = (min(group, key=lambda t: float(t.errors(runs.loss).mean())) for group in (nulls, laws))
    gain, error = paired(null.errors(runs.loss) - best.errors(runs.loss), left_out_units(runs))
    if choice.trial(choice.chosen).form.uses_composition:
        return f"Knowing the composition lowers the error of D alone by {gain:.4f} nats/token (se {error:.4f})."
    words = f"{abs(gain):.4f} nats/token {'lower' if gain > 0 else 'higher'}, se {error:.4f}"
    return (
        f"Perplexity explains nothing here that can be relied on beyond D (the best law of composition, {best.spec}: "
        f"error {words}): use random."
    )


def optimum_words(optimum: Mapping[str, Any]) -> str:
    """The optimum's class, what it means, and the paper's condition."""
    at = f"mean {optimum['mu']:.4g}, spread {optimum['sigma']:.3g} ({optimum['scale']})"
    text = {
        "interior": f"Its optimum lies inside what the pilots covered, at {at}.",
        "saddle": f"What looks like its optimum inside the pilots' hull is a saddle; the best place covered is {at}.",
        "unbounded": f"It has no optimum, its loss keeps falling outside the pilots; the best place covered is {at}.",
        "edge": f"Its optimum is on the border of what the pilots covered ({at}): the true one may lie beyond.",
    }[optimum["kind"]]
    if "shares" in optimum:
        shares = ", ".join(f"{k} {v:.0%}" for k, v in optimum["shares"].items() if v >= 0.005)
        text += f" Over the resamples: {shares}; expected regret {optimum['regret']['mean']:.4f} nats/token."
    if "log_product" in optimum and not optimum["bowl_possible"]:
        text += (
            f" There ln m x ln s = {optimum['log_product']:.2f}; the published form can only have a minimum where it "
            "exceeds 4."
        )
    return text


def diagnostics_words(d: Mapping[str, Any]) -> list[str]:
    """Sentences for the design's diagnostics."""
    lines = [
        f"{d['n_runs']} runs in {d['n_trunks']} trunks of {d['n_regimes']} regimes, "
        f"{d['n_sizes']} sizes over {d['d_span']:.1f}x.",
        f"{d['d_variance_share']:.0%} of the variance of ln L is explained by D alone.",
    ]
    if d.get("seed_noise") is not None:
        lines.append(f"Seed noise from repeated regimes: {d['seed_noise']:.2%} of the loss.")
    else:
        lines.append("No regime was repeated with another seed: the noise is only known from the fit's residuals.")
    if d.get("condition_number") is not None:
        vif = ", ".join(f"{k} {v:.1f}" for k, v in d["vif"].items())
        lines.append(f"Condition number of the design {d['condition_number']:.1f}; variance inflation {vif}.")
    return lines


def summary(law: Law, choice: Choice) -> str:
    """summary.md: verdict, table of forms, parameters, diagnostics."""
    lines = ["# Data scaling law", "", law.verdict, "", "## Forms compared", "", *_forms_table(choice), ""]
    lines += [f"## Parameters of {law.form}", "", *_parameter_table(law), ""]
    lines += ["## Diagnostics", "", *(f"- {line}" for line in diagnostics_words(law.diagnostics))]
    if law.warnings:
        lines += ["", "## Warnings", "", *(f"- {w}" for w in law.warnings)]
    return "\n".join(lines) + "\n"


def _forms_table(choice: Choice) -> list[str]:
    lines = [
        "Errors on left-out runs (each regime once; the largest size once), nats/token; Spearman within sizes.",
        "",
        "| form | error | se | of improvement | regime out | largest D out | Spearman | top-1 regret | coverage |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trial in sorted(choice.fitted, key=lambda t: t.scores["cv_mae"] if t.scores else 0.0):
        s = trial.scores
        assert s is not None
        name = f"**{trial.spec}**" if trial.spec == choice.chosen else trial.spec
        name += f" ({PAPER})" if trial.form.name == "paper" else ""
        cells = [
            name, _n(s["cv_mae"], ".4f"), _n(s["cv_mae_se"], ".4f"), _n(s["mae_over_gain"], ".1%"),
            _n(s["mae_left_regime"], ".4f"), _n(s["mae_left_size"], ".4f"), _n(s["spearman_within_size"], ".2f"),
            _n(s["top1_regret"], ".4f"), _n(s["coverage"], ".0%"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    skipped = [t for t in choice.trials if t.skipped]
    if skipped:
        lines += ["", *(f"- not fitted: {t.spec}: {t.skipped}." for t in skipped)]
    return lines


def _n(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _parameter_table(law: Law) -> list[str]:
    lines = [f"| parameter | value | {law.covered:.0%} interval |", "|---|---|---|"]
    for name, value in list(law.params.items())[:MOST_PARAMETERS]:
        interval = law.intervals.get(name)
        lines.append(f"| {name} | {value:.6g} | {_interval(interval)} |")
    if len(law.params) > MOST_PARAMETERS:
        lines += ["", f"and {len(law.params) - MOST_PARAMETERS} more in law.json."]
    return lines


def _interval(interval: Any) -> str:
    if interval is None:
        return "-"
    if isinstance(interval, Mapping):
        return f"unidentified ({interval['low']:.4g} to {interval['high']:.4g})"
    return f"{interval[0]:.6g} to {interval[1]:.6g}"


def rows_for_plot(law: Law, runs: RunTable, low: Floats | None, high: Floats | None) -> list[dict[str, Any]]:
    """Rows of the figure predicted against measured."""
    predicted = law.predict(runs)
    names = runs.meta.get("run_id") or [f"run {i + 1}" for i in range(len(runs))]
    regimes = labels(runs, "regime")
    return [
        {
            "measured": float(runs.loss[i]),
            "predicted": float(predicted[i]),
            "low": None if low is None else float(low[i]),
            "high": None if high is None else float(high[i]),
            "tokens": float(runs.tokens[i]),
            "random": str(regimes[i]).startswith("random"),
            "tip": f"{names[i]}\nmeasured {runs.loss[i]:.4f}, predicted {predicted[i]:.4f}",
        }
        for i in range(len(runs))
    ]
