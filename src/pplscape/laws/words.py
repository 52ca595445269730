"""A law in words: diagnostics, verdict, summary.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pplscape.laws.choose import Choice, Trial
from pplscape.laws.forms.base import Floats
from pplscape.laws.law import Law
from pplscape.laws.noise import LEAST_FREEDOM
from pplscape.laws.scores import paired
from pplscape.laws.table import labels, left_out_units
from pplscape.laws.uncertainty import middle
from pplscape.runs import RunTable

PAPER = "arXiv 2512.21515"
MOST_PARAMETERS = 24
"""Longer parameter tables are cut in summary.md; law.json has all."""
FORM_COLUMNS = (
    "form", "error", "se", "of improvement", "regime out", "largest D out", "Spearman", "top-1 regret", "calibration",
    "coverage",
)  # fmt: skip


def verdict(choice: Choice, law: Law, runs: RunTable) -> str:
    """One paragraph: which law, why, how good, what it means for the choice of data."""
    chosen = choice.trial(choice.chosen)
    assert chosen.scores is not None
    parts = [choice.reason[0].upper() + choice.reason[1:], _accuracy(chosen), _against_size(choice, runs)]
    parts += [_calibrated(chosen), bins_words(law)]
    if law.optimum["kind"] != "none":
        parts.append(optimum_words(law.optimum))
    return " ".join(p.strip() for p in parts if p.strip())


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
    """What composition adds to D, with the standard error of the difference, and what follows."""
    nulls = [t for t in choice.fitted if not t.form.uses_composition]
    laws = [t for t in choice.fitted if t.form.uses_composition]
    chosen = choice.trial(choice.chosen)
    if not laws:
        return f"No law of composition could be fitted: which text is best is not known, use random. {_or_size(chosen)}"
    if not nulls:
        return "No law without composition was fitted: whether perplexity matters at all is not known from this choice."
    null, best = (min(group, key=lambda t: float(t.errors(runs.loss).mean())) for group in (nulls, laws))
    rival = chosen if chosen.form.uses_composition else best
    gain, error = paired(null.errors(runs.loss) - rival.errors(runs.loss), left_out_units(runs))
    if not chosen.form.uses_composition:
        words = f"error {abs(gain):.4f} nats/token {'lower' if gain > 0 else 'higher'}, se {error:.4f}"
        return (
            "Perplexity explains nothing here that can be relied on beyond D (the best law of composition, "
            f"{best.spec}: {words}): use random. {_or_size(chosen)}"
        )
    words = f"{gain:.4f} nats/token (se {error:.4f})"
    if gain > error:
        return f"Knowing the composition lowers the error of D alone by {words}."
    return (
        f"Knowing the composition lowers the error of D alone by {words}, which chance can do as well: use random "
        "unless a paired run confirms the choice."
    )


def _or_size(chosen: Trial) -> str:
    """Said where not even D helps."""
    if chosen.form.uses_size:
        return ""
    return "Not even the number of tokens explains these losses: more or larger pilots are needed."


def _calibrated(trial: Trial) -> str:
    """What the calibration slope means, where it is not near 1."""
    slope = None if trial.scores is None else trial.scores["calibration"]
    if slope is None or 1 / 1.5 <= slope <= 1.5:
        return ""
    judged = "exaggerates" if slope < 1 else "understates"
    return (
        f"It {judged} what composition does: of each nat it predicts between left-out regimes of one size, {slope:.2f} "
        "was measured."
    )


def average_utility(law: Law) -> float | None:
    """Utility of an average token of the pool; None for laws without utilities, or where it is not above 0."""
    if law.form.partition(":")[0] != "utility" or law.frame.bin_share is None:
        return None
    average = sum(share * law.params[f"u_{b}"] for b, share in enumerate(law.frame.bin_share))
    return average if average > 0 else None


def worth_limits(law: Law) -> tuple[Floats, Floats] | None:
    """Middle `law.covered` of the refits' utilities [K], each over that of its own average token: what all bins have in
    common, which E and beta trade off with, is no part of how bins differ. None without refits, or where their
    average token is too often worth nothing."""
    if not law.resamples or law.frame.bin_share is None:
        return None
    first = list(law.params).index("u_0")
    u = np.asarray(law.resamples["params"], float)[:, first : first + len(law.frame.bin_share)]
    average = u @ np.asarray(law.frame.bin_share)
    told = u[average > 0] / average[average > 0, None]
    return middle(told, law.covered) if len(told) > law.covered * len(u) else None


def bins_words(law: Law) -> str:
    """The best and the worst bin of a utility law; empty for other laws."""
    average = average_utility(law)
    if average is None:
        return ""
    worth = [law.params[f"u_{b}"] / average for b in range(len(law.frame.bin_share or ()))]
    levels = law.frame.bin_levels
    cut = f" (each {levels} levels of the second axis, lowest first)" if levels > 1 else ""
    best, worst = int(np.argmax(worth)), int(np.argmin(worth))
    harm = ": it does harm" if worth[worst] < 0 else ""
    return (
        f"Of {len(worth)} bins from lowest to highest perplexity{cut}, a token of bin {best + 1} is worth most "
        f"({worth[best]:.2g} of an average token), of bin {worst + 1} least ({worth[worst]:.2g}{harm})."
    )


def optimum_words(optimum: Mapping[str, Any]) -> str:
    """The optimum's class, what it means, its shares and regret, and the published form's condition."""
    at = f"mean {optimum['mu']:.4g}, spread {optimum['sigma']:.3g} ({optimum['scale']})"
    text = {
        "interior": f"Its optimum lies inside what the pilots covered, at {at}.",
        "saddle": f"What looks like its optimum inside the pilots' hull is a saddle; the best place covered is {at}.",
        "unbounded": f"It has no optimum, its loss keeps falling outside the pilots; the best place covered is {at}.",
        "edge": f"Its optimum is on the border of what the pilots covered ({at}): the true one may lie beyond.",
    }[optimum["kind"]]
    if "shares" in optimum:
        regret = optimum["regret"]
        text += (
            f" Over the resamples: {_shares(optimum)}; expected regret {regret['mean']:.4f} nats/token at the pilots' "
            f"largest size, below {regret['high']:.4f} in {optimum['region_level']:.0%}."
        )
        if abs(optimum["correlation"] or 0.0) > 0.8:
            text += (
                f" Its mean and spread are correlated at {optimum['correlation']:.2f}: read their joint region, not "
                "two intervals."
            )
    return f"{text} {condition_words(optimum)}".strip()


def condition_words(optimum: Mapping[str, Any]) -> str:
    """ln m* ln s* > 4, said wherever the published form is used; empty for other forms."""
    if "log_product" not in optimum:
        return ""
    low, high = optimum["log_product_range"]
    text = (
        f"The published form can have a minimum only where ln m x ln s is above 4 (or below 0): here it is "
        f"{optimum['log_product']:.2f}, among the pilots {low:.2f} to {high:.2f}"
    )
    if not optimum["bowl_possible_anywhere"]:
        return f"{text}, so within these pilots no data could make it show one."
    return f"{text}." if optimum["bowl_possible"] else f"{text}, so this is not one."


def _shares(optimum: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:.0%}" for k, v in optimum["shares"].items() if v >= 0.005)


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
    audit = d.get("audit")
    if audit and audit["better"]:
        lines.append(
            f"Of {audit['starts']} random starts one found a fit whose objective is {audit['better']:.2%} lower than "
            "that of the usual search; that fit is used, the cross-validated errors are of the usual search."
        )
    return lines


def noise_words(law: Law) -> list[str]:
    """What the residuals say of the noise, and how well; empty for a law without refits."""
    if not law.resamples:
        return []
    trunk, freedom = float(law.resamples["noise_trunk"]), float(law.resamples["freedom"])
    share = trunk**2 / max(law.noise**2, 1e-300)
    known = f"known from about {freedom:.0f} degrees of freedom"
    if freedom <= LEAST_FREEDOM:
        known = f"taken to be known from {LEAST_FREEDOM:.0f} degrees of freedom, though there are fewer"
    return [
        f"Noise of a run around the {law.form} law: {law.noise:.2%} of the loss, {share:.0%} of its variance shared by "
        f"the branches of a trunk; {known}."
    ]


def summary(law: Law, choice: Choice) -> str:
    """summary.md: verdict, table of forms, parameters, diagnostics."""
    lines = ["# Data scaling law", "", law.verdict, "", "## Forms compared", "", *_forms_table(choice), ""]
    lines += [f"## Parameters of {law.form}", "", *_parameter_table(law), ""]
    lines += _optimum_section(law)
    lines += ["## Diagnostics", "", *(f"- {line}" for line in diagnostics_words(law.diagnostics) + noise_words(law))]
    if law.warnings:
        lines += ["", "## Warnings", "", *(f"- {w}" for w in law.warnings)]
    return "\n".join(lines) + "\n"


def _forms_table(choice: Choice) -> list[str]:
    lines = [
        "Errors on left-out runs (each regime once; the largest size once), nats/token. Spearman and calibration are",
        "for compositions of one size (calibration: the slope of measured on predicted differences, 1 is right, below",
        "1 the law exaggerates); coverage is that of nominal 90 % intervals.",
        "",
        "| " + " | ".join(FORM_COLUMNS) + " |",
        "|" + "---|" * len(FORM_COLUMNS),
    ]
    for trial in sorted(choice.fitted, key=lambda t: t.scores["cv_mae"] if t.scores else 0.0):
        s = trial.scores
        assert s is not None
        name = f"**{trial.spec}**" if trial.spec == choice.chosen else trial.spec
        name += f" ({PAPER})" if trial.form.name == "paper" else ""
        cells = [
            name, _n(s["cv_mae"], ".4f"), _n(s["cv_mae_se"], ".4f"), _n(s["mae_over_gain"], ".1%"),
            _n(s["mae_left_regime"], ".4f"), _n(s["mae_left_size"], ".4f"), _n(s["spearman_within_size"], ".2f"),
            _n(s["top1_regret"], ".4f"), _n(s["calibration"], ".2f"), _n(s["coverage"], ".0%"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    skipped = [t for t in choice.trials if t.skipped]
    if skipped:
        lines += ["", *(f"- not fitted: {t.spec}: {t.skipped}." for t in skipped)]
    return lines


def _optimum_section(law: Law) -> list[str]:
    """Where every law on mean and spread is lowest; empty without one. The published form's condition always."""
    found = [x for x in (law, *law.alternatives) if x.optimum["kind"] != "none"]
    if not found:
        return []
    lines = [
        "## Where mean and spread are best",
        "",
        "Sought only among what the pilots covered and the budget can reach. Shares are those of the resamples;",
        "region: the extent of the joint region; regret: expected, at the pilots' largest size, nats/token.",
        "",
        "| form | class | mean | spread | shares | joint region: mean | spread | correlation | regret |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for x in found:
        o = x.optimum
        cells = [f"**{x.form}**" if x is law else x.form, o["kind"], f"{o['mu']:.4g}", f"{o['sigma']:.3g}"]
        if "shares" in o:
            ends = np.asarray(o["region"])
            cells += [
                _shares(o),
                *(f"{low:.4g} to {high:.4g}" for low, high in zip(ends.min(0), ends.max(0), strict=True)),
            ]
            cells += [_n(o["correlation"], ".2f"), f"{o['regret']['mean']:.4f}"]
        else:
            cells += ["-"] * 5
        lines.append("| " + " | ".join(cells) + " |")
    conditions = [f"- {x.form}: {condition_words(x.optimum)}" for x in found if "log_product" in x.optimum]
    return [*lines, "", *conditions, ""] if conditions else [*lines, ""]


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
