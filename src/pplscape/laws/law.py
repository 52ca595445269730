"""The law object: what law.json holds, and what later stages ask of it. Data, never code; prediction is pure numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.errors import UserError
from pplscape.laws.fit import Fit
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import Floats, Form, Frame
from pplscape.laws.hull import Hull
from pplscape.laws.table import labels
from pplscape.laws.uncertainty import Uncertainty
from pplscape.runs import Compositions, RunTable

UNIDENTIFIED_RATIO = 1e3
"""A positive parameter whose interval spans more than this factor is called unidentified; so is an irreducible loss
whose interval reaches 0 or spans half of what was measured."""


@dataclass(frozen=True)
class Law:
    """A fitted, compared and explained law; `params` are in the units of the form's formula (nats/token, tokens)."""

    form: str
    scale: str | None
    reading: str
    params: dict[str, float]
    frame: Frame
    intervals: dict[str, Any] = field(default_factory=dict)
    """Per parameter [low, high], or {"unidentified": true, "low", "high"}."""
    covered: float = 0.9
    resamples: dict[str, Any] = field(default_factory=dict)
    """`params` [B][p] of the refits, `freedom`, `noise_trunk`, `noise_run` (relative)."""
    region: dict[str, Any] = field(default_factory=dict)
    """Where the pilots were: what `extrapolates` compares with."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    optimum: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    bins: dict[str, Any] | None = None
    winsor: dict[str, Any] | None = None
    tokenizer: str | None = None
    chunk_tokens: int | None = None
    model: str | None = None
    verdict: str = ""
    choice: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asked_scale: str | None = None
    """What `--scale` said for all forms; None left each its own."""
    alternatives: list[Law] = field(default_factory=list)

    @property
    def shape(self) -> Form:
        """The form's code for this law's name and scale; UserError if it is a user's own and cannot be imported."""
        return get_form(self.form, self.scale, run_files=False)

    @property
    def base_loss(self) -> float | None:
        return self.frame.base_loss

    @property
    def noise(self) -> float:
        """Relative noise of one measured run: trunk and run together."""
        return float(np.hypot(self.resamples.get("noise_trunk", 0.0), self.resamples.get("noise_run", 0.0)))

    def predict(self, compositions: Compositions) -> Floats:
        """Validation loss [n], nats/token. UserError if the compositions lack a column that the form needs."""
        return np.exp(self._log_loss(np.asarray(list(self.params.values())), compositions))

    def predict_interval(
        self, compositions: Compositions, level: float = 0.9, new_run: bool = True
    ) -> tuple[Floats, Floats]:
        """(low [n], high [n]) of the loss of one new run; without `new_run`, of the mean over seeds."""
        centre = self._log_loss(np.asarray(list(self.params.values())), compositions)
        if not self.resamples:
            raise UserError("This law was fitted without resamples (--bootstrap 0): it has no intervals.")
        tail = 0.5 + level / 2
        quantile = float(stats.t.ppf(tail, self.resamples["freedom"]))
        draws = self.draw_log_losses(compositions) - centre
        half = np.quantile(np.abs(draws), level, axis=0) * quantile / float(stats.norm.ppf(tail))
        if new_run:
            half = np.hypot(half, quantile * self.noise)
        return np.exp(centre - half), np.exp(centre + half)

    def draw_log_losses(self, compositions: Compositions) -> Floats:
        """ln of the loss [B, n] predicted by each refit."""
        return np.atleast_2d(self._log_loss(np.asarray(self.resamples["params"], float), compositions))

    def _log_loss(self, params: Floats, compositions: Compositions) -> Floats:
        found = self.shape.log_loss(np.atleast_2d(params), compositions, self.frame)
        return found[0] if params.ndim == 1 else found

    def extrapolates(self, compositions: Compositions) -> NDArray[np.bool_]:
        """True [n] where a composition lies outside what the pilots covered and the prediction is a guess.

        Moment laws: outside the hull of the pilots in (ln mean, ln spread); monotone: outside the range of the mean;
        utility: a bin filled beyond 1.25 x the fullest pilot's. Sizes are judged apart: see `size_ratio`.
        """
        if "hull" in self.region:
            mean, spread = compositions.moments(self.scale or "nll", self.reading)
            with np.errstate(divide="ignore", invalid="ignore"):
                points = np.stack([np.log(mean), np.log(spread)], axis=-1)
            return ~Hull(np.asarray(self.region["hull"])).contains(points, slack=0.02)
        if "mean" in self.region:
            mean, _ = compositions.moments(self.scale or "nll")
            low, high = self.region["mean"]
            slack = 0.02 * (high - low)
            return np.asarray((mean < low - slack) | (mean > high + slack))
        if "bin_tokens" in self.region and compositions.bin_tokens is not None:
            most = 1.25 * np.asarray(self.region["bin_tokens"])
            return np.asarray((compositions.bin_tokens > most).any(1))
        return np.zeros(len(compositions), bool)

    def size_ratio(self, compositions: Compositions) -> Floats:
        """D over the largest pilot's D [n]; far above 1 the law extrapolates in size."""
        return compositions.tokens / self.frame.unit

    def alternative(self, form: str) -> Law:
        """The law of that form; a family's name such as `paper` finds its first variant. UserError if there is none."""
        for law in (self, *self.alternatives):
            if law.form == form:
                return law
        for law in (self, *self.alternatives):
            if law.form.partition(":")[0] == form:
                return law
        there = ", ".join(law.form for law in (self, *self.alternatives))
        raise UserError(f"law.json has no {form} law; it has: {there}.")

    def to_json(self) -> dict[str, Any]:
        """Complete and unrounded; `from_json` gives the same law back."""
        value = {k: getattr(self, k) for k in _PLAIN}
        value |= {"asked_scale": self.asked_scale, "constants": self.frame.to_json()}
        value |= {"base_loss": self.base_loss, "noise": self.noise}
        return value | {"alternatives": [law.to_json() for law in self.alternatives]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str | Path) -> Law:
        """A law from law.json's content or path; UserError if it is not one."""
        if isinstance(value, (str, Path)):
            value = _read_json(Path(value))
        try:
            plain = {k: value[k] for k in _PLAIN} | {"asked_scale": value.get("asked_scale")}
            frame = Frame.from_json(value["constants"])
            others = [cls.from_json(law) for law in value["alternatives"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"This is not a law.json of pplscape: {error} is missing.") from error
        return cls(**plain, frame=frame, alternatives=others)


_PLAIN = (
    "form", "scale", "reading", "params", "intervals", "covered", "resamples", "region", "diagnostics", "optimum",
    "bins", "winsor", "tokenizer", "chunk_tokens", "model", "verdict", "choice", "warnings",
)  # fmt: skip


def _read_json(path: Path) -> Mapping[str, Any]:
    path = path / "law.json" if path.is_dir() else path
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"There is no law at {path}; `pplscape fit` writes one.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a law.json: it holds no object.")
    return value


def region_of(form: Form, runs: RunTable) -> dict[str, Any]:
    """What the pilots covered, for `Law.extrapolates`."""
    if form.scale is not None and form.name == "monotone":
        mean, _ = runs.moments(form.scale)
        return {"mean": [float(mean.min()), float(mean.max())]}
    if form.scale is not None:
        mean, spread = runs.moments(form.scale, form.reading)
        hull = Hull.of(np.stack([np.log(mean), np.log(spread)], axis=-1))
        return {"hull": hull.corners.tolist()}
    if runs.bin_tokens is not None and "bin_tokens" in form.columns:
        return {"bin_tokens": runs.bin_tokens.max(0).tolist()}
    return {}


def law_of(fit: Fit, runs: RunTable, found: Uncertainty | None = None, level: float = 0.9) -> Law:
    """A law without comparisons: parameters, intervals, resamples, region."""
    form = fit.form
    law = Law(form.spec, form.scale, form.reading, fit.params, fit.frame, covered=level, region=region_of(form, runs))
    if found is None:
        return law
    draws = form.params(found.draws, fit.frame)
    law.resamples.update(
        params=draws.tolist(),
        freedom=found.noise.freedom,
        noise_trunk=found.noise.trunk,
        noise_run=found.noise.run,
        groups=len(set(labels(runs, "group"))),
    )
    smallest = float(runs.loss.min())
    for i, (name, value) in enumerate(fit.params.items()):
        law.intervals[name] = _interval(name, value, draws[:, i], level, found.stretch(level), smallest)
    return law


def distances(name: str, value: float, draws: Floats) -> tuple[Floats, bool]:
    """(distances [B] of refits from an estimate, whether they are logarithmic: where everything is positive)."""
    positive = bool(value > 0 and draws.min() > 0 and name != "E")
    return (np.log(draws / value) if positive else draws - value), positive


def _interval(name: str, value: float, draws: Floats, level: float, stretch: float, smallest: float) -> Any:
    """Symmetric about the estimate: the `level` quantile of the refits' distances from it, stretched by t / z.

    On the log scale where everything is positive. Distances hold the refits' bias (shrinkage) as well as their spread.
    """
    away, positive = distances(name, value, draws)
    distance = float(np.quantile(np.abs(away), level)) * stretch
    if positive:
        low, high = value * np.exp(-min(distance, 600.0)), value * np.exp(min(distance, 600.0))
    else:
        low, high = value - distance, value + distance
    if name == "E":
        low, high = max(low, 0.0), min(high, smallest)
    low, high = (float(np.clip(q, -1e300, 1e300)) for q in (low, high))
    wide = (positive and high > UNIDENTIFIED_RATIO * low) or (name == "E" and (low == 0 or high - low > 0.5 * smallest))
    if wide or high == low:
        return {"unidentified": True, "low": low, "high": high}
    return [low, high]
