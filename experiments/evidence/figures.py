"""Figures of one pool's runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import ROUNDS, WIDE
from .statistics import paired

if TYPE_CHECKING:
    from .analysis import Table

COLOURS = {"run": "tab:red", "oracle": "tab:green"}
"""What the product does from raw text, and text of the clean part alone."""

FORMER = ("-doubt", "-raw", "-to-pool", "-anchored", "-all", "-split", ROUNDS, WIDE)
"""Ends of the names of arms that are not what the product does: earlier forms, and other plans of pilots."""
REACH = 1.6
"""The axis ends at so many times the largest gain on either side; means beyond are written at its edge."""


def differences_figure(table: Table, path: Path) -> None:
    """Every seed's difference to random, the mean and its t interval, of arms as they are now."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {n: table.differences(n, "random") for n in table.arms if n != "random" and not n.endswith(FORMER)}
    means = {n: float(np.mean(d)) for n, d in found.items() if d}
    names = sorted(means, key=lambda n: means[n], reverse=True)
    edge = REACH * max((abs(m) for m in means.values() if m < 0), default=max(means.values(), default=1.0))
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(names) + 1.1), layout="constrained")
    for y, name in enumerate(names):
        colour = COLOURS.get(name, "tab:blue")
        if means[name] > edge:
            axes.text(0.98 * edge, y, f"{means[name]:+.2f} \u2192", ha="right", va="center", color=colour)
            continue
        d, t = found[name], paired(found[name]).t
        axes.plot(d, [y] * len(d), "o", ms=4, alpha=0.45, color=colour)
        if t:
            axes.plot(t, [y, y], "-", lw=2, color="black")
        axes.plot(means[name], y, "|", ms=12, mew=2, color="black")
    axes.axvline(0, color="grey", lw=1)
    axes.set_xlim(-edge, edge)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in COLOURS else "normal")
    axes.set_xlabel("test loss − random, nats/token (points: seeds; bar: mean, 90 % t interval)")
    _save(figure, path)


def curve_figure(table: Table, path: Path) -> None:
    """Random's loss over D, and where the arms stand."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for size, losses in table.curve.items():
        axes.plot([size] * len(losses), list(losses.values()), "o", ms=4, color="grey", alpha=0.5)
    axes.plot(
        list(table.curve), [np.mean(list(v.values())) for v in table.curve.values()], "-", color="grey", label="random"
    )
    for name, rows in table.arms.items():
        if name != "random" and not name.endswith(FORMER):
            axes.plot(1, np.mean([r["loss_test"] for r in rows.values()]), "_", ms=16, mew=2, label=name)
    axes.set_xscale("log")
    axes.set_xticks(list(table.curve), [f"{s:g}" for s in table.curve])
    axes.minorticks_off()
    axes.set_xlabel("tokens, multiples of D")
    axes.set_ylabel("test loss, nats/token")
    axes.legend(fontsize=7, ncol=2)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
