"""`gp` against the textbook Gaussian process, and inside the machinery."""

from __future__ import annotations

import json

import numpy as np
import pytest
import worlds

import pplscape.laws.forms.gp as module
from pplscape.laws.build import build
from pplscape.laws.choose import cross_validate
from pplscape.laws.fit import fit_many, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.forms.gp import kernel, mean_of, pivots
from pplscape.laws.law import Law
from pplscape.laws.scores import scores


@pytest.mark.parametrize("spec", ["gp", "gp:bins"])
def test_it_is_the_posterior_mean_of_a_gaussian_process(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """m(x) + k(x, X) (k(X, X) + (noise / spread)^2 I)^-1 (y - m(X)), left-out runs in X or not."""
    monkeypatch.setattr(module, "LEAST_VARIANCE", 1e-12)
    runs = worlds.table("utility", trunks=6)
    seen = np.arange(len(runs)) % 3 > 0
    setting = setting_of(get_form(spec), runs, delta=1e3)  # Huber's loss is quadratic up to delta
    spread, log_loss = 0.1, np.log(runs.loss)
    theta, _, _ = fit_many(
        setting, log_loss[None], seen[None].astype(float), strength=np.array([spread**-2]), precise=True
    )
    form, frame, data = setting.form, setting.frame, setting.data
    x = form.coordinates(runs) / np.asarray(frame.own["lengths"])
    mean = mean_of(frame).evaluate(theta[:, :3], data, frame, False)[0][0]
    k = kernel(x, x)
    inner = k[np.ix_(seen, seen)] + (setting.noise / spread) ** 2 * np.eye(seen.sum())
    expected = mean + k[:, seen] @ np.linalg.solve(inner, (log_loss - mean)[seen])
    found = form.evaluate(theta, data, frame, False)[0][0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pivots_explain_the_kernel() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2)) / 3
    k = kernel(x, x)
    chosen = pivots(k)
    assert len(chosen) < 40
    left = k - k[:, chosen] @ np.linalg.solve(k[np.ix_(chosen, chosen)], k[chosen])
    assert np.diag(left).max() < module.LEAST_VARIANCE


def test_it_predicts_left_out_regimes_better_than_size_alone() -> None:
    runs = worlds.table("utility", trunks=16)
    found = {}
    for spec in ("gp", "gp:bins", "d-only:anchored"):
        trial = cross_validate(get_form(spec), runs)
        found[spec] = scores(trial, runs)
    assert found["gp"]["mae_left_regime"] < 0.6 * found["d-only:anchored"]["mae_left_regime"]
    assert found["gp:bins"]["mae_left_regime"] < 0.3 * found["d-only:anchored"]["mae_left_regime"]
    assert found["gp"]["coverage"] > 0.75


def test_a_flat_world_leaves_the_mean() -> None:
    """Nothing but noise around d-only: f stays within it."""
    runs = worlds.table("flat", trunks=16, noise=0.003)
    trial = cross_validate(get_form("gp"), runs)
    assert trial.by_regime is not None
    assert np.abs(trial.by_regime - worlds.true_loss("flat", runs, runs.bin_share)).mean() < 0.005


def test_its_law_is_data(tmp_path: object) -> None:
    runs = worlds.table("utility", trunks=8)
    law, _ = build(runs, ["gp", "gp:bins"], bootstrap=20)
    text = json.dumps(law.to_json(), allow_nan=False)
    again = Law.from_json(json.loads(text))
    assert again == law
    np.testing.assert_array_equal(again.predict_interval(runs), law.predict_interval(runs))
    points = again.alternative("gp").frame.own["points"]
    assert len(points) + 3 == len(again.alternative("gp").params)
