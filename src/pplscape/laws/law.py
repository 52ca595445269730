"""The law object: what law.json holds, and what later stages ask of it. Data, never code; prediction is pure numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pplscape.errors import UserError
from pplscape.laws.asked import compositions_of
from pplscape.laws.fit import Fit
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import Floats, Form, Frame
from pplscape.laws.hull import Hull
from pplscape.laws.identified import EXPONENTS, edges, identified
from pplscape.laws.table import labels
from pplscape.laws.uncertainty import Uncertainty, middle
from pplscape.runs import Compositions, RunTable


class Prediction(NamedTuple):
    """Losses of n compositions, nats/token; `low` and `high` are NaN for a law without resamples."""

    loss: Floats
    low: Floats
    high: Floats


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
    """`params` [B][p] of the refits, `noise` [B] of one run in each (nats/token), `noise_trunk`, `noise_run`
    (relative), `freedom`."""
    region: dict[str, Any] = field(default_factory=dict)
    """Where the pilots were: what `extrapolates` compares with."""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    optimum: dict[str, Any] = field(default_factory=lambda: {"kind": "none"})
    bins: dict[str, Any] | None = None
    winsor: dict[str, Any] | None = None
    tokenizer: str | None = None
    chunk_tokens: int | None = None
    model: str | None = None
    """That made the scores."""
    trained: dict[str, str | None] | None = None
    """`model`, `weights` and `proxy_of` of the runs: whose losses are predicted. None where the table did not say."""
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

    @overload
    def predict(self, asked: Compositions, /) -> Floats: ...

    @overload
    def predict(
        self, asked: Path | str | Mapping[str, Any] | None = None, /, *, level: float = 0.9, **columns: Any
    ) -> Prediction: ...

    def predict(self, asked: Any = None, /, *, level: float = 0.9, **columns: Any) -> Floats | Prediction:
        """Validation loss in nats/token, and its interval at `level` for one new run, of what would be trained on.

        Columns are named as in `--columns` (`D mu sigma N U bins`; mu and sigma on the law's own scale) or as in
        runs.jsonl; single values are repeated. A table (CSV, JSON lines, Parquet) or a mapping of columns does too.
        `Compositions`, the library's own arrays, give the losses alone. UserError if a column that the form needs is
        missing.

        >>> from pplscape.laws.forms import Frame
        >>> law = Law("paper", "ppl", "std", dict(E=2.0, Dc=400.0, a0=0.3, a1=0.0, b0=0.1, b1=0.0, aD=0.3), Frame())
        >>> law.predict(D=[1e6, 4e6], mu=60.0, sigma=25.0).loss.round(3)
        array([3.346, 2.888])

        `Law.from_json("law")` reads a law that `pplscape fit` wrote; then `loss, low, high = law.predict("asked.csv")`.
        """
        if isinstance(asked, Compositions):
            return np.exp(self._log_loss(np.asarray(list(self.params.values())), asked))
        compositions = compositions_of(columns if asked is None else asked, self.scale)
        loss = self.predict(compositions)
        if not self.resamples:
            return Prediction(loss, np.full_like(loss, np.nan), np.full_like(loss, np.nan))
        return Prediction(loss, *self.predict_interval(compositions, level))

    def predict_interval(
        self, compositions: Compositions, level: float = 0.9, new_run: bool = True
    ) -> tuple[Floats, Floats]:
        """(low [n], high [n]) of the loss of one new run; without `new_run`, of the mean over seeds."""
        if not self.resamples:
            raise UserError("This law was fitted without resamples (--bootstrap 0): it has no intervals.")
        draws = self.draw_log_losses(compositions)
        if new_run:
            error = np.asarray(self.resamples["noise"]) * _normal_scores(len(draws))
            draws = draws + error[:, None] / np.exp(draws)
        low, high = middle(draws, level)
        predicted = self._log_loss(np.asarray(list(self.params.values())), compositions)
        return np.exp(np.minimum(low, predicted)), np.exp(np.maximum(high, predicted))

    def draw_log_losses(self, compositions: Compositions) -> Floats:
        """ln of the loss [B, n] predicted by each refit."""
        return np.atleast_2d(self._log_loss(np.asarray(self.resamples["params"], float), compositions))

    def _log_loss(self, params: Floats, compositions: Compositions) -> Floats:
        self.check()
        found = self.shape.log_loss(np.atleast_2d(params), compositions, self.frame)
        return found[0] if params.ndim == 1 else found

    def check(self) -> None:
        """UserError if the parameters are not those of the form: law.json is another version's."""
        names = self.shape.names(self.frame)
        if len(self.params) != len(names):
            raise UserError(
                f"This {self.form} law has {len(self.params)} parameters, not {', '.join(names)}: it was fitted by "
                "another version of pplscape; run `pplscape fit` again."
            )

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
        value |= {k: getattr(self, k) for k in _LATER} | {"constants": self.frame.to_json()}
        value |= {"base_loss": self.base_loss, "noise": self.noise}
        return value | {"alternatives": [law.to_json() for law in self.alternatives]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str | Path) -> Law:
        """A law from law.json's content or path; UserError if it is not one."""
        if isinstance(value, (str, Path)):
            value = _read_json(Path(value))
        try:
            plain = {k: value[k] for k in _PLAIN} | {k: value.get(k) for k in _LATER}
            frame = Frame.from_json(value["constants"])
            others = [cls.from_json(law) for law in value["alternatives"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"This is not a law.json of pplscape: {error} is missing.") from error
        return cls(**plain, frame=frame, alternatives=others)


_PLAIN = (
    "form", "scale", "reading", "params", "intervals", "covered", "resamples", "region", "diagnostics", "optimum",
    "bins", "winsor", "tokenizer", "chunk_tokens", "model", "verdict", "choice", "warnings",
)  # fmt: skip
_LATER = ("asked_scale", "trained")
"""Which a law.json of an earlier version may lack."""


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


def law_of(
    fit: Fit,
    runs: RunTable,
    found: Uncertainty | None = None,
    level: float = 0.9,
    limits: Mapping[str, tuple[float, float]] | None = None,
    told: bool = True,
) -> Law:
    """A law without comparisons: parameters, intervals, resamples, region.

    `limits` (`laws.limits`) are used for the parameters they name, the refits' quantiles for the others; unless `told`,
    E and the exponents are labelled unidentified whatever their limits.
    """
    form = fit.form
    law = Law(form.spec, form.scale, form.reading, fit.params, fit.frame, covered=level, region=region_of(form, runs))
    if found is None:
        return law
    draws = form.params(found.draws, fit.frame)
    law.resamples.update(
        params=draws.tolist(),
        noise=found.drawn_noise.tolist(),
        noise_trunk=found.noise.trunk,
        noise_run=found.noise.run,
        freedom=found.noise.freedom,
        groups=len(set(labels(runs, "group"))),
    )
    smallest = float(runs.loss.min())
    least, most = (side[0] for side in edges(form, fit.frame, np.array([smallest])))
    low, high = middle(draws, level)
    for i, (name, value) in enumerate(fit.params.items()):
        ends = (limits or {}).get(name, (float(low[i]), float(high[i])))
        ends = (min(ends[0], value), max(ends[1], value))
        known = identified(name, ends, (float(least[i]), float(most[i])), smallest)
        law.intervals[name] = list(ends) if known else _unidentified(*ends)
    valley = [name for name in ("E", *EXPONENTS) if name in law.intervals]
    if not told or any(
        isinstance(law.intervals[name], dict) for name in valley
    ):  # the runs tell only how they go together
        for name in valley:
            if isinstance(law.intervals[name], list):
                law.intervals[name] = _unidentified(*law.intervals[name])
    return law


def distances(name: str, value: float, draws: Floats) -> tuple[Floats, bool]:
    """(distances [B] of refits from an estimate, whether they are logarithmic: where everything is positive)."""
    positive = bool(value > 0 and draws.min() > 0 and name != "E")
    return (np.log(draws / value) if positive else draws - value), positive


def _unidentified(low: float, high: float) -> dict[str, Any]:
    return {"unidentified": True, "low": low, "high": high}


def _normal_scores(n: int) -> Floats:
    """n normal quantiles in a fixed random order."""
    return np.asarray(ndtri((np.random.default_rng(0).permutation(n) + 0.5) / n))
