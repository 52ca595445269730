"""What `transfer` tells: summary.md, and the target's gains over the proxy's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pplscape.reporting.style import HALF, PALETTE, SOURCE_COLOURS, Drawing, plain, styled
from pplscape.reporting.words import NATS, number, percent, table, tokens, with_interval

Facts = Mapping[str, Any]
REFERENCE = "random"


def summary(facts: Facts) -> str:
    """`facts`: transfer.json."""
    proxy, target = facts["proxy"]["model"], facts["target"]["model"]
    verdict = facts["verdict"]
    parts = [f"# {proxy} in place of {target}: {verdict['light']}", verdict["sentence"]]
    if verdict["settle"]:
        parts.append(f"What would settle it: {verdict['settle']}")
    parts.append(
        f"Losses are measured, each model's own ({NATS}, valid text). Intervals hold {percent(facts['level'])}; those "
        "of gains allow for the best of several noisy losses looking too good, and for noise that both models share "
        "because they saw the same chunks. What is best here need not be best for larger runs than these."
    )
    of = facts["sizes"][-1]["noise"] if facts["sizes"] else None
    if of:
        parts.append(
            f"Seed noise of a run of the largest size: {percent(of['proxy'], 2)} of the loss of {proxy}, "
            f"{percent(of['target'], 2)} of {target}'s, correlation {number(of['correlation'], 2)} "
            f"({of['freedom']} degrees of freedom)."
        )
    if facts["sizes"]:
        parts += ["## By size", table(_SIZES, map(_size, facts["sizes"]))]
        parts += ["## Regimes", table(("regime", "tokens", proxy, target, "seeds"), _regimes(facts))]
        parts.append("![gains over random](gains.png)")
    parts += ["## Laws", _laws(facts)]
    return "\n\n".join(parts) + "\n"


_SIZES = (
    "tokens", "regimes", "Spearman", "noise allows", "pairs in one order", "first for the proxy", "its gain",
    "achievable", "regret", "share kept",
)  # fmt: skip


def _size(size: Facts) -> tuple[str, ...]:
    agreed, chosen = size["agreement"], size["choice"]
    cells = (
        tokens(size["tokens"], unit=False), str(len(size["regimes"])), with_interval(agreed["spearman"], digits=2),
        number(agreed["ceiling"], 2), percent(agreed["pairs"]),
    )  # fmt: skip
    if chosen is None:
        return (*cells, size["first"], *["–"] * 4)
    gains = (with_interval(chosen[k], digits=4, sign=k == "gain") for k in ("gain", "achievable", "regret"))
    return (*cells, chosen["choice"], *gains, with_interval(chosen["share"], digits=2))


def _regimes(facts: Facts) -> Iterator[tuple[str, ...]]:
    for size in facts["sizes"]:
        for row in sorted(size["regimes"], key=lambda r: r["target"]):
            seeds = " and ".join(str(n) for n in row["runs"])
            losses = number(row["proxy"], 4), number(row["target"], 4)
            yield (row["regime"], tokens(size["tokens"], unit=False), *losses, seeds)


def _laws(facts: Facts) -> str:
    found = facts["laws"]
    if found is None:
        return f"Not compared: {facts['no_laws']}."
    proxy, target = facts["proxy"]["model"], facts["target"]["model"]
    rows = zip(range(1, 1 + len(found["utilities"]["proxy"])), *found["utilities"].values(), strict=True)
    return (
        f"Utility laws of both models: correlation of the bins' utilities {number(found['correlation'], 2)}. At "
        f"{tokens(found['budget'])} the law of {target} predicts a gain over random of "
        f"{number(found['gain'], 4, True)} {NATS} for the allocation by the law of {proxy}, "
        f"{number(found['achievable'], 4, True)} for its own: regret {number(found['regret'], 4)}. "
        "Points without intervals; allocations are hedged, so the regret may be below 0.\n\n"
        + table(("bin", proxy, target), ((str(b), number(p, 2), number(t, 2)) for b, p, t in rows))
    )


def gains_figure(facts: Facts) -> Drawing:
    """Gain of every regime over random (over the mean regime where random is missing): target over proxy."""
    with styled():
        drawing = Drawing("gains", "Gains of regimes over random, target over proxy", HALF, 380)
        axes = drawing.axes(grid="both")
        ends = [0.0, 0.0]
        for size, colour in zip(facts["sizes"], SOURCE_COLOURS * 9, strict=False):
            losses = np.array([[r["proxy"], r["target"]] for r in size["regimes"]])
            random = [r["regime"] == REFERENCE for r in size["regimes"]]
            gains = (losses[random].mean(0) if any(random) else losses.mean(0)) - losses
            axes.scatter(gains[:, 0], gains[:, 1], color=colour, s=42, label=tokens(size["tokens"]), zorder=3)
            ends = [min(ends[0], gains.min()), max(ends[1], gains.max())]
        axes.plot(ends, ends, color=PALETTE["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel(plain(f"gain over random, {facts['proxy']['model']} ({NATS})"))
        axes.set_ylabel(plain(f"gain over random, {facts['target']['model']} ({NATS})"))
        axes.legend(loc="upper left")
        return drawing
