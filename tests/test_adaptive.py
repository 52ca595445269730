"""Adaptive planning: what can be run, what is asked, which trunks are taken, when to stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pplscape.adaptive import (
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
from pplscape.laws.fit import setting_of
from pplscape.laws.information import Knowledge, believed, derivatives
from pplscape.laws.table import labels
from pplscape.runs import RunTable
from pplscape.stages.landscape import ScoredPool, describe
from pplscape.statistics import Bins, moments

BUDGET, BASE = 100_000, 4.5
SIZES = (12_500, 25_000, 50_000, 100_000)
WORTH = {"dirty": (0.4, 0.8, 1.2, 1.6, -0.2), "flat": (1.0,) * 5}
RAN = (0, 0, 0, 1, 5, 9, 14, 18, 25, 30, 37, 40)
"""The first round: random three times, tilts, mixtures."""


@pytest.fixture(scope="module")
def pool() -> ScoredPool:
    """4,000 chunks, a tenth of them noise."""
    rng = np.random.default_rng(0)
    n = 4000
    x = np.where(rng.random(n) < 0.9, rng.normal(4.5, 0.6, n), rng.normal(7, 0.4, n))
    length = rng.integers(64, 257, n)
    return ScoredPool(length, length, 4 * length, x * length, np.zeros(n, int), ("all",), pa.table({}), {})


@pytest.fixture(scope="module")
def facts(pool: ScoredPool) -> dict[str, Any]:
    return describe(pool, BUDGET, 5)


@pytest.fixture(scope="module")
def menu(facts: dict[str, Any]) -> Menu:
    return menu_of(facts, BUDGET, None, 0)


def simulated(menu: Menu, world: str, noise: float = 0.003, seed: int = 0) -> RunTable:
    """A first round of pilots; relative noise, half of its variance shared by a trunk."""
    rng = np.random.default_rng(seed)
    rows = {k: [] for k in ("nll_mean", "nll_std", "ppl_mean", "ppl_std", "bin_tokens", "tokens")}  # type: ignore[var-annotated]
    errors = []
    for k in RAN:
        common = rng.normal(0, noise / np.sqrt(2))
        for size in SIZES:
            one = menu.at(size).take(slice(k, k + 1))
            for name, values in rows.items():
                values.append(getattr(one, name)[0])
            errors.append(common + rng.normal(0, noise / np.sqrt(2)))
    columns = {k: np.asarray(v) for k, v in rows.items()}
    gain = np.maximum(1 + 6 * columns["bin_tokens"] @ np.asarray(WORTH[world]) / BUDGET, 0.1)
    names = ["random" if k == 0 else f"{menu.kinds[k]}-{i}" for i, k in enumerate(RAN)]
    return RunTable(
        **columns,
        loss=(3.0 + (BASE - 3.0) * gain**-0.35) * np.exp(errors),
        base_loss=np.full(len(errors), BASE),
        group=np.repeat([f"{n}-{i if n == 'random' else 0}" for i, n in enumerate(names)], len(SIZES)),
        regime=np.repeat(names, len(SIZES)),
        seed=np.repeat([i if k == 0 else 0 for i, k in enumerate(RAN)], len(SIZES)),
        bin_share=menu.whole.bin_tokens[0] / menu.whole.tokens[0],  # type: ignore[index]
    )


@pytest.fixture(scope="module")
def evidence(menu: Menu) -> Evidence:
    return evidence_of(simulated(menu, "dirty"), ["d-only:anchored", "utility"])


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
    flat = evidence_of(simulated(menu, "flat", noise=0.01), ["d-only:anchored", "utility"])
    decision = next_trunks(flat, menu, BUDGET, 400_000, 0.15, 64).decision
    assert decision.state in ("flat", "open")
    assert decision.sure < 0.95
    assert abs(decision.gain) < 0.02


def asked(gains: list[float], errors: list[float]) -> Question:
    allowed = np.arange(len(gains)) > 0
    return Question(np.zeros((1, 1, 1)), np.ones(1), np.array(gains), np.array(errors), allowed)


def test_chances_are_those_of_the_normal_distribution(evidence: Evidence) -> None:
    """Gain 0.05 with error 0.05, halved by the plan: the chance that |estimate| then exceeds 1.645 errors."""
    found = decide(evidence, asked([0.0, 0.05, 0.02], [0.0, 0.05, 0.01]), 0.25)
    assert found.selection == 1
    assert found.error_after == pytest.approx(0.025)
    assert found.sure == pytest.approx(stats.norm.cdf(1.0))
    later = np.random.default_rng(0).normal(0.05, np.sqrt(0.05**2 - 0.025**2), 200_000)
    assert found.settles == pytest.approx(np.mean(np.abs(later) > stats.norm.ppf(0.95) * 0.025), abs=0.005)
    assert found.largest == pytest.approx(0.05 + stats.norm.ppf(0.95) * 0.05)
    assert found.state == "open"
    assert "the chance that they settle the decision is" in found.sentence


def test_a_gain_below_the_seed_noise_is_not_looked_for(evidence: Evidence) -> None:
    noise = evidence.refits.noise.total * np.median(evidence.runs.loss)
    found = decide(evidence, asked([0.0, noise / 4], [0.0, noise / 4]), 0.5)
    assert found.state == "flat"
    assert "Use random." in found.sentence
    assert f"{noise / 4 * (1 + stats.norm.ppf(0.95)):.4f}" in found.sentence


def test_new_trunks_have_seeds_of_their_own_and_old_regimes_keep_their_names(menu: Menu, evidence: Evidence) -> None:
    names = known_names(menu, evidence.runs)
    assert names == {k: "random" if k == 0 else f"{menu.kinds[k]}-{i}" for i, k in enumerate(RAN)}
    regimes = regimes_of([7, 0, 14, 7], menu, evidence.runs)
    assert [r.name for r in regimes] == ["tilt-8", "random", "tilt-6", "tilt-8"]
    assert [r.seed for r in regimes] == [3, 4, 5, 6]
    assert not {r.group for r in regimes} & set(labels(evidence.runs, "group"))
    assert regimes[1].shares is None
    assert sum(regimes[0].shares or ()) == pytest.approx(1)


def test_sizes_stay_between_two_steps_and_the_budget() -> None:
    assert size_grids(40_000, 100_000, 64)[-1][-1] == 100_000
    assert [g[-1] for g in size_grids(40_000, 100_000, 64)] == [20_000, 40_000, 80_000, 100_000]
    assert [g[0] for g in size_grids(40_000, 100_000, 6_000)] == [10_000, 12_500]
    with pytest.raises(UserError, match="--step-tokens"):
        size_grids(40_000, 100_000, 20_000)


def test_too_few_tokens_say_how_many_are_needed(menu: Menu, evidence: Evidence) -> None:
    with pytest.raises(UserError, match=r"--pilot-tokens [\d,]+ or more"):
        next_trunks(evidence, menu, BUDGET, 1000, 0.15, 64)


def test_without_a_law_of_composition_there_is_nothing_to_adapt(menu: Menu) -> None:
    with pytest.raises(UserError, match="needs a law of composition"):
        evidence_of(simulated(menu, "flat"), ["constant", "d-only"])
