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
from pplscape.laws.optimum import arena_of, classify, optimum
from pplscape.laws.uncertainty import uncertainty
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
