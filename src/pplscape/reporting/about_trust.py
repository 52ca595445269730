"""What the section about the law's reliability says: plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from pplscape.errors import UserError
from pplscape.laws.law import Law
from pplscape.reporting import figures_fit, figures_law
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.law_view import LawView, ends_of, run_tip
from pplscape.reporting.style import FULL, HALF
from pplscape.reporting.surface import compositions_of
from pplscape.reporting.words import (
    NATS,
    NOTHING,
    interval,
    number,
    percent,
    plural,
    significant,
    times,
    tokens,
    visible,
)

Facts = Mapping[str, Any]


def trust_view(run: RunFolder, view: LawView, gallery: Gallery) -> dict[str, Any] | None:
    """Section 3; None without a law."""
    if view.law is None or run.law is None:
        return None
    rows = prediction_against(view)
    return {
        "verdict": visible(view.law.verdict),
        "figure": gallery.hang(partial(figures_law.predicted_against_measured, rows), HALF) if rows else None,
        "caption": _fit_caption(rows, view.law),
        "more": fit_figures(view.law, rows, gallery),
        "forms": form_rows(view.law),
        "words": diagnosis(view.law.diagnostics, view.rows),
        "next": _next_pilot(view),
        "warnings": [visible(w) for w in view.law.warnings],
        "params": _params(view.law),
    }


def prediction_against(view: LawView) -> list[dict[str, Any]]:
    """Measured and predicted loss of every finished pilot, the fitted law's own intervals for a new run."""
    assert view.law is not None
    if not view.rows:
        return []
    subsets = compositions_of(view.rows)
    try:
        predicted = view.law.predict(subsets)
    except UserError:
        return []
    low, high = view.law.predict_interval(subsets) if view.law.resamples else (None, None)
    return [
        {
            "measured": r["loss"],
            "predicted": float(predicted[i]),
            "low": None if low is None else float(low[i]),
            "high": None if high is None else float(high[i]),
            "tokens": r["tokens"],
            "random": str(r["regime"]).startswith("random"),
            "tip": f"{run_tip(r)}\npredicted {number(float(predicted[i]), 4)}",
        }
        for i, r in enumerate(view.rows)
    ]


def fit_figures(law: Law, rows: Sequence[Facts], gallery: Gallery) -> list[tuple[Markup, str]]:
    """(figure, caption) of what judges the fit: residuals, profiles, clouds of resamples, as far as there are any."""
    found = []
    if rows:
        noise = law.noise * float(np.mean([r["measured"] for r in rows])) or None
        caption = (
            "What the law leaves over, by training size: a slope or curve through the black means would be a wrong law "
            "of D."
        )
        if noise:
            caption += f" Shaded: where 90 % of runs belong if their noise is {number(noise, 4)} {NATS} (sd)."
        found.append((gallery.hang(partial(figures_fit.residuals, rows, noise), HALF), caption))
    drawn: tuple[tuple[Any, str], ...] = (
        (figures_fit.profiles,
         "Profiles: each parameter is held at other values and all else fitted again. A curve that stays flat is a "
         "parameter the runs cannot tell. Dashed: where a 90 % interval would end if runs were independent; bar: the "
         "interval from the refits, which counts trunks."),
        (figures_fit.clouds,
         "The law refitted to simulated tables: where its optimum falls within the pilots' hull (dashed; solid: joint "
         "90 % region), and the pairs of parameters that trade off most (ρ: rank correlation). Cross: the fit itself."),
    )  # fmt: skip
    for draw, caption in drawn:
        if draw(law) is not None:
            found.append((gallery.hang(partial(draw, law), FULL), caption))
    return found


def _fit_caption(rows: Sequence[Facts], law: Law) -> str:
    if not rows:
        return ""
    errors = [abs(r["predicted"] - r["measured"]) for r in rows]
    text = (
        "Every pilot against the law fitted to all of them: mean absolute error "
        f"{number(float(np.mean(errors)), 4)} {NATS}, largest {number(max(errors), 4)}. "
    )
    held = [r for r in rows if r["low"] is not None]
    if held:
        inside = sum(r["low"] <= r["measured"] <= r["high"] for r in held)
        text += f"{inside} of {len(held)} lie within their 90 % interval. "
    return text + "The honest error, on runs the law had not seen, is in the table."


def form_rows(law: Law) -> list[dict[str, Any]]:
    """Every law that was tried, best first, skipped ones last with the reason."""
    tried = sorted(law.choice, key=lambda c: (bool(c.get("skipped")), c.get("cv_mae") or 0.0))
    worst = max((c["mae_over_gain"] for c in tried if c.get("mae_over_gain") is not None), default=1.0)
    ceiling = min(worst, 0.5) or 1.0
    return [
        {
            "form": c["form"],
            "chosen": c["form"] == law.form,
            "paper": str(c["form"]).partition(":")[0] == "paper",
            "skipped": visible(str(c["skipped"])) if c.get("skipped") else None,
            "mae": number(c.get("cv_mae"), 4),
            "share": percent(c.get("mae_over_gain"), 1),
            "bar": min(100.0, 100 * (c.get("mae_over_gain") or 0) / ceiling),
            "spearman": number(c.get("spearman_within_size", c.get("spearman")), 2),
            "regret": number(c.get("top1_regret"), 4),
            "calibration": number(c.get("calibration"), 2),
            "coverage": percent(c.get("coverage")),
        }
        for c in tried
    ]


def diagnosis(facts: Facts, rows: Sequence[Facts]) -> list[str]:
    """The design's condition in words, each with what would mend it."""
    said = []
    span, trunks = facts.get("d_span"), facts.get("n_trunks")
    if span is not None:
        enough = span >= 8 * (1 - 1e-6)
        mend = "enough to see diminishing returns" if enough else "8× or more are needed to extrapolate in size"
        said.append(f"Training sizes span {times(span)}: {mend}.")
    seeds = len({r["group"] for r in rows if str(r["regime"]).startswith("random")})
    mend = (
        "the noise floor is known"
        if seeds >= 3
        else "at least three are needed to know the noise; add random seeds first"
    )
    said.append(f"{plural(seeds, 'random trunk')}: {mend}.")
    if trunks is not None:
        said.append(f"{plural(int(facts.get('n_runs', len(rows))), 'run')} share {plural(int(trunks), 'trunk')}, "
                    "which is what counts as independent.")  # fmt: skip
    condition, vif = facts.get("condition_number"), facts.get("vif")
    if isinstance(vif, Mapping):
        vif = max((v for v in vif.values() if v is not None), default=None)
    if condition is not None:
        judged = (
            "mean and spread were varied apart"
            if condition < 30
            else "mean and spread move together; tilt regimes apart"
        )
        inflation = f", variance inflation {significant(vif)}" if vif is not None else ""
        said.append(f"Condition number of the design {significant(condition)}{inflation}: {judged}.")
    if facts.get("d_variance_share") is not None:
        said.append(
            f"{percent(facts['d_variance_share'])} of the variance of the losses is due to the number of tokens alone."
        )
    if facts.get("coverage") is not None:
        said.append(f"Intervals meant to hold 90 % of left-out runs held {percent(facts['coverage'])}.")
    return said


def _next_pilot(view: LawView) -> str | None:
    """Where the law is least sure within what the pilots span: the pilot that would teach it most."""
    law, landscape, mesh = view.law, view.run.landscape, view.mesh
    if law is None or landscape is None or mesh is None or not law.resamples or not view.sizes:
        return None
    size = float(np.mean([r["tokens"] for r in view.sizes[-1]]))
    subsets = mesh.compositions(landscape, size, law.bins, view.n_params)
    try:
        low, high = law.predict_interval(subsets, new_run=False)
    except UserError:
        return None
    known = mesh.tilts.reached & np.isfinite(high - low) & ~law.extrapolates(subsets)
    if not known.any():
        return None
    i = int(np.argmax(np.where(known, high - low, -1.0)))
    return (
        f"Within what the pilots span, the law is least sure at mean {significant(float(mesh.mean.flat[i]))}, spread "
        f"{significant(float(mesh.std.flat[i]))} ({interval(float(low[i]), float(high[i]))} {NATS} at {tokens(size)}): "
        "a pilot there would help most."
    )


def _params(law: Law) -> list[tuple[str, str, str]]:
    rows = []
    for name, value in law.params.items():
        low, high, identified = ends_of(law.intervals.get(name))
        text = NOTHING if low is None else f"{significant(low, 4)} to {significant(high, 4)}"
        rows.append((name, significant(value, 6), text if identified else f"not identified ({text})"))
    return rows
