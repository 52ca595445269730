"""The algebra that laws, fits and allocation rest on, statement by statement: docs/theory.md links here.

What follows from a form's code (derivatives, round trips, nesting, splitting of bins) is in test_forms.py; the convex
program is in tests/draw/test_program.py; what only simulation can tell is in experiments/theory_checks.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.draw.program import Utility, solve
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import Frame, get_form
from pplscape.laws.forms.gap import GapForm
from pplscape.laws.forms.plane import PlaneForm
from pplscape.runs import Compositions, RunTable

X, Y = sp.symbols("x y", real=True)  # ln m, ln s
A0, A1, B0, B1 = sp.symbols("a0 a1 b0 b1", real=True)
G = (A0 + A1 * sp.exp(Y)) * X + (B0 + B1 * sp.exp(X)) * Y


def paper_params(m: float, s: float, a1: float, b1: float) -> np.ndarray:
    """Published law (E, Dc, a0, a1, b0, b1, aD) whose stationary point is (m, s)."""
    return np.array([2.0, 5.0, -a1 * s - b1 * m * np.log(s), a1, -b1 * m - a1 * s * np.log(m), b1, 0.3])


def bend(params: np.ndarray, m: float, s: float) -> np.ndarray:
    """Hessian of -g in (ln m, ln s) at (m, s)."""
    form = get_form("paper")
    assert isinstance(form, PlaneForm)
    value, slope, hessian = form.surface(params[None], np.log([[m, s]]))
    np.testing.assert_allclose(slope, 0, atol=1e-9 * (1 + np.abs(value).max()))
    return -hessian[0, 0]


@pytest.mark.parametrize("spec", ["paper", "extended", "monotone", "d-only"])
def test_given_the_floor_the_published_family_is_linear(spec: str) -> None:
    """ln(L - E) is a linear function of the parameters: noise-free losses give them back by least squares."""
    form = get_form(spec)
    assert isinstance(form, GapForm)
    rng = np.random.default_rng(0)
    n = 24
    columns = {f"{k}_{v}": rng.uniform(3, 40, n) for k in ("ppl", "nll") for v in ("mean", "std")}
    at = Compositions(tokens=rng.uniform(1e4, 1e6, n), **columns)
    q = len(form.names(Frame())) - 1
    truth = np.concatenate([[np.log(50.0)], rng.normal(size=q - 2) * 0.01, [0.3]])
    theta = np.concatenate([[2.0], truth])[None]
    data = form.data(at, Frame())
    loss = np.exp(form.evaluate(theta, data, Frame(), jacobian=False)[0][0])
    found = np.linalg.lstsq(data["X"], np.log(loss - 2.0), rcond=None)[0]
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-9)


def test_the_stationary_point_does_not_depend_on_size() -> None:
    """dL/dx = -(L - E) dg/dx: the factor with D is positive, so L is stationary where g is, at every D."""
    floor, scale, tokens, exponent = sp.symbols("E Dc D aD", positive=True)
    loss = floor + scale * tokens**-exponent * sp.exp(-G)
    for axis in (X, Y):
        assert sp.simplify(sp.diff(loss, axis) + (loss - floor) * sp.diff(G, axis)) == 0


def test_curvature_of_the_loss_is_the_gap_times_that_of_g() -> None:
    """At a stationary point Hess L = (L - E) Hess(-g): signs of curvature do not depend on D either."""
    floor, scale = sp.symbols("E c", positive=True)
    loss = floor + scale * sp.exp(-G)
    still = sp.solve([sp.diff(G, X), sp.diff(G, Y)], [A0, B0], dict=True)[0]
    difference = sp.hessian(loss, (X, Y)) - (loss - floor) * sp.hessian(-G, (X, Y))
    assert sp.simplify(difference.subs(still)) == sp.zeros(2)


def test_the_bound_four_is_sharp() -> None:
    """det = pq xy - (p+q)^2 and (p+q)^2 = 4pq + (p-q)^2; with p = q a minimum exists as soon as xy > 4."""
    p, q = sp.symbols("p q", positive=True)
    assert sp.expand((p + q) ** 2 - 4 * p * q - (p - q) ** 2) == 0
    for product, minimum in ((4.05, True), (3.95, False)):
        m = s = float(np.exp(np.sqrt(product)))
        values = np.linalg.eigvalsh(bend(paper_params(m, s, -0.05, -0.05 * s / m), m, s))
        assert (values.min() > 0) == minimum


@given(st.floats(-10, -1e-4), st.floats(-10, -1e-4))
@settings(max_examples=50, deadline=None)
def test_no_bowl_at_mean_8_spread_4(a1: float, b1: float) -> None:
    """ln 8 ln 4 = 2.88 < 4: whatever a1, b1 < 0, the stationary point put there is no minimum."""
    assert np.log(8) * np.log(4) == pytest.approx(2.883, abs=1e-3)
    assert np.linalg.eigvalsh(bend(paper_params(8.0, 4.0, a1, b1), 8.0, 4.0)).min() < 0


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(1.5, 300), st.floats(1.5, 300))
@settings(max_examples=200, deadline=None)
def test_a_minimum_above_one_needs_both_interactions_negative(a1: float, b1: float, m: float, s: float) -> None:
    if np.linalg.eigvalsh(bend(paper_params(m, s, a1, b1), m, s)).min() > 1e-9:
        assert a1 < 0
        assert b1 < 0
        assert np.log(m) * np.log(s) > 4


def test_below_one_the_spread_needs_opposite_signs_and_no_product() -> None:
    """s < 1 < m (log-perplexities): a1 < 0 < b1, and |ln m ln s| may be as small as you like."""
    m, s = 5.0, 0.5
    a1, b1 = -1.0, 0.1 * s / m * 10
    assert np.linalg.eigvalsh(bend(paper_params(m, s, a1, b1), m, s)).min() > 0
    assert np.linalg.eigvalsh(bend(paper_params(m, s, -a1, -b1), m, s)).min() < 0


def test_the_published_form_falls_to_its_floor_in_a_corner() -> None:
    """With b1 < 0, as a bowl needs, g grows without end for m -> infinity at s < 1: the loss there is E."""
    m = sp.symbols("m", positive=True)
    g = (A0 + A1 / 2) * sp.log(m) + (B0 + B1 * m) * sp.log(sp.Rational(1, 2))
    assert sp.limit(g.subs({A0: -3, A1: -1, B0: 2, B1: -1}), m, sp.oo) == sp.oo
    params = paper_params(60.0, 30.0, -0.002, -0.001)
    corner = Compositions(tokens=np.array([1e5]), ppl_mean=np.array([1e6]), ppl_std=np.array([0.5]))
    assert np.exp(get_form("paper").log_loss(params[None], corner, Frame()))[0, 0] == pytest.approx(2.0, abs=1e-6)


def test_the_published_form_is_not_closed_under_rescaling() -> None:
    """m -> k m, s -> h s adds a1 h ln k s + b1 k ln h m to g, and neither m nor s is in the family's span."""
    k, h = sp.symbols("k h", positive=True)
    moved = G.subs({X: X + sp.log(k), Y: Y + sp.log(h)}, simultaneous=True)
    m, s = sp.exp(X), sp.exp(Y)
    inside = (A0 * X + A1 * h * s * X + B0 * Y + B1 * k * m * Y) + A0 * sp.log(k) + B0 * sp.log(h)
    assert sp.simplify(sp.expand_log(moved - inside - A1 * h * sp.log(k) * s - B1 * k * sp.log(h) * m)) == 0
    rng = np.random.default_rng(0)
    means, spreads = rng.uniform(2, 40, 60), rng.uniform(2, 40, 60)
    x, y = np.log(means), np.log(spreads)
    family = np.stack([np.ones(60), x, spreads * x, y, means * y], axis=-1)
    for lacking in (means, spreads):
        left = lacking - family @ np.linalg.lstsq(family, lacking, rcond=None)[0]
        assert np.std(left) > 0.01 * np.std(lacking)


def test_a_change_of_unit_changes_the_published_fit_but_not_the_extended() -> None:
    """Nats to bits on the nll scale is a rescaling: the extended law's predictions stay, the published law's do not."""
    rng = np.random.default_rng(1)
    mean, std = rng.uniform(3.5, 6.5, 36), rng.uniform(0.2, 1.0, 36)
    tokens = np.tile([1e5, 3e5, 1e6], 12)
    loss = 2.2 + 30 * tokens**-0.3 * np.exp(0.5 * (mean - 5) ** 2 + 0.2 * np.log(std / 0.5) ** 2)
    loss = loss + rng.normal(scale=0.003, size=36)
    group = np.repeat(np.arange(12), 3).astype(str)
    change = {}
    for spec in ("paper", "extended"):
        fits = []
        for unit in (1.0, 1 / np.log(2)):
            runs = RunTable(tokens=tokens, loss=loss, nll_mean=mean * unit, nll_std=std * unit, group=group)
            fits.append(np.exp(fit_form(get_form(spec, "nll"), runs).log_loss(runs)))
        change[spec] = float(np.abs(fits[0] - fits[1]).max())
    assert change["extended"] < 1e-4
    assert change["paper"] > 20 * change["extended"]


@pytest.mark.parametrize("spec", ["paper", "extended", "quadratic", "d-only"])
def test_power_laws_leave_all_bounds_at_no_tokens(spec: str) -> None:
    """L(0) is measured, yet these forms predict more than any loss as D -> 0 (capped only by the code's clip)."""
    at = Compositions(
        tokens=np.array([1e-30]), ppl_mean=np.array([60.0]), ppl_std=np.array([30.0]), nll_mean=np.array([4.0]),
        nll_std=np.array([0.5]),
    )  # fmt: skip
    form = get_form(spec)
    params = np.zeros((1, len(form.names(Frame()))))
    params[0, :2], params[0, -1] = (2.0, 5.0), 0.3
    assert np.exp(form.log_loss(params, at, Frame()))[0, 0] > 1e4


def test_the_anchored_bracket_is_linear_in_the_utilities() -> None:
    """((L - E) / (L0 - E) / (1 - J))^(-1/beta) - 1 = sum u_b w_b phi(n_b / w_b): given the rest, least squares."""
    floor, base, beta, total, left = sp.symbols("E L0 beta total left", positive=True)
    gap = (base - floor) * left * (1 + total) ** -beta
    ratio = sp.simplify((gap / (base - floor) / left) ** (-1 / beta) - 1)
    assert sp.simplify(sp.powdenest(ratio, force=True) - total) == 0
    form, share = get_form("utility"), np.array([0.5, 0.3, 0.2])
    frame = Frame(unit=1000.0, base_loss=4.0, bin_share=tuple(share))
    rng = np.random.default_rng(0)
    tokens = rng.uniform(0, 500, (9, 3))
    worth, tau = np.array([2.0, -0.5, 4.0]), 0.7
    at = Compositions(tokens=tokens.sum(1), bin_tokens=tokens)
    loss = np.exp(form.log_loss(np.array([[1.5, 0.4, tau, 0.2, *worth]]), at, frame))[0]
    bracket = ((loss - 1.5) / 2.0) ** (-1 / 0.4) - 1
    design = share * tau * -np.expm1(-tokens / (1000 * share) / tau)
    np.testing.assert_allclose(np.linalg.lstsq(design, bracket, rcond=None)[0], worth, rtol=1e-8)


def test_both_shapes_of_phi_are_concave_and_start_alike() -> None:
    z, tau, gamma = sp.symbols("z tau gamma", positive=True)
    saturating = tau * (1 - sp.exp(-z / tau))
    assert sp.simplify(sp.diff(saturating, z, 2) + sp.exp(-z / tau) / tau) == 0
    assert sp.diff(saturating, z).subs(z, 0) == 1
    assert sp.limit(saturating, tau, sp.oo) == z
    second = sp.diff(z**gamma, z, 2)
    assert sp.simplify(second - gamma * (gamma - 1) * z ** (gamma - 2)) == 0  # <= 0 for gamma <= 1


def test_repeats_join_smoothly_and_saturate() -> None:
    """e(n) = U + U R (1 - exp(-(n/U - 1)/R)): value U and slope 1 at one epoch, never more than U (1 + R)."""
    n, unique, value = sp.symbols("n U R", positive=True)
    repeated = unique + unique * value * (1 - sp.exp(-(n / unique - 1) / value))
    assert sp.simplify(repeated.subs(n, unique) - unique) == 0
    assert sp.simplify(sp.diff(repeated, n).subs(n, unique)) == 1
    assert sp.simplify(sp.limit(repeated, n, sp.oo) - unique * (1 + value)) == 0
    assert sp.simplify(sp.diff(repeated, n, 2) + sp.exp((unique - n) / (unique * value)) / (unique * value)) == 0


def test_saturating_allocation_widens_with_the_budget() -> None:
    """n_b = tau w_b ln(u_b / lambda): the price falls with D, so more bins rise above it."""
    utility = Utility(np.array([8.0, 4.0, 2.0, 1.0, -1.0]), np.full(5, 0.2), "saturating", 0.5, 1000.0)
    found = [solve(utility, [1e9] * 5, d) for d in (20.0, 200.0, 800.0, 3000.0)]
    used = [int((f.tokens > 1e-9).sum()) for f in found]
    prices = [f.price for f in found]
    assert used == sorted(used)
    assert used[0] == 1
    assert used[-1] == 4
    assert prices == sorted(prices, reverse=True)
    for f in found:
        expected = np.where(utility.u > 0, 0.5 * 0.2 * np.log(np.maximum(utility.u / f.price, 1.0)), 0) * 1000
        np.testing.assert_allclose(f.tokens, expected, rtol=1e-5, atol=1e-6)


def test_power_allocation_has_fixed_shares_until_a_cap_binds() -> None:
    """Shares w_b u_b^(1/(1-gamma)), whatever the budget."""
    utility = Utility(np.array([4.0, 2.0, 1.0]), np.array([0.5, 0.3, 0.2]), "power", 0.5, 1000.0)
    expected = utility.share * utility.u**2
    for budget in (10.0, 1000.0, 1e5):
        tokens = solve(utility, [1e9] * 3, budget).tokens
        np.testing.assert_allclose(tokens / tokens.sum(), expected / expected.sum(), rtol=1e-6)
    capped = solve(utility, [100.0, 1e9, 1e9], 1000.0).tokens
    assert capped[0] == pytest.approx(100.0)
    assert capped[1] / capped[2] == pytest.approx(expected[1] / expected[2])


@given(st.floats(0.0, 3.0), st.floats(0.05, 2.0), st.floats(3.5, 8.0), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_floor_exponent_and_base_loss_do_not_order_compositions(
    floor: float, beta: float, base: float, seed: int
) -> None:
    """The bracket alone decides which of two compositions is better; E, beta, L0 and J only set by how much."""
    rng = np.random.default_rng(seed)
    share, tokens = rng.dirichlet(np.ones(4)), rng.uniform(0, 300, (6, 4))
    at = Compositions(tokens=tokens.sum(1), bin_tokens=tokens)
    worth = rng.uniform(0.1, 5, 4)
    orders = []
    for e, b, l0, jump in ((1.0, 0.3, 4.0, 0.0), (floor, beta, base, 0.3)):
        frame = Frame(unit=1000.0, base_loss=l0, bin_share=tuple(share))
        loss = get_form("utility").log_loss(np.array([[e, b, 0.8, jump, *worth]]), at, frame)[0]
        orders.append(np.argsort(loss).tolist())
    assert orders[0] == orders[1]
