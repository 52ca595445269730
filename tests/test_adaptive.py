"""Adaptive planning: what can be run, what is asked, which trunks are taken, when to stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import pytest
from landscapes import BUDGET, FIRST, SIZES, pilots
from scipy import stats

from pplscape.adaptive import (
    BOUNDS_HELD,
    DRAWS,
    Evidence,
    Menu,
    Question,
    decide,
    evidence_of,
    known_names,
    menu_of,
    next_trunks,
    question_of,
    regimes_of,
    size_grids,
)
from pplscape.design import draw_shares, trunk_tokens
from pplscape.errors import UserError
from pplscape.landscape_facts import ScoredPool, describe
from pplscape.laws.fit import setting_of
from pplscape.laws.information import Knowledge, believed, derivatives
from pplscape.laws.table import labels
from pplscape.statistics import Bins, moments

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pool() -> ScoredPool:
    return landscapes.scored_pool()


@pytest.fixture(scope="module")
def facts(pool: ScoredPool) -> dict[str, Any]:
    return describe(pool, BUDGET, 5)


@pytest.fixture(scope="module")
def menu(facts: dict[str, Any]) -> Menu:
    return menu_of(facts, BUDGET, None, 0)


@pytest.fixture(scope="module")
def evidence(menu: Menu) -> Evidence:
    return evidence_of(pilots(menu, "dirty"), ["d-only:anchored", "utility"])


def test_random_has_the_moments_of_the_pool(menu: Menu, facts: dict[str, Any]) -> None:
    for scale in ("nll", "ppl"):
        mean, std = menu.whole.moments(scale)
        assert (mean[0], std[0]) == pytest.approx((facts["scale"][scale]["mean"], facts["scale"][scale]["std"]))
    assert menu.whole.bin_tokens is not None
    np.testing.assert_allclose(menu.whole.bin_tokens[0] / facts["tokens"], facts["bins"]["share"])
    assert menu.at(BUDGET).tokens == pytest.approx(np.full(len(menu.kinds), BUDGET))


def test_a_drawn_regime_is_what_the_menu_says(menu: Menu, facts: dict[str, Any], pool: ScoredPool) -> None:
    fine = Bins(tuple(facts["fine_bins"]["edges"]), tuple(facts["fine_bins"]["share"]))
    order = np.random.default_rng(1).random(len(pool.x))
    said = menu.at(BUDGET)
    assert said.nll_mean is not None
    assert said.nll_std is not None
    for k in (3, 12, 20, 33):
        shares = menu.shares[k]
        assert shares is not None
        rows = draw_shares(tuple(shares), fine.of(pool.x), pool.length, order, np.ones(len(order), bool), BUDGET)
        drawn = moments(pool.x[rows], tuple(facts["winsor"]["nll"]))
        assert drawn.mean == pytest.approx(said.nll_mean[k], abs=0.05)
        assert drawn.std == pytest.approx(said.nll_std[k], rel=0.1, abs=0.02)


def test_the_question_is_the_gain_over_random(evidence: Evidence, menu: Menu) -> None:
    """Its lines are the derivatives of the predicted gain: checked by finite differences."""
    theta = evidence.refits.draws[:2]
    question = question_of(evidence, menu, BUDGET, SIZES[-1], theta)
    assert question.weight.sum() == pytest.approx(1)
    assert not question.allowed[0]
    fit = evidence.fit
    basis = fit.form.basis(setting_of(fit.form, evidence.runs, fit.delta).data, fit.frame)
    data = fit.form.data(menu.at(BUDGET), fit.frame)
    losses, draws = evidence.losses(menu.at(BUDGET))
    np.testing.assert_allclose(question.gains, losses[0] - losses)
    chosen = sorted(set(np.where(question.allowed, draws, np.inf).argmin(1)))
    for i in range(basis.shape[1]):
        up, down = (
            np.exp(fit.form.evaluate(theta + side * 1e-6 * basis[:, i], data, fit.frame, False)[0]) for side in (1, -1)
        )
        slope = (up - down) / 2e-6
        np.testing.assert_allclose(
            question.lines[:, : len(chosen), i], slope[:, :1] - slope[:, chosen], rtol=1e-4, atol=1e-7
        )


def left(evidence: Evidence, menu: Menu, chosen: list[int], sizes: list[int]) -> float:
    """Share of the question's variance that trunks leave, computed by generalised least squares from scratch."""
    theta, runs, fit = evidence.refits.draws[:DRAWS], evidence.runs, evidence.fit
    setting = setting_of(fit.form, runs, fit.delta)
    question = question_of(evidence, menu, BUDGET, SIZES[-1], theta)
    old = derivatives(setting, theta)[1]
    new = [derivatives(setting, theta, menu.at(s))[1][:, chosen] for s in sizes]
    slopes = np.concatenate([old, *new], axis=1)
    groups = np.append(labels(runs, "group"), np.tile([f"new{i}" for i in range(len(chosen))], len(sizes)))
    variances = [
        Knowledge.of(believed(setting, fit.strength), s, g, evidence.refits.noise).variance(question.lines)
        @ question.weight
        for s, g in ((old, labels(runs, "group")), (slopes, groups))
    ]
    return float(np.mean(variances[1] / variances[0]))


def test_chosen_trunks_tell_more_than_random_ones(evidence: Evidence, menu: Menu) -> None:
    tokens = 700_000
    found = next_trunks(evidence, menu, BUDGET, tokens, 0.15, 64)
    cost = trunk_tokens(found.sizes, 0.15)
    assert len(found.chosen) * cost <= tokens < (len(found.chosen) + 1) * cost
    assert max(found.sizes) <= BUDGET
    rng = np.random.default_rng(0)
    others = [
        left(evidence, menu, rng.choice(len(menu.kinds), len(found.chosen)).tolist(), found.sizes) for _ in range(30)
    ]
    ours = left(evidence, menu, found.chosen, found.sizes)
    assert ours < min(others)
    assert found.decision.error_after == pytest.approx(found.decision.error * np.sqrt(ours), rel=1e-6)


def test_a_clear_gain_is_settled_and_a_flat_landscape_is_said_to_be_flat(menu: Menu, evidence: Evidence) -> None:
    decision = next_trunks(evidence, menu, BUDGET, 400_000, 0.15, 64).decision
    assert decision.state == "settled"
    assert decision.gain > 3 * decision.error
    assert "settled" in decision.sentence
    flat = evidence_of(pilots(menu, "flat", noise=0.01), ["d-only:anchored", "utility"])
    decision = next_trunks(flat, menu, BUDGET, 400_000, 0.15, 64).decision
    assert decision.state in ("flat", "open")
    assert decision.sure < 0.95
    assert decision.settles < 0.5
    assert abs(decision.gain) < 0.05


def asked(gains: list[float], errors: list[float], luck: np.ndarray | None = None) -> Question:
    """Gains of random, then selections; `luck` by default that of a single selection."""
    luck = np.random.default_rng(1).normal(size=200_000) if luck is None else luck
    allowed = np.arange(len(gains)) > 0
    return Question(np.zeros((1, 1, 1)), np.ones(1), np.array(gains), np.array(errors), luck, allowed)


def test_chances_are_those_of_the_normal_distribution(evidence: Evidence) -> None:
    """Gain 0.05 with error 0.05, halved by the plan: the chance that |estimate| then exceeds 1.645 errors."""
    found = decide(evidence, asked([0.0, 0.05, 0.02], [1.0, 0.05, 0.01]), 0.25)
    assert (found.gain, found.selections) == (0.05, 2)
    assert found.error_after == pytest.approx(0.025)
    assert found.sure == pytest.approx(stats.norm.cdf(1.0), abs=0.005)
    later = np.random.default_rng(0).normal(0.05, np.sqrt(0.05**2 - 0.025**2), 200_000)
    assert found.settles == pytest.approx(np.mean(np.abs(later) > stats.norm.ppf(0.95) * 0.025), abs=0.005)
    assert found.largest == pytest.approx(0.05 + stats.norm.ppf(0.95) * 0.05, abs=0.001)
    assert found.state == "open"
    assert "the chance that they settle the decision is" in found.sentence


def test_the_best_of_many_must_be_more_than_lucky(evidence: Evidence) -> None:
    """Two standard errors are enough for one selection, not for the best of forty independent ones."""
    lucky = np.random.default_rng(0).normal(size=(20_000, 40)).max(1)
    gains, errors = [0.0, *[0.1] * 40], [1.0, *[0.05] * 40]
    assert decide(evidence, asked(gains, errors), 0.5).state == "settled"
    found = decide(evidence, asked(gains, errors, lucky), 0.5)
    assert found.state == "open"
    assert found.sure == pytest.approx(stats.norm.cdf(2.0) ** 40, abs=0.01)


def test_a_law_that_misses_the_runs_settles_nothing(evidence: Evidence) -> None:
    """Random regimes that repeat to 0.01 %, as a law with noise of 0.3 % cannot explain."""
    runs = evidence.runs
    random = labels(runs, "regime") == "random"
    exact = np.where(random, landscapes.true_loss("dirty", runs), runs.loss)
    exact = exact * np.exp(np.where(random, np.random.default_rng(0).normal(0, 1e-4, len(runs)), 0.0))
    question = asked([0.0, 0.5], [1.0, 0.05])
    assert decide(evidence, question, 0.5).state == "settled"
    found = decide(replace(evidence, runs=replace(runs, loss=exact)), question, 0.5)
    assert found.state == "open"
    assert "times their seed noise" in found.sentence


def test_random_wins_where_every_selection_is_worse(evidence: Evidence) -> None:
    found = decide(evidence, asked([0.0, -0.3, -0.1], [1.0, 0.05, 0.05]), 0.5)
    assert found.gain == -0.1
    assert found.sure == pytest.approx(stats.norm.cdf(2.0), abs=0.005)
    assert found.largest == 0
    assert found.state == "flat"


def test_a_gain_below_the_seed_noise_is_not_looked_for(evidence: Evidence) -> None:
    noise = evidence.refits.noise.total * np.median(evidence.runs.loss)
    found = decide(evidence, asked([0.0, noise / 4], [1.0, noise / 4]), 0.5)
    assert found.state == "flat"
    assert "Use random." in found.sentence
    assert f"{found.largest:.4f}" in found.sentence
    assert found.largest == pytest.approx(noise / 4 * (1 + stats.norm.ppf(0.95)), rel=0.01)


def test_new_trunks_have_seeds_of_their_own_and_old_regimes_keep_their_names(menu: Menu, evidence: Evidence) -> None:
    names = known_names(menu, evidence.runs)
    assert names == {k: "random" if k == 0 else f"{menu.kinds[k]}-{i}" for i, k in enumerate(FIRST)}
    regimes = regimes_of([7, 0, 14, 7], menu, evidence.runs)
    assert [r.name for r in regimes] == ["tilt-8", "random", "tilt-6", "tilt-8"]
    assert [r.seed for r in regimes] == [3, 4, 5, 6]
    assert not {r.group for r in regimes} & set(labels(evidence.runs, "group"))
    assert regimes[1].shares is None
    assert sum(regimes[0].shares or ()) == pytest.approx(1)


def test_a_law_that_misses_its_runs_is_given_new_compositions_only(menu: Menu, evidence: Evidence) -> None:
    ran = set(known_names(menu, evidence.runs))
    taken = next_trunks(evidence, menu, BUDGET, 20 * BUDGET, 0.15, 64).chosen
    assert len(taken) > len(set(taken)), "a law that fits may ask for a composition again"
    noise = replace(evidence.refits.noise, run=1.0)
    taken = next_trunks(
        replace(evidence, refits=replace(evidence.refits, noise=noise)), menu, BUDGET, 20 * BUDGET, 0.15, 64
    ).chosen
    assert len(taken) == len(set(taken)) > 5
    assert not ran & set(taken)


def test_sizes_stay_between_two_steps_and_the_budget() -> None:
    assert size_grids(40_000, 100_000, 64)[-1][-1] == 100_000
    assert [g[-1] for g in size_grids(40_000, 100_000, 64)] == [40_000, 80_000, 100_000]
    assert [g[0] for g in size_grids(40_000, 100_000, 6_000)] == [10_000, 12_500]
    with pytest.raises(UserError, match="--step-tokens"):
        size_grids(40_000, 100_000, 20_000)


def test_too_few_tokens_say_how_many_are_needed(menu: Menu, evidence: Evidence) -> None:
    with pytest.raises(UserError, match=r"--pilot-tokens [\d,]+ or more"):
        next_trunks(evidence, menu, BUDGET, 1000, 0.15, 64)


def test_without_a_law_of_composition_there_is_nothing_to_adapt(menu: Menu) -> None:
    with pytest.raises(UserError, match="needs a law of composition"):
        evidence_of(pilots(menu, "flat"), ["constant", "d-only"])


def test_bounds_that_held_are_those_of_the_experiment() -> None:
    worlds = json.loads((ROOT / "experiments/results/adaptive_worlds.json").read_text())
    held = [row["true_best"] <= row["largest"] for row in worlds if row["world"] == "dirty"]
    assert f"{sum(held)} of {len(held)}" == BOUNDS_HELD
    for page in ("docs/adaptive-planning.md", "docs/results/adaptive-design.md"):
        assert f"{BOUNDS_HELD} bounds held" in (ROOT / page).read_text()
