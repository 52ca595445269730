"""Figures of one pool's runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .statistics import paired

if TYPE_CHECKING:
    from .analysis import Table


def differences_figure(table: Table, path: Path) -> None:
    """Every seed's difference to random, the mean and its t interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [n for n in table.arms if n != "random" and table.differences(n, "random")]
    names.sort(key=lambda n: float(np.mean(table.differences(n, "random"))), reverse=True)
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(names) + 1.2), layout="constrained")
    for y, name in enumerate(names):
        d = table.differences(name, "random")
        found = paired(d)
        axes.plot(d, [y] * len(d), "o", ms=4, alpha=0.45, color="tab:green" if name == "oracle" else "tab:blue")
        if found.t:
            axes.plot(found.t, [y, y], "-", lw=2, color="black")
        axes.plot(found.mean, y, "|", ms=14, mew=2, color="black")
    axes.axvline(0, color="grey", lw=1)
    axes.set_yticks(range(len(names)), names)
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
        if name != "random":
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
