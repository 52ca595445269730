"""The choice between composition and D alone, redone: who wins, and what is predicted then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.laws.again import composition_wins, losses_again, without_preference
from pplscape.laws.build import build
from pplscape.laws.choose import Trial, cross_validate
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import get_form
from pplscape.laws.forms.utility import Alike
from pplscape.laws.law import Law
from pplscape.runs import Compositions, RunTable


@pytest.fixture(scope="module")
def flat() -> RunTable:
    return worlds.table("flat", trunks=10)


@pytest.fixture(scope="module")
def dirty() -> RunTable:
    return worlds.table("utility", trunks=10)


def entries(runs: RunTable) -> tuple[Law, Trial]:
    law, _ = build(runs, ["utility"], bootstrap=15)
    null = without_preference(law, runs)
    assert null is not None
    return law, null


def test_composition_wins_where_it_matters(dirty: RunTable, flat: RunTable) -> None:
    assert composition_wins(*entries(dirty), dirty, 200, seed=1).mean() > 0.95
    assert composition_wins(*entries(flat), flat, 200, seed=1).mean() < 0.8


def test_losses_are_refits_of_the_law_where_it_wins(dirty: RunTable) -> None:
    law, null = entries(dirty)
    at: Compositions = dirty.take([2, 20])
    found = losses_again(law, dirty, at, 40, seed=3)
    wins = composition_wins(law, null, dirty, 40, seed=3)
    refits = np.exp(law.draw_log_losses(at))[np.arange(40) % 15]
    np.testing.assert_allclose(found[wins], refits[wins])
    assert 0 < wins.sum() <= 40


def test_elsewhere_no_text_is_better(flat: RunTable) -> None:
    law, null = entries(flat)
    at: Compositions = flat.take([2, 20])
    found, wins = losses_again(law, flat, at, 60, seed=3), composition_wins(law, null, flat, 60, seed=3)
    assert null.fit is not None
    assert (~wins).sum() > 12
    np.testing.assert_allclose(found[~wins], np.broadcast_to(np.exp(null.fit.log_loss(at)), found[~wins].shape))


@pytest.mark.parametrize("variant", ["saturating", "power"])
def test_without_preference_nothing_is_better_than_random(dirty: RunTable, variant: str) -> None:
    """Not by a millionth: a residue of preferences, of 1e-8 nats, let the gate pass in flat worlds."""
    fit = fit_form(Alike(variant), dirty)
    assert dirty.bin_share is not None
    share = np.asarray(dirty.bin_share)
    near = share * (1 + 1e-3 * np.random.default_rng(0).normal(size=(50, len(share))))
    bins = 5e5 * np.concatenate([share[None], near / near.sum(1, keepdims=True)])
    loss = fit.log_loss(Compositions(tokens=np.full(51, 5e5), bin_tokens=bins))
    assert (loss[1:] >= loss[0] - 1e-15).all()


def test_explosions_are_not_predictions(dirty: RunTable) -> None:
    law, _ = entries(dirty)
    params = np.asarray(law.resamples["params"], float)
    params[:5, list(law.params).index("E")] = 50.0
    law.resamples["params"] = params.tolist()
    found = losses_again(law, dirty, dirty.take([2]), 15, seed=0)
    assert np.isnan(found[:5]).all()
    assert np.isfinite(found[5:]).all()


def test_a_law_that_cannot_be_judged_never_wins(dirty: RunTable) -> None:
    law, null = entries(dirty)
    few = dirty.take(slice(0, 4))
    assert not composition_wins(law, null, few, 10, seed=0).any()


def test_falling_returns_are_no_preference() -> None:
    """A utility law with falling returns fits such pilots better than D alone can, and yet no bin is better."""
    runs = worlds.table("utility", trunks=12)
    assert runs.bin_tokens is not None
    z = runs.bin_tokens / (runs.bin_share * 512_000.0)
    rng = np.random.default_rng(0)
    loss = 2.0 + 2.8 * (1 + 6 * (z**0.6 @ runs.bin_share)) ** -0.3 * np.exp(rng.normal(0, 0.002, len(runs)))
    law, _ = build(replace(runs, loss=loss), ["utility:power"], bootstrap=5)
    null = without_preference(law, replace(runs, loss=loss))
    assert null is not None
    assert null.form.name == "alike"
    alone = cross_validate(get_form("d-only:anchored"), replace(runs, loss=loss))
    assert composition_wins(law, alone, replace(runs, loss=loss), 200, seed=0).mean() > 0.9
    assert composition_wins(law, null, replace(runs, loss=loss), 200, seed=0).mean() < 0.9
