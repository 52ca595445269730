"""The spread of a Gaussian process: its restricted likelihood, what it is in known worlds, refits that draw it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import worlds
from scipy import stats
from scipy.linalg import null_space

from pplscape.laws.fit import fit_many, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.forms.base import Data, Floats, Form, Frame, Penalty
from pplscape.laws.noise import Noise
from pplscape.laws.shrinkage import chances, restricted, weakest
from pplscape.laws.table import labels
from pplscape.laws.uncertainty import refits
from pplscape.runs import Compositions


def test_restricted_likelihood_is_that_of_contrasts() -> None:
    """Contrasts K'y with K'X = 0 know nothing of b: their normal density, but for a factor that no covariance moves."""
    rng = np.random.default_rng(0)
    n, groups = 9, np.repeat(["a", "b", "c"], 3)
    free, features, told = rng.normal(size=(n, 2)), rng.normal(size=(n, 4)), rng.normal(size=n)
    strengths, trunk, run = np.array([0.5, 2.0, 30.0]), np.array([0.3, 1.0]), np.array([0.7, 0.2])
    found = restricted(told, free, features @ features.T, strengths, groups, trunk, run)
    contrast, same = null_space(free.T), (groups[:, None] == groups[None, :]).astype(float)
    expected = np.empty((2, 3))
    for r in range(2):
        for k, strength in enumerate(strengths):
            whole = features @ features.T / strength + trunk[r] ** 2 * same + run[r] ** 2 * np.eye(n)
            expected[r, k] = stats.multivariate_normal(cov=contrast.T @ whole @ contrast).logpdf(contrast.T @ told)
    np.testing.assert_allclose(found - found[0, 0], expected - expected[0, 0], atol=1e-8)


def test_noise_of_nothing_tells_the_spread_too() -> None:
    """Pilots that repeat one another, f with a spread of 0.03 and no noise: their covariance has no inverse."""
    rng = np.random.default_rng(0)
    features, free = np.repeat(rng.normal(size=(6, 6)), 2, axis=0), np.ones((12, 1))
    told, strengths = features @ rng.normal(0, 0.03, 6), np.array([0.003, 0.01, 0.03, 0.1]) ** -2
    groups, none = np.repeat(list("abcdef"), 2), np.zeros(1)
    found = restricted(told, free, features @ features.T, strengths, groups, none, none)
    assert np.isfinite(found).all()
    assert found.argmax() == 2


def test_the_runs_tell_the_spread_of_their_process() -> None:
    """Candidates 0.003, 0.01, 0.03, 0.1: worlds drawn with 0.03, and one without any f."""
    for truth, likely in (("gp", 0.03), ("flat", 0.003)):
        names = [f"gp-{s}" if truth == "gp" else truth for s in range(5)]
        tables = [worlds.table(name, trunks=8, noise=0.003, seed=s) for s, name in enumerate(names)]
        setting = setting_of(get_form("gp"), tables[0])
        log_loss, weight = np.log([t.loss for t in tables]), np.ones(len(tables[0]))
        weights = np.broadcast_to(weight, log_loss.shape)
        theta, _, _ = fit_many(setting, log_loss, weights, strength=weakest(setting, len(tables)))
        strengths, chance = chances(setting, theta, log_loss, weight, labels(tables[0], "group"))
        np.testing.assert_allclose(chance.sum(1), 1.0)
        best = strengths[chance.argmax(1)] ** -0.5
        assert np.mean(np.isclose(best, likely)) >= 0.8
        assert np.mean(chance @ (strengths**-0.5 > 0.05)) < 0.05


def test_other_penalties_stay_at_their_weakest() -> None:
    tables = [worlds.table("utility", trunks=8)]
    setting = setting_of(get_form("utility"), tables[0])
    penalty = setting.form.penalty(setting.frame)
    assert penalty is not None
    strengths, chance = chances(
        setting, np.zeros((1, 1)), np.log([tables[0].loss]), np.ones(24), labels(tables[0], "group")
    )
    assert strengths.tolist() == [min(penalty.strengths)] == weakest(setting, 1).tolist()
    assert chance.tolist() == [[1.0]]


class Line(Form):
    """ln L = w . (1, x, x^2), w ~ N(0, 1 / strength): linear, so that the posterior of w is the textbook's."""

    name = "line"
    strength = 4e4

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        x = np.log(compositions.tokens / 181e3)
        return {"phi": np.stack([np.ones_like(x), x, x**2], axis=-1)}

    def names(self, frame: Frame) -> tuple[str, ...]:
        return ("w_0", "w_1", "w_2")

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        return theta @ data["phi"].T, np.tile(data["phi"], (len(theta), 1, 1))

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        return np.zeros((len(loss), 1, 3))

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        return np.full((len(smallest), 3), -np.inf), np.full((len(smallest), 3), np.inf)

    def penalty(self, frame: Frame) -> Penalty:
        return Penalty(np.eye(3), (self.strength,), estimated=True)


def test_refits_are_draws_of_the_posterior() -> None:
    """N((F'F + lambda s^2)^-1 F'y, s^2 (F'F + lambda s^2)^-1) where shrinkage halves what the runs say: a refit to what
    the fit predicts must not be shrunk to 0 a second time."""
    noise = 0.005
    runs = worlds.table("flat", trunks=3)
    runs = replace(runs, loss=np.exp(0.003 * np.random.default_rng(1).normal(size=len(runs))), noise=np.ones(len(runs)))
    setting = replace(setting_of(Line(), runs, delta=1e3), noise=noise)
    measured, weight, strength = np.log(runs.loss)[None], np.ones(len(runs)), np.array([Line.strength])
    theta, _, _ = fit_many(setting, measured, weight[None], strength=strength, precise=True)
    phi = setting.data["phi"]
    inner = phi.T @ phi + Line.strength * noise**2 * np.eye(3)
    np.testing.assert_allclose(theta[0], np.linalg.solve(inner, phi.T @ measured[0]), atol=1e-8)
    known = Noise(trunk=0.0, run=noise, freedom=5.0)
    draws, _ = refits(setting, theta, measured, weight, labels(runs, "group"), 4000, known=known)
    spread = noise**2 * np.linalg.inv(inner)
    error = np.sqrt(np.diag(spread))
    np.testing.assert_allclose(draws[0].mean(0), theta[0], atol=0.1 * error.min())
    np.testing.assert_allclose(np.cov(draws[0].T) / np.outer(error, error), spread / np.outer(error, error), atol=0.08)
