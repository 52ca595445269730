"""From runs to a complete law: choose, intervals, optimum, diagnostics, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pplscape.laws.choose import Choice, Trial, choose
from pplscape.laws.cures import REFITS, cure, separate
from pplscape.laws.fit import audit
from pplscape.laws.forms import Form
from pplscape.laws.forms.base import Floats
from pplscape.laws.forms.plane import PlaneForm
from pplscape.laws.law import Law, law_of
from pplscape.laws.limits import limits_of
from pplscape.laws.noise import Noise
from pplscape.laws.optimum import arena_of, optimum
from pplscape.laws.profile import profiles
from pplscape.laws.table import labels, seed_noise, size_classes
from pplscape.laws.uncertainty import Uncertainty, uncertainty
from pplscape.laws.words import verdict
from pplscape.runs import RunTable

LEVEL = 0.9


def build(
    runs: RunTable,
    forms: Sequence[str | Form] | None = None,
    *,
    scale: str | None = None,
    bootstrap: int = 500,
    seed: int = 0,
    feasible: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> tuple[Law, Choice]:
    """The chosen law with every other fitted form as an alternative; `feasible` maps a scale to (mean, std) points."""
    asked = scale or only_scale(runs)
    choice = choose(runs, forms, asked)
    rows = [choice_row(t) for t in choice.trials]
    laws = {t.spec: replace(_law(t, runs, bootstrap, seed, feasible), asked_scale=asked) for t in choice.fitted}
    law = laws.pop(choice.chosen)
    others = sorted(laws.values(), key=lambda other: other.diagnostics["cv_mae"])
    warnings = list(runs.meta.get("warnings", [])) + _warnings(law, choice, runs, feasible or {})
    fit = choice.trial(choice.chosen).fit
    judged = law.diagnostics | ({"profiles": profiles(fit, runs, LEVEL)} if fit else {})
    law = replace(law, choice=rows, alternatives=others, warnings=warnings, diagnostics=judged)
    return replace(law, verdict=verdict(choice, law, runs)), choice


def only_scale(runs: RunTable) -> str | None:
    """The one scale the table has moments on; None if it has both or neither."""
    there = [s for s in ("nll", "ppl") if has_moments(runs, s)]
    return there[0] if len(there) == 1 else None


def has_moments(runs: RunTable, scale: str) -> bool:
    """Whether the table has mean and spread on `scale`."""
    return getattr(runs, f"{scale}_mean") is not None and getattr(runs, f"{scale}_std") is not None


def choice_row(trial: Trial) -> dict[str, Any]:
    """One entry of law.json's `choice`."""
    published = trial.form.name == "paper"
    row = {"form": trial.spec, "skipped": trial.skipped, "warning": trial.warning, "published": published}
    return row | (trial.scores or {})


def _law(
    trial: Trial, runs: RunTable, bootstrap: int, seed: int, feasible: Mapping[str, Sequence[Sequence[float]]] | None
) -> Law:
    assert trial.fit is not None
    fit, checked = audit(trial.fit, runs)
    trial = replace(trial, fit=fit)
    found = uncertainty(fit, runs, bootstrap, seed) if bootstrap else None
    law = law_of(fit, runs, found, LEVEL, *(limits_of(fit, runs, LEVEL, seed) if found else ()))
    place = _optimum(trial, runs, found, feasible)
    return replace(law, diagnostics=diagnostics(trial, runs) | {"audit": asdict(checked)}, optimum=place)


def _optimum(
    trial: Trial, runs: RunTable, found: Uncertainty | None, feasible: Mapping[str, Sequence[Sequence[float]]] | None
) -> dict[str, Any]:
    form, fit = trial.form, trial.fit
    if not isinstance(form, PlaneForm) or fit is None:
        return {"kind": "none"}
    arena = arena_of(form, runs, _points(feasible or {}, form.scale))
    if arena is None:
        return {"kind": "none", "reason": "the pilots lie on a line in (mean, spread): there is no area to search"}
    draws = None if found is None else form.params(found.draws, fit.frame)
    return optimum(form, np.array(list(fit.params.values())), fit.frame, arena, draws, LEVEL)


def _points(feasible: Mapping[str, Sequence[Sequence[float]]], scale: str | None) -> Floats | None:
    """The feasible (mean, std) points [k, 2] on a scale, where they are known."""
    found = feasible.get(scale or "")
    return None if found is None else np.asarray(found, np.float64)


def diagnostics(trial: Trial, runs: RunTable) -> dict[str, Any]:
    """Scores and the design's numbers, always printed."""
    classes = size_classes(runs.tokens)
    log_loss = np.log(runs.loss)
    within = sum(float(np.var(log_loss[classes == c]) * (classes == c).sum()) for c in range(int(classes.max()) + 1))
    total = float(np.var(log_loss) * len(runs))
    condition, vif = design_numbers(runs, trial.form.scale)
    return {
        **(trial.scores or {}),
        "condition_number": condition,
        "vif": vif,
        "d_span": float(runs.tokens.max() / runs.tokens.min()),
        "n_sizes": int(classes.max()) + 1,
        "n_runs": len(runs),
        "n_trunks": len(set(labels(runs, "group"))),
        "n_regimes": len(set(labels(runs, "regime"))),
        "d_variance_share": 1 - within / total if total > 0 else None,
        "seed_noise": seed_noise(runs),
        "huber_delta": trial.fit.delta if trial.fit else None,
        "penalty": trial.fit.strength if trial.fit else None,
        "warning": trial.warning,
    }


def design_numbers(runs: RunTable, scale: str | None) -> tuple[float | None, dict[str, float] | None]:
    """(condition number, variance inflation by column) of the standardised ln D, mean and ln spread of the runs."""
    columns: dict[str, Floats] = {"ln D": np.log(runs.tokens)}
    for name in [scale] if scale else ["nll", "ppl"]:
        if has_moments(runs, name):
            mean, std = runs.moments(name)
            columns |= {"mean": mean if name == "nll" else np.log(mean), "ln spread": np.log(std)}
            break
    varying = {k: (v - v.mean()) / v.std() for k, v in columns.items() if v.std() > 1e-9}
    if len(varying) < 2:
        return None, None
    correlation = np.corrcoef(np.stack(list(varying.values())))
    values = np.linalg.eigvalsh(correlation)
    condition = float(np.sqrt(values[-1] / max(values[0], 1e-12)))
    inverse = np.diag(np.linalg.pinv(correlation, rcond=1e-10))
    return condition, {k: float(v) for k, v in zip(varying, inverse, strict=True)}


def _warnings(law: Law, choice: Choice, runs: RunTable, feasible: Mapping[str, Sequence[Sequence[float]]]) -> list[str]:
    found = [f"{t.spec}: {t.warning}." for t in choice.fitted if t.warning]
    noise = _noise(law)
    inflation = (law.diagnostics["vif"] or {}).get("ln spread", 0)
    if inflation > 10:
        scale = law.scale or ("nll" if has_moments(runs, "nll") else "ppl")
        remedy = separate(runs, scale, noise, _points(feasible, scale))
        words = f"Mean and spread hardly vary apart in these pilots (variance inflation {inflation:.0f})."
        found.append(" ".join([words, remedy or "Pilots of high mean with low spread would separate them."]))
    if law.diagnostics["seed_noise"] is None:
        found.append("No regime is repeated: three random-regime pilots with different seeds would measure the noise.")
    unidentified = [k for k, v in law.intervals.items() if isinstance(v, dict)]
    if unidentified:
        names = ", ".join(unidentified)
        fit = choice.trial(law.form).fit
        assert fit is not None
        refits = fit.form.params(uncertainty(fit, runs, REFITS, noise=noise).draws, fit.frame)
        remedy = cure(fit, runs, noise, unidentified, refits, _points(feasible, law.scale))
        words = f"{names} of {law.form} cannot be identified from these runs; predictions may still be sound."
        found.append(" ".join(filter(None, [words, remedy])))
    trunks = law.diagnostics["n_trunks"]
    if trunks < 8:
        found.append(f"{trunks} trunks are few: intervals rest on few degrees of freedom; 8 or more are better.")
    return found


def _noise(law: Law) -> Noise:
    """The law's noise, or, without refits, the seed noise (1 % where that is unknown, too)."""
    if law.resamples:
        return Noise(*(float(law.resamples[k]) for k in ("noise_trunk", "noise_run", "freedom")))
    return Noise(0.0, law.diagnostics["seed_noise"] or 0.01, float(law.diagnostics["n_runs"]))
