"""The (mean, spread) plane: tilts reach their target, the mesh stays feasible."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.reporting.surface import (
    Mesh,
    compositions_of,
    feasible_mesh,
    hull,
    loss_surface,
    plane_box,
    tilt_to,
    tilted_compositions,
)


@pytest.fixture(scope="module")
def facts(finished_run):
    return json.loads((finished_run / "landscape/landscape.json").read_text())


@pytest.mark.parametrize("scale", ["nll", "ppl"])
def test_the_pools_own_moments_need_no_tilt(facts, scale):
    pool = facts["scale"][scale]
    tilts = tilt_to(facts, scale, np.array([pool["mean"]]), np.array([pool["std"]]))
    chunks = np.asarray(facts["fine_bins"]["chunks"], dtype=float)
    assert tilts.reached.all()
    assert tilts.shares[0] == pytest.approx(chunks / chunks.sum(), abs=1e-6)


def test_random_composition_has_the_pools_bin_shares(facts):
    pool, bins = facts["scale"]["nll"], facts["bins"]
    mean, std = np.array([pool["mean"]]), np.array([pool["std"]])
    found = tilted_compositions(facts, "nll", mean, std, tilt_to(facts, "nll", mean, std), 1000.0, bins, 5.0)
    assert found.bin_tokens[0] == pytest.approx(1000 * np.asarray(bins["share"]), rel=1e-4)
    assert found.ppl_mean[0] == pytest.approx(facts["scale"]["ppl"]["mean"], rel=1e-4)
    assert found.ppl_std[0] == pytest.approx(facts["scale"]["ppl"]["std"], rel=1e-4)
    assert found.tokens.tolist() == [1000.0]
    assert found.n_params.tolist() == [5.0]


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.2, 0.8), spread=st.floats(0.5, 1.2))
def test_tilts_reach_targets_inside_the_pool(finished_run, share, spread):
    facts = json.loads((finished_run / "landscape/landscape.json").read_text())
    nll = facts["scale"]["nll"]
    mean = nll["quantiles"]["0.25"] + share * (nll["quantiles"]["0.75"] - nll["quantiles"]["0.25"])
    std = spread * nll["std"]
    tilts = tilt_to(facts, "nll", np.array([mean]), np.array([std]))
    fine = facts["fine_bins"]["winsorised"]["nll"]
    got = tilts.shares[0] @ np.asarray(fine["mean"])
    square = tilts.shares[0] @ (np.asarray(fine["variance"]) + np.asarray(fine["mean"]) ** 2)
    assert tilts.reached.all()
    assert got == pytest.approx(mean, abs=0.03)
    assert np.sqrt(square - got**2) == pytest.approx(std, abs=0.03)


def test_mesh_fills_the_feasible_set_within_the_box(facts):
    ring = np.asarray(facts["feasible"]["nll"])
    box = (ring[:, 0].min() - 1, ring[:, 0].max() + 1, 0.0, ring[:, 1].max() + 1)
    mean, std = feasible_mesh(facts, "nll", box)
    assert (std >= 0).all()
    assert mean[0, 0] == pytest.approx(ring[:, 0].min(), abs=0.01)
    assert std.max() == pytest.approx(ring[:, 1].max(), rel=0.05)
    inner = (ring[:, 0].min(), ring[:, 0].max(), 0.3, 0.6)
    assert feasible_mesh(facts, "nll", inner)[1].max() <= 0.6
    assert feasible_mesh(facts, "nll", (100.0, 101.0, 0.0, 1.0)) is None


def test_surface_is_the_laws_prediction(facts):
    class Law:
        bins, scale = facts["bins"], None

        def predict(self, subsets):
            assert subsets.bin_tokens.shape == (len(subsets), 6)
            return subsets.nll_mean - subsets.nll_std + subsets.tokens / 1e6

    mesh = Mesh.of(facts, "nll", (4.6, 5.4, 0.2, 1.2))
    surface = loss_surface(Law(), facts, mesh, 1e5, None)
    known = np.isfinite(surface.loss)
    assert known.mean() > 0.9
    assert surface.loss[known] == pytest.approx((mesh.mean - mesh.std + 0.1)[known])


def test_hull_surrounds_the_points_and_survives_flat_ones():
    from matplotlib.path import Path

    rng = np.random.default_rng(0)
    mean, std = np.exp(rng.normal(1.5, 0.1, 30)), np.exp(rng.normal(-1, 0.3, 30))
    ring = hull(mean, std)
    assert np.allclose(ring[0], ring[-1])
    assert Path(np.log(ring)).contains_points(np.log(np.stack([mean, std], 1)), radius=1e-6).sum() >= 27
    assert hull(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 1.0])).shape == (3, 2)


def test_box_holds_all_points():
    low, high, bottom, top = plane_box([(1.0, 0.0), (3.0, 2.0)])
    assert low < 1
    assert high > 3
    assert bottom == 0
    assert top > 2
    assert plane_box([(10.0, 1.0), (1000.0, 100.0)], "ppl")[0] > 5
    assert plane_box([(1.0, 1.0)])[0] < 1 < plane_box([(1.0, 1.0)])[1]


def test_columns_that_a_run_lacks_are_none():
    rows = [{"tokens": 10, "nll_mean": 1.0}, {"tokens": 20, "nll_mean": None}]
    found = compositions_of(rows)
    assert found.tokens.tolist() == [10, 20]
    assert found.nll_mean is None
    assert found.bin_tokens is None
