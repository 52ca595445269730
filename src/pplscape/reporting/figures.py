"""The figures about data and outcome, drawn once each from a run's facts. Widths in pixels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplscape.reporting.style import FULL, HALF, PALETTE, SOURCE_COLOURS, Drawing, log_ticks, shorten, styled
from pplscape.reporting.words import NATS, interval, number, percent, tokens
from pplscape.statistics import Floats

Facts = Mapping[str, Any]


def landscape_histogram(landscape: Facts, width: float = FULL) -> Drawing:
    """Chunks over log-perplexity, stacked by source, with the equal-token bins and perplexity on top."""
    cells = landscape["histogram"]
    edges, counts = np.asarray(cells["edges"]), np.asarray(cells["counts"])
    where = [f"{a:.2f} to {b:.2f} {NATS}" for a, b in itertools.pairwise(edges)]
    with styled():
        drawing = Drawing(
            "landscape", "Histogram of chunk log-perplexity by source", width, 330 if width > 420 else 360
        )
        axes = drawing.axes()
        total, bottom, stack = counts.sum(0), np.zeros(len(edges) - 1), []
        for i, (source, n) in enumerate(zip(cells["sources"], counts, strict=True)):
            colour, some = SOURCE_COLOURS[-1 if source.startswith("other (") else i], n > 0
            bars = drawing.blocks(
                axes, edges[:-1][some], edges[1:][some], bottom[some], (bottom + n)[some], color=colour
            )
            stack.append(bars)
            drawing.tip(bars, [f"{where[j]}\n{source}: {n[j]:,} of {total[j]:,} chunks" for j in np.flatnonzero(some)])
            bottom = bottom + n
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, bottom.max() * 1.12)
        _mark_bins(axes, landscape["bins"], edges)
        axes.set_xlabel("log-perplexity of a chunk, nats/token")
        axes.set_ylabel("chunks")
        axes.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
        _perplexity_axis(axes, drawing.narrow)
        if len(cells["sources"]) > 1:
            labels = [s if len(s) <= 24 else s[:23] + "…" for s in cells["sources"]]
            drawing.legend(stack, labels, ncols=2 if drawing.narrow else 6)
    return drawing


def _mark_bins(axes: Any, bins: Facts, edges: Floats) -> None:
    inner = [e for e in bins["edges"] if edges[0] < e < edges[-1]]
    across = axes.get_xaxis_transform()
    axes.vlines(inner, 0, 1, transform=across, color=PALETTE["muted"], lw=0.7, ls=(0, (2, 3)))
    cuts = [edges[0], *bins["edges"], edges[-1]]
    for i, (low, high) in enumerate(itertools.pairwise(cuts)):
        if high - low > 0.03 * (edges[-1] - edges[0]):
            place: dict[str, Any] = {"ha": "center", "va": "top", "color": PALETTE["muted"], "fontsize": 11}
            axes.text((low + high) / 2, 0.985, str(i + 1), transform=across, **place)


def _perplexity_axis(axes: Any, narrow: bool) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    top = axes.secondary_xaxis("top", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
    low, high = np.exp(axes.get_xlim())
    ticks = [m * 10.0**k for k in range(8) for m in (1, 2, 5) if low <= m * 10**k <= high]
    top.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // (6 if narrow else 14)]))
    top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    top.set_xlabel("perplexity", fontsize=11.5)


def bin_shares(selection: Facts, width: float = HALF) -> Drawing:
    """Share of tokens per bin, pool beside selection."""
    pool, chosen = (np.asarray(selection[k], dtype=float) for k in ("pool_bin_tokens", "bin_tokens"))
    pool, chosen = pool / pool.sum(), chosen / max(chosen.sum(), 1)
    at = np.arange(1, len(pool) + 1)
    with styled():
        drawing = Drawing("bin-shares", "Share of tokens per perplexity bin, pool and selection", width, 280)
        axes, both = drawing.axes(), []
        for shares, left, label in ((pool, at - 0.4, "pool"), (chosen, at + 0.0, "selection")):
            colour = PALETTE["pool" if label == "pool" else "select"]
            bars = drawing.blocks(axes, left, left + 0.38, 0, shares, color=colour)
            both.append(bars)
            drawing.tip(bars, [f"bin {i}, {label}: {percent(s, 1)} of tokens" for i, s in zip(at, shares, strict=True)])
        axes.set_xlim(0.4, len(pool) + 0.6)
        axes.set_ylim(0, 1.1 * max(pool.max(), chosen.max()))
        axes.set_xticks(at if len(at) <= 12 else at[::5])
        axes.yaxis.set_major_formatter(lambda v, _: percent(v))
        axes.set_xlabel("perplexity bin, lowest to highest")
        axes.set_ylabel("share of tokens")
        drawing.legend(both, ["pool", "selection"], ncols=2)
    return drawing


def source_shares(selection: Facts, width: float = HALF, most: int = 8) -> Drawing:
    """Share of tokens per source, pool against selection, as pairs of dots."""
    pool, chosen = selection["pool_source_tokens"], selection["source_tokens"]
    names = sorted(pool, key=lambda s: -pool[s])
    shown = names[: most - 1] if len(names) > most else names
    rows = [(n, pool[n], chosen.get(n, 0)) for n in shown]
    if rest := names[len(shown) :]:
        rows.append((f"{len(rest)} others", sum(pool[n] for n in rest), sum(chosen.get(n, 0) for n in rest)))
    before = np.array([r[1] for r in rows]) / max(sum(pool.values()), 1)
    after = np.array([r[2] for r in rows]) / max(sum(chosen.values()), 1)
    at = -np.arange(len(rows), dtype=float)
    with styled():
        drawing = Drawing("source-shares", "Share of tokens per source, pool and selection", width, 86 + 24 * len(rows))
        axes = drawing.axes(grid="x")
        axes.hlines(at, before, after, color=PALETTE["muted"], lw=1.2)
        both = []
        for shares, label, marker in ((before, "pool", "o"), (after, "selection", "D")):
            colour = PALETTE["pool" if label == "pool" else "select"]
            dots = axes.scatter(shares, at, color=colour, marker=marker, s=52, zorder=3, clip_on=False)
            both.append(dots)
            drawing.tip(dots, [f"{r[0]}, {label}: {percent(s, 1)}" for r, s in zip(rows, shares, strict=True)])
        axes.set_yticks(at, [shorten(r[0], 18 if drawing.narrow else 24) for r in rows])
        axes.set_ylim(at[-1] - 0.6, 0.6)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0, pad=9)
        axes.xaxis.set_major_formatter(lambda v, _: percent(v))
        axes.set_xlabel("share of tokens")
        drawing.legend(both, ["pool", "selection"], ncols=2)
    return drawing


def budget_curve(selection: Facts, width: float = HALF) -> Drawing:
    """Predicted loss against tokens for the selection and random, with bands, and the budget marked."""
    from matplotlib.ticker import FixedLocator, NullLocator

    curve = selection["budget_curve"]
    with styled():
        drawing = Drawing("budget-curve", "Predicted loss against tokens, selection and random", width, 340)
        axes, lines = drawing.axes(), []
        for key, dashes in (("random", (0, (4, 2))), ("selection", "-")):
            colour = PALETTE["select" if key == "selection" else "random"]
            known = [p for p in curve if p[key]["loss"] is not None]
            size = np.array([p["tokens"] for p in known], dtype=float)
            loss, low, high = (np.array([p[key].get(k) for p in known], dtype=float) for k in ("loss", "low", "high"))
            axes.fill_between(size, low, high, color=colour, alpha=0.16, lw=0)
            lines += axes.plot(size, loss, color=colour, ls=dashes)
            dots = axes.scatter(size, loss, color=colour, s=22, zorder=3)
            texts = zip(size, loss, low, high, strict=True)
            drawing.tip(dots, [f"{key}, {tokens(d)}\n{number(v)} {interval(a, b)} {NATS}" for d, v, a, b in texts])
        size = np.array([p["tokens"] for p in curve], dtype=float)
        axes.axvline(selection["budget"], color=PALETTE["muted"], lw=1, ls=(0, (1, 2)))
        place: dict[str, Any] = {"color": PALETTE["muted"], "fontsize": 11, "va": "top"}
        right = selection["budget"] > np.sqrt(size[0] * size[-1])
        look: dict[str, Any] = {
            "ha": "right" if right else "left",
            "xytext": (-5 if right else 5, 0),
            "textcoords": "offset points",
        }
        axes.annotate("budget", (selection["budget"], 0.99), xycoords=axes.get_xaxis_transform(), **look, **place)
        axes.set_xscale("log")
        ticks = log_ticks(size[0], size[-1], 4 if drawing.narrow else 6)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda v, _: tokens(v, unit=False, digits=1))
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("predicted loss, nats/token")
        drawing.legend(lines, ["random", "selection"], ncols=2, handlelength=1.6)
        drawing.frame = axes
    return drawing


def paired_differences(comparison: Facts, width: float = FULL) -> Drawing:
    """Strategies as dots: paired difference to random in loss and bits/byte, change in general loss; 90 % intervals."""
    rows = [s for s in comparison["strategies"] if s["difference"] or s.get("change_general")]
    panels = [
        ("difference", "loss − random's, nats/token", "loss"),
        ("difference_bits_per_byte", "bits/byte − random's", "bits_per_byte"),
        ("change_general", "general loss − base model's, nats/token", "loss_general"),
    ]
    panels = [p for p in panels if any(r.get(p[0]) for r in rows)]
    narrow = width < 420
    height = 62 + 30 * len(rows)
    with styled():
        drawing = Drawing(
            "paired-differences",
            "Measured differences by strategy with intervals",
            width,
            height * len(panels) if narrow else height,
        )
        shape = (len(panels), 1) if narrow else (1, len(panels))
        all_axes = drawing.figure.subplots(*shape, sharey=not narrow, squeeze=False).ravel()
        for axes, (key, label, of_arm) in zip(all_axes, panels, strict=True):
            _difference_panel(drawing, axes, comparison, rows, (key, label, of_arm))
    return drawing


def _difference_panel(
    drawing: Drawing, axes: Any, comparison: Facts, rows: Sequence[Facts], panel: tuple[str, str, str]
) -> None:
    key, label, of_arm = panel
    axes.grid(axis="x")
    axes.axvline(0, color=PALETTE["muted"], lw=1)
    at = -np.arange(len(rows), dtype=float)
    shown = [(y, r["strategy"], r[key]) for y, r in zip(at, rows, strict=True) if r.get(key)]
    for y, name, _ in shown:
        pairs = seed_differences(comparison, name, key, of_arm)
        axes.scatter(pairs, np.full(len(pairs), y), s=16, color=PALETTE["pool"], zorder=2, lw=0)
    some = [(y, d) for y, _, d in shown if d.get("low") is not None]
    axes.hlines(
        [y for y, _ in some], [d["low"] for _, d in some], [d["high"] for _, d in some], color=PALETTE["measured"]
    )
    dots = axes.scatter(
        [d["mean"] for _, _, d in shown], [y for y, _, _ in shown], s=58, color=PALETTE["measured"], zorder=3
    )
    drawing.tip(dots, [f"{n}: {number(d['mean'], 4, True)} {interval(d['low'], d['high'], 4, True)}\n{d['n']} pairs"
                       for _, n, d in shown])  # fmt: skip
    axes.set_yticks(at, [shorten(r["strategy"], 16) for r in rows])
    axes.set_ylim(at[-1] - 0.7, 0.7)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(_few_ticks())
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:+.4g}".replace("-", "−") if v else "0")
    axes.set_xlabel(label, fontsize=11.5)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 5, 10])


def seed_differences(comparison: Facts, strategy: str, key: str, of_arm: str) -> list[float]:
    """One difference a seed: to random's arm of that seed, or to the base model for the change in general loss."""
    arms = {(a["strategy"], a["seed"]): a[of_arm] for a in comparison["arms"] if a.get(of_arm) is not None}
    base = (comparison.get("base") or {}).get(of_arm)
    found = []
    for (name, seed), value in arms.items():
        other = base if key == "change_general" else arms.get((comparison["reference"], seed))
        if name == strategy and other is not None:
            found.append(value - other)
    return found
