"""Variance components, intervals, unidentified parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds
from scipy import stats

from pplscape.errors import UserError
from pplscape.laws.fit import fit_form, problem_of, setting_of
from pplscape.laws.law import law_of
from pplscape.laws.noise import Noise, fitted_space, noise_posterior, variance_components
from pplscape.laws.table import labels
from pplscape.laws.uncertainty import middle, uncertainty
from pplscape.runs import RunTable


def test_variance_components_are_unbiased() -> None:
    """40 trunks of 3 runs around a mean: trunk sd 0.02, run sd 0.01."""
    groups = np.repeat(np.arange(40), 3).astype(str)
    n = len(groups)
    pull = np.full((n, n), 1 / n)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        noise = np.repeat(rng.normal(0, 0.02, 40), 3) + rng.normal(0, 0.01, n)
        estimate = variance_components(pull, noise - noise.mean(), groups, np.ones(n))
        found.append((estimate.trunk**2, estimate.run**2, estimate.freedom))
    trunk, run, freedom = np.mean(found, axis=0)
    assert trunk == pytest.approx(0.02**2, rel=0.05)
    assert run == pytest.approx(0.01**2, rel=0.05)
    assert 25 < freedom < 60


def test_runs_without_trunks_have_one_component() -> None:
    groups = np.arange(30).astype(str)
    noise = np.random.default_rng(0).normal(0, 0.01, 30)
    found = variance_components(np.full((30, 30), 1 / 30), noise - noise.mean(), groups, np.ones(30))
    assert found.trunk == 0
    assert found.run == pytest.approx(noise.std(ddof=1), rel=1e-6)
    assert found.freedom == pytest.approx(29, rel=0.05)


def test_refits_scatter_around_the_fit() -> None:
    runs = worlds.table("quadratic", noise=0.005)
    fit = fit_form("quadratic", runs)
    found = uncertainty(fit, runs, 60, seed=1)
    assert found.draws.shape == (60, 8)
    predicted = fit.form.evaluate(found.draws, fit.form.data(runs, fit.frame), fit.frame, False)[0]
    spread = predicted.std(0)
    assert (np.abs(predicted.mean(0) - fit.log_loss(runs)) < spread).all()
    assert 1e-5 < np.median(spread) < 5e-3
    again = uncertainty(fit, runs, 60, seed=1)
    np.testing.assert_array_equal(found.draws, again.draws)


def test_intervals_cover_in_a_small_simulation() -> None:
    """8 trunks of 3 sizes; the full table is experiments/coverage.py."""
    hits = []
    for seed in range(20):
        runs = worlds.table("flat", trunks=8, noise=0.005, seed=seed)
        fit = fit_form("d-only:anchored", runs)
        law = law_of(fit, runs, uncertainty(fit, runs, 39, seed))
        low, high = law.predict_interval(runs, 0.9, new_run=False)
        clean = worlds.true_loss("flat", runs, runs.bin_share)
        hits.append(np.mean((low <= clean) & (clean <= high)))
    assert 0.8 < np.mean(hits) <= 1.0


def test_more_confidence_and_a_new_run_widen_an_interval() -> None:
    runs = worlds.table("utility", trunks=10)
    fit = fit_form("utility", runs)
    law = law_of(fit, runs, uncertainty(fit, runs, 50))
    mean, run, sure = (
        np.subtract(*law.predict_interval(runs, level, new)[::-1])
        for level, new in ((0.8, False), (0.8, True), (0.95, True))
    )
    assert (mean < run).all()
    assert (run < sure).all()


def test_what_the_data_cannot_tell_is_labelled() -> None:
    """Two close sizes and much noise say nothing of E."""
    runs = worlds.table("flat", trunks=6, sizes=(256e3, 512e3), noise=0.03)
    fit = fit_form("d-only", runs)
    law = law_of(fit, runs, uncertainty(fit, runs, 100))
    assert law.intervals["E"]["unidentified"] is True
    assert 0 <= law.intervals["E"]["low"] <= law.intervals["E"]["high"]


def test_no_resamples_no_interval() -> None:
    runs = worlds.table("flat", trunks=6)
    law = law_of(fit_form("constant", runs), runs)
    with pytest.raises(UserError, match="no intervals"):
        law.predict_interval(runs)


def test_noise_free_runs_have_tight_intervals() -> None:
    runs = worlds.table("flat", noise=0.0)
    exact: RunTable = replace(runs, loss=worlds.true_loss("flat", runs, runs.bin_share))
    fit = fit_form("d-only:anchored", exact)
    law = law_of(fit, exact, uncertainty(fit, exact, 30))
    low, high = law.predict_interval(exact)
    assert (high - low < 1e-4).all()


def test_posterior_of_one_variance_gives_the_t_interval() -> None:
    """Runs without trunks around a mean: z s_b / sqrt(n) must have the quantiles of Student's t, n - 1 degrees."""
    n = 8
    noise = np.random.default_rng(0).normal(0, 0.01, n)
    rng = np.random.default_rng(1)
    space = np.full((n, 1), n**-0.5)
    trunk, run = noise_posterior(noise - noise.mean(), space, np.arange(n).astype(str), 40_000, rng)
    assert (trunk == 0).all()
    found = np.quantile(run * rng.normal(size=len(run)), [0.05, 0.95, 0.975]) / noise.std(ddof=1)
    np.testing.assert_allclose(found, stats.t.ppf([0.05, 0.95, 0.975], n - 1), rtol=0.03)


def test_posterior_is_the_restricted_likelihood_by_brute_force() -> None:
    """Chances of the trunk's share against dense matrices: log|V| + log|X'V^-1 X| + (n - k) log(e'Pe)."""
    groups = np.repeat(["a", "b", "c", "d"], [3, 2, 4, 3])
    n, rng = len(groups), np.random.default_rng(3)
    design = np.linalg.qr(rng.normal(size=(n, 3)))[0]
    error = rng.normal(size=n) + np.repeat(rng.normal(size=4), [3, 2, 4, 3])
    same = (groups[:, None] == groups[None, :]).astype(float)
    shares, weights = (np.arange(20) + 0.5) / 20, []
    for share in shares:
        inverse = np.linalg.inv((1 - share) * np.eye(n) + share * same)
        inner = design.T @ inverse @ design
        squares = error @ (inverse - inverse @ design @ np.linalg.solve(inner, design.T @ inverse)) @ error
        volume = np.linalg.slogdet(inner)[1] - np.linalg.slogdet(inverse)[1]
        weights.append(np.exp(-0.5 * (volume + (n - 3) * np.log(squares))))
    trunk, run = noise_posterior(error, design, groups, 40_000, rng)
    drawn = trunk**2 / (trunk**2 + run**2)
    chance = [np.mean(np.isclose(drawn, share)) for share in shares]
    np.testing.assert_allclose(chance, np.array(weights) / sum(weights), atol=0.01)
    moved, _ = noise_posterior(error + design @ rng.normal(size=3), design, groups, 100, np.random.default_rng(5))
    np.testing.assert_allclose(moved, noise_posterior(error, design, groups, 100, np.random.default_rng(5))[0])


def test_fitted_space_is_that_of_the_derivatives() -> None:
    """Without penalty every parameter counts; parameters at a bound and what only a belief decides do not."""
    runs = worlds.table("quadratic", trunks=8)
    for form, n_fitted in (("constant", 1), ("paper", 7), ("quadratic", 8)):
        fit = fit_form(form, runs)
        setting = setting_of(fit.form, runs)
        problem = problem_of(setting, np.log(runs.loss)[None], np.ones((1, len(runs))), np.zeros(1))
        jacobian = fit.form.evaluate(fit.theta[None], setting.data, setting.frame)[1]
        space = fitted_space(problem, fit.theta, jacobian[0], np.ones(len(runs)))
        assert space.shape == (len(runs), n_fitted)
        np.testing.assert_allclose(space.T @ space, np.eye(n_fitted), atol=1e-8)
        np.testing.assert_allclose(space @ (space.T @ jacobian[0]), jacobian[0], atol=1e-6 * np.abs(jacobian).max())


def test_known_noise_takes_the_place_of_the_residuals() -> None:
    runs = worlds.table("flat", trunks=8, noise=0.01)
    fit = fit_form("constant", runs)
    found = uncertainty(fit, runs, 2000, noise=Noise(trunk=0.03, run=0.0, freedom=5.0))
    assert np.ptp(found.drawn_noise) == 0
    assert len(set(labels(runs, "group"))) == 8
    assert np.log(fit.form.params(found.draws, fit.frame)).std() == pytest.approx(0.03 / np.sqrt(8), rel=0.15)


def test_the_middle_of_draws_is_exact_in_rank() -> None:
    """Of 99 draws the 5th and 95th: the truth, one of 100 alike, lies between them with chance 90 %."""
    low, high = middle(np.random.default_rng(0).permutation(99) + 1.0, 0.9)
    assert (low, high) == pytest.approx((5, 95))
