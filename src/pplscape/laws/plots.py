"""Figures of the stage `fit`, drawn in the report's style: predicted against measured, errors by form."""

from __future__ import annotations

import numpy as np

from pplscape.laws.choose import Choice
from pplscape.laws.law import Law
from pplscape.laws.words import rows_for_plot
from pplscape.reporting.figures_law import predicted_against_measured
from pplscape.reporting.style import FULL, HALF, PALETTE, Drawing, styled
from pplscape.reporting.words import number, percent
from pplscape.runs import RunTable


def predicted_measured(law: Law, runs: RunTable) -> Drawing:
    """Every pilot's predicted loss, with its interval if there are resamples, over its measured loss (nats/token)."""
    low, high = law.predict_interval(runs, law.covered) if law.resamples else (None, None)
    return predicted_against_measured(rows_for_plot(law, runs, low, high), HALF * 1.4)


def form_errors(choice: Choice) -> Drawing:
    """Cross-validated error of every form with its standard error, best first; the published form is marked.

    On a log axis: as a share of the improvement over the base model where that is known, else in nats/token.
    """
    rows = sorted((t for t in choice.fitted if t.scores), key=lambda t: t.scores["cv_mae"] if t.scores else 0.0)
    relative = all(t.scores and t.scores["mae_over_gain"] for t in rows)
    key = "mae_over_gain" if relative else "cv_mae"
    errors = np.array([t.scores[key] if t.scores else np.nan for t in rows])
    each = np.array([(t.scores["cv_mae_se"] or 0.0) / t.scores["cv_mae"] if t.scores else 0.0 for t in rows]) * errors
    at = np.arange(len(rows))[::-1]
    with styled():
        drawing = Drawing("form-errors", "Cross-validated error of every form", FULL * 0.75, 110 + 30 * len(rows))
        axes = drawing.axes(grid="x")
        axes.hlines(at, np.maximum(errors - each, 0.3 * errors), errors + each, color=PALETTE["pool"], lw=2)
        colours = [PALETTE["select"] if t.spec == choice.chosen else PALETTE["measured"] for t in rows]
        dots = axes.scatter(errors, at, s=64, c=colours, zorder=3)
        texts = [percent(e, 1) if relative else f"{number(e, 4)} nats/token" for e in errors]
        drawing.tip(dots, [f"{t.spec}: {text}" for t, text in zip(rows, texts, strict=True)])
        for y, error, text in zip(at, errors + each, texts, strict=True):
            axes.annotate(text, (error, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=11)
        axes.set_xscale("log")
        axes.set_xlim(errors.min() * 0.6, (errors + each).max() * 2)
        axes.set_yticks(at, [_name(t.spec, t.form.name, choice) for t in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        what = "share of the improvement over the base model" if relative else "nats/token"
        axes.set_xlabel(f"error on left-out runs, {what} (bar: standard error)")
    return drawing


def _name(spec: str, form: str, choice: Choice) -> str:
    marks = ["chosen"] * (spec == choice.chosen) + ["published"] * (form == "paper")
    return f"{spec} ({', '.join(marks)})" if marks else spec
