"""Bins that are cut a second time, by learnability: their shares, their cells, and the additive law on them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.design import Fine, candidates, choose_regimes, features
from pplscape.draw.allocate import Allocate
from pplscape.draw.options import Options
from pplscape.draw.pool import Pool
from pplscape.draw.program import Utility
from pplscape.draw.strategies import draw
from pplscape.errors import UserError
from pplscape.laws.fit import fit_form, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.law import law_of
from pplscape.reporting.about_pilots import _utilities_caption, utility_rows
from pplscape.reporting.figures_law import bin_utilities, worth_axis
from pplscape.runs import RunTable
from pplscape.statistics import Bins, cut_levels, make_bins

F, H = np.array([0.5, 1.0, 1.6, 1.2]), np.array([-0.5, 0.1, 0.6])
"""Worth of ranges of log-perplexity and of levels of learnability, added up."""


def _pool(n: int = 3000, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    x = rng.normal(4.5, 0.7, n)
    pool = Pool.of([f"d{i}" for i in range(n)], np.zeros(n), rng.integers(30, 90, n), x)
    return replace(pool, second=0.3 * pool.x + rng.normal(0, 0.4, n))


def _cut(pool: Pool, n_bins: int, levels: int) -> Bins:
    return cut_levels(make_bins(pool.x, pool.length, n_bins), pool.x, pool.second, pool.length, levels, "likeness")


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 5))
@settings(max_examples=30)
def test_levels_share_their_bin_equally(n_bins: int, levels: int, seed: int) -> None:
    pool = _pool(600, seed)
    bins = _cut(pool, n_bins, levels)
    longest = pool.length.max() / pool.tokens
    share = np.asarray(bins.share).reshape(-1, levels)
    assert np.abs(share - share.mean(1, keepdims=True)).max() <= 2 * longest
    cell = bins.of(pool.x, pool.second)
    assert (cell // levels == bins.coarse.of(pool.x)).all()
    for b in range(bins.coarse.n):
        d, level = pool.second[cell // levels == b], cell[cell // levels == b] % levels
        assert all(d[level == m].max() <= d[level == m + 1].min() for m in range(levels - 1))
    assert Bins.from_json(json.loads(json.dumps(bins.to_json()))) == bins
    assert bins.hash != bins.coarse.hash
    assert np.bincount(cell, pool.length).tolist() == bins.tokens(pool.x, pool.length, pool.second).tolist()


def test_levels_need_their_axis() -> None:
    pool = _pool(200)
    bins = _cut(pool, 2, 2)
    with pytest.raises(UserError, match="cut by likeness too"):
        bins.of(pool.x)
    with pytest.raises(UserError, match="too few different values of likeness for 9 levels"):
        cut_levels(make_bins(pool.x, pool.length, 2), pool.x, np.round(pool.second), pool.length, 9, "likeness")


def test_bins_that_ties_leave_without_a_level_are_merged() -> None:
    """Copies of one chunk, more than a level holds: no bin is cut through them, and finer bins stay inside the bins."""
    pool = _pool()
    x, second, length = pool.x.copy(), pool.second.copy(), pool.length
    copies = np.arange(300)
    x[copies], second[copies] = np.median(x), 9.0
    plain, finer = make_bins(x, length, 4), make_bins(x, length, 16)
    bins = cut_levels(plain, x, second, length, 3, "likeness")
    assert bins.edges == plain.edges
    fine = cut_levels(finer, x, second, length, 3, "likeness", keep=bins.edges)
    assert set(bins.edges) <= set(fine.edges) < set(finer.edges)
    assert np.bincount(fine.of(x, second), length, fine.n).min() > 0
    second[:1500], x[:1500] = 9.0, np.sort(x)[:1500]
    fewer = cut_levels(make_bins(x, length, 4), x, second, length, 2, "likeness")
    assert np.array(fewer.share).min() > 0


def test_pilots_tell_levels_apart() -> None:
    """The additive part of the design matrix has full rank; with regimes of perplexity alone it had not."""
    pool = _pool()
    bins, fine_bins = _cut(pool, 4, 3), _cut(pool, 16, 3)
    fine = Fine.of(fine_bins, pool.x, pool.length, pool.second)
    coarse = bins.of_cells(fine.mean)
    assert np.bincount(coarse, fine.share, bins.n) == pytest.approx(np.asarray(bins.share), abs=0.02)
    regimes = choose_regimes(fine, coarse, 0.1, 9, 3, 0, levels=3)
    rows = np.stack([features(fine, coarse, np.asarray(r.shares), 3)[6:] for r in regimes if r.shares])
    assert np.linalg.matrix_rank(rows[:, 4:] - rows[:, 4:].mean(0), tol=0.2) == 2
    assert len(candidates(fine, coarse, np.ones(48), 0, 3)) == 18 + 24


def _runs(noise: float = 0.0) -> RunTable:
    """Runs of random cells in a world that is of the form: beta 0.4, saturation 2, E 3, L0 5."""
    rng = np.random.default_rng(1)
    n_cells, tokens = 12, np.tile([1e5, 2e5, 4e5, 8e5], 14)
    mixes = np.repeat(np.stack([np.full(12, 1 / 12), *rng.dirichlet(np.full(n_cells, 0.6), 13)]), 4, axis=0)
    u = 5 * (F[:, None] + H).ravel()
    z = mixes * tokens[:, None] / 8e5 * n_cells
    worth = (2 * -np.expm1(-z / 2)) @ u / n_cells
    loss = 3 + 2 * np.maximum(1 + worth, 0.05) ** -0.4
    return RunTable(
        tokens=tokens, bin_tokens=mixes * tokens[:, None], loss=loss * np.exp(noise * rng.normal(size=len(loss))),
        base_loss=np.full(len(loss), 5.0), bin_share=np.full(n_cells, 1 / n_cells), bin_levels=3,
        group=np.repeat([f"g{i}" for i in range(14)], 4), regime=np.repeat([f"r{i}" for i in range(14)], 4),
    )  # fmt: skip


@pytest.mark.parametrize("spec", ["utility", "utility:power"])
def test_derivatives_and_parameters_of_the_additive_law(spec: str) -> None:
    runs = _runs()
    setting = setting_of(get_form(spec), runs)
    form, data, frame = setting.form, setting.data, setting.frame
    theta = form.starts(data, runs.loss[None], np.ones((1, len(runs))), frame)[0, :1]
    assert theta.shape[1] == 5 + 4 + 3
    theta[0, 4] = 0.3  # J
    _, jacobian = form.evaluate(theta, data, frame)
    for j in range(theta.shape[1]):
        step = 1e-6 * max(1.0, abs(theta[0, j]))
        up, down = theta.copy(), theta.copy()
        up[0, j] += step
        down[0, j] -= step
        numeric = (form.evaluate(up, data, frame, False)[0] - form.evaluate(down, data, frame, False)[0]) / (2 * step)
        np.testing.assert_allclose(jacobian[0, :, j], numeric[0], rtol=2e-4, atol=2e-6)
    fit = fit_form(spec, runs)
    again = fit.form.log_loss(np.array(list(fit.params.values()))[None], runs, fit.frame)[0]
    np.testing.assert_allclose(again, fit.log_loss(runs), rtol=1e-9, atol=1e-9)


def test_the_additive_law_finds_both_axes() -> None:
    """From 14 trunks with a relative noise of 0.1 %: utilities of twelve cells, relative to their mean."""
    fit = fit_form("utility", _runs(0.001))
    u = np.array([fit.params[f"u_{b}"] for b in range(12)])
    expected = (F[:, None] + H).ravel()
    np.testing.assert_allclose(u / u.mean(), expected / expected.mean(), atol=0.12)


def test_an_allocation_takes_its_quota_from_every_cell() -> None:
    pool = _pool()
    bins = _cut(pool, 4, 3)
    u = (F[:, None] + H).ravel()
    options = Options(utility=Utility(u, np.asarray(bins.share), "saturating", 1.0, 30_000.0), bins=bins)
    found = draw("allocate", pool, 30_000, 0, options)
    taken = np.bincount(bins.of(pool.x, pool.second), pool.length * found.times, bins.n)
    np.testing.assert_allclose(taken, found.facts["allocation"], atol=2 * pool.length.max())
    assert taken[0] == 0, "0.5 - 0.5: worth nothing"
    assert 30_000 - pool.length.max() < taken.sum() <= 30_000
    assert Allocate.name == "allocate"


def test_what_all_bins_have_in_common_is_no_doubt_of_their_worth() -> None:
    """Refits whose utilities differ by a factor alone: worths have no width. One bin doubled in some: they do."""
    law = law_of(fit_form("utility", _runs()), _runs())
    values = np.array(list(law.params.values()))
    draws = np.repeat(values[None], 99, axis=0)
    draws[:, -12:] *= np.geomspace(1e-3, 1e3, 99)[:, None]
    rows = utility_rows(replace(law, resamples={"params": draws.tolist()}))
    for r in rows:
        assert (r["low"], r["high"]) == (pytest.approx(r["worth"]), pytest.approx(r["worth"]))
    draws[::2, -1] *= 2
    wide = utility_rows(replace(law, resamples={"params": draws.tolist()}))
    assert wide[-1]["high"] > 1.2 * wide[-1]["low"] > 0
    low, high = worth_axis([r | {"high": 1e6} for r in wide])
    assert low < 0 < max(r["worth"] for r in wide) < high < 4 * max(1, *(r["worth"] for r in wide))


def test_the_report_names_levels() -> None:
    runs = _runs()
    fit = fit_form("utility", runs)
    law = replace(law_of(fit, runs), bins={"axis": "likeness"})
    rows = utility_rows(law)
    assert [(r["bin"], r["level"]) for r in rows] == [(b, m) for b in range(1, 5) for m in range(1, 4)]
    worth = [law.params[f"u_{i}"] for i in range(12)]
    best = int(np.argmax(worth))
    caption = _utilities_caption(rows, law)
    assert f"one more token of bin {best // 3 + 1}, level {best % 3 + 1} is worth" in caption
    assert "Levels are of likeness, lowest first." in caption
    assert bin_utilities(rows).png().startswith(b"\x89PNG")
