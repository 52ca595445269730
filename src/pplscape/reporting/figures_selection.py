"""A selection on its landscape: the picture of a data card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.reporting.style import FULL, PALETTE, Drawing, styled
from pplscape.reporting.words import percent


def selection_on_landscape(histogram: Mapping[str, Any], taken: NDArray, width: float = FULL) -> Drawing:
    """Chunks over log-perplexity, pool behind selection, each as shares of its own; `taken` [cells] counts repeats.

    `histogram`: that of landscape.json, `edges` [cells + 1] and `counts` [sources, cells].
    """
    edges = np.asarray(histogram["edges"], dtype=float)
    pool = np.asarray(histogram["counts"], dtype=float).sum(0)
    shares = [counts / max(counts.sum(), 1) for counts in (pool, np.asarray(taken, dtype=float))]
    with styled():
        drawing = Drawing(
            "selection-on-landscape", "Log-perplexity of the pool's and of the selected chunks", width, 330
        )
        axes, both = drawing.axes(), []
        for share, colour in zip(shares, (PALETTE["pool"], PALETTE["select"]), strict=True):
            both.append(drawing.blocks(axes, edges[:-1], edges[1:], 0, share, color=colour, alpha=0.55))
        for share, colour in zip(shares, (PALETTE["muted"], PALETTE["select"]), strict=True):
            axes.stairs(share, edges, color=colour, lw=1.5)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.08 * max(share.max() for share in shares))
        axes.yaxis.set_major_formatter(lambda v, _: percent(v, 0 if v >= 0.01 or v == 0 else 1))
        axes.set_xlabel("log-perplexity of a chunk, nats/token")
        axes.set_ylabel("share of chunks")
        drawing.legend(both, ["pool", "selection, repeats counted"], ncols=2)
    return drawing
