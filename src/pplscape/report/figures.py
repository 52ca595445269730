"""The figures of the report and of a paper, drawn once each from a run's facts. Widths in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pplscape.report.style import FULL, PALETTE, SOURCE_COLOURS, Drawing, styled


def landscape_histogram(landscape: Mapping[str, Any], width: float = FULL) -> Drawing:
    """Chunks over log-perplexity, stacked by source, with the equal-token bins and perplexity on top."""
    cells = landscape["histogram"]
    edges, counts = np.asarray(cells["edges"]), np.asarray(cells["counts"])
    with styled():
        drawing = Drawing("landscape", "Histogram of chunk log-perplexity", width, 330 if width > 420 else 360)
        axes = drawing.axes()
        _mark_bins(axes, landscape["bins"], edges)
        total, bottom = counts.sum(0), np.zeros(len(edges) - 1)
        for i, (source, n) in enumerate(zip(cells["sources"], counts, strict=True)):
            look = {"color": SOURCE_COLOURS[-1 if source.startswith("other (") else i], "label": source}
            some = n > 0
            bars = drawing.blocks(axes, edges[:-1][some], edges[1:][some], bottom[some], (bottom + n)[some], **look)
            where = [f"{a:.2f} to {b:.2f} nats/token" for a, b in zip(edges, edges[1:], strict=False)]
            drawing.tip(bars, [f"{where[j]}\n{source}: {n[j]:,} of {total[j]:,} chunks" for j in np.flatnonzero(some)])
            bottom = bottom + n
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, bottom.max() * 1.12)
        axes.set_xlabel("log-perplexity of a chunk, nats/token")
        axes.set_ylabel("chunks")
        _perplexity_axis(axes, drawing.narrow)
        if len(cells["sources"]) > 1:
            drawing.figure.legend(loc="outside lower left", ncols=2 if drawing.narrow else 6, handlelength=0.8)
    return drawing


def _mark_bins(axes: Any, bins: Mapping[str, Any], edges: np.ndarray) -> None:
    cuts = [edges[0], *bins["edges"], edges[-1]]
    across = axes.get_xaxis_transform()
    axes.vlines(bins["edges"], 0, 1, transform=across, color=PALETTE["muted"], lw=0.7, ls=(0, (2, 3)))
    for i, (low, high) in enumerate(zip(cuts, cuts[1:], strict=False)):
        if high - low > 0.03 * (edges[-1] - edges[0]):
            place = {"ha": "center", "va": "top", "color": PALETTE["muted"], "fontsize": 11}
            axes.text((low + high) / 2, 0.985, str(i + 1), transform=across, **place)


def _perplexity_axis(axes: Any, narrow: bool) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    top = axes.secondary_xaxis("top", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
    low, high = np.exp(axes.get_xlim())
    ticks = [m * 10**k for k in range(0, 8) for m in (1, 2, 5) if low <= m * 10**k <= high]
    top.xaxis.set_major_locator(FixedLocator(ticks[:: 2 if narrow and len(ticks) > 6 else 1]))
    top.xaxis.set_minor_locator(NullLocator())
    top.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    top.set_xlabel("perplexity", fontsize=11.5)
