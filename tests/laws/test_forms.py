"""Every form: derivatives, round trips, and the algebra that the method rests on."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.laws.fit import fit_form, setting_of
from pplscape.laws.forms import FORMS, Frame, get_form
from pplscape.laws.forms.plane import PlaneForm
from pplscape.laws.forms.utility import JUMP, effective_tokens
from pplscape.laws.law import Law
from pplscape.runs import Compositions, RunTable

SPECS = (
    "constant", "d-only", "d-only:anchored", "d-only:rectified", "monotone", "chinchilla", "paper", "paper:var",
    "extended", "extended:var", "quadratic", "quadratic:var", "utility", "utility:power", "data-constrained",
    "data-constrained:data", "data-constrained:parameters", "data-constrained:one-model", "dcpt", "dcpt:one-model",
    "gp", "gp:bins",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> RunTable:
    table = worlds.table("utility", trunks=10)
    columns = {"n_params": np.geomspace(1e6, 1e8, len(table)), "unique_tokens": np.full(len(table), 1e5)}
    columns["domain_share"] = np.tile([0.0, 0.2, 0.5, 0.8, 1.0], 6)
    return RunTable(**{**vars(table), **columns})


@pytest.mark.parametrize("spec", SPECS)
def test_derivatives_agree_with_differences(spec: str, runs: RunTable) -> None:
    setting = setting_of(get_form(spec), runs)
    form, data, frame = setting.form, setting.data, setting.frame
    theta = form.starts(data, runs.loss[None], np.ones((1, len(runs))), frame)[0, :1]
    if "J" in form.names(frame):
        theta[0, JUMP] = 0.3
    value, jacobian = form.evaluate(theta, data, frame)
    for j in range(theta.shape[1]):
        step = 1e-6 * max(1.0, abs(theta[0, j]))
        up, down = theta.copy(), theta.copy()
        up[0, j] += step
        down[0, j] -= step
        numeric = (form.evaluate(up, data, frame, False)[0] - form.evaluate(down, data, frame, False)[0]) / (2 * step)
        np.testing.assert_allclose(jacobian[0, :, j], numeric[0], rtol=2e-4, atol=2e-6)
    assert value.shape == (1, len(runs))


@pytest.mark.parametrize("spec", SPECS)
def test_params_are_the_law(spec: str, runs: RunTable) -> None:
    fit = fit_form(spec, runs)
    params = np.array(list(fit.params.values()))[None]
    again = fit.form.log_loss(params, runs, fit.frame)[0]
    np.testing.assert_allclose(again, fit.log_loss(runs), rtol=1e-9, atol=1e-9)


def test_paper_formula() -> None:
    form = get_form("paper")
    at = Compositions(tokens=np.array([1e5]), ppl_mean=np.array([30.0]), ppl_std=np.array([12.0]))
    floor, scale, a0, a1, b0, b1, exponent = 2.0, 300.0, 0.3, -0.01, 0.2, -0.002, 0.31
    expected = floor + scale / (30.0 ** (a0 + a1 * 12) * 12.0 ** (b0 + b1 * 30) * 1e5**exponent)
    found = form.log_loss(np.array([[floor, scale, a0, a1, b0, b1, exponent]]), at, Frame())
    assert np.exp(found[0, 0]) == pytest.approx(expected, rel=1e-12)
    squared = get_form("paper:var").log_loss(np.array([[floor, scale, a0, 0.0, b0, 0.0, exponent]]), at, Frame())
    assert np.exp(squared[0, 0]) == pytest.approx(floor + scale / (30.0**a0 * 144.0**b0 * 1e5**exponent))


def test_hessian_of_the_published_form() -> None:
    """Method, section 1: at a stationary point the Hessian of -g in (ln m, ln s) is [[q y, p+q], [p+q, p x]]."""
    x, y, a0, a1, b0, b1 = sp.symbols("x y a0 a1 b0 b1", real=True)
    g = (a0 + a1 * sp.exp(y)) * x + (b0 + b1 * sp.exp(x)) * y
    still = sp.solve([sp.diff(g, x), sp.diff(g, y)], [a0, b0], dict=True)[0]
    hessian = sp.hessian(-g, (x, y)).subs(still)
    p, q = -a1 * sp.exp(y), -b1 * sp.exp(x)
    assert sp.simplify(hessian - sp.Matrix([[q * y, p + q], [p + q, p * x]])) == sp.zeros(2)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0, 10), st.floats(0, 10))
def test_a_bowl_needs_log_product_above_four(p: float, q: float, x: float, y: float) -> None:
    """AM-GM: for m, s > 1 a positive determinant p q x y - (p+q)^2 forces x y > 4."""
    if p * q * x * y - (p + q) ** 2 > 0:
        assert x * y > 4


@given(st.floats(0.01, 100), st.floats(0.01, 100))
@settings(max_examples=30)
def test_extended_form_is_closed_under_rescaling(k: float, scale: float) -> None:
    """m -> k m, s -> scale s has the same predictions with other parameters; the published form lacks c1, c2 for it."""
    a0, a1, b0, b1, c1, c2 = 0.3, -0.02, 0.2, -0.01, 0.004, 0.003
    floor, top, exponent = 2.0, 50.0, 0.3
    rng = np.random.default_rng(0)
    m, s, tokens = rng.uniform(5, 50, 8), rng.uniform(2, 20, 8), rng.uniform(1e4, 1e6, 8)
    old = np.array([[floor, top, a0, a1, b0, b1, c1, c2, exponent]])
    a1_new, b1_new = a1 / scale, b1 / k
    c1_new, c2_new = c1 / k - b1_new * np.log(scale), c2 / scale - a1_new * np.log(k)
    top_new = top * k**a0 * scale**b0
    new = np.array([[floor, top_new, a0, a1_new, b0, b1_new, c1_new, c2_new, exponent]])
    form = get_form("extended")
    before = form.log_loss(old, Compositions(tokens=tokens, ppl_mean=m, ppl_std=s), Frame())
    after = form.log_loss(new, Compositions(tokens=tokens, ppl_mean=k * m, ppl_std=scale * s), Frame())
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_extended_nests_the_paper(runs: RunTable) -> None:
    params = np.array([[2.0, 300.0, 0.3, -0.001, 0.2, -0.002, 0.31]])
    wider = np.insert(params, [6, 6], 0.0, axis=1)
    paper = get_form("paper").log_loss(params, runs, Frame())
    np.testing.assert_allclose(get_form("extended").log_loss(wider, runs, Frame()), paper, rtol=1e-12)


@pytest.mark.parametrize("spec", ["paper", "extended", "quadratic", "quadratic:var"])
def test_surfaces_agree_with_predictions_and_differences(spec: str, runs: RunTable) -> None:
    fit = fit_form(spec, runs)
    form, params = fit.form, np.array(list(fit.params.values()))[None]
    assert isinstance(form, PlaneForm)
    mean, spread = runs.moments(form.scale, form.reading)
    points = form.plane(np.stack([np.log(mean), np.log(spread)], axis=-1))
    g, slope, bend = form.surface(params, points)
    gap = np.exp(form.log_gap(params, 1.0) - params[:, -1] * np.log(runs.tokens) - g[0])
    np.testing.assert_allclose(np.log(params[0, 0] + gap), fit.log_loss(runs), rtol=1e-8)
    for axis in (0, 1):
        step = np.zeros(2)
        step[axis] = 1e-5
        up, down = form.surface(params, points + step), form.surface(params, points - step)
        np.testing.assert_allclose(slope[..., axis], (up[0] - down[0]) / 2e-5, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bend[..., axis], (up[1] - down[1]) / 2e-5, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(form.plane(form.logs(points)), points, rtol=1e-12)


def test_quadratic_is_concave_in_g(runs: RunTable) -> None:
    params = fit_form("quadratic", runs).params
    assert params["q_xx"] >= 0
    assert params["q_xx"] * params["q_yy"] >= params["q_xy"] ** 2 * (1 - 1e-9)


HALVES = np.array([0.5, 0.5])


def utility_frame(share: np.ndarray) -> Frame:
    return Frame(unit=1000.0, base_loss=4.0, bin_share=tuple(share))


@given(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6), st.integers(0, 10_000), st.sampled_from(["", ":power"]))
@settings(max_examples=50)
def test_equal_utilities_make_proportional_sampling_optimal(weights: list[float], seed: int, variant: str) -> None:
    share = np.array(weights) / sum(weights)
    frame, form = utility_frame(share), get_form(f"utility{variant}")
    other = np.random.default_rng(seed).dirichlet(np.ones(len(share)))
    tokens = np.stack([share, other]) * 800.0
    params = np.array([[1.5, 0.4, 0.7, 0.1, *[2.0] * len(share)]])
    random, some = form.log_loss(params, Compositions(tokens=np.full(2, 800.0), bin_tokens=tokens), frame)[0]
    assert random <= some + 1e-12


@pytest.mark.parametrize("variant", ["", ":power"])
def test_splitting_a_homogeneous_bin_changes_nothing(variant: str) -> None:
    form = get_form(f"utility{variant}")
    one, two = np.array([0.6, 0.4]), np.array([0.2, 0.4, 0.4])
    whole = Compositions(tokens=np.array([900.0]), bin_tokens=np.array([[300.0, 600.0]]))
    split = Compositions(tokens=np.array([900.0]), bin_tokens=np.array([[100.0, 200.0, 600.0]]))
    a = form.log_loss(np.array([[1.5, 0.4, 0.7, 0.1, 3.0, 1.0]]), whole, utility_frame(one))
    b = form.log_loss(np.array([[1.5, 0.4, 0.7, 0.1, 3.0, 3.0, 1.0]]), split, utility_frame(two))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_d_only_is_nested_in_utility(runs: RunTable) -> None:
    fit = fit_form("d-only:anchored", runs)
    p = fit.params
    utilities = [p["k"]] * len(fit.frame.bin_share or ())
    same = get_form("utility:power").log_loss(np.array([[p["E"], p["beta"], 1.0, 0.0, *utilities]]), runs, fit.frame)
    np.testing.assert_allclose(same[0], fit.log_loss(runs), rtol=1e-12)


def test_anchored_laws_pass_through_the_base_loss_less_what_the_first_steps_gain() -> None:
    frame = utility_frame(np.array([0.5, 0.5]))
    at = Compositions(tokens=np.array([1e-6]), bin_tokens=np.array([[5e-7, 5e-7]]))
    for spec, params, start in (
        ("utility", [1.5, 0.4, 2.0, 0.0, 3.0, -1.0], 4.0),
        ("utility", [1.5, 0.4, 2.0, 0.1, 3.0, -1.0], 3.75),
        ("d-only:anchored", [1.5, 3.0, 0.4], 4.0),
    ):
        loss = np.exp(get_form(spec).log_loss(np.array([params]), at, frame))
        assert loss[0, 0] == pytest.approx(start, rel=1e-6)


def test_a_law_of_another_version_is_refused_with_its_remedy() -> None:
    law = Law(
        "utility", None, "std", {"E": 2.0, "beta": 0.5, "tau": 0.7, "u_0": 1.0, "u_1": 2.0}, utility_frame(HALVES)
    )
    with pytest.raises(
        UserError, match=r"has 5 parameters, not E, beta, tau, J, u_0, u_1: .* run `pplscape fit` again"
    ):
        law.predict(Compositions(tokens=np.array([9.0]), bin_tokens=np.array([[4.0, 5.0]])))


def test_harmful_data_raises_the_loss_without_breaking() -> None:
    frame = utility_frame(np.array([0.5, 0.5]))
    at = Compositions(tokens=np.array([1e3, 1e9]), bin_tokens=np.array([[0.0, 1e3], [0.0, 1e9]]))
    loss = np.exp(get_form("utility:power").log_loss(np.array([[1.5, 0.4, 1.0, 0.0, 3.0, -1.0]]), at, frame))[0]
    assert loss[0] > 4.0
    assert np.isfinite(loss).all()


def test_repeats_are_worth_less() -> None:
    unique = np.array([[100.0]])
    for epochs in (0.5, 1.0):
        assert effective_tokens(epochs * unique, unique) == pytest.approx(epochs * 100)
    two, many = effective_tokens(2 * unique, unique)[0, 0], effective_tokens(1000 * unique, unique)[0, 0]
    assert 190 < two < 200  # arXiv 2305.16264: up to about four epochs repeats are nearly as good as new tokens
    assert two < many < 100 * 17


def test_moment_laws_stay_finite_far_outside() -> None:
    at = Compositions(tokens=np.array([1e5]), ppl_mean=np.array([1e6]), ppl_std=np.array([1e6]))
    found = get_form("paper").log_loss(np.array([[2.0, 300.0, 0.3, -0.01, 0.2, -0.01, 0.3]]), at, Frame())
    assert np.isfinite(found).all()


def test_unknown_forms_and_variants_are_named() -> None:
    with pytest.raises(UserError, match="No form is called 'papper'; there are: constant"):
        get_form("papper")
    with pytest.raises(UserError, match="no variant 'kurtosis'"):
        get_form("paper:kurtosis")
    assert {get_form(spec).spec for spec in FORMS} == set(FORMS)
