"""The optimum's class, where it may be, and the hull it is confined to."""

from __future__ import annotations

import numpy as np
import pytest
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.laws.fit import fit_form
from pplscape.laws.forms import Frame, get_form
from pplscape.laws.forms.plane import PlaneForm
from pplscape.laws.hull import Hull
from pplscape.laws.optimum import arena_of, classify, optimum, region, still_region
from pplscape.laws.uncertainty import uncertainty
from pplscape.laws.words import condition_words, optimum_words
from pplscape.runs import RunTable


def plane_runs(scale: str, mean: tuple[float, float], spread: tuple[float, float]) -> RunTable:
    """Pilots on the corners and edges of a box of (mean, spread)."""
    m, s = (a.ravel() for a in np.meshgrid(np.linspace(*mean, 4), np.linspace(*spread, 4)))
    columns = {f"{scale}_mean": m, f"{scale}_std": s}
    return RunTable(tokens=np.full(16, 1e5), loss=np.full(16, 3.0), **columns)


def plane_form(spec: str, scale: str | None = None) -> PlaneForm:
    form = get_form(spec, scale)
    assert isinstance(form, PlaneForm)
    return form


def place(spec: str, params: list[float], runs: RunTable, **more: object) -> dict:
    form = plane_form(spec)
    arena = arena_of(form, runs, **more)  # type: ignore[arg-type]
    assert arena is not None
    return optimum(form, np.array(params), Frame(unit=1e5), arena)


def bowl(mean: float, log_spread: float) -> list[float]:
    """A quadratic law with its minimum at (mean, ln spread): g_x = q_xx x*, g_y = q_yy y*."""
    return [2.0, 50.0, 2.0 * mean, 1.0 * log_spread, 2.0, 0.0, 1.0, 0.3]


def test_an_interior_minimum_is_found() -> None:
    found = place("quadratic", bowl(5.0, np.log(0.5)), plane_runs("nll", (4.0, 6.0), (0.2, 1.0)))
    assert found["kind"] == "interior"
    assert found["mu"] == pytest.approx(5.0, abs=1e-3)
    assert found["sigma"] == pytest.approx(0.5, abs=1e-3)


def test_a_minimum_beyond_the_pilots_is_an_edge() -> None:
    found = place("quadratic", bowl(7.0, np.log(0.5)), plane_runs("nll", (4.0, 6.0), (0.2, 1.0)))
    assert found["kind"] == "edge"
    assert found["mu"] == pytest.approx(6.0, abs=0.05)


def test_the_feasible_set_confines_too() -> None:
    runs = plane_runs("nll", (4.0, 6.0), (0.2, 1.0))
    reachable = np.array([[4.0, 0.01], [4.5, 0.01], [4.5, 1.2], [4.0, 1.2]])
    found = place("quadratic", bowl(5.0, np.log(0.5)), runs, feasible=reachable)
    assert found["kind"] == "edge"
    assert found["mu"] <= 4.75


def saddle_params(m: float, s: float, a1: float, b1: float) -> list[float]:
    """The published form with a stationary point at (m, s)."""
    a0 = -a1 * s - b1 * m * np.log(s)
    b0 = -b1 * m - a1 * s * np.log(m)
    return [2.0, 5.0, a0, a1, b0, b1, 0.3]


def test_a_saddle_is_not_an_optimum() -> None:
    """m = 8, s = 4: ln m ln s = 2.9 < 4, so the stationary point can only be a saddle."""
    runs = plane_runs("ppl", (6.0, 10.0), (3.0, 5.0))
    found = place("paper", saddle_params(8.0, 4.0, -0.05, -0.05), runs)
    assert found["kind"] == "saddle"
    assert found["log_product"] < 4.5


def test_the_condition_is_said_wherever_the_published_form_is_used() -> None:
    small = place("paper", saddle_params(8.0, 4.0, -0.05, -0.05), plane_runs("ppl", (6.0, 10.0), (2.2, 4.4)))
    assert small["log_product_range"][1] == pytest.approx(np.log(10) * np.log(4.4), rel=1e-3)
    assert not small["bowl_possible_anywhere"]
    assert "no data could make it show one" in condition_words(small)
    mixed = place("paper", saddle_params(8.0, 4.0, -0.05, -0.05), plane_runs("ppl", (6.0, 60.0), (3.0, 30.0)))
    assert mixed["bowl_possible_anywhere"]
    large = place("paper", saddle_params(60.0, 30.0, -0.002, -0.001), plane_runs("ppl", (45.0, 80.0), (22.0, 40.0)))
    assert f"here it is {np.log(60) * np.log(30):.1f}" in optimum_words(large)
    below = {"log_product": -1.2, "log_product_range": [-2.0, -0.5], "bowl_possible": True}
    assert condition_words(below | {"bowl_possible_anywhere": True}).endswith("among the pilots -2.00 to -0.50.")
    other = place("quadratic", bowl(5.0, np.log(0.5)), plane_runs("nll", (4.0, 6.0), (0.2, 1.0)))
    assert condition_words(other) == ""


def test_a_saddle_that_no_subset_can_reach_does_not_count() -> None:
    """The stationary point (8, 4) is in the pilots' hull; the budget reaches only means above 9."""
    runs, params = plane_runs("ppl", (6.0, 12.0), (3.0, 5.0)), saddle_params(8.0, 4.0, -0.05, -0.05)
    assert place("paper", params, runs)["kind"] == "saddle"
    reachable = np.array([[9.0, 0.5], [14.0, 0.5], [14.0, 6.0], [9.0, 6.0]])
    assert place("paper", params, runs, feasible=reachable)["kind"] != "saddle"


def test_an_optimum_in_a_thin_slanted_hull_is_found() -> None:
    """Pilots along a diagonal strip of 1 % of its length; the bowl's minimum lies on it."""
    along, across = (a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 5), [-0.01, 0.01]))
    mean, spread = np.exp(1.6 + 0.2 * (along + across)), np.exp(-0.7 + 0.5 * (along - across))
    runs = RunTable(tokens=np.full(10, 1e5), loss=np.full(10, 3.0), nll_mean=mean, nll_std=spread)
    found = place("quadratic", bowl(float(np.exp(1.6)), -0.7), runs)
    assert found["kind"] == "interior"
    assert found["mu"] == pytest.approx(np.exp(1.6), rel=0.01)


def test_optima_of_resamples_are_not_rounded_to_the_grid() -> None:
    """Bowls a hundredth of a grid cell apart have optima as far apart."""
    runs, form = plane_runs("nll", (4.0, 6.0), (0.2, 1.0)), plane_form("quadratic")
    arena = arena_of(form, runs)
    assert arena is not None
    true = 5.0 + np.arange(10) * 2.0 / 41 / 100
    kinds, points = classify(form, np.array([bowl(m, np.log(0.5)) for m in true]), arena)
    assert set(kinds) == {"interior"}
    np.testing.assert_allclose(points[:, 0], true, atol=1e-9)


def test_the_joint_region_follows_a_valley() -> None:
    """90 % of 1,000 points along x = -y: the region is thin, holds 90 % of them, and far less of the box around it."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(1000, 1)) * [1.0, -1.0] + 0.02 * rng.normal(size=(1000, 2))
    ring = Hull(region(points, np.ones(2), 0.9))
    assert ring.contains(points).mean() == pytest.approx(0.9, abs=0.01)
    box = rng.uniform(points.min(0), points.max(0), size=(2000, 2))
    assert ring.contains(box).mean() < 0.05


def test_the_region_of_a_known_bowl_is_an_ellipse() -> None:
    """Curvature diag(2, 1) known, slopes with standard deviations (0.02, 0.03): half axes 2.146 x (0.01, 0.03)."""
    form = plane_form("quadratic")
    arena = arena_of(form, plane_runs("nll", (4.0, 6.0), (0.2, 1.0)))
    assert arena is not None
    params = np.array(bowl(5.0, np.log(0.5)))
    draws = np.tile(params, (4000, 1))
    draws[:, 2:4] += np.random.default_rng(0).normal(size=(4000, 2)) * [0.02, 0.03]
    _, points = classify(form, draws, arena)
    corners = still_region(form, arena, params, draws, points, 0.9)
    assert corners is not None
    away = (corners - [5.0, np.log(0.5)]) / [0.01, 0.03]
    cell = np.ptp(points, axis=0) * 2 / 40 / [0.01, 0.03]
    np.testing.assert_allclose(np.linalg.norm(away, axis=1), np.sqrt(2 * np.log(10)), atol=0.1 + np.linalg.norm(cell))
    assert len(corners) >= 8


def test_the_published_form_can_have_a_bowl_at_large_values() -> None:
    """ln 60 ln 30 = 13.9 > 4 with p = q."""
    m, s = 60.0, 30.0
    a1 = -0.002
    found = place("paper", saddle_params(m, s, a1, a1 * s / m), plane_runs("ppl", (45.0, 80.0), (22.0, 40.0)))
    assert found["kind"] == "interior"
    assert found["mu"] == pytest.approx(m, rel=0.01)
    assert found["sigma"] == pytest.approx(s, rel=0.01)
    assert found["bowl_possible"]


def test_a_loss_that_falls_for_ever_is_unbounded() -> None:
    params = [2.0, 5.0, 0.3, 0.0, 0.2, 0.0, 0.3]  # L falls with m and s without end
    found = place("paper", params, plane_runs("ppl", (20.0, 60.0), (10.0, 30.0)))
    assert found["kind"] == "unbounded"
    assert found["mu"] == pytest.approx(60.0)


def test_variance_reading_reports_a_standard_deviation() -> None:
    form = plane_form("quadratic:var")
    runs = plane_runs("nll", (4.0, 6.0), (0.2, 1.0))
    arena = arena_of(form, runs)
    assert arena is not None
    found = optimum(form, np.array(bowl(5.0, np.log(0.25))), Frame(unit=1e5), arena)
    assert found["spread"] == pytest.approx(0.25, abs=1e-3)
    assert found["sigma"] == pytest.approx(0.5, abs=1e-3)


def test_resamples_give_shares_region_and_regret() -> None:
    runs = worlds.table("quadratic", trunks=14, noise=0.005)
    fit = fit_form("quadratic", runs)
    draws = fit.form.params(uncertainty(fit, runs, 80).draws, fit.frame)
    form = fit.form
    assert isinstance(form, PlaneForm)
    arena = arena_of(form, runs)
    assert arena is not None
    found = optimum(form, np.array(list(fit.params.values())), fit.frame, arena, draws)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert 0 <= found["regret"]["mean"] <= found["regret"]["high"] + 1e-9 < 0.1
    assert found["regret"]["tokens"] == 512_000
    assert len(found["cloud"]["mu"]) == len(found["cloud"]["kind"]) == 80
    assert found["shares"]["edge"] == np.mean(np.array(found["cloud"]["kind"]) == "edge")
    kinds, points = classify(form, draws, arena)
    assert len(kinds) == 80
    assert points.shape == (80, 2)


def test_pilots_on_a_line_have_no_area() -> None:
    runs = plane_runs("nll", (4.0, 6.0), (0.5, 0.5))
    assert arena_of(plane_form("quadratic"), runs) is None


@given(st.integers(0, 10_000), st.integers(3, 30))
@settings(max_examples=50)
def test_a_hull_holds_its_points_and_their_means(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 2)) * [1.0, 50.0]
    hull = Hull.of(points)
    assert hull.contains(points).all()
    assert hull.contains(rng.dirichlet(np.ones(n), size=5) @ points).all()
    assert not hull.contains(np.array([[1e3, 0.0], [0.0, 1e5]])).any()


def test_thin_hulls() -> None:
    line = Hull.of(np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]))
    assert line.contains(np.array([[0.25, 0.25], [0.25, 0.5], [2.0, 2.0]])).tolist() == [True, False, False]
    point = Hull.of(np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert point.contains(np.array([[1.0, 2.0], [1.1, 2.0]])).tolist() == [True, False]
