"""Variance components, intervals, unidentified parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.errors import UserError
from pplscape.laws.fit import fit_form
from pplscape.laws.law import law_of
from pplscape.laws.uncertainty import uncertainty, variance_components
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


@pytest.mark.parametrize("method", ["parametric", "wild"])
def test_refits_scatter_around_the_fit(method: str) -> None:
    runs = worlds.table("quadratic", noise=0.005)
    fit = fit_form("quadratic", runs)
    found = uncertainty(fit, runs, 60, seed=1, method=method)
    assert found.draws.shape == (60, 8)
    predicted = fit.form.evaluate(found.draws, fit.form.data(runs, fit.frame), fit.frame, False)[0]
    spread = predicted.std(0)
    assert (np.abs(predicted.mean(0) - fit.log_loss(runs)) < spread).all()
    assert 1e-5 < np.median(spread) < 5e-3
    again = uncertainty(fit, runs, 60, seed=1, method=method)
    np.testing.assert_array_equal(found.draws, again.draws)


def test_intervals_cover_in_a_small_simulation() -> None:
    """8 trunks of 3 sizes; the full table is experiments/coverage_small.py."""
    hits = []
    for seed in range(25):
        runs = worlds.table("flat", trunks=8, noise=0.005, seed=seed)
        fit = fit_form("d-only:anchored", runs)
        law = law_of(fit, runs, uncertainty(fit, runs, 60, seed))
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
