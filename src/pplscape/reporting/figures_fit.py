"""Figures that judge a fit: residuals, profiles of the objective, clouds of the resamples. Widths in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplscape.laws.law import Law
from pplscape.laws.profile import MOST_PARAMETERS
from pplscape.reporting.law_view import ends_of
from pplscape.reporting.style import FULL, HALF, PALETTE, Drawing, styled
from pplscape.reporting.surface import hull
from pplscape.reporting.words import number, significant, tokens
from pplscape.statistics import Floats

Facts = Mapping[str, Any]
KIND_LOOKS = {
    "interior": ("o", "s1"),
    "edge": ("s", "s2"),
    "saddle": ("D", "s4"),
    "unbounded": ("^", "s5"),
}
"""Marker and palette colour of each class of optimum: told apart without colour."""
MOST_PAIRS = 3
"""Pairs of parameters shown as clouds."""
VALLEY = {"E", "aD", "alpha", "beta"}
"""Names of the irreducible loss and the exponents of D."""
MOST_DOTS = 200
"""Resamples drawn; all count in what is said of them."""


def residuals(rows: Sequence[Facts], noise: float | None, width: float = HALF) -> Drawing:
    """Measured minus predicted loss over D on a log axis; rows {measured, predicted, tokens, random, tip}.

    `noise`: standard deviation of one run, nats/token; shaded is what 90 % of runs should keep within. Black: the mean
    of each size with its standard error; a trend there is a wrong law of D.
    """
    size = np.array([r["tokens"] for r in rows], float)
    gap = np.array([r["measured"] - r["predicted"] for r in rows])
    random = np.array([bool(r["random"]) for r in rows])
    with styled():
        drawing = Drawing("residuals", "Measured minus predicted loss over training tokens", width, 330)
        axes = drawing.axes()
        if noise:
            axes.axhspan(-1.645 * noise, 1.645 * noise, color=PALETTE["band"], lw=0, zorder=0)
        axes.axhline(0, color=PALETTE["muted"], lw=1)
        handles, names = [], []
        looks = ((False, "o", "pool", "designed regime"), (True, "s", "random", "random regime"))
        for kind, marker, colour, label in looks:
            if (random == kind).any():
                look: dict[str, Any] = {"s": 42, "marker": marker, "color": PALETTE[colour], "zorder": 2}
                dots = axes.scatter(size[random == kind], gap[random == kind], alpha=0.8, **look)
                drawing.tip(dots, [r["tip"] for r in rows if bool(r["random"]) == kind])
                handles.append(dots)
                names.append(label)
        handles.append(_size_means(axes, size, gap))
        names.append("mean of a size, se")
        axes.set_xscale("log")
        _token_axis(axes, size)
        axes.set_xlabel("training tokens D (log scale)")
        axes.set_ylabel("measured − predicted, nats/token")
        drawing.legend(handles, names, ncols=2 if drawing.narrow else 3, handletextpad=0.3)
    return drawing


def _size_means(axes: Any, size: Floats, gap: Floats) -> Any:
    order = np.argsort(size)
    groups = np.split(order, np.flatnonzero(np.diff(np.log(size[order])) > 0.05) + 1)
    at = [float(np.exp(np.log(size[g]).mean() + 0.02 * np.log(size.max() / size.min() * 1.6))) for g in groups]
    means = [float(gap[g].mean()) for g in groups]
    errors = [float(gap[g].std(ddof=1) / np.sqrt(len(g))) if len(g) > 1 else 0.0 for g in groups]
    look: dict[str, Any] = {"color": PALETTE["ink"], "ms": 10, "capsize": 3, "elinewidth": 1.6, "zorder": 4}
    return axes.errorbar(at, means, errors, fmt="_", mew=2, **look)


def _token_axis(axes: Any, size: Floats) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = float(size.min()) / 1.25, float(size.max()) * 1.25
    logs = np.sort(np.log(size))
    centres = np.exp([g.mean() for g in np.split(logs, np.flatnonzero(np.diff(logs) > 0.05) + 1)])
    kept = [centres[0]]
    for centre in centres[1:]:
        if np.log(centre / kept[-1]) > 0.14 * np.log(high / low):
            kept.append(centre)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([float(c) for c in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda v, _: tokens(v, unit=False, digits=2))


def profiles(law: Law, width: float = FULL) -> Drawing | None:
    """Profile of the objective over each parameter of the law; None where the fit left none.

    Dashed: the threshold of a likelihood-ratio interval if runs were independent; bar: the interval of the
    summary, which counts trunks.
    """
    found = law.diagnostics.get("profiles")
    if not found:
        return None
    curves = {k: v for k, v in found["parameters"].items() if len(v["value"]) > 1}
    if not curves:
        return None
    columns = min(4 if width > HALF else 2, len(curves))
    n_rows = -(-len(curves) // columns)
    with styled():
        drawing = Drawing("profiles", "Profile of the fit over each parameter", width, 50 + 165 * n_rows)
        panels = drawing.figure.subplots(n_rows, columns, sharey=True, squeeze=False)
        for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
            _profile(drawing, axes, law, name, curve, float(found["threshold"]))
        for axes in panels.flat[len(curves) :]:
            axes.set_visible(False)
        drawing.figure.supylabel("rise of −2 ln likelihood", fontsize=12)
    return drawing


def _profile(drawing: Drawing, axes: Any, law: Law, name: str, curve: Facts, threshold: float) -> None:
    from matplotlib.ticker import MaxNLocator

    value, rise = np.asarray(curve["value"]), np.asarray(curve["rise"])
    top = 2.2 * threshold
    axes.axhline(threshold, color=PALETTE["muted"], lw=1, ls=(0, (4, 2)))
    line = axes.plot(value, rise, color=PALETTE["measured"], lw=1.8)[0]
    axes.plot(law.params[name], 0, "o", color=PALETTE["measured"], ms=5, clip_on=False, zorder=4)
    low, high, identified = ends_of(law.intervals.get(name))
    if low is not None and high is not None:
        outer = _widened(value, 0.6)
        bar: dict[str, Any] = {"color": PALETTE["select"], "lw": 3.5, "solid_capstyle": "butt"}
        axes.plot(np.clip([low, high], *outer), [-0.09 * top] * 2, **bar)
    text = f"{name} = {significant(law.params[name], 4)}" + ("" if identified else ", not identified")
    drawing.tip(line, [f"{text}\nfollowed from {significant(value[0], 3)} to {significant(value[-1], 3)}"])
    axes.set_title(name if identified else f"{name} (not identified)", fontsize=11.5)
    axes.set_ylim(-0.17 * top, top)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if _on_log(value):
        axes.set_xscale("log")
        axes.minorticks_off()
        _few_decades(axes, float(value[0]), float(value[-1]))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
        axes.xaxis.set_major_formatter(lambda v, _: short(v))
    axes.tick_params(labelsize=10.5)


def _on_log(values: Floats) -> bool:
    """Whether values are better shown on a logarithmic axis: wide, and their middle nearer the geometric mean."""
    low, high, middle = (float(v) for v in (values.min(), values.max(), np.median(values)))
    return low > 0 and high > 30 * low and middle < np.sqrt(np.sqrt(low * high) * (low + high) / 2)


def short(value: float) -> str:
    """A tick label of at most four digits."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "−")


def _widened(values: Floats, room: float) -> tuple[float, float]:
    """Ends of sorted values moved out by `room` of their width, on the axis they are shown on."""
    ends = np.log(values[[0, -1]]) if _on_log(values) else values[[0, -1]]
    ends = ends + room * (ends[1] - ends[0]) * np.array([-1, 1])
    low, high = np.exp(ends) if _on_log(values) else ends
    return float(low), float(high)


def _few_decades(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FixedLocator

    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    step = 1 + max(last - first, 0) // 3
    axes.xaxis.set_major_locator(FixedLocator([10.0**k for k in range(first, last + 1, step)]))
    axes.xaxis.set_major_formatter(lambda v, _: f"$10^{{{np.log10(v):.0f}}}$" if v >= 1e4 or v < 1e-2 else f"{v:g}")


def clouds(law: Law, width: float = FULL) -> Drawing | None:
    """Resamples of the law: where the optimum falls, and the pairs of parameters that trade off most; ρ: correlation.

    None for a law without resamples or with a single parameter and no optimum.
    """
    cloud = law.optimum.get("cloud")
    pairs = strongest_pairs(law)
    panels = (1 if cloud else 0) + len(pairs)
    if not panels:
        return None
    columns = min(4 if width > HALF else 2, panels)
    n_rows = -(-panels // columns)
    with styled():
        drawing = Drawing("clouds", "Resamples of the law", width, 70 + 245 * n_rows)
        grid = drawing.figure.subplots(n_rows, columns, squeeze=False)
        places = list(grid.flat)
        if cloud:
            _optimum_cloud(drawing, places.pop(0), law)
        for axes, (a, b, correlation) in zip(places, pairs, strict=False):
            _pair(drawing, axes, law, a, b, correlation)
        for axes in places[len(pairs) :]:
            axes.set_visible(False)
    return drawing


def strongest_pairs(law: Law) -> list[tuple[str, str, float]]:
    """(name, name, rank correlation) of the parameters that trade off most over the resamples, strongest first.

    The irreducible loss and the exponent come first: their valley decides extrapolation.
    """
    from scipy.stats import rankdata

    draws = np.asarray(law.resamples.get("params", []), float)
    if draws.ndim != 2 or draws.shape[0] < 3 or draws.shape[1] < 2:
        return []
    names = list(law.params)
    few = range(len(names)) if len(names) <= MOST_PARAMETERS else [i for i, n in enumerate(names) if n in VALLEY]
    moving = [i for i in few if np.ptp(draws[:, i]) > 1e-12 * max(abs(float(draws[0, i])), 1e-300)]
    if len(moving) < 2:
        return []
    ranked = np.corrcoef(rankdata(draws[:, moving], axis=0).T)
    found = [
        (names[moving[i]], names[moving[j]], float(ranked[i, j]))
        for i in range(len(moving))
        for j in range(i + 1, len(moving))
    ]
    found.sort(key=lambda p: (not {p[0], p[1]} <= VALLEY or "E" not in p[:2], -abs(p[2])))
    return found[:MOST_PAIRS]


def _pair(drawing: Drawing, axes: Any, law: Law, a: str, b: str, correlation: float) -> None:
    names = list(law.params)
    draws = np.asarray(law.resamples["params"], float)
    x, y = draws[:, names.index(a)], draws[:, names.index(b)]
    shown = slice(MOST_DOTS)
    dots = axes.scatter(x[shown], y[shown], s=9, color=PALETTE["s1"], alpha=0.5, linewidths=0)
    drawing.tip(dots, [f"{a} and {b} over {len(x)} resamples: rank correlation {number(correlation, 2)}"])
    axes.plot(law.params[a], law.params[b], "X", color=PALETTE["ink"], ms=8, mec="white", mew=1)
    for axis, values, name in ((axes.xaxis, x, a), (axes.yaxis, y, b)):
        _value_axis(axes, axis, values)
        axis.set_label_text(name)
    axes.set_title(f"ρ = {number(correlation, 2)}", fontsize=11.5)
    axes.tick_params(labelsize=10.5)


def _value_axis(axes: Any, axis: Any, values: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    set_scale = axes.set_xscale if axis is axes.xaxis else axes.set_yscale
    if _on_log(values):
        set_scale("log")
        axis.set_minor_locator(MaxNLocator(1))
        axis.set_minor_formatter(lambda v, _: "")
    else:
        axis.set_major_locator(MaxNLocator(4 if np.abs(values).max() > 1e-3 else 2, min_n_ticks=2))
        axis.set_major_formatter(lambda v, _: short(v))


def _pilots_hull(law: Law) -> Floats:
    """The hull of the pilots [p, 2] as a ring of (mean, standard deviation)."""
    mean, spread = np.exp(np.asarray(law.region["hull"])).T
    return hull(mean, np.sqrt(spread) if law.reading == "var" else spread)


def _optimum_cloud(drawing: Drawing, axes: Any, law: Law) -> None:
    cloud = law.optimum["cloud"]
    mean, spread = np.asarray(cloud["mu"]), np.asarray(cloud["sigma"])
    kinds = np.asarray(cloud["kind"])
    handles, labels = [], []
    for kind, (marker, colour) in KIND_LOOKS.items():
        of_kind = np.flatnonzero(kinds == kind)
        if len(of_kind):
            shown = of_kind[: max(MOST_DOTS * len(of_kind) // len(kinds), 1)]
            look: dict[str, Any] = {"s": 16, "alpha": 0.6, "linewidths": 0, "marker": marker}
            dots = axes.scatter(mean[shown], spread[shown], color=PALETTE[colour], **look)
            labels.append(f"{kind} {len(of_kind) / len(kinds):.0%}")
            drawing.tip(dots, [f"{labels[-1]} of the resamples"])
            handles.append(dots)
    ring = np.asarray(law.optimum["region"])
    if len(ring) > 2:
        axes.plot(*np.concatenate([ring, ring[:1]]).T, color=PALETTE["ink"], lw=1)
    axes.plot(law.optimum["mu"], law.optimum["sigma"], "X", color=PALETTE["ink"], ms=9, mec="white", mew=1)
    edge = _pilots_hull(law)
    axes.plot(*edge.T, color=PALETTE["muted"], lw=1, ls=(0, (5, 3)))
    for axis, values in ((axes.xaxis, edge[:, 0]), (axes.yaxis, edge[:, 1])):
        _value_axis(axes, axis, values)
    unit = "perplexity" if law.scale == "ppl" else "log-perplexity"
    axes.set_xlabel(f"mean {unit} of the optimum")
    axes.set_ylabel("spread of the optimum")
    axes.tick_params(labelsize=10.5)
    correlation = law.optimum["correlation"]
    axes.set_title("optimum" if correlation is None else f"optimum, ρ = {number(correlation, 2)}", fontsize=11.5)
    drawing.legend(handles, labels, ncols=2 if drawing.narrow else 4, handletextpad=0.2)
