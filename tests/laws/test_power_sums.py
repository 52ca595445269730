"""`data-constrained` and `dcpt`: published formulas, planted parameters, values held fixed, what tables cannot tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.choose import obstacle
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import Frame, get_form
from pplscape.laws.forms.data_constrained import DataConstrained, worth
from pplscape.laws.law import Law
from pplscape.laws.polish import huber
from pplscape.runs import Compositions, RunTable

PUBLISHED = {
    "A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596, "beta": 0.3526596,
    "R_D": 15.387756, "R_N": 5.309743,
}  # fmt: skip
"""arXiv 2305.16264, from the authors' notebook."""


def textbook(p: dict[str, float], n: np.ndarray, d: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The loss as the paper writes it, with G and C(U)."""
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    flops = 6 * (g * u) ** ((p["alpha"] + p["beta"]) / p["alpha"])
    best = g * (flops / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    first = np.minimum(n, best)
    r_n, r_d = np.maximum(n / first - 1, 0), np.maximum(d / u - 1, 0)
    n_eff = first + first * p["R_N"] * (1 - np.exp(-r_n / p["R_N"]))
    d_eff = u + u * p["R_D"] * (1 - np.exp(-r_d / p["R_D"]))
    return p["E"] + p["A"] / n_eff ** p["alpha"] + p["B"] / d_eff ** p["beta"]


def repeated(seed: int = 0, n_runs: int = 60) -> RunTable:
    rng = np.random.default_rng(seed)
    n, u = rng.choice([7e6, 1.5e8, 1.1e9, 8.7e9], n_runs), rng.choice([1e8, 1e9, 4e9], n_runs)
    d = u * rng.choice([0.5, 1.0, 3.0, 12.0, 50.0], n_runs)
    return RunTable(tokens=d, unique_tokens=u, n_params=n, loss=np.full(n_runs, 3.0))


@pytest.mark.parametrize("alpha", [0.3526596, 0.29])
def test_the_formula_is_the_papers(alpha: float) -> None:
    runs, p = repeated(), PUBLISHED | {"alpha": alpha}
    form = get_form("data-constrained")
    u = np.minimum(runs.unique_tokens, runs.tokens)
    found = np.exp(form.log_loss(np.array([list(p.values())]), runs, Frame()))[0]
    np.testing.assert_allclose(found, textbook(p, runs.n_params, runs.tokens, u), rtol=1e-10)


def test_derivatives_where_parameters_are_in_excess() -> None:
    """`test_forms` checks them at one start; here every run is beyond N_opt and one epoch."""
    runs = repeated()
    at = runs.take((runs.n_params > 1e9) & (runs.tokens > 2 * runs.unique_tokens) & (runs.unique_tokens < 2e9))
    form = get_form("data-constrained")
    theta = form.theta(np.array([list((PUBLISHED | {"alpha": 0.3}).values())]), Frame())
    data = form.data(at, Frame())
    _, jacobian = form.evaluate(theta, data, Frame())
    for j in range(7):
        step = np.zeros(7)
        step[j] = 1e-6
        up, down = (form.evaluate(theta + s * step, data, Frame(), False)[0] for s in (1, -1))
        np.testing.assert_allclose(jacobian[0, :, j], (up - down)[0] / 2e-6, rtol=1e-5, atol=1e-9)


def test_worth_of_repeats() -> None:
    total, first, r = np.log(5e9), np.log(1e9), np.log(15.387756)
    assert np.exp(worth(total, first, r)[0]) == pytest.approx(1e9 * (1 + 15.387756 * (1 - np.exp(-4 / 15.387756))))
    assert worth(first, first, r)[0] == pytest.approx(first)
    assert np.exp(worth(total, first, 30.0)[0]) == pytest.approx(5e9)


def test_planted_parameters_are_recovered() -> None:
    runs = repeated(1, 90)
    form = get_form("data-constrained")
    loss = np.exp(form.log_loss(np.array([list(PUBLISHED.values())]), runs, Frame())[0])
    fit = fit_form(form, replace(runs, loss=loss), delta=1e-3)
    np.testing.assert_allclose(list(fit.params.values()), list(PUBLISHED.values()), rtol=2e-3)


def test_the_published_protocol_holds_five_parameters() -> None:
    runs = repeated(2)
    loss = textbook(PUBLISHED, runs.n_params, runs.tokens, np.minimum(runs.unique_tokens, runs.tokens))
    fixed = {k: PUBLISHED[k] for k in ("A", "B", "E", "alpha", "beta")}
    law, _ = build(replace(runs, loss=loss), [DataConstrained(fixed=fixed)], bootstrap=5)
    assert law.params == pytest.approx({k: PUBLISHED[k] for k in ("R_D", "R_N")}, rel=1e-6)
    again = Law.from_json(law.to_json())
    np.testing.assert_allclose(again.predict(runs), loss, rtol=1e-8)
    with pytest.raises(UserError, match="has no parameter R_X; it has A, B, E"):
        DataConstrained(fixed={"R_X": 3.0})


def test_one_model_needs_no_n() -> None:
    runs = replace(repeated(3), n_params=None)
    form = get_form("data-constrained:one-model")
    planted = np.array([[200.0, 2.1, 0.3, 9.0]])
    runs = replace(runs, loss=np.exp(form.log_loss(planted, runs, Frame())[0]))
    np.testing.assert_allclose(list(fit_form(form, runs).params.values()), planted[0], rtol=1e-3)


@pytest.mark.parametrize("spec", ["dcpt", "dcpt:one-model"])
def test_dcpt_formula_and_planted_parameters(spec: str) -> None:
    rng = np.random.default_rng(5)
    n, d = rng.choice([5e8, 1.8e9, 4e9], 96), rng.choice([1e8, 4e8, 1.6e9, 6e9], 96)
    r = rng.choice([0.1, 0.3, 0.6, 1], 96)
    p = {"A": 900.0, "B": 500.0, "C": 0.15, "E": 1.2}
    p |= {"alpha": 0.35, "beta": 0.33, "gamma": 0.5, "eta": 0.4, "eps": 0.05}
    loss = p["E"] + p["B"] * r ** p["eta"] / d ** p["beta"] + p["C"] / (r + p["eps"]) ** p["gamma"]
    if spec == "dcpt":
        loss = loss + p["A"] / n ** p["alpha"]
    runs = RunTable(tokens=d, n_params=n, domain_share=r, loss=loss)
    fit = fit_form(spec, runs)
    values = np.array([[p["eps" if k == "epsilon" else k] for k in fit.params]])
    np.testing.assert_allclose(np.exp(fit.form.log_loss(values, runs, Frame()))[0], loss, rtol=1e-12)
    np.testing.assert_allclose(np.exp(fit.log_loss(runs)), loss, rtol=5e-4)  # exponents trade off, the law does not


@pytest.mark.parametrize(("world", "spec"), [("replayed", "dcpt"), ("repeated", "data-constrained")])
def test_noisy_runs_are_fitted_as_well_as_by_the_truth(world: str, spec: str) -> None:
    """`dcpt` lost its mixture term where the best start had none: residuals of ten times the noise."""
    for seed in range(3):
        runs = worlds.table(world, trunks=16, noise=0.01, seed=seed)
        error = np.log(worlds.true_loss(world, runs, runs.bin_share) / runs.loss)
        fit = fit_form(spec, runs)
        assert fit.objective < np.sum(huber(error, fit.delta))


def test_dcpt_in_domain_tokens_is_the_same_law() -> None:
    """B r^eta / (D / r)^beta = B r^(eta + beta) / D^beta: counting only domain tokens moves eta by beta."""
    r, total = np.array([0.2, 0.7]), np.array([1e8, 1e9])
    form = get_form("dcpt:one-model")
    of_all = Compositions(tokens=total, domain_share=r)
    of_domain = Compositions(tokens=total * r, domain_share=r)
    names = form.names(Frame())
    p = dict(zip(names, [300.0, 0.2, 1.5, 0.3, 0.5, 0.4, 0.05], strict=True))
    moved = p | {"eta": p["eta"] + p["beta"]}
    one, other = (form.log_loss(np.array([list(v.values())]), c, Frame()) for v, c in ((p, of_all), (moved, of_domain)))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_what_a_table_cannot_tell() -> None:
    runs = replace(repeated(), loss=np.linspace(3, 2, 60))
    fresh = replace(runs, unique_tokens=runs.tokens)
    assert "no run repeats its data" in str(obstacle(get_form("data-constrained"), fresh)[0])
    assert obstacle(get_form("data-constrained"), replace(runs, unique_tokens=None))[0] == "needs unique_tokens"
    mixed = replace(runs, domain_share=np.where(np.arange(60) % 2, 0.1, 0.3))
    assert obstacle(get_form("dcpt"), mixed)[0] == "needs at least 3 different values of domain_share"
