"""Figures of the stage `fit`, drawn in the report's style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pplscape.laws.choose import Choice
from pplscape.laws.hull import Hull
from pplscape.laws.law import Law
from pplscape.laws.words import rows_for_plot
from pplscape.reporting.about_pilots import utility_rows
from pplscape.reporting.figures_fit import clouds, profiles, residuals, short
from pplscape.reporting.figures_law import (
    AXIS,
    PlanePicture,
    bin_utilities,
    pilots_plane,
    predicted_against_measured,
)
from pplscape.reporting.style import COLOUR_MAP, FULL, HALF, PALETTE, Drawing, styled
from pplscape.reporting.surface import Mesh, Surface, Tilts, hull, plane_box
from pplscape.reporting.words import number, percent, tokens
from pplscape.runs import Compositions, RunTable
from pplscape.statistics import Floats

GRID = 41
CAPTIONS = {
    "predicted": "every run's predicted loss with its interval over its measured loss",
    "residuals": "measured minus predicted loss over D; black: mean of each size with its standard error; shaded: "
    "where 90 % of runs belong",
    "forms": "cross-validated error of every form",
    "profiles": "how fast the fit worsens as a parameter is held at other values, all else refitted; dashed: where a "
    "90 % interval would end if runs were independent; bar: the interval given above",
    "clouds": "refits to simulated tables: the optimum within the pilots' hull (dashed) with its joint region "
    "(solid), and the parameters that trade off most (ρ: rank correlation)",
    "utilities": "what one more token of each perplexity bin is worth by the utility law",
    "plane": "loss over mean and spread within the pilots' hull (dashed), the optimum and its joint region (solid)",
    "surface": "the same as a surface",
}
"""File name -> what it shows, in the order of `figures`."""
WIDE = HALF * 1.4


def figures(
    law: Law, choice: Choice, runs: RunTable, feasible: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Drawing]]:
    """(file name, figure) of everything there is to show; `feasible` maps a scale to (mean, std) points.

    The plane and the surface are those of the chosen law or, where it does not see mean and spread, of the best law
    that does.
    """
    rows = rows_for_plot(law, runs, *_ends(law, runs))
    yield "predicted", predicted_against_measured(rows, WIDE)
    yield "residuals", residuals(rows, law.noise * float(runs.loss.mean()) or None, WIDE)
    yield "forms", form_errors(choice)
    for name, drawing in (("profiles", profiles(law)), ("clouds", clouds(law))):
        if drawing is not None:
            yield name, drawing
    worth = utility_rows(law)
    if worth:
        yield "utilities", bin_utilities(worth, WIDE)
    shown = next((x for x in (law, *law.alternatives) if x.optimum["kind"] != "none"), None)
    if shown is not None:
        edge = (feasible or {}).get(shown.scale or "")
        picture = plane_picture(shown, runs, np.asarray(edge) if edge else None)
        yield "plane", pilots_plane(picture, WIDE)
        yield "surface", surface(picture, shown.form)


def _ends(law: Law, runs: RunTable) -> tuple[Floats, Floats] | tuple[None, None]:
    return law.predict_interval(runs, law.covered) if law.resamples else (None, None)


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
        if relative:
            axes.xaxis.set_major_formatter(lambda v, _: percent(v, 1 if v < 0.01 else 0))
        axes.set_xlim(errors.min() * 0.6, (errors + each).max() * 2)
        axes.set_yticks(at, [_name(t.spec, t.form.name, choice) for t in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        what = "share of the improvement over the base model" if relative else "nats/token"
        axes.set_xlabel(f"error on left-out runs, {what} (bar: standard error)")
    return drawing


def _name(spec: str, form: str, choice: Choice) -> str:
    marks = ["chosen"] * (spec == choice.chosen) + ["published"] * (form == "paper")
    return f"{spec} ({', '.join(marks)})" if marks else spec


def plane_picture(law: Law, runs: RunTable, feasible: Floats | None = None) -> PlanePicture:
    """A law on mean and spread over the box of its pilots at their largest size; contours within their hull."""
    scale = law.scale or "nll"
    mean, std = runs.moments(scale)
    largest = runs.tokens >= 0.95 * runs.tokens.max()
    gain = -runs.loss if runs.base_loss is None else runs.base_loss - runs.loss
    place = law.optimum
    box = plane_box([*zip(mean, std, strict=True), (place["mu"], place["sigma"])], scale)
    tips = [r["tip"] for r, kept in zip(rows_for_plot(law, runs, None, None), largest, strict=True) if kept]
    ring = place.get("region")
    return PlanePicture(
        scale=scale, tokens=law.frame.unit, box=box, points=np.stack([mean, std], axis=-1)[largest],
        improvement=gain[largest], tips=tips, surface=_surface_over(law, mean, std),
        base_loss=law.base_loss or 0.0, hull=hull(mean, std), feasible=feasible,
        region=np.asarray([*ring, ring[0]]) if ring else None, marks={"optimum": (place["mu"], place["sigma"])},
    )  # fmt: skip


def _surface_over(law: Law, mean: Floats, std: Floats) -> Surface:
    """The law within the hull of (mean, std) in logs, column by column; outside it is a guess and is not drawn."""
    scale = law.scale or "nll"
    corners = Hull.of(np.log(np.stack([mean, std], axis=-1))).corners
    x = np.linspace(corners[:, 0].min(), corners[:, 0].max(), GRID)
    x[[0, -1]] += np.array([1e-6, -1e-6]) * np.ptp(x)
    start, end = corners, np.roll(corners, -1, axis=0)
    run = end[:, :1] - start[:, :1]
    share = np.divide(x - start[:, :1], run, out=np.full((len(start), GRID), np.nan), where=np.abs(run) > 1e-12)
    y = np.where((share >= 0) & (share <= 1), start[:, 1:] + share * (end[:, 1:] - start[:, 1:]), np.nan)
    low, high = np.nanmin(y, axis=0), np.nanmax(y, axis=0)
    s = np.exp(low + np.linspace(0, 1, GRID)[:, None] * (high - low))
    m = np.broadcast_to(np.exp(x), s.shape)
    points = {f"{scale}_mean": m.ravel(), f"{scale}_std": s.ravel()}
    with np.errstate(all="ignore"):
        loss = law.predict(Compositions(tokens=np.full(m.size, law.frame.unit), **points))
    mesh = Mesh(scale, m, s, Tilts(np.empty((m.size, 0)), np.ones(m.size, bool)))
    return Surface(law.frame.unit, mesh, loss.reshape(m.shape))


def surface(picture: PlanePicture, form: str, width: float = WIDE) -> Drawing:
    """The same law as a surface of the loss over (mean, spread), with the pilots as dots."""
    from matplotlib.ticker import MaxNLocator

    assert picture.surface is not None
    found = picture.surface
    log = np.log10 if picture.scale == "ppl" else np.asarray
    with styled():
        drawing = Drawing("surface", f"Loss over mean and spread by {form}", width, 470)
        axes = drawing.figure.add_subplot(projection="3d")
        x, y, z = log(found.mesh.mean), log(found.mesh.std), found.loss
        axes.plot_surface(x, y, z, cmap=f"{COLOUR_MAP}_r", rcount=30, ccount=30, lw=0.2, edgecolor="white",
                          alpha=0.85)  # fmt: skip
        points = np.stack([log(picture.points[:, 0]), log(picture.points[:, 1])])
        measured = (picture.base_loss or 0.0) - picture.improvement
        axes.scatter(*points, measured, color=PALETTE["ink"], s=22, depthshade=False)
        what = f"{'log₁₀ of ' if picture.scale == 'ppl' else ''}mean {AXIS[picture.scale].split(',')[0]}"
        axes.set_xlabel(what, labelpad=6)
        axes.set_ylabel(f"{'log₁₀ of ' if picture.scale == 'ppl' else ''}spread", labelpad=6)
        axes.set_zlabel("loss, nats/token", labelpad=8)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(lambda v, _: short(v))
            axis.set_pane_color((1, 1, 1, 0))
            axis.set_tick_params(labelsize=10)
        axes.set_box_aspect((1, 1, 0.7), zoom=0.95)
        axes.view_init(elev=28, azim=-125)
        drawing.figure.suptitle(f"{form}, {tokens(picture.tokens)}; dots: pilots", fontsize=12)
    return drawing
