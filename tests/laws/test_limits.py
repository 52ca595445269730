"""Limits of E and exponents: exact where theory is, by brute force elsewhere, at bounds where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds
from scipy import optimize, stats

from pplscape.laws.fit import fit_form, fit_tables, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.identified import identified
from pplscape.laws.law import law_of
from pplscape.laws.limits import limits, limits_of
from pplscape.laws.table import labels
from pplscape.laws.uncertainty import uncertainty
from pplscape.laws.valley import valley_of
from pplscape.runs import RunTable


def test_the_limits_of_a_mean_are_the_t_interval() -> None:
    """12 runs without trunks, residuals within Huber's threshold: mean +- t se, to the error of the draws."""
    runs = replace(worlds.table("flat", trunks=12, sizes=(512e3,)), group=None, regime=None, noise=None)
    error = np.random.default_rng(0).normal(0, 1e-4, 12)
    runs = replace(runs, loss=np.exp(1.0 + error))
    fit = fit_form("constant", runs, delta=1.0)
    setting = setting_of(fit.form, runs, 1.0)
    found = limits(
        setting, fit.theta[None], np.log(runs.loss)[None], np.ones(12), labels(runs, "group"), 0.9, names=("L_mean",)
    )
    low, high = (float(side[0]) for side in found.ends["L_mean"])
    half = stats.t.ppf(0.95, 11) * error.std(ddof=1) / np.sqrt(12)
    middle = np.exp(1.0 + error.mean())
    assert np.log(high / middle) == pytest.approx(half, rel=0.05)
    assert np.log(middle / low) == pytest.approx(half, rel=0.05)


def test_runs_of_a_trunk_do_not_count_as_independent() -> None:
    """Three branches that share 80 % of the noise's variance are worth 1 / (0.8 + 0.2 / 3) = 1.15 runs, not 3: the
    interval is 0.93 times that of one run a trunk, not 0.58."""
    one = replace(worlds.table("flat", trunks=12, sizes=(512e3,)), regime=None, noise=None)
    three = replace(worlds.table("flat", trunks=12, sizes=(5e5, 5e5, 5e5)), regime=None, noise=None)
    widths = np.zeros((20, 2))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        error = 1e-4 * (np.sqrt(0.8) * rng.normal(size=(12, 1)) + np.sqrt(0.2) * rng.normal(size=(12, 3)))
        for column, (runs, noise) in enumerate(((one, error[:, 0]), (three, error.ravel()))):
            table = replace(runs, loss=np.exp(1.0 + noise), group=np.repeat(np.arange(12), len(runs) // 12).astype(str))
            fit = fit_form("constant", table, delta=1.0)
            setting, measured = setting_of(fit.form, table, 1.0), np.log(table.loss)[None]
            ends = limits(
                setting, fit.theta[None], measured, np.ones(len(table)), labels(table, "group"), names=("L_mean",)
            ).ends
            widths[seed, column] = (ends["L_mean"][1] - ends["L_mean"][0])[0]
    assert np.median(widths[:, 1]) / np.median(widths[:, 0]) == pytest.approx(0.93, abs=0.15)


def test_a_held_fit_is_a_point_of_the_profile() -> None:
    """E held at 2.0: no other k and beta do better (scipy, from several starts)."""
    runs = worlds.table("flat", trunks=8, noise=0.005, seed=3)
    fit = fit_form("d-only:anchored", runs)
    setting = setting_of(fit.form, runs)
    valley, _ = valley_of(setting, fit.theta[None], np.log(runs.loss)[None], np.ones(len(runs)), labels(runs, "group"))
    problem = valley.problem
    _, direction, _, own = valley.look(np.array([0]), valley.theta, 0)
    ahead = (2.0 - valley.theta[:, :1]) * direction
    theta = valley.hold(np.array([0]), 0, valley.theta, ahead, np.array([2.0]), own)
    found = float(problem.objective(theta)[0])
    at = float(theta[0, 0])
    best = min(
        optimize.minimize(
            lambda t: float(problem.objective(np.array([[at, *t]]))[0]), start, method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000},
        ).fun
        for start in ([1.0, -1.0], [0.0, 0.0])
    )  # fmt: skip
    assert at == pytest.approx(2.0, abs=1e-2)
    assert found == pytest.approx(best, rel=1e-6)


def test_limits_hold_the_truth_where_it_is_told_and_where_it_is_not() -> None:
    """Quantiles of refits held E in 98 % of data sets where it is not told; the table is experiments/coverage.py."""
    for noise, told in ((0.002, True), (0.02, False)):
        tables = [worlds.table("flat", trunks=16, noise=noise, seed=s) for s in range(100)]
        setting = setting_of(get_form("d-only:anchored"), tables[0])
        log_loss, weight = np.log([t.loss for t in tables]), np.ones(len(tables[0]))
        theta, _, _ = fit_tables(setting, log_loss, np.broadcast_to(weight, log_loss.shape))
        found = limits(setting, theta, log_loss, weight, labels(tables[0], "group"))
        low, high = found.ends["E"]
        assert np.mean((low <= 2.2) & (high >= 2.2)) == pytest.approx(0.9, abs=0.09)  # three standard errors
        assert np.mean(found.told) >= 0.9 if told else not found.told.any()


def test_a_lucky_data_set_is_labelled_as_the_next_would_be() -> None:
    """16 trunks at 0.01 nats: the intervals of one data set in six look identified, and miss the truth too often."""
    tables = [worlds.table("flat", trunks=16, noise=0.01, seed=s) for s in range(60)]
    setting = setting_of(get_form("d-only:anchored"), tables[0])
    log_loss, weight = np.log([t.loss for t in tables]), np.ones(len(tables[0]))
    theta, _, _ = fit_tables(setting, log_loss, np.broadcast_to(weight, log_loss.shape))
    found = limits(setting, theta, log_loss, weight, labels(tables[0], "group"))
    (low, high), (least, most) = found.ends["E"], found.ends["beta"]
    smallest = np.exp(log_loss.min(1))
    alone = [
        identified("E", (low[t], high[t]), (0.0, smallest[t]), smallest[t])
        and identified("beta", (least[t], most[t]), (0.02, 5.0), smallest[t])
        for t in range(len(tables))
    ]
    assert np.mean(alone) > 0.08
    assert np.mean(found.told) < 0.02


def test_refits_spread_over_e_as_its_limits_say() -> None:
    """The middle 90 % of the refits' E are the values that the test does not reject."""
    runs = worlds.table("flat", trunks=16, noise=0.01, seed=1)
    fit = fit_form("d-only:anchored", runs)
    ends, _ = limits_of(fit, runs)
    low, high = np.quantile(uncertainty(fit, runs, 3000).draws[:, 0], [0.05, 0.95])
    assert low == pytest.approx(ends["E"][0], abs=0.1)
    assert high == pytest.approx(ends["E"][1], abs=0.03)


def test_a_path_goes_through_fits_with_e_held() -> None:
    """Its scores rise, its ln L are those of its theta, and between two knots it predicts what a held fit does."""
    runs = worlds.table("flat", trunks=12, noise=0.004, seed=2)
    fit = fit_form("d-only:anchored", runs)
    measured, weight = np.log(runs.loss)[None], np.ones(len(runs))
    valley, own = valley_of(setting_of(fit.form, runs), fit.theta[None], measured, weight, labels(runs, "group"))
    (path,) = valley.paths(own["E"])
    assert (np.diff(path.score) > 0).all()
    assert np.diff(path.score).max() <= 1.0
    asked = np.array([-1.3, -0.4, 0.9])
    theta, predicted = path.at(asked)
    row = np.zeros(3, int)
    curvature = valley.curvature(own["E"])[row]
    held = valley.hold(row, own["E"], theta, np.zeros_like(theta), theta[:, own["E"]], curvature)
    again = fit.form.evaluate(held, valley.problem.data, fit.frame, False)[0]
    noise = float(np.median(np.hypot(valley.trunk, valley.run)))
    np.testing.assert_allclose(predicted, again, atol=0.03 * noise)
    np.testing.assert_allclose(np.sign(asked) * valley.look(row, held, own["E"])[0], asked, atol=0.05)


def test_noise_that_moves_e_is_spent_there() -> None:
    """What is left of an error moves E no further, and of one along E's own direction nothing is left."""
    runs = worlds.table("flat", trunks=12, noise=0.004, seed=2)
    fit = fit_form("d-only:anchored", runs)
    measured, weight = np.log(runs.loss)[None], np.ones(len(runs))
    valley, own = valley_of(setting_of(fit.form, runs), fit.theta[None], measured, weight, labels(runs, "group"))
    error = 0.004 * np.random.default_rng(0).normal(size=(5, len(runs)))
    score, left = valley.scores(0, error, own["E"])
    again, same = valley.scores(0, left, own["E"])
    assert np.abs(score).min() > 0.01
    np.testing.assert_allclose(again, 0.0, atol=1e-9)
    np.testing.assert_allclose(same, left, atol=1e-15)
    np.testing.assert_allclose(valley.scores(0, error - left, own["E"])[1], 0.0, atol=1e-15)


def test_refits_at_the_bound_of_e_do_not_spend_their_noise_twice() -> None:
    """dcpt: with E at 0 its work is done by C and gamma. Where they follow the same noise once more, refits spread the
    exponent of D over 1.9 times what the runs do not reject, now over 1.3 times."""
    runs = worlds.table("replayed", trunks=8, noise=0.01, seed=0)
    fit = fit_form("dcpt", runs)
    ends, _ = limits_of(fit, runs)
    draws = fit.form.params(uncertainty(fit, runs, 150).draws, fit.frame)
    low, high = np.quantile(draws[:, fit.form.names(fit.frame).index("beta")], [0.05, 0.95])
    assert (high - low) / (ends["beta"][1] - ends["beta"][0]) < 1.6


def test_nothing_known_ends_at_the_bounds_and_is_labelled() -> None:
    """Two close sizes and much noise: E may be 0, the law says so, and the exponent with it."""
    runs = worlds.table("flat", trunks=6, sizes=(256e3, 512e3), noise=0.03)
    fit = fit_form("d-only:anchored", runs)
    ends, _ = limits_of(fit, runs)
    assert ends["E"][0] == 0.0
    law = law_of(fit, runs, uncertainty(fit, runs, 40), 0.9, ends)
    assert law.intervals["E"]["unidentified"]
    assert law.intervals["beta"]["unidentified"]


def test_an_exponent_within_a_factor_of_three_is_identified() -> None:
    edges = (0.02, 5.0)
    assert identified("beta", (0.2, 0.59), edges, 3.0)
    assert not identified("beta", (0.2, 0.61), edges, 3.0)
    assert not identified("beta", (0.2, 5.0), edges, 3.0)
    assert identified("k", (0.2, 0.61), edges, 3.0)


def test_a_wide_exponent_takes_the_floor_with_it() -> None:
    runs: RunTable = worlds.table("flat", trunks=12, noise=0.002)
    fit = fit_form("d-only:anchored", runs)
    found = uncertainty(fit, runs, 40)
    known = {"E": (2.1, 2.3), "beta": (0.3, 0.4)}
    assert law_of(fit, runs, found, 0.9, known).intervals["E"][0] == pytest.approx(min(2.1, fit.params["E"]))
    wide = law_of(fit, runs, found, 0.9, known | {"beta": (0.1, 0.9)})
    assert wide.intervals["E"]["unidentified"]
    assert wide.intervals["beta"]["unidentified"]
