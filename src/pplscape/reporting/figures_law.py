"""The figures about pilots and laws, drawn once each from a run's facts. Widths in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pplscape.reporting.style import COLOUR_MAP, HALF, PALETTE, Drawing, log_ticks, styled
from pplscape.reporting.surface import Surface
from pplscape.reporting.words import NATS, interval, number, significant, tokens
from pplscape.statistics import Floats

Facts = Mapping[str, Any]
HALO, DARK = "white", "#15191e"
"""Outlines over coloured ground are the same in every theme, as the ground is."""
SIZE_COLOURS = "viridis"
LEVELS_APART = 0.7
"""How far the levels of a bin spread, in bins."""
WORTH_REACH = 2.0
"""How far intervals of worths are drawn beyond the dots, as a multiple of their range."""
AXIS = {"nll": "log-perplexity, nats/token", "ppl": "perplexity"}


@dataclass(frozen=True)
class PlanePicture:
    """What is drawn over the (mean, spread) plane of one training size; points are (mean, std) on `scale`."""

    scale: str
    tokens: float
    box: tuple[float, float, float, float]
    points: Floats
    """[n, 2] pilots of this size."""
    improvement: Floats
    """[n] base loss minus measured loss, nats/token."""
    tips: Sequence[str]
    surface: Surface | None = None
    base_loss: float | None = None
    hull: Floats | None = None
    feasible: Floats | None = None
    region: Floats | None = None
    """[r, 2] ring around where the optimum falls in resamples."""
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """`random`, `selection`, `optimum`."""


def pilots_plane(picture: PlanePicture, width: float = HALF) -> Drawing:
    """Pilots in the (mean, spread) plane over the law's contours; colour = improvement over the base model."""
    with styled():
        name = f"plane-{picture.tokens:.0f}"
        label = f"Pilots of {tokens(picture.tokens)} in the plane of mean and spread, with the law's contours"
        drawing = Drawing(name, label, width, 450)
        axes = drawing.axes(grid=None)
        predicted = None
        if picture.surface is not None and picture.base_loss is not None:
            predicted = picture.base_loss - picture.surface.loss
        norm = _norm(picture.improvement, predicted)
        if predicted is not None and picture.surface is not None:
            _contours(axes, picture.surface, predicted, norm)
        _outlines(axes, picture)
        look: dict[str, Any] = {"cmap": COLOUR_MAP, "norm": norm, "edgecolors": HALO, "linewidths": 1.4, "zorder": 4}
        dots = axes.scatter(picture.points[:, 0], picture.points[:, 1], c=picture.improvement, s=84, **look)
        drawing.tip(dots, picture.tips)
        _marks(drawing, axes, picture)
        if picture.scale == "ppl":
            _log_axes(axes, picture.box)
        axes.set_xlim(picture.box[:2])
        axes.set_ylim(picture.box[2:])
        axes.set_xlabel(f"mean {AXIS[picture.scale]}")
        axes.set_ylabel(f"spread (standard deviation), {AXIS[picture.scale].split(', ')[-1]}")
        bar = drawing.figure.colorbar(dots, ax=axes, location="bottom", aspect=34, pad=0.03, fraction=0.05)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label(f"improvement over the base model, {NATS}", fontsize=11.5)
    return drawing


def _log_axes(axes: Any, box: tuple[float, float, float, float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, low, high in ((axes.xaxis, *box[:2]), (axes.yaxis, *box[2:])):
        axis.set_major_locator(FixedLocator(log_ticks(low, high, 6)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda v, _: significant(v, 2))


def _norm(measured: Floats, predicted: Floats | None) -> Any:
    """Colour limits that the measured points fill; extremes of the law beyond them share the end colours."""
    from matplotlib.colors import Normalize

    values = measured if len(measured) or predicted is None else predicted[np.isfinite(predicted)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = 0.02 * (high - low) or 1e-3
    return Normalize(low - pad, high + pad)


def _contours(axes: Any, surface: Surface, predicted: Floats, norm: Any) -> None:
    levels = np.linspace(norm.vmin, norm.vmax, 11)
    look: dict[str, Any] = {"levels": levels, "extend": "both", "cmap": COLOUR_MAP, "norm": norm}
    ground = axes.contourf(surface.mesh.mean, surface.mesh.std, np.ma.masked_invalid(predicted), **look)
    ground.set(edgecolor=HALO, linewidth=0.4)


def _outlines(axes: Any, picture: PlanePicture) -> None:
    """Hull, feasible edge and the optimum's region; each over a halo that keeps it visible on any ground."""
    if picture.feasible is not None:
        axes.plot(*picture.feasible.T, color=PALETTE["muted"], lw=1, ls=(0, (1, 2)))
    for ring, dashes in ((picture.hull, (0, (5, 3))), (picture.region, "-")):
        if ring is not None:
            axes.plot(*ring.T, color=HALO, lw=2.4, alpha=0.7, zorder=3)
            axes.plot(*ring.T, color=DARK, lw=1.1, ls=dashes, zorder=3)


def _marks(drawing: Drawing, axes: Any, picture: PlanePicture) -> None:
    looks = {
        "optimum": ("X", PALETTE["ink"], 110),
        "random": ("s", PALETTE["random"], 100),
        "selection": ("D", PALETTE["select"], 110),
    }
    labels = {"random": "random (the pool)", "optimum": "the law's optimum"}
    handles = []
    for name, (mean, std) in picture.marks.items():
        marker, colour, size = looks[name]
        look: dict[str, Any] = {"marker": marker, "s": size, "color": colour, "edgecolors": HALO, "linewidths": 1.6}
        mark = axes.scatter([mean], [std], zorder=6, clip_on=False, **look)
        handles.append(mark)
        drawing.tip(mark, [f"{labels.get(name, name)}\nmean {number(mean)}, spread {number(std)}"])
    if handles:
        names = [labels.get(name, name) for name in picture.marks]
        near: dict[str, Any] = {"handletextpad": 0.2, "columnspacing": 1.0, "borderaxespad": 0.2, "handlelength": 1.4}
        drawing.legend(handles, names, "outside upper left", ncols=2 if drawing.narrow else 3, **near)


def bin_utilities(rows: Sequence[Facts], width: float = HALF) -> Drawing:
    """What one more token of each bin is worth; rows {name, bin, level, levels, worth, low, high}, 1 = an average token
    of the pool. Levels of a second axis stand side by side in their bin."""
    bins, levels = np.array([r["bin"] for r in rows], dtype=float), rows[0]["levels"]
    at = bins + (np.array([r["level"] for r in rows]) - (levels + 1) / 2) * LEVELS_APART / levels
    with styled():
        drawing = Drawing("utilities", "Worth of one more token of each perplexity bin", width, 330)
        axes = drawing.axes()
        axes.axhline(0, color=PALETTE["muted"], lw=1)
        axes.axhline(1, color=PALETTE["muted"], lw=1, ls=(0, (4, 2)))
        for level in range(1, levels + 1):
            mine = [(x, r) for x, r in zip(at, rows, strict=True) if r["level"] == level]
            some = [(x, r["low"], r["high"]) for x, r in mine if r["low"] is not None]
            look: dict[str, Any] = {"color": PALETTE["measured"], "alpha": level / levels}
            if some:
                axes.vlines(*zip(*some, strict=True), lw=2.2, **look)
            label = f"level {level}" + (" (lowest)" if level == 1 else "")
            dots = axes.scatter(
                [x for x, _ in mine], [r["worth"] for _, r in mine], s=64 / levels, zorder=3, label=label, **look
            )
            drawing.tip(
                dots, [f"{r['name']}: {number(r['worth'], 2)} {interval(r['low'], r['high'], 2)}" for _, r in mine]
            )
        if levels > 1:
            drawing.legend(*axes.get_legend_handles_labels(), ncols=levels, handletextpad=0.2)
        axes.set_ylim(*worth_axis(rows))
        axes.set_xlim(0.4, bins[-1] + 0.6)
        axes.set_xticks(np.unique(bins)[:: 1 if bins[-1] <= 12 else 5])
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:.0f}")
        axes.set_xlabel("perplexity bin, lowest to highest")
        axes.set_ylabel("worth of one more token (dashed: average)")
    return drawing


def worth_axis(rows: Sequence[Facts]) -> tuple[float, float]:
    """Ends of the axis: all dots, 0 and 1; and intervals as far as WORTH_REACH times the range of those."""
    dots = np.array([0.0, 1.0, *(r["worth"] for r in rows)])
    ends = np.array([*dots, *(r[k] for r in rows for k in ("low", "high") if r[k] is not None)])
    reach = WORTH_REACH * np.ptp(dots)
    low, high = max(ends.min(), dots.min() - reach), min(ends.max(), dots.max() + reach)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def predicted_against_measured(rows: Sequence[Facts], width: float = HALF) -> Drawing:
    """Each pilot's predicted loss with interval over its measured loss; rows {measured, predicted, low, high, tokens,
    random, tip}."""
    from matplotlib.colors import LogNorm

    measured, predicted, size = (np.array([r[k] for r in rows]) for k in ("measured", "predicted", "tokens"))
    with styled():
        drawing = Drawing("predicted-measured", "Predicted against measured loss of the pilots", width, 400)
        axes = drawing.axes(grid="both")
        ends = np.array([min(measured.min(), predicted.min()), max(measured.max(), predicted.max())])
        ends = ends + np.array([-1, 1]) * 0.04 * (np.ptp(ends) or 0.1)
        axes.plot(ends, ends, color=PALETTE["muted"], lw=1)
        some = [r for r in rows if r["low"] is not None]
        if some:
            axes.vlines([r["measured"] for r in some], np.clip([r["low"] for r in some], *ends),
                        np.clip([r["high"] for r in some], *ends), color=PALETTE["pool"], lw=1.3)  # fmt: skip
        norm = LogNorm(size.min() * 0.9, size.max() * 1.1)
        kinds, names = [], []
        for random, marker, label in ((False, "o", "designed regime"), (True, "s", "random regime")):
            of_kind = np.array([bool(r["random"]) == random for r in rows])
            if of_kind.any():
                look: dict[str, Any] = {
                    "cmap": SIZE_COLOURS,
                    "norm": norm,
                    "edgecolors": PALETTE["muted"],
                    "marker": marker,
                    "zorder": 3,
                }
                dots = axes.scatter(
                    measured[of_kind], predicted[of_kind], c=size[of_kind], s=54, linewidths=0.7, **look
                )
                kinds.append(axes.scatter([], [], marker=marker, color=PALETTE["muted"], s=54))
                names.append(label)
                drawing.tip(dots, [r["tip"] for r in rows if bool(r["random"]) == random])
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel("measured loss, nats/token")
        axes.set_ylabel("predicted loss, nats/token")
        _size_legend(drawing, axes, np.unique(size), norm, kinds, names)
    return drawing


def _size_legend(drawing: Drawing, axes: Any, sizes: Floats, norm: Any, handles: list[Any], labels: list[str]) -> None:
    """Kinds by marker, sizes by colour. Pilots of one size differ by a few tokens: sizes within 5 % are one."""
    import matplotlib

    groups = np.split(sizes, np.flatnonzero(np.diff(np.log(sizes)) > 0.05) + 1)
    for group in groups if len(groups) <= 6 else (groups[0], groups[-1]):
        colour = matplotlib.colormaps[SIZE_COLOURS](norm(group.mean()))
        handles.append(axes.scatter([], [], color=[colour], s=40, edgecolors=PALETTE["muted"], linewidths=0.7))
        labels.append(tokens(float(group.mean())))
    drawing.legend(handles, labels, ncols=2 if drawing.narrow else 3, handletextpad=0.2, handlelength=1.4)
