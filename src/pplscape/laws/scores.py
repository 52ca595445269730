"""How good a law is on runs it did not see: errors, ranks, regret, calibration, coverage. Losses in nats/token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.laws.fit import Fit
from pplscape.laws.forms.base import Floats
from pplscape.laws.table import left_out_units, size_classes
from pplscape.runs import RunTable

if TYPE_CHECKING:
    from pplscape.laws.choose import Trial

LEVEL = 0.9
"""Nominal coverage of the intervals that are checked in cross-validation."""


def aicc(fit: Fit, n: int) -> float:
    """Small-sample Akaike criterion with the Huber sum as half the scaled squares."""
    k = fit.n_effective + 1
    return n * np.log(max(fit.objective, 1e-300) / n) + 2 * k + 2 * k * (k + 1) / max(n - k - 1, 1e-3)


def paired(difference: Floats, regimes: NDArray[np.str_]) -> tuple[float, float]:
    """(mean, standard error) of a difference [n], regimes being the independent units."""
    _, members = np.unique(regimes, return_inverse=True)
    count = np.bincount(members)
    totals = np.bincount(members, weights=difference)
    mean = float(difference.mean())
    if len(count) < 2:
        return mean, np.inf
    deviations = totals - count * mean
    n = len(count)
    return mean, float(np.sqrt(n / (n - 1) * np.sum(deviations**2)) / len(difference))


def scores(trial: Trial, runs: RunTable) -> dict[str, Any]:
    """Cross-validated scores of one form; losses in nats/token."""
    assert trial.by_regime is not None
    assert trial.half is not None
    assert trial.fit is not None
    loss, predicted = runs.loss, np.minimum(trial.by_regime, trial.cap)
    errors = trial.errors(loss)
    mean, error = paired(errors, left_out_units(runs))
    gain = None if trial.fit.frame.base_loss is None else float(np.mean(trial.fit.frame.base_loss - loss))
    found: dict[str, Any] = {
        "cv_mae": mean,
        "cv_mae_se": error if np.isfinite(error) else None,
        "mae_left_regime": float(np.abs(predicted - loss).mean()),
        "mae_left_size": None if trial.by_size is None else float(np.nanmean(np.abs(trial.by_size - loss))),
        "mae_over_gain": mean / gain if gain and gain > 0 else None,
        "spearman": _spearman(predicted, loss),
        "spearman_within_size": _within_size(predicted, runs) if trial.form.uses_composition else 0.0,
        "top1_regret": _regret(predicted, runs, trial.form.uses_composition),
        "calibration": _calibration(predicted, runs) if trial.form.uses_composition else None,
        "coverage": float(np.mean(np.abs(np.log(loss / predicted)) <= trial.half)),
        "level": LEVEL,
        "n_effective": trial.fit.n_effective,
        "aicc": float(aicc(trial.fit, len(runs))),
        "objective": trial.fit.objective,
    }
    return found


def _spearman(a: Floats, b: Floats) -> float:
    if len(a) < 3 or np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def _sizes(runs: RunTable, least: int) -> list[NDArray[np.bool_]]:
    classes = size_classes(runs.tokens)
    found = [classes == size for size in range(int(classes.max()) + 1)]
    return [rows for rows in found if rows.sum() >= least]


def _within_size(predicted: Floats, runs: RunTable) -> float | None:
    """Mean Spearman correlation over sizes: does the law order compositions, D aside?"""
    found = [_spearman(predicted[rows], runs.loss[rows]) for rows in _sizes(runs, 4)]
    return float(np.mean(found)) if found else None


def _calibration(predicted: Floats, runs: RunTable) -> float | None:
    """Calibration slope: measured on predicted differences between compositions of one size, regimes left out.

    1 is calibrated; below 1 the law exaggerates what composition does, at 0 its differences mean nothing.
    """
    classes = size_classes(runs.tokens)
    count = np.bincount(classes)
    ours, theirs = (v - (np.bincount(classes, weights=v) / count)[classes] for v in (predicted, runs.loss))
    spread = float(ours @ ours)
    return float(ours @ theirs) / spread if spread > 1e-12 * len(ours) else None


def _regret(predicted: Floats, runs: RunTable, uses_composition: bool) -> float | None:
    """Loss of the composition a form would pick, above the best measured; mean over sizes.

    A form that sees no composition picks at random: its regret is the mean loss above the best.
    """
    found = []
    for rows in _sizes(runs, 2):
        loss = runs.loss[rows]
        taken = loss[predicted[rows].argmin()] if uses_composition else loss.mean()
        found.append(float(taken - loss.min()))
    return float(np.mean(found)) if found else None
