"""Choosing between laws, and choosing again in resamples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.choose import choose, cross_validate, obstacle, pick
from pplscape.laws.forms import get_form
from pplscape.laws.scores import _calibration, paired
from pplscape.laws.words import _against_size, _calibrated
from pplscape.runs import RunTable

FEW = ("constant", "d-only", "d-only:anchored", "quadratic", "utility")


@pytest.fixture(scope="module")
def flat() -> RunTable:
    return worlds.table("flat", trunks=10)


@pytest.fixture(scope="module")
def dirty() -> RunTable:
    return worlds.table("utility", trunks=10)


def test_a_flat_world_is_left_to_size(flat: RunTable) -> None:
    law, choice = build(flat, FEW, bootstrap=0)
    assert choice.chosen == "d-only:anchored"
    assert "use random" in law.verdict
    row = next(r for r in law.choice if r["form"] == "d-only:anchored")
    assert row["cv_mae"] < 0.015
    assert row["mae_over_gain"] == pytest.approx(row["cv_mae"] / np.mean(4.8 - flat.loss))


def test_a_dirty_world_needs_the_utility_law(dirty: RunTable) -> None:
    choice = choose(dirty, FEW)
    assert choice.chosen == "utility"
    scores = choice.trial("utility").scores
    assert scores is not None
    assert scores["spearman_within_size"] > 0.9
    assert scores["top1_regret"] < 0.01
    assert 0.7 <= scores["coverage"] <= 1.0
    assert scores["calibration"] == pytest.approx(1.0, abs=0.1)


def test_calibration_is_the_slope_within_sizes(flat: RunTable) -> None:
    """Predictions that double every difference between compositions have slope 1/2, whatever D does."""
    rng = np.random.default_rng(0)
    sizes = np.unique(flat.tokens, return_inverse=True)[1]
    deviation = rng.normal(size=len(flat))
    deviation -= (np.bincount(sizes, deviation) / np.bincount(sizes))[sizes]
    runs = replace(flat, loss=3.0 - 0.2 * sizes + 0.05 * deviation)
    assert _calibration(2.0 - 0.4 * sizes + 0.1 * deviation, runs) == pytest.approx(0.5)
    assert _calibration(2.0 - 0.4 * sizes, runs) is None


def test_in_a_flat_world_differences_mean_nothing(flat: RunTable) -> None:
    choice = choose(flat, ["d-only:anchored", "extended"])
    slope, null = (choice.trial(spec).scores for spec in ("extended", "d-only:anchored"))
    assert slope is not None
    assert null is not None
    assert abs(slope["calibration"]) < 0.3
    assert null["calibration"] is None


def test_the_verdict_says_what_to_do_in_every_case(flat: RunTable, dirty: RunTable) -> None:
    def said(runs: RunTable, forms: list[str]) -> str:
        return build(runs, forms, bootstrap=0)[0].verdict

    assert "explains nothing here that can be relied on beyond D" in said(flat, ["d-only:anchored", "quadratic"])
    composed = said(dirty, ["d-only:anchored", "utility"])
    assert "Knowing the composition lowers the error of D alone by" in composed
    assert "a token of bin 3 is worth most" in composed
    assert "do as well" not in composed
    assert "which text is best is not known, use random" in said(flat, ["constant", "d-only:anchored"])
    alone = said(flat.take([0, 3, 6, 9]), ["constant"])
    assert "Not even the number of tokens explains these losses" in alone
    assert "whether perplexity matters at all is not known" in said(dirty, ["utility"])
    shuffled = np.random.default_rng(1).permutation(len(flat))
    nothing = said(replace(flat, loss=flat.loss[shuffled]), ["constant", "d-only:anchored", "monotone"])
    assert "use random" in nothing
    assert "  " not in nothing


def test_a_gain_within_chance_is_not_sold(dirty: RunTable) -> None:
    """One wild regime: the capped rule keeps the law of composition, the words keep to the standard error."""
    choice = choose(dirty, ["d-only:anchored", "utility"])
    null, law = choice.trial("d-only:anchored"), choice.trial("utility")
    assert null.by_regime is not None
    regime = np.asarray(dirty.regime) == dirty.regime[-1]  # type: ignore[index]
    wild = np.where(regime, dirty.loss + 2.0, dirty.loss + 0.001)
    spoilt = replace(choice, trials=[replace(null, by_regime=wild, by_size=None), law], chosen="utility")
    assert "which chance can do as well: use random" in _against_size(spoilt, dirty)


def test_exaggeration_is_said() -> None:
    trial = cross_validate(get_form("monotone"), worlds.table("utility", trunks=10))
    for slope, words in ((0.3, "exaggerates"), (2.0, "understates"), (0.9, ""), (None, "")):
        assert words in _calibrated(replace(trial, scores={"calibration": slope}))
    assert _calibrated(replace(trial, scores={"calibration": 1.2})) == ""


def test_random_seeds_are_left_out_together(dirty: RunTable) -> None:
    """With all random runs spoilt, their left-out prediction must not know of it."""
    random = np.asarray(dirty.regime) == "random"
    spoilt = replace(dirty, loss=dirty.loss + np.where(random, 1.0, 0.0))
    honest, fooled = (cross_validate(get_form("d-only"), runs) for runs in (dirty, spoilt))
    assert honest.by_regime is not None
    assert fooled.by_regime is not None
    np.testing.assert_allclose(honest.by_regime[random], fooled.by_regime[random], rtol=1e-3)
    assert not np.allclose(honest.by_regime[~random], fooled.by_regime[~random], atol=0.02)


def test_the_largest_size_is_held_out(flat: RunTable) -> None:
    trial = cross_validate(get_form("d-only:anchored"), flat)
    largest = flat.tokens == flat.tokens.max()
    assert trial.by_size is not None
    assert np.isfinite(trial.by_size[largest]).all()
    assert np.isnan(trial.by_size[~largest]).all()


def test_forms_are_skipped_with_the_reason(flat: RunTable) -> None:
    assert obstacle(get_form("chinchilla"), flat)[0] == "needs n_params"
    assert obstacle(get_form("paper"), flat.take(slice(0, 9)))[0] == "1 regimes; needs at least 6 that differ"
    few = flat.take([0, 1, 2, *range(9, 24)])
    assert obstacle(get_form("extended"), few)[0] == "6 regimes; needs at least 8 that differ"
    assert (
        obstacle(get_form("extended"), flat.take([*range(0, 30, 3), *range(1, 6)]))[0]
        == "15 runs for 9 parameters; needs 27"
    )
    skipped, warning = obstacle(get_form("paper"), few)
    assert skipped is None
    assert warning == (
        "6 regimes for 5 terms of composition, 7 would be safe; 18 runs for 7 parameters, 21 would be safe"
    )
    one_size = flat.take(flat.tokens == flat.tokens.max())
    assert "same D" in str(obstacle(get_form("d-only"), one_size)[0])
    two_sizes = flat.take(flat.tokens > flat.tokens.min())
    assert "2 sizes over 2.8x" in str(obstacle(get_form("d-only"), two_sizes)[1])
    alike = replace(flat, nll_mean=np.full(len(flat), 5.0))
    assert "same composition" in str(obstacle(get_form("quadratic"), alike)[0])
    with pytest.raises(UserError, match="No law can be fitted"):
        choose(flat, ["chinchilla"])


def test_one_standard_error_rule() -> None:
    regimes = np.repeat(np.arange(10), 3).astype(str)
    best = 0.01 + 0.002 * np.random.default_rng(0).random(30)
    near = best + np.where(np.arange(30) // 3 % 2, 0.004, -0.004) + 0.0002
    far = best + 0.008
    order = np.array([0, 1, 2])
    assert pick(np.stack([near, far, best]), regimes, order) == (2, 0)
    assert pick(np.stack([far, near, best]), regimes, order) == (2, 1)


def test_one_wild_regime_does_not_excuse_a_bad_form() -> None:
    regimes = np.arange(10).astype(str)
    best, wild = np.full(10, 0.02), np.full(10, 0.021)
    wild[0] = 30.0  # difference 3.0, standard error 3.0
    assert pick(np.stack([wild, best]), regimes, np.array([0, 1])) == (1, 1)


def test_paired_difference_counts_regimes_not_runs() -> None:
    difference = np.array([0.0, 0.0, 0.0, 0.3, 0.3, 0.3])
    mean, error = paired(difference, np.array(["a"] * 3 + ["b"] * 3))
    assert mean == pytest.approx(0.15)
    assert error == pytest.approx(np.std([0.0, 0.3], ddof=1) / np.sqrt(2))


def test_error_of_a_wild_prediction_is_capped(dirty: RunTable) -> None:
    trial = cross_validate(get_form("extended"), dirty)
    assert trial.errors(dirty.loss).max() <= 3 * 4.8


def test_one_regime_only_is_cross_validated_by_trunks(flat: RunTable) -> None:
    same = replace(flat, regime=np.full(len(flat), "mine"))
    trial = cross_validate(get_form("d-only:anchored"), same)
    assert trial.by_regime is not None
    assert np.abs(trial.by_regime - same.loss).max() < 0.05
    alone = replace(same, group=np.full(len(flat), "one"))
    assert choose(alone, ["constant", "d-only:anchored"]).chosen == "d-only:anchored"
