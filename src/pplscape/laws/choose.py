"""Which law to believe: grouped cross-validation and the one-standard-error rule.

Held out are whole regimes (random seeds share one) and, for the extrapolation in size, all runs of the largest D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.errors import UserError
from pplscape.laws.fit import Fit, fit_form, fit_many, problem_of, setting_of, smoother
from pplscape.laws.forms import AUTO, FORMS, Form, get_form
from pplscape.laws.forms.base import Floats
from pplscape.laws.noise import Noise, variance_components
from pplscape.laws.polish import Problem
from pplscape.laws.scores import LEVEL, aicc, paired, scores
from pplscape.laws.table import frame_of, labels, left_out_units, noise_weights, size_classes
from pplscape.runs import RunTable

RUNS_A_PARAMETER = (2.0, 3.0)
"""Fewer runs per parameter than the first: the form is skipped; than the second: a warning."""
SPARE_REGIMES = 2
"""Regimes that a form should have beyond its terms of composition, and must have one of: it is left out in
cross-validation, and with none to spare 90 % intervals covered 85 % (quadratic, 8 trunks, noise 0.01 nats)."""
MOST_EXCESS = 1.0
"""A simpler form is not preferred if its error exceeds the smallest by more than this share of it: one wild regime
makes the standard error of a difference as large as the difference."""
WORST_FACTOR = 3.0
"""Predictions are capped at this times the largest loss known when errors are averaged: outside the pilots a moment
law may explode, and one such run must not decide alone."""


def worst_loss(runs: RunTable) -> float:
    """Cap on predictions in comparisons, nats/token."""
    base = frame_of(runs).base_loss or 0.0
    return WORST_FACTOR * max(float(runs.loss.max()), base)


@dataclass(frozen=True)
class Trial:
    """One form under cross-validation; arrays follow the runs, [n]."""

    form: Form
    fit: Fit | None
    skipped: str | None = None
    warning: str | None = None
    by_regime: Floats | None = None
    """Loss predicted with the run's regime left out."""
    by_size: Floats | None = None
    """Loss predicted for the largest runs from the smaller ones; NaN for the others, None if there is one size."""
    half: Floats | None = None
    """Half width of the 90 % interval in ln L around `by_regime`."""
    noise: Noise | None = None
    scores: dict[str, Any] | None = None
    cap: float = np.inf
    """Predictions count as at most this many nats/token."""

    @property
    def spec(self) -> str:
        return self.form.spec

    def errors(self, loss: Floats) -> Floats:
        """Absolute errors [n] in nats, averaged over the two ways of holding a run out."""
        assert self.by_regime is not None
        found = np.abs(np.minimum(self.by_regime, self.cap) - loss)
        if self.by_size is None:
            return found
        other = np.abs(np.minimum(self.by_size, self.cap) - loss)
        return np.where(np.isfinite(other), (found + other) / 2, found)


@dataclass(frozen=True)
class Choice:
    """All trials and the one chosen, with the reason in words."""

    trials: list[Trial]
    chosen: str
    best: str
    """Smallest error, before simpler forms were preferred."""
    reason: str

    def trial(self, spec: str) -> Trial:
        return next(t for t in self.trials if t.spec == spec)

    @property
    def fitted(self) -> list[Trial]:
        return [t for t in self.trials if t.skipped is None]


def make_forms(forms: Sequence[str | Form] | None, scale: str | None = None) -> list[Form]:
    """Forms from names; None and `auto` mean all that pplscape tries by default."""
    wanted: list[str | Form] = []
    for item in forms or ["auto"]:
        wanted.extend(AUTO if item == "auto" else [item])
    made = [get_form(f, scale) if isinstance(f, str) else f for f in wanted]
    return list({form.spec: form for form in made}.values())


def check_sizes(runs: RunTable, forms: Sequence[str | Form] | None) -> None:
    """UserError if all runs have one D, unless forms that can do with that are asked for by name."""
    if size_classes(runs.tokens).max() > 0 or (forms and "auto" not in forms):
        return
    able = ", ".join(name for name, kind in FORMS.items() if kind.at_one_size)
    raise UserError(
        f"All {len(runs)} runs have the same D ({runs.tokens[0]:,.0f} tokens); a law needs at least 3 sizes over 8x. "
        f"Some forms can compare compositions at that one D, if asked for by name: {able}."
    )


def obstacle(form: Form, runs: RunTable) -> tuple[str | None, str | None]:
    """(reason to skip a form or None, warning or None) for a table of runs."""
    frame = frame_of(runs)
    lacking = form.missing(runs, frame)
    if lacking:
        return f"needs {', '.join(lacking)}", None
    frame = form.reframe(runs, frame)
    n_sizes, span = int(size_classes(runs.tokens).max()) + 1, float(runs.tokens.max() / runs.tokens.min())
    if form.uses_size and n_sizes < 2 and not form.at_one_size:
        return "all runs have the same D; needs at least 3 sizes over 8x", None
    for column in ("n_params", "domain_share"):
        if column in form.columns and len(np.unique(getattr(runs, column))) < 3:
            return f"needs at least 3 different values of {column}", None
    if reason := form.unsuited(runs):
        return reason, None
    n_regimes = len(set(labels(runs, "regime")))
    least = max(4, form.composition_terms + 1)
    if form.uses_composition and n_regimes < least:
        return f"{n_regimes} regimes; needs at least {least} that differ", None
    if form.uses_composition and alike(form, runs):
        return "all runs have the same composition; needs regimes that differ in mean and spread", None
    n_params, free = len(form.names(frame)), form.penalty(frame) is None
    if free and len(runs) < RUNS_A_PARAMETER[0] * n_params:
        return f"{len(runs)} runs for {n_params} parameters; needs {int(3 * n_params)}", None
    warnings = []
    if form.composition_terms > 0 and n_regimes < form.composition_terms + SPARE_REGIMES:
        safe = form.composition_terms + SPARE_REGIMES
        warnings.append(f"{n_regimes} regimes for {form.composition_terms} terms of composition, {safe} would be safe")
    if free and len(runs) < RUNS_A_PARAMETER[1] * n_params:
        warnings.append(f"{len(runs)} runs for {n_params} parameters, {int(3 * n_params)} would be safe")
    if form.uses_size and n_sizes == 1:
        warnings.append("all runs have the same D; the law compares compositions at that D and says nothing of others")
    elif form.uses_size and (n_sizes < 3 or span < 8 * 0.95):
        warnings.append(f"{n_sizes} sizes over {span:.1f}x; at least 3 over 8x are needed to trust exponents")
    return None, "; ".join(warnings) or None


def alike(form: Form, runs: RunTable) -> bool:
    """True if what a form sees of the runs' compositions does not vary."""
    if form.scale is not None:
        mean, _ = runs.moments(form.scale)
        return bool(np.ptp(mean) <= 1e-6 * np.abs(mean).max())
    if "bin_tokens" in form.columns and runs.bin_tokens is not None:
        return bool(np.ptp(runs.bin_tokens / runs.bin_tokens.sum(1, keepdims=True), axis=0).max() < 1e-6)
    return False


def cross_validate(form: Form, runs: RunTable) -> Trial:
    """Fit a form to all runs and with each regime, and the largest size, left out."""
    reason, warning = obstacle(form, runs)
    if reason:
        return Trial(form, None, skipped=reason)
    fit = fit_form(form, runs)
    setting = setting_of(form, runs)
    regimes, groups = left_out_units(runs), labels(runs, "group")
    folds = [regimes == name for name in dict.fromkeys(regimes)]
    sizes = size_classes(runs.tokens)
    largest, size_fold = sizes == sizes.max(), bool(sizes.max() >= 2)
    if size_fold:
        folds.append(largest)
    base = noise_weights(runs)
    weight = np.where(np.asarray(folds), 0.0, base)
    log_loss = np.broadcast_to(np.log(runs.loss), weight.shape)
    theta, _, strength = fit_many(setting, log_loss, weight)
    predicted = np.exp(form.evaluate(theta, setting.data, setting.frame, jacobian=False)[0])
    whole = problem_of(setting, log_loss[:1], base[None], np.array([fit.strength]))
    pull, residual, _ = smoother(whole, fit.theta[None])
    noise = variance_components(pull[0], residual[0], groups, base)
    spread = _prediction_spread(problem_of(setting, log_loss, weight, strength), theta, noise, groups)
    n_regimes = len(folds) - size_fold
    own = np.argmax(np.asarray(folds[:n_regimes]), axis=0)
    rows = np.arange(len(runs))
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, noise.freedom))
    return Trial(
        form,
        fit,
        warning=warning,
        by_regime=predicted[own, rows],
        by_size=np.where(largest, predicted[-1], np.nan) if size_fold else None,
        half=quantile * spread[own, rows],
        noise=noise,
        cap=worst_loss(runs),
    )


def _prediction_spread(problem: Problem, theta: Floats, noise: Noise, groups: NDArray[np.str_]) -> Floats:
    """Standard deviation [B, n] of ln(measured) - ln(predicted) for runs that fit b did not see."""
    pull, _, _ = smoother(problem, theta)
    variance = np.einsum("bij,jk,bik->bi", pull, noise.covariance(groups), pull, optimize=True)
    return np.sqrt(variance + noise.total**2)


def choose(runs: RunTable, forms: Sequence[str | Form] | None = None, scale: str | None = None) -> Choice:
    """Cross-validate every form and choose; UserError if none can be fitted.

    One-standard-error rule: the simplest form whose error exceeds the smallest by no more than the standard error of
    their paired difference over regimes, nor by more than MOST_EXCESS. AICc orders equally simple forms.
    """
    check_sizes(runs, forms)
    trials = [cross_validate(form, runs) for form in make_forms(forms, scale)]
    usable = [t for t in trials if t.skipped is None]
    if not usable:
        reasons = "; ".join(f"{t.spec}: {t.skipped}" for t in trials)
        raise UserError(f"No law can be fitted to these runs ({reasons}).")
    trials = [t if t.skipped else replace(t, scores=scores(t, runs)) for t in trials]
    usable = [t for t in trials if t.skipped is None]
    errors = np.stack([t.errors(runs.loss) for t in usable])
    order = _simplest_first(usable, runs)
    best, chosen = pick(errors, left_out_units(runs), order)
    reason = _reason(usable, errors, left_out_units(runs), best, chosen)
    return Choice(trials, usable[chosen].spec, usable[best].spec, reason)


def _simplest_first(trials: Sequence[Trial], runs: RunTable) -> NDArray[np.intp]:
    """Indices of trials by number of effective parameters, AICc between equals."""
    fits = [t.fit for t in trials if t.fit]
    return np.lexsort(([aicc(fit, len(runs)) for fit in fits], [complexity(fit) for fit in fits]))


def complexity(fit: Fit) -> int:
    """Parameters of a form; those that a penalty leaves free where there is one."""
    return round(fit.n_effective) if fit.form.penalty(fit.frame) else len(fit.params)


def pick(errors: Floats, regimes: NDArray[np.str_], order: NDArray[np.intp]) -> tuple[int, int]:
    """(form of smallest error, form chosen) from absolute errors [forms, n]; `order` lists forms simplest first."""
    means = errors.mean(1)
    best = int(order[np.argmin(means[order])])
    for candidate in order:
        if candidate == best:
            return best, best
        difference, error = paired(errors[candidate] - errors[best], regimes)
        if difference <= min(error, MOST_EXCESS * means[best]):
            return best, int(candidate)
    return best, best


def _reason(trials: Sequence[Trial], errors: Floats, regimes: NDArray[np.str_], best: int, chosen: int) -> str:
    means = errors.mean(1)
    text = f"{trials[best].spec} has the smallest error on left-out runs ({means[best]:.4f} nats/token)"
    if best == chosen:
        return text + ", and no simpler form comes within one standard error of it."
    difference, error = paired(errors[chosen] - errors[best], regimes)
    return (
        f"{text}, but {trials[chosen].spec} is simpler and its error is larger by only {difference:.4f} nats/token, "
        f"less than the standard error of that difference ({error:.4f})."
    )
