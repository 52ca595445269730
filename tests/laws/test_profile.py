"""Profiles of the objective against closed forms and constrained minimisation by scipy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds
from scipy.optimize import minimize
from scipy.stats import t as student

from pplscape.laws.fit import fit_form
from pplscape.laws.polish import huber
from pplscape.laws.profile import profiles
from pplscape.runs import RunTable


def test_the_profile_of_a_mean_is_its_t_statistic_squared() -> None:
    """`constant` is a mean of ln L: with small residuals, rise = n (mu - ln c)^2 / s^2 and the threshold is t^2."""
    rng = np.random.default_rng(0)
    log_loss = np.log(3.0) + 1e-4 * rng.normal(size=20)
    runs = RunTable(tokens=np.geomspace(1e4, 1e6, 20), loss=np.exp(log_loss))
    found = profiles(fit_form("constant", runs), runs)
    curve = found["parameters"]["L_mean"]
    variance = np.sum((log_loss - log_loss.mean()) ** 2) / 19
    expected = 20 * (np.log(curve["value"]) - log_loss.mean()) ** 2 / variance
    np.testing.assert_allclose(curve["rise"], expected, rtol=1e-4, atol=1e-6)
    assert found["threshold"] == pytest.approx(student.ppf(0.95, 19) ** 2, rel=1e-6)
    assert max(curve["rise"]) > 2 * found["threshold"]


def test_a_profile_agrees_with_constrained_minimisation() -> None:
    """d-only, exponent held: scipy over E and ln A."""
    runs = worlds.table("flat", trunks=8, noise=0.003)
    runs = replace(runs, loss=runs.loss - worlds.true_loss("flat", runs, runs.bin_share) + 2.2 + 60 * runs.tokens**-0.3)
    fit = fit_form("d-only", runs)
    curve = profiles(fit, runs)["parameters"]["alpha"]
    prior = fit.form.prior(fit.frame)
    assert prior is not None

    def objective(free: np.ndarray, alpha: float) -> float:
        predicted = np.log(free[0] + np.exp(free[1] - alpha * np.log(runs.tokens / 1e5)))
        belief = 0.5 * fit.noise**2 * prior.precision[-1] * (alpha - prior.centre[-1]) ** 2
        return float(huber(predicted - np.log(runs.loss), fit.delta).sum()) + belief

    start = np.array([fit.params["E"], np.log(fit.params["A"]) - fit.params["alpha"] * np.log(1e5)])
    least = objective(start, fit.params["alpha"])
    variance = 2 * least / (len(runs) - fit.n_effective)
    for i in (2, 5, 9, 12):
        alpha = curve["value"][i]
        options = {"xatol": 1e-10, "fatol": 1e-16, "maxiter": 4000}
        best = minimize(objective, start, (alpha,), method="Nelder-Mead", options=options).fun
        assert curve["rise"][i] == pytest.approx(2 * (best - least) / variance, rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("spec", ["quadratic", "utility", "d-only:anchored", "extended"])
def test_profiles_rise_from_the_estimate_on_both_sides(spec: str) -> None:
    runs = worlds.table("utility", trunks=12)
    fit = fit_form(spec, runs)
    found = profiles(fit, runs)
    assert list(found["parameters"]) == list(fit.params)
    for name, curve in found["parameters"].items():
        value, rise = np.array(curve["value"]), np.array(curve["rise"])
        assert rise.min() > -1e-3, name
        assert (np.diff(value) >= 0).all()
        if len(value) > 1:
            low = value < fit.params[name]
            assert (np.diff(rise[low]) <= 1e-6).all(), name
            assert (np.diff(rise[value > fit.params[name]]) >= -1e-6).all(), name


def test_a_parameter_that_the_runs_cannot_tell_is_flat() -> None:
    """Two sizes 1.1x apart say nothing of E: its profile stays low over most of 0 to the smallest loss."""
    runs = worlds.table("flat", trunks=8, sizes=(64_000.0, 70_000.0))
    fit = fit_form("d-only", runs)
    flat = profiles(fit, runs)
    curve = flat["parameters"]["E"]
    below = np.array(curve["value"])[np.array(curve["rise"]) < flat["threshold"]]
    assert np.ptp(below) > 0.5 * runs.loss.min()
    known = worlds.table("flat", trunks=8, noise=1e-4)
    sharp = profiles(fit_form("d-only:anchored", known), known)["parameters"]["E"]
    assert np.ptp(sharp["value"]) < 0.2


def test_a_parameter_held_at_its_bound_has_no_profile() -> None:
    """A power law less a constant wants an irreducible loss below 0: it is held there."""
    runs = worlds.table("flat", trunks=8)
    steep = replace(runs, loss=60.0 * runs.tokens**-0.25 - 0.5)
    found = profiles(fit_form("d-only", steep), steep)["parameters"]
    assert found["E"]["value"] == [0.0]
    assert len(found["alpha"]["value"]) > 5


def test_a_law_that_nothing_moves_is_no_error() -> None:
    """Losses that do not fall with D: the gap vanishes and its parameters with it."""
    runs = worlds.table("flat", trunks=8)
    rising = replace(runs, loss=3.0 + 1e-7 * runs.tokens, base_loss=None)
    found = profiles(fit_form("d-only", rising), rising)["parameters"]
    assert all(np.isfinite(c["rise"]).all() for c in found.values())
