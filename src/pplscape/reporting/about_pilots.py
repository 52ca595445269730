"""What the section about the pilots says: plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pplscape.laws.law import Law
from pplscape.laws.words import average_utility, optimum_words, worth_limits
from pplscape.reporting import figures_law
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.law_view import SAME_SIZE, LawView
from pplscape.reporting.style import HALF
from pplscape.reporting.words import NATS, number, percent, plural, times, tokens, visible

Facts = Mapping[str, Any]
FAR_ABOVE = 1.25
"""A budget above the largest pilot by this factor gets a picture of its own."""


def pilots_view(run: RunFolder, view: LawView, gallery: Gallery) -> dict[str, Any] | None:
    """Section 2; None without a single finished pilot."""
    if not view.rows:
        return None
    sizes = [(float(np.mean([r["tokens"] for r in g])), g) for g in view.sizes]
    shown = [
        (size, g, tokens(size, unit=False, digits=2)) for size, g in (sizes[:1] if len(sizes) > 1 else []) + sizes[-1:]
    ]
    largest = len(shown) - 1
    if view.law and run.budget and run.budget > FAR_ABOVE * sizes[-1][0] and view.sees_composition:
        shown.append((float(run.budget), [], f"budget: {tokens(run.budget, unit=False, digits=2)}"))
    panels = [
        {"label": label, "default": i == largest,
         "figure": gallery.hang(partial(figures_law.pilots_plane, view.picture(g, size)), HALF,
                                "pilots-plane" if i == largest else "")}
        for i, (size, g, label) in enumerate(shown)
    ]  # fmt: skip
    utilities = utility_rows(view.law) if view.law else []
    return {
        "sentence": _pilots_sentence(run, view),
        "panels": panels,
        "caption": _plane_caption(view),
        "optimum": optimum_sentence(view.law) if view.law else None,
        "surface": surface_data(view, sizes[-1][0]),
        "utilities": gallery.hang(partial(figures_law.bin_utilities, utilities), HALF) if utilities else None,
        "utilities_caption": _utilities_caption(utilities, view.law) if view.law else "",
    }


def _pilots_sentence(run: RunFolder, view: LawView) -> str:
    trunks = len({r["group"] for r in view.rows})
    best = max(view.rows, key=lambda r: (r["base_loss"] or 0) - r["loss"])
    text = (
        f"{plural(len(view.rows), 'pilot')} from {plural(trunks, 'trunk')}, "
        f"{tokens(view.sizes[0][0]['tokens'])} to {tokens(view.sizes[-1][-1]['tokens'])}"
    )
    if run.failed:
        text += f" ({plural(len(run.failed), 'run')} failed and left out)"
    if view.base_loss is not None:
        text += (
            f". From the base model's {number(view.base_loss)} {NATS} the best pilot (‘{best['regime']}’, "
            f"{tokens(best['tokens'])}) came to {number(best['loss'])}"
        )
    return visible(text + ".")


def _plane_caption(view: LawView) -> str:
    parts = [
        "Each dot is a subset that was trained on, placed by the mean and spread of its chunks; brighter is better."
    ]
    if view.sees_composition and view.run.landscape:
        assert view.law is not None
        parts.append(f"The ground is what the chosen law (‘{view.law.form}’) predicts for the pool tilted to each mean "
                     "and spread: dots that fade into it are well told.")  # fmt: skip
    elif view.law is not None:
        parts.append(
            f"The chosen law (‘{view.law.form}’) does not look at perplexity, so there are no contours to draw."
        )
    if len(view.rows) > 2:
        parts.append("Dashed: the hull of the pilots. Dotted: the edge of what the budget can reach.")
    return " ".join(parts)


def optimum_sentence(law: Law) -> str | None:
    """The optimum of a law on mean and spread, in words: edges, saddles and unbounded laws are called so."""
    if law.optimum.get("kind", "none") == "none":
        return None
    return f"The chosen law is ‘{law.form}’. {optimum_words(law.optimum)}"


def surface_data(view: LawView, size: float) -> dict[str, Any] | None:
    """The law's surface for the rotating view: rounded, null where no such subset exists."""
    surface = view.surface(size)
    if surface is None:
        return None
    rows = next(g for g in view.sizes if g[-1]["tokens"] >= size * (1 - SAME_SIZE))
    known = np.isfinite(surface.loss)
    return {
        "mean": surface.mesh.mean[0].round(4).tolist(),
        "std": surface.mesh.std.round(4).tolist(),
        "loss": [[round(v, 5) if k else None for v, k in zip(*r, strict=True)]
                 for r in zip(surface.loss.tolist(), known.tolist(), strict=True)],
        "pilots": [[*map(float, p), r["loss"]] for p, r in zip(view.points(rows), rows, strict=True)],
        "axes": [f"mean {figures_law.AXIS[view.scale]}", "spread", f"loss, {NATS}"],
        "tokens": tokens(size),
        "log": view.scale == "ppl",
    }  # fmt: skip


def utility_rows(law: Law) -> list[dict[str, Any]]:
    """Worth of one more token per bin relative to an average token of the pool, from the law's utility entry."""
    found = next((x for x in (law, *law.alternatives) if x.form.partition(":")[0] == "utility"), None)
    average = average_utility(found) if found else None
    if found is None or average is None:
        return []
    rows, levels, limits = [], found.frame.bin_levels, worth_limits(found)
    for b in range(len(found.frame.bin_share or ())):
        worth = float(found.params[f"u_{b}"] / average)
        low, high = (None, None) if limits is None else (min(limits[0][b], worth), max(limits[1][b], worth))
        place = {"bin": b // levels + 1, "level": b % levels + 1, "levels": levels}
        name = f"bin {place['bin']}" + (f", level {place['level']}" if levels > 1 else "")
        rows.append({"name": name, **place, "worth": worth, "low": low, "high": high})
    return rows


def _utilities_caption(rows: Sequence[Facts], law: Law) -> str:
    if not rows:
        return ""
    best, worst = max(rows, key=lambda r: r["worth"]), min(rows, key=lambda r: r["worth"])
    text = (
        f"By the utility law, one more token of {best['name']} is worth {times(best['worth'])} an average token, "
        f"of {worst['name']} {times(worst['worth'])}"
    )
    harmful = [r["name"] for r in rows if r["high"] is not None and r["high"] < 0]
    text += f"; {'; '.join(harmful)}: it does harm. " if harmful else ". "
    if axis := (law.bins or {}).get("axis"):
        text += f"Levels are of {axis}, lowest first. "
    clear = [r for r in rows if r["low"] is not None and (r["low"] > 1 or r["high"] < 1)]
    if all(r["low"] is None for r in rows):
        return text + "No intervals: the law was fitted without resamples."
    held = f"{percent(law.covered)} intervals"
    low, high = figures_law.worth_axis(rows)
    if any(r["low"] < low or r["high"] > high for r in rows):
        text += "Intervals that reach the figure's edge go on. "
    if not clear:
        return text + f"All {held} include 1: no bin is told from the average."
    return (
        text + f"{plural(len(clear), 'bin')} differ{'s' if len(clear) == 1 else ''} from the average beyond the {held}."
    )
