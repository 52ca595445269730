"""The fitter against known answers."""

from __future__ import annotations

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import worlds
from scipy.optimize import nnls

from pplscape.errors import UserError
from pplscape.laws.fit import audit, fit_form, fit_many, problem_of, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import non_negative_least_squares
from pplscape.laws.polish import huber, polish
from pplscape.laws.table import frame_of, noise_weights, seed_noise, size_classes
from pplscape.runs import RunTable

DATA = os.environ.get("PPLSCAPE_DATA")
GRID_BEST = 0.00101827403
"""Huber sum of the best grid start of Epoch AI's replication of arXiv 2203.15556 (240 runs, delta 1e-3)."""


@pytest.fixture(scope="module")
def chinchilla() -> RunTable:
    if not DATA:
        pytest.skip("PPLSCAPE_DATA is not set")
    path = Path(DATA) / "law_tables" / "chinchilla_epoch" / "chinchilla_245.csv"
    with open(path) as handle:
        rows = [row for row in csv.DictReader(handle) if row["in_fit240"] == "1"]
    columns = {k: np.array([float(row[k]) for row in rows]) for k in ("N", "D", "loss")}
    return RunTable(tokens=columns["D"], n_params=columns["N"], loss=columns["loss"])


def test_chinchilla_known_answer(chinchilla: RunTable) -> None:
    fit = fit_form("chinchilla", chinchilla, delta=1e-3)
    assert len(chinchilla) == 240
    assert fit.objective <= GRID_BEST + 1e-9
    expected = {"A": 477.842, "B": 2143.864, "E": 1.817236, "alpha": 0.347313, "beta": 0.367183}
    for name, value in expected.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-3)
    headline = {"A": (482.006, 124.5), "B": (2085.43, 1293), "E": (1.81686, 0.0257), "alpha": (0.34781, 0.0154)}
    for name, (value, error) in headline.items():
        assert abs(fit.params[name] - value) < error


def test_the_sum_of_huber_losses_is_what_is_minimised(chinchilla: RunTable) -> None:
    fit = fit_form("chinchilla", chinchilla, delta=1e-3)
    residual = fit.log_loss(chinchilla) - np.log(chinchilla.loss)
    assert fit.objective == pytest.approx(huber(residual, 1e-3).sum(), rel=1e-12)


PLANTED = {
    "constant": [3.3],
    "d-only": [2.2, 30.0, 0.25],
    "d-only:anchored": [2.0, 3.0, 0.4],
    "d-only:rectified": [2.1, 1.2, 0.3, 0.6],
    "monotone": [2.2, 60.0, 0.2, 0.3],
    "paper": [2.2, 400.0, 0.3, -3e-4, 0.12, -2e-4, 0.3],
    "extended": [2.2, 400.0, 0.2, -3e-4, 0.12, -2e-4, 1e-3, 5e-4, 0.3],
    "quadratic": [2.2, 3e5, 3.0, 0.2, 0.3, 0.05, 0.2, 0.28],
    "chinchilla": [50.0, 90.0, 1.9, 0.3, 0.35],
}


@pytest.mark.parametrize("spec", PLANTED)
def test_planted_parameters_are_recovered(spec: str) -> None:
    runs = worlds.table("flat", trunks=16, sizes=(32e3, 64e3, 128e3, 512e3), noise=0.0)
    form = get_form(spec)
    if "n_params" in form.columns:  # else runs of different models would measure no seed noise
        runs = replace(runs, n_params=np.random.default_rng(3).choice([1e6, 4e6, 2e7], len(runs)))
    frame = frame_of(runs)
    loss = np.exp(form.log_loss(np.array([PLANTED[spec]]), runs, form.reframe(runs, frame))[0])
    fit = fit_form(form, replace(runs, loss=loss), delta=1e-3)
    np.testing.assert_allclose(list(fit.params.values()), PLANTED[spec], rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("spec", ["utility", "utility:power"])
def test_planted_utilities_are_recovered(spec: str) -> None:
    """Up to the shrinkage, which is weak when noise is; E and beta trade off, so the loss is what must agree."""
    runs = worlds.table("flat", trunks=18, noise=0.0, sizes=(32e3, 64e3, 128e3, 512e3))
    form, frame = get_form(spec), frame_of(runs)
    planted = [2.0, 0.4, 1.5 if spec == "utility" else 0.7, 0.06, 1.0, 4.0, 5.0, 4.0, -1.0]
    loss = np.exp(form.log_loss(np.array([planted]), runs, frame)[0])
    fit = fit_form(form, replace(runs, loss=loss))
    assert np.abs(np.exp(fit.log_loss(runs)) - loss).max() < 0.006
    found = np.array(list(fit.params.values())[4:])
    np.testing.assert_allclose(found / found.mean(), np.array(planted[4:]) / np.mean(planted[4:]), atol=0.15)


@pytest.mark.parametrize("spec", ["utility", "utility:power"])
def test_what_the_first_steps_gain_is_told_from_what_tokens_bring(spec: str) -> None:
    """A fifth of the gap is gone at once, or nothing. Losses at four times the largest size are right to 0.01 nats; of
    a law that must pass through L(0) they are up to 0.07 (saturating) and 0.12 (power) off in the first case."""
    runs = worlds.table("flat", trunks=18, noise=0.0, sizes=(32e3, 64e3, 128e3, 512e3))
    form, frame = get_form(spec), frame_of(runs)
    planted = [2.0, 0.3, 5.0 if spec == "utility" else 1.0, 0.2, 1.0, 4.0, 5.0, 4.0, 2.0]
    far = replace(runs, tokens=4 * runs.tokens, bin_tokens=4 * runs.bin_tokens)
    for jump in (0.2, 0.0):
        planted[3] = jump
        loss, true = (np.exp(form.log_loss(np.array([planted]), at, frame)[0]) for at in (runs, far))
        fit = fit_form(form, replace(runs, loss=loss))
        assert np.abs(np.exp(fit.log_loss(far)) - true).max() < 0.01
        assert fit.params["J"] == pytest.approx(jump, abs=0.03)


@pytest.mark.parametrize("world", ["utility", "power"])
def test_a_jump_of_nothing_does_not_stop_the_descent(world: str) -> None:
    """J ends at 0, E and beta trade off: no random start finds a lower objective. Steps that were clipped at the bound
    left 6 and 12 of 24 fits above."""
    for seed in range(6):
        runs = worlds.table(world, trunks=16, noise=0.003, seed=seed)
        _, found = audit(fit_form("utility:power", runs), runs)
        assert found.better < 1e-3


def test_fits_do_not_depend_on_row_order_and_repeat() -> None:
    runs = worlds.table("quadratic", noise=0.01)
    order = np.random.default_rng(0).permutation(len(runs))
    for spec in ("quadratic", "paper", "utility"):
        one, again, other = fit_form(spec, runs), fit_form(spec, runs), fit_form(spec, runs.take(order))
        assert one.params == again.params
        np.testing.assert_allclose(np.exp(other.log_loss(runs)), np.exp(one.log_loss(runs)), rtol=1e-5)


@pytest.mark.parametrize("spec", ["d-only", "d-only:anchored", "paper", "quadratic", "utility"])
def test_random_starts_find_nothing_better(spec: str) -> None:
    """Audit: 20 polished random starts do not beat variable projection by more than 0.1 %."""
    runs = worlds.table("quadratic", noise=0.01)
    setting = setting_of(get_form(spec), runs)
    log_loss, weight = np.log(runs.loss)[None], np.ones((1, len(runs)))
    theta, value, strength = fit_many(setting, log_loss, weight)
    rng = np.random.default_rng(1)
    problem = problem_of(setting, log_loss, weight, strength).rows(np.zeros(20, int))
    low, high = problem.bounds()
    scattered = theta + rng.normal(size=(20, theta.shape[1])) * (0.3 * np.abs(theta) + 0.1)
    _, others = polish(problem, np.clip(scattered, low, high), max_steps=300)
    assert value[0] <= others.min() * 1.001


@pytest.mark.parametrize("spec", ["utility", "utility:power"])
def test_a_strong_penalty_does_not_strand_the_fit(spec: str) -> None:
    """The strongest penalty leaves the anchored law of D: no fit may end above it. One ended at 2.4 times the least."""
    runs = worlds.table("paper", trunks=8, noise=0.01)
    setting, weight, log_loss = setting_of(get_form(spec), runs), np.ones((1, len(runs))), np.log(runs.loss)[None]
    penalty = setting.form.penalty(setting.frame)
    assert penalty
    anchored = fit_form("d-only:anchored", runs)
    floor, log_k, log_beta = anchored.theta
    for strength in penalty.strengths[:1]:
        problem = problem_of(setting, log_loss, weight, np.array([strength]))
        shapes = np.log([0.3, 1.0, 3.0, 100.0]) if spec == "utility" else np.array([0.3, 0.7, 1.0, 1.0])
        bins = np.zeros(len(setting.frame.bin_share or ()))
        start = np.array([[floor, log_beta, shape, log_k, 0.0, *bins] for shape in shapes])
        least = polish(problem.rows(np.zeros(len(start), int)), start, 300, 1e-10)[1].min()
        assert fit_many(setting, log_loss, weight, strength=np.array([strength]))[1][0] <= least * 1.3


def test_non_negative_least_squares_is_scipys() -> None:
    rng = np.random.default_rng(0)
    design, target, weight = rng.normal(size=(12, 3)), rng.normal(size=(20, 12)), rng.uniform(0.5, 2, (20, 12))
    found = non_negative_least_squares(design, target, weight)
    assert 0.1 < np.mean(found == 0) < 0.9
    for ours, y, w in zip(found, target, weight, strict=True):
        root = np.sqrt(w)
        assert ours == pytest.approx(nnls(design * root[:, None], y * root)[0], abs=1e-7)


def test_weight_zero_is_the_same_as_leaving_a_run_out() -> None:
    runs = worlds.table("quadratic", noise=0.01)
    keep = np.ones(len(runs))
    keep[3:9] = 0
    for spec in ("d-only", "quadratic"):
        setting = setting_of(get_form(spec), runs, delta=1e-2)
        theta, value, _ = fit_many(setting, np.log(runs.loss)[None], keep[None], precise=True)
        alone = fit_form(spec, runs.take(keep > 0), delta=1e-2)
        assert value[0] == pytest.approx(alone.objective, rel=1e-2)
        predicted = np.exp(setting.form.evaluate(theta, setting.data, setting.frame, False)[0][0])
        np.testing.assert_allclose(predicted, np.exp(alone.log_loss(runs)), rtol=2e-3)


def test_seed_noise_is_that_of_repeated_regimes() -> None:
    tokens = np.tile([1000.0, 1010.0, 8000.0, 8010.0], 2)
    loss = np.array([3.0, 3.0, 2.5, 2.5, 3.03, 3.03, 2.525, 2.525])
    runs = RunTable(tokens=tokens, loss=loss, group=np.repeat(["a", "b"], 4), regime=np.full(8, "random"))
    cell = np.std(np.log([3.0, 3.03]))
    assert seed_noise(runs) == pytest.approx(cell * np.sqrt(4 / 3), rel=0.02)
    assert seed_noise(replace(runs, regime=runs.group)) is None
    assert seed_noise(replace(runs, regime=runs.group, noise=0.01 * loss)) == pytest.approx(0.01)


def test_runs_of_other_models_or_epochs_repeat_nothing() -> None:
    """Two random trunks of different models differ by more than their seed; three of the same measure it."""
    tokens, loss = np.full(5, 8000.0), np.array([3.0, 3.03, 2.0, 2.02, 2.01])
    base = RunTable(tokens=tokens, loss=loss, group=np.array([*"abcde"]), regime=np.full(5, "random"))
    cells = np.log(loss[:2]).var() * 2 + np.log(loss[2:]).var() * 3
    columns = {"n_params": [1e6, 1e6, 1e8, 1e8, 1e8], "unique_tokens": [8e3, 8e3, 1e3, 1001.0, 1002.0]}
    columns["domain_share"] = [1.0, 1.0, 0.5, 0.5, 0.501]
    for name, values in columns.items():
        assert seed_noise(replace(base, **{name: np.array(values)})) == pytest.approx(np.sqrt(cells / 3))
    assert seed_noise(base) > 0.1


def test_nearly_equal_sizes_are_one_size() -> None:
    assert size_classes(np.array([1000.0, 1020.0, 2000.0, 990.0, 2010.0])).tolist() == [0, 0, 1, 0, 1]


def test_the_noise_column_weighs_runs() -> None:
    runs = replace(worlds.table("flat"), noise=np.where(np.arange(36) < 18, 0.005, 0.05))
    weight = noise_weights(runs)
    assert weight[0] / weight[-1] == pytest.approx(100, rel=0.5)
    shifted = replace(runs, loss=runs.loss + np.where(np.arange(36) < 18, 0.0, 0.3))
    assert (
        fit_form("constant", shifted).params["L_mean"]
        < fit_form("constant", replace(shifted, noise=None)).params["L_mean"]
    )


def test_known_noise_gives_the_mean_of_inverse_variances() -> None:
    """Closed form: below the threshold the constant is the weighted mean of ln L, weights (L / noise)^2."""
    loss, noise = np.array([3.0, 3.2, 2.9, 3.1, 3.05]), np.array([0.01, 0.04, 0.02, 0.08, 0.02])
    runs = RunTable(tokens=np.geomspace(1e4, 1e6, 5), loss=loss, noise=noise)
    weight = (loss / noise) ** 2
    expected = np.exp(weight @ np.log(loss) / weight.sum())
    assert fit_form("constant", runs, delta=10.0).params["L_mean"] == pytest.approx(expected, rel=1e-9)


def test_the_threshold_is_in_units_of_each_run_s_noise() -> None:
    """Stating the noise twice as large changes nothing; a noisy run's pull is bounded at its own 1.345 sigma."""
    runs = worlds.table("flat", noise=0.01)
    stated = replace(runs, regime=runs.group, noise=np.where(np.arange(36) < 18, 0.004, 0.02))
    one, two = (fit_form("d-only:anchored", replace(stated, noise=k * stated.noise)) for k in (1, 2))
    setting = setting_of(get_form("constant"), stated)
    np.testing.assert_allclose(setting.delta[0], 1.345 * stated.noise / stated.loss, rtol=1e-9)
    assert two.delta == pytest.approx(2 * one.delta)
    fit = fit_form("constant", stated)
    residual = np.log(stated.loss) - np.log(fit.params["L_mean"])
    bounded = np.clip(residual, -setting.delta[0], setting.delta[0])
    assert abs(noise_weights(stated) @ bounded) < 1e-6 * (noise_weights(stated) @ np.abs(bounded))


def test_the_audit_counts_starts_that_agree_and_repeats() -> None:
    runs = worlds.table("quadratic", noise=0.01)
    fit = fit_form("quadratic", runs)
    same, found = audit(fit, runs)
    assert same is fit
    assert found.starts >= 20
    assert found.agree > 0.5
    assert found.better == 0
    assert audit(fit, runs)[1] == found


def test_the_audit_replaces_a_fit_that_random_starts_beat() -> None:
    runs = worlds.table("quadratic", noise=0.01)
    fit = fit_form("quadratic", runs)
    worse = fit.theta * 1.01
    spoilt = replace(fit, theta=worse, objective=2 * fit.objective)
    better, found = audit(spoilt, runs)
    assert better.objective == pytest.approx(fit.objective, rel=1e-6)
    assert found.better == pytest.approx(0.5, abs=1e-3)
    assert found.agree == 0


def test_missing_columns_are_named() -> None:
    runs = RunTable(tokens=np.array([1.0, 2.0, 4.0]), loss=np.array([3.0, 2.5, 2.2]))
    with pytest.raises(UserError, match="needs ppl_mean, ppl_std"):
        fit_form("paper", runs)
    with pytest.raises(UserError, match="needs base_loss"):
        fit_form("d-only:anchored", runs)
