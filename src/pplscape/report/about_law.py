"""What the sections about pilots and laws say: plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.landscape import Floats
from pplscape.laws.law import Law
from pplscape.laws.words import optimum_words
from pplscape.report import figures_law
from pplscape.report.folder import RunFolder
from pplscape.report.gallery import Gallery
from pplscape.report.style import HALF
from pplscape.report.surface import (
    Surface, compositions_of, hull, loss_surface, plane_box, tilted_compositions,
)  # fmt: skip
from pplscape.report.words import NATS, NOTHING, interval, number, percent, plural, significant, times, tokens, visible

Facts = Mapping[str, Any]
SAME_SIZE = 0.05
"""Sizes whose logarithms differ by less count as one: pilots end within a chunk of their plan."""
FAR_ABOVE = 1.25
"""A budget above the largest pilot by this factor gets a picture of its own."""


def sizes_of(rows: Sequence[Facts]) -> list[list[Facts]]:
    """Runs grouped by training size, smallest first."""
    groups: list[list[Facts]] = []
    for row in sorted(rows, key=lambda r: r["tokens"]):
        if groups and np.log(row["tokens"] / groups[-1][-1]["tokens"]) < SAME_SIZE:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class LawView:
    """The pilots, the law fitted to them and the landscape they came from; what sections 2 and 3 draw on."""

    def __init__(self, run: RunFolder):
        self.run, self.rows = run, run.ok
        self.law = Law.from_json(run.law) if run.law else None
        self.scale = (self.law.scale if self.law else None) or "nll"
        self.sizes = sizes_of(self.rows)
        self.n_params = next((r["n_params"] for r in self.rows if r.get("n_params")), None)
        self.base_loss = next((r["base_loss"] for r in self.rows if r.get("base_loss") is not None), None)
        self.box = plane_box([*self._points(self.rows), *self.marks.values()])

    def _points(self, rows: Sequence[Facts]) -> Floats:
        return np.array([[r[f"{self.scale}_mean"], r[f"{self.scale}_std"]] for r in rows], dtype=float).reshape(-1, 2)

    @property
    def marks(self) -> dict[str, tuple[float, float]]:
        """Where random, the selection and the optimum lie in the plane."""
        found = {}
        if self.run.landscape:
            pool = self.run.landscape["scale"][self.scale]
            found["random"] = (pool["mean"], pool["std"])
        if self.run.selection:
            achieved = self.run.selection["achieved"][self.scale]
            found["selection"] = (achieved["mean"], achieved["std"])
        if self.law and self.law.scale and self.law.optimum.get("mu") is not None:
            found["optimum"] = (self.law.optimum["mu"], self.law.optimum["sigma"])
        return found

    @property
    def sees_composition(self) -> bool:
        return self.law is not None and self.law.shape.uses_composition

    def surface(self, size: float) -> Surface | None:
        """The law over the plane at a training size; None when it cannot be drawn or sees no composition."""
        if self.law is None or not self.sees_composition or self.run.landscape is None:
            return None
        try:
            return loss_surface(self.law, self.run.landscape, self.scale, self.box, size, self.n_params)
        except UserError:  # a law on a user's own columns that no composition of this pool has
            return None

    def picture(self, rows: Sequence[Facts], size: float) -> figures_law.PlanePicture:
        """One training size over the plane."""
        points = self._points(rows)
        gain = np.array([r["base_loss"] - r["loss"] for r in rows if r.get("base_loss") is not None])
        return figures_law.PlanePicture(
            scale=self.scale, tokens=size, box=self.box, points=points if len(gain) == len(points) else points[:0],
            improvement=gain if len(gain) == len(points) else gain[:0], tips=[run_tip(r) for r in rows],
            surface=self.surface(size), base_loss=self.base_loss,
            hull=hull(*self._points(self.rows).T) if len(self.rows) > 2 else None,
            feasible=np.asarray(self.run.landscape["feasible"][self.scale]) if self.run.landscape else None,
            region=self._region(), marks=self.marks,
        )  # fmt: skip

    def _region(self) -> Floats | None:
        region = (self.law.optimum if self.law else {}).get("region")
        return np.asarray([*region, region[0]], dtype=float) if region else None


def run_tip(row: Facts) -> str:
    """A pilot in four lines."""
    loss = f"loss {number(row['loss'], 4)}" + (f" ± {number(row['loss_se'], 4)}" if row.get("loss_se") else "")
    lines = [f"{row['regime']}, seed {row['seed']}, {tokens(row['tokens'])}", f"{loss} {NATS}"]
    if row.get("base_loss") is not None:
        lines.append(f"improvement {number(row['base_loss'] - row['loss'], 4)} {NATS}")
    return visible("\n".join([*lines, f"mean {number(row.get('nll_mean'))}, spread {number(row.get('nll_std'))} {NATS}"]))


def pilots_view(run: RunFolder, view: LawView, gallery: Gallery) -> dict[str, Any] | None:
    """Section 2; None without a single finished pilot."""
    if not view.rows:
        return None
    sizes = [(float(np.mean([r["tokens"] for r in g])), g) for g in view.sizes]
    shown = [(size, g, tokens(size, unit=False, digits=2)) for size, g in (sizes[:1] if len(sizes) > 1 else []) + sizes[-1:]]
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
    parts = ["Each dot is a subset that was trained on, placed by the mean and spread of its chunks; brighter is better."]
    if view.sees_composition and view.run.landscape:
        assert view.law is not None
        parts.append(f"The ground is what the chosen law (‘{view.law.form}’) predicts for the pool tilted to each mean and "
                     "spread: dots that fade into it are well told.")  # fmt: skip
    elif view.law is not None:
        parts.append(f"The chosen law (‘{view.law.form}’) does not look at perplexity, so there are no contours to draw.")
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
        "mean": surface.mean[0].round(4).tolist(),
        "std": surface.std.round(4).tolist(),
        "loss": [[round(v, 5) if k else None for v, k in zip(*r, strict=True)]
                 for r in zip(surface.loss.tolist(), known.tolist(), strict=True)],
        "pilots": [[*map(float, p), r["loss"]] for p, r in zip(view._points(rows), rows, strict=True)],
        "axes": [f"mean {figures_law.AXIS[view.scale]}", "spread", f"loss, {NATS}"],
        "tokens": tokens(size),
    }  # fmt: skip


def utility_rows(law: Law) -> list[dict[str, Any]]:
    """Worth of one more token per bin relative to an average token of the pool, from the law's utility entry."""
    found = next((x for x in (law, *law.alternatives) if x.form.partition(":")[0] == "utility"), None)
    if found is None or found.frame.bin_share is None:
        return []
    share = np.asarray(found.frame.bin_share)
    worth = np.array([found.params[f"u_{b}"] for b in range(len(share))])
    average = float(share @ worth)
    if average <= 0:
        return []
    rows = []
    for b, u in enumerate(worth):
        low, high, _ = ends_of(found.intervals.get(f"u_{b}"))
        low, high = (None if v is None else v / average for v in (low, high))
        rows.append({"bin": b + 1, "worth": float(u / average), "low": low, "high": high})
    return rows


def ends_of(interval: Any) -> tuple[float | None, float | None, bool]:
    """(low, high, identified) of a parameter's interval: [low, high], or a mapping where it is not identified."""
    if interval is None:
        return None, None, True
    if isinstance(interval, Mapping):
        return interval.get("low"), interval.get("high"), not interval.get("unidentified", False)
    return float(interval[0]), float(interval[1]), True


def _utilities_caption(rows: Sequence[Facts], law: Law) -> str:
    if not rows:
        return ""
    best, worst = max(rows, key=lambda r: r["worth"]), min(rows, key=lambda r: r["worth"])
    text = (
        f"By the utility law, one more token of bin {best['bin']} is worth {times(best['worth'])} an average token, "
        f"of bin {worst['bin']} {times(worst['worth'])}"
    )
    harmful = [r["bin"] for r in rows if r["high"] is not None and r["high"] < 0]
    text += f"; bin {', '.join(map(str, harmful))} does harm. " if harmful else ". "
    clear = [r for r in rows if r["low"] is not None and (r["low"] > 1 or r["high"] < 1)]
    if all(r["low"] is None for r in rows):
        return text + "No intervals: the law was fitted without resamples."
    held = f"{percent(law.covered)} intervals"
    if not clear:
        return text + f"All {held} include 1: no bin is told from the average."
    return text + f"{plural(len(clear), 'bin')} differ{'s' if len(clear) == 1 else ''} from the average beyond the {held}."


def trust_view(run: RunFolder, view: LawView, gallery: Gallery) -> dict[str, Any] | None:
    """Section 3; None without a law."""
    if view.law is None or run.law is None:
        return None
    rows = prediction_against(view)
    return {
        "verdict": visible(view.law.verdict),
        "figure": gallery.hang(partial(figures_law.predicted_against_measured, rows), HALF) if rows else None,
        "caption": _fit_caption(rows, view.law),
        "forms": form_rows(view.law),
        "words": diagnosis(view.law.diagnostics, view.rows),
        "next": _next_pilot(view),
        "warnings": [visible(w) for w in view.law.warnings],
        "params": _params(view.law),
    }


def prediction_against(view: LawView) -> list[dict[str, Any]]:
    """Measured and predicted loss of every finished pilot, the fitted law's own intervals for a new run."""
    assert view.law is not None
    if not view.rows:
        return []
    subsets = compositions_of(view.rows)
    try:
        predicted = view.law.predict(subsets)
    except UserError:
        return []
    low, high = view.law.predict_interval(subsets) if view.law.resamples else (None, None)
    return [
        {
            "measured": r["loss"],
            "predicted": float(predicted[i]),
            "low": None if low is None else float(low[i]),
            "high": None if high is None else float(high[i]),
            "tokens": r["tokens"],
            "random": str(r["regime"]).startswith("random"),
            "tip": f"{run_tip(r)}\npredicted {number(float(predicted[i]), 4)}",
        }
        for i, r in enumerate(view.rows)
    ]


def _fit_caption(rows: Sequence[Facts], law: Law) -> str:
    if not rows:
        return ""
    errors = [abs(r["predicted"] - r["measured"]) for r in rows]
    text = (
        f"Every pilot against the law fitted to all of them: mean absolute error {number(float(np.mean(errors)), 4)} {NATS}, "
        f"largest {number(max(errors), 4)}. "
    )
    held = [r for r in rows if r["low"] is not None]
    if held:
        inside = sum(r["low"] <= r["measured"] <= r["high"] for r in held)
        text += f"{inside} of {len(held)} lie within their 90 % interval. "
    return text + "The honest error, on runs the law had not seen, is in the table."


def form_rows(law: Law) -> list[dict[str, Any]]:
    """Every law that was tried, best first, skipped ones last with the reason."""
    tried = sorted(law.choice, key=lambda c: (bool(c.get("skipped")), c.get("cv_mae") or 0.0))
    worst = max((c["mae_over_gain"] for c in tried if c.get("mae_over_gain") is not None), default=1.0)
    ceiling = min(worst, 0.5) or 1.0
    return [
        {
            "form": c["form"],
            "chosen": c["form"] == law.form,
            "paper": str(c["form"]).partition(":")[0] == "paper",
            "skipped": visible(str(c["skipped"])) if c.get("skipped") else None,
            "mae": number(c.get("cv_mae"), 4),
            "share": percent(c.get("mae_over_gain"), 1),
            "bar": min(100.0, 100 * (c.get("mae_over_gain") or 0) / ceiling),
            "spearman": number(c.get("spearman_within_size", c.get("spearman")), 2),
            "regret": number(c.get("top1_regret"), 4),
            "coverage": percent(c.get("coverage")),
        }
        for c in tried
    ]


def diagnosis(facts: Facts, rows: Sequence[Facts]) -> list[str]:
    """The design's condition in words, each with what would mend it."""
    said = []
    span, trunks = facts.get("d_span"), facts.get("n_trunks")
    if span is not None:
        enough = span >= 8 * (1 - 1e-6)
        mend = "enough to see diminishing returns" if enough else "8× or more are needed to extrapolate in size"
        said.append(f"Training sizes span {times(span)}: {mend}.")
    seeds = len({r["group"] for r in rows if str(r["regime"]).startswith("random")})
    mend = "the noise floor is known" if seeds >= 3 else "at least three are needed to know the noise; add random seeds first"
    said.append(f"{plural(seeds, 'random trunk')}: {mend}.")
    if trunks is not None:
        said.append(f"{plural(int(facts.get('n_runs', len(rows))), 'run')} share {plural(int(trunks), 'trunk')}, "
                    "which is what counts as independent.")  # fmt: skip
    condition, vif = facts.get("condition_number"), facts.get("vif")
    if isinstance(vif, Mapping):
        vif = max((v for v in vif.values() if v is not None), default=None)
    if condition is not None:
        judged = "mean and spread were varied apart" if condition < 30 else "mean and spread move together; tilt regimes apart"
        inflation = f", variance inflation {significant(vif)}" if vif is not None else ""
        said.append(f"Condition number of the design {significant(condition)}{inflation}: {judged}.")
    if facts.get("d_variance_share") is not None:
        said.append(f"{percent(facts['d_variance_share'])} of the variance of the losses is due to the number of tokens alone.")
    if facts.get("coverage") is not None:
        said.append(f"Intervals meant to hold 90 % of left-out runs held {percent(facts['coverage'])}.")
    return said


def _next_pilot(view: LawView) -> str | None:
    """Where the law is least sure within what the pilots span: the pilot that would teach it most."""
    law, landscape = view.law, view.run.landscape
    if law is None or landscape is None or not law.resamples or not view.sees_composition:
        return None
    size = float(np.mean([r["tokens"] for r in view.sizes[-1]]))
    surface = view.surface(size)
    if surface is None:
        return None
    known = np.isfinite(surface.loss)
    m, s = surface.mean[known], surface.std[known]
    subsets, _ = tilted_compositions(landscape, view.scale, m, s, size, law.bins or landscape["bins"], view.n_params)
    low, high = law.predict_interval(subsets, new_run=False)
    width = np.where(law.extrapolates(subsets) | ~np.isfinite(high - low), -1.0, high - low)
    i = int(np.argmax(width))
    if width[i] <= 0:
        return None
    return (
        f"Within what the pilots span, the law is least sure at mean {significant(float(m[i]))}, spread "
        f"{significant(float(s[i]))} ({interval(float(low[i]), float(high[i]))} {NATS} at {tokens(size)}): a pilot there "
        "would help most."
    )


def _params(law: Law) -> list[tuple[str, str, str]]:
    rows = []
    for name, value in law.params.items():
        low, high, identified = ends_of(law.intervals.get(name))
        text = NOTHING if low is None else f"{significant(low, 4)} to {significant(high, 4)}"
        rows.append((name, significant(value, 6), text if identified else f"not identified ({text})"))
    return rows
