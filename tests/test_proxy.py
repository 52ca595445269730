"""Rank agreement and its ceiling, the transferred choice, the verdict: closed forms and planted worlds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pplscape.laws.forms.base import Frame
from pplscape.laws.law import Law
from pplscape.proxy import (
    DISTRUST,
    LEVEL,
    TOO_FEW,
    TRUST,
    Noise,
    Size,
    agreement,
    ceiling,
    cells_of,
    compare,
    laws_transferred,
    noise_of,
    sizes_of,
    spearman,
    spearman_interval,
    transferred,
    true_losses,
)
from pplscape.runs import RunTable

NAMES = ("small", "base")
GAINS = (0.0, 0.06, 0.04, 0.02, -0.02, -0.05, -0.08, -0.12)
"""Over random, which is the first regime."""
SIZES = (10_000, 40_000)


def runs(
    gains: Sequence[float], noise: Any = 0.0, seeds: int = 3, sizes: Sequence[int] = SIZES, level: float = 4.0
) -> RunTable:
    """Losses `level` - 0.1 ln D - gain + noise; noise is a number, or [regimes, seeds, sizes] in nats."""
    names = ["random", *(f"tilt-{i}" for i in range(len(gains) - 1))]
    noise = np.broadcast_to(noise, (len(gains), seeds, len(sizes)))
    rows = [
        (d, level - 0.1 * np.log(d / 1e4) - gain + noise[r, s, i], names[r], f"{names[r]}-{s}")
        for r, gain in enumerate(gains)
        for s in range(seeds)
        for i, d in enumerate(sizes)
    ]
    tokens, loss, regime, group = zip(*rows, strict=True)
    return RunTable(np.array(tokens, float), loss=np.array(loss), regime=np.array(regime), group=np.array(group))


def shared_noise(rng: np.random.Generator, sd: float, correlation: float, k: int, seeds: int = 3) -> np.ndarray:
    """[2, k, seeds, 2 sizes] noise of both models, the same at all sizes of a trunk."""
    covariance = sd**2 * np.array([[1, correlation], [correlation, 1]])
    drawn = rng.multivariate_normal([0, 0], covariance, (k, seeds))
    return np.repeat(np.moveaxis(drawn, -1, 0)[..., None], len(SIZES), -1)


def one_size(loss: Any, seeds: int = 1, paired: int | None = None) -> Size:
    loss = np.asarray(loss, float)
    k = loss.shape[1]
    names = ("random", *(f"r{i}" for i in range(k - 1)))
    return Size(
        1e4, names, loss, np.full((2, k), float(seeds)), np.full(k, float(seeds if paired is None else paired)),
        (), names[int(loss[0].argmin())], None,
    )  # fmt: skip


def test_rank_correlation_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 20, 9)).astype(float)
    assert spearman(a, b) == pytest.approx([stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def test_agreement_in_closed_form() -> None:
    order = np.arange(8.0)
    swapped = order.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    for other, rho, pairs in ((order, 1, 1), (order[::-1], -1, 0), (swapped, 1 - 6 * 2 / (8 * 63), 27 / 28)):
        found = agreement(one_size([order, other]))
        assert found["spearman"]["mean"] == pytest.approx(rho)
        assert found["pairs"] == pytest.approx(pairs)
        assert found["spearman"]["low"] <= rho + 1e-12
        assert found["spearman"]["high"] >= rho - 1e-12


def test_the_interval_of_a_rank_correlation() -> None:
    """Bonett and Wright's in closed form; of six regimes it holds what it promises, at every true correlation."""
    low, high = spearman_interval(0.5, 12)
    away = 1.6448536 * np.sqrt(1.125 / 9)
    assert (low, high) == pytest.approx(np.tanh(np.arctanh(0.5) + away * np.array([-1, 1])))
    assert spearman_interval(1.0, 3) == (-1, 1)
    assert 0.5 < spearman_interval(1.0, 6)[0] < 0.8
    rng = np.random.default_rng(9)
    for correlation in (0.0, 0.5, 0.8, 0.95):
        drawn = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], (600, 6))
        ends = np.array([spearman_interval(rho, 6) for rho in spearman(drawn[..., 0], drawn[..., 1])])
        true = 6 / np.pi * np.arcsin(correlation / 2)
        assert np.mean((ends[:, 0] <= true) & (true <= ends[:, 1])) > 0.89
        assert np.mean(ends[:, 0] > true) < 0.08


def test_losses_that_tie_agree_on_nothing() -> None:
    for tables in ((runs([0] * 8), runs(GAINS)), (runs([0] * 8), runs([0] * 8))):
        with np.errstate(all="raise"):
            found = compare(*tables, NAMES)
        told = found["sizes"][-1]["agreement"]
        assert (told["spearman"]["mean"], told["pairs"]) == (0, 0.5)
        assert told["spearman"]["low"] < 0 < told["spearman"]["high"]
        assert found["verdict"]["light"] == TOO_FEW
        assert "nan" not in json.dumps(found).lower()


def test_a_pair_that_ties_for_one_model_counts_half() -> None:
    assert agreement(one_size([np.array([0.0, 0.0, 1.0, 2.0]), np.arange(4.0)]))["pairs"] == pytest.approx(5.5 / 6)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_ceiling_is_what_noisy_twins_reach(correlation: float) -> None:
    """4,000 regimes whose true losses agree perfectly: the measured correlation is the ceiling."""
    rng = np.random.default_rng(1)
    true = rng.normal(0, 0.05, 4000)
    noise = shared_noise(rng, 0.04, correlation, 4000, seeds=1)[:, :, 0, 0]
    size = one_size(np.stack([3 + true, 4 + 2 * true]) + noise)
    told = Noise(0.04**2 * np.array([[1, correlation], [correlation, 1]]) / np.outer([3, 4], [3, 4]), 100)
    assert ceiling(size, told) == pytest.approx(np.corrcoef(size.loss)[0, 1], abs=0.02)
    assert ceiling(size, told) == pytest.approx(spearman(*size.loss), abs=0.04)
    assert ceiling(one_size(np.full((2, 5), 4.0)), told) == 0


def test_noise_is_recovered_with_what_both_share() -> None:
    rng = np.random.default_rng(2)
    noise = shared_noise(rng, 0.01, 0.6, 60, seeds=6)
    gains = rng.normal(0, 0.1, 60)
    tables = runs(gains, noise[0], 6, level=3.0), runs(gains, noise[1], 6, level=3.0)
    found = noise_of(*cells_of(*tables)[:2], 1)
    assert found is not None
    assert found.freedom == 60 * 5
    assert np.sqrt(found.covariance.diagonal()) * 3 == pytest.approx(0.01, rel=0.1)
    assert found.covariance[0, 1] / np.sqrt(found.covariance.diagonal().prod()) == pytest.approx(0.6, abs=0.1)
    assert noise_of(*cells_of(runs(GAINS, seeds=1), runs(GAINS))[:2], 0) is None


def test_true_losses_are_the_normal_posterior() -> None:
    """Against 2 x 2 matrices solved one by one, with the noise known (many degrees of freedom)."""
    rng = np.random.default_rng(3)
    size = one_size(4 + rng.normal(0, 0.05, (2, 6)), seeds=2)
    noise = Noise(np.array([[4e-5, 2e-5], [2e-5, 6e-5]]), 10**9)
    drawn = true_losses(size, noise, 0)
    of_mean = noise.covariance * np.outer(size.loss.mean(1), size.loss.mean(1)) / 2
    prior = np.diag(size.loss.var(1, ddof=1) - of_mean.diagonal())
    pull = prior @ np.linalg.inv(prior + of_mean)
    middle = size.loss.mean(1, keepdims=True)
    assert drawn.mean(0) == pytest.approx((middle + pull @ (size.loss - middle))[1], abs=2e-3)
    assert drawn.var(0) == pytest.approx((prior - pull @ prior)[1, 1], rel=0.1)


def test_luck_that_both_models_share_is_not_taken_for_a_gain() -> None:
    """In flat worlds the proxy picks the luckiest draw; what it measures on the target is luck again."""
    rng, measured, told = np.random.default_rng(4), [], []
    for _ in range(40):
        noise = shared_noise(rng, 0.02, 0.9, 8)
        tables = runs([0] * 8, noise[0]), runs([0] * 8, noise[1])
        choice = transferred(sizes_of(*cells_of(*tables))[-1], 0)
        assert choice is not None
        measured.append(choice["measured"]["gain"])
        told.append(choice["gain"]["mean"])
    assert np.mean(measured) > 0.01
    assert abs(np.mean(told)) < 0.3 * np.mean(measured)


def lights(gains: Sequence[float], other: Sequence[float], sd: float, n: int, seed: int = 5) -> list[str]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        noise = shared_noise(rng, sd, 0.5, len(gains))
        table = compare(runs(gains, noise[0]), runs(other, noise[1], level=3.5), NAMES)
        found.append(table["verdict"]["light"])
    return found


def test_verdicts_of_planted_worlds() -> None:
    transfers = lights(GAINS, np.array(GAINS) * 0.8, 0.003, 4)
    assert transfers.count(TRUST) == 4
    reversed_ = lights(GAINS, [-g for g in GAINS], 0.003, 4)
    assert reversed_.count(DISTRUST) == 4
    noisy = lights(GAINS, GAINS, 0.06, 8)
    assert noisy.count(TOO_FEW) >= 6
    assert lights([0] * 8, [0] * 8, 0.01, 12).count(TRUST) <= 2
    unrelated = lights(GAINS, [0.0, -0.05, 0.06, -0.1, 0.03, -0.02, 0.04, -0.08], 0.003, 4)
    assert unrelated.count(DISTRUST) == 4


def test_it_says_which_runs_would_settle_it() -> None:
    def told(proxy: RunTable, target: RunTable) -> tuple[str, str]:
        found = compare(proxy, target, NAMES)["verdict"]
        assert found["light"] == TOO_FEW
        return found["sentence"], found["settle"]

    rng = np.random.default_rng(6)
    noise = shared_noise(rng, 0.003, 0.5, 8)
    proxy, target = runs(GAINS, noise[0]), runs(GAINS, noise[1])
    assert "random with three seeds" in told(runs(GAINS, seeds=1), runs(GAINS, seeds=1))[1]
    few = target.take(np.isin(target.regime, ["random", "tilt-3", "tilt-4"]))
    sentence, settle = told(proxy, few)
    assert "3 shared regimes" in sentence
    assert "3 more regimes on base" in settle
    assert "tilt-0, tilt-1, tilt-2" in settle
    without = target.take(target.regime != "tilt-0")
    assert "tilt-0 on base" in told(proxy, without)[1]
    no_random = target.take(target.regime != "random")
    assert "random was not run by both" in told(proxy, no_random)[0]
    other_sizes = runs(GAINS, sizes=(1000, 2000))
    assert "share no size" in told(proxy, other_sizes)[0]
    best_random = runs([0.0, *np.array(GAINS[1:]) - 0.2], noise[0])
    assert "no other choice to transfer" in told(best_random, target)[0]
    spread = np.broadcast_to(0.007 * np.array([1, 0, -1])[:, None], (8, 3, 2))  # means stay what they are
    prefers = runs([*GAINS[:2], 0.1, *GAINS[3:]], spread)
    sentence, settle = told(prefers, runs([*GAINS[:2], 0.036, *GAINS[3:]], spread[:, ::-1]))
    assert re.match(r"\d+ seeds of tilt-1, tilt-0, random on both models at 40,000 tokens", settle)
    assert "+0.03" in sentence
    assert "more than 20 seeds" in told(prefers, runs([*GAINS[:2], 0.0301, *GAINS[3:]], spread[:, ::-1]))[1]


def test_only_what_both_ran_is_compared() -> None:
    proxy, target = runs(GAINS, sizes=(1000, 10_000, 40_000)), runs(GAINS[:5], sizes=(10_030, 90_000), seeds=2)
    (size,) = sizes_of(*cells_of(proxy, target))
    assert size.tokens == pytest.approx(10_012, rel=1e-3)
    assert size.regimes == ("random", "tilt-0", "tilt-1", "tilt-2", "tilt-3")
    assert size.untried == ("tilt-4", "tilt-5", "tilt-6")
    assert size.first == "tilt-0"
    assert (size.runs == [[3] * 5, [2] * 5]).all()
    assert (size.paired == 2).all()


def law(u: Sequence[float]) -> Law:
    share = (1 / len(u),) * len(u)
    values = {"E": 2.0, "beta": 0.3, "tau": 3.0, "J": 0.0, **{f"u_{b}": v for b, v in enumerate(u)}}
    return Law("utility", "nll", "std", values, Frame(unit=1e5, base_loss=4.0, bin_share=share))


def test_laws_that_agree_and_laws_that_do_not() -> None:
    u, unique = [0.5, 1.0, 2.0, 4.0], np.full(4, 1e6)
    same = laws_transferred(law([2 * v for v in u]), law(u), unique, 1e5)
    assert same["correlation"] == pytest.approx(1)
    assert same["regret"] == pytest.approx(0, abs=1e-9)
    assert same["gain"] > 0
    against = laws_transferred(law(u[::-1]), law([8 - v for v in u[::-1]]), unique, 1e5)
    assert against["correlation"] == pytest.approx(-1)
    assert against["gain"] < 0 < against["regret"]
    noise = shared_noise(np.random.default_rng(7), 0.003, 0.5, 8)
    tables = runs(GAINS, noise[0]), runs(GAINS, noise[1])
    assert compare(*tables, NAMES, same)["verdict"]["light"] == TRUST
    assert compare(*tables, NAMES, against)["verdict"]["light"] == TOO_FEW


def test_the_level_is_that_of_the_intervals() -> None:
    noise = shared_noise(np.random.default_rng(8), 0.01, 0.0, 8)
    found = compare(runs(GAINS, noise[0]), runs(GAINS, noise[1]), NAMES)
    assert found["level"] == LEVEL
    assert all(s["choice"]["gain"]["low"] <= s["choice"]["gain"]["high"] for s in found["sizes"])
