import numpy as np
import pytest

from pplscape.draw.auto import candidate, challenger, entry_for, loss_of, tell, utility_of
from pplscape.draw.options import Options, Target
from pplscape.errors import UserError
from pplscape.laws.forms.base import Frame
from pplscape.laws.law import Law

FRAME = Frame(unit=1000.0, base_loss=4.0, bin_share=(0.5, 0.5))
BINS = {"edges": [3.0], "share": [0.5, 0.5], "hash": "x"}
UTILITY = Law(
    "utility", None, "std", {"E": 2.0, "beta": 0.5, "tau": 0.7, "J": 0.0, "u_0": 1.0, "u_1": -2.0}, FRAME, bins=BINS
)
PAPER = Law(
    "paper:var", "ppl", "var", {"E": 2.0, "Dc": 5.0, "a0": 0.1, "a1": 0.0, "b0": 0.1, "b1": 0.0, "aD": 0.1}, FRAME,
    optimum={"kind": "interior", "mu": 20.0, "sigma": 5.0},
    region={"hull": np.log([[10, 9], [40, 9], [20, 100]]).tolist()}, winsor={"ppl": [2.0, 90.0], "nll": [0.7, 4.5]},
)  # fmt: skip
MONOTONE = Law("monotone", "nll", "std", {"E": 2.0, "Dc": 5.0, "a": 0.3, "aD": 0.1}, FRAME, region={"mean": [2.0, 4.0]})
SIZE_ONLY = Law("d-only", None, "std", {"E": 2.0, "A": 5.0, "alpha": 0.1}, FRAME)
NO_OPTIMUM = Law("quadratic", "nll", "std", {}, FRAME, optimum={"kind": "none"})


def test_each_form_has_its_strategy():
    assert [candidate(law) for law in (UTILITY, PAPER, MONOTONE, SIZE_ONLY, NO_OPTIMUM)] == [
        "allocate", "maxent", "maxent", None, None,
    ]  # fmt: skip


def test_the_gate_is_asked_about_the_best_law_of_composition():
    choice = [
        {"form": "monotone", "cv_mae": 0.03},
        {"form": "utility", "cv_mae": 0.02},
        {"form": "d-only", "cv_mae": 0.01},
    ]
    law = Law(**{**vars(SIZE_ONLY), "alternatives": [MONOTONE, UTILITY, NO_OPTIMUM], "choice": choice})
    assert challenger(law) is UTILITY
    assert challenger(PAPER) is PAPER
    assert challenger(SIZE_ONLY) is SIZE_ONLY


def test_entries_of_law_json():
    law = Law(**{**vars(SIZE_ONLY), "alternatives": [MONOTONE, PAPER, UTILITY]})
    assert entry_for("dos", law, None) is PAPER
    assert entry_for("maxent", law, None) is MONOTONE
    assert entry_for("maxent", law, "paper") is PAPER
    assert entry_for("allocate", law, None) is UTILITY
    with pytest.raises(UserError, match="needs a paper-family law with an optimum"):
        entry_for("dos", MONOTONE, None)
    with pytest.raises(UserError, match="needs a utility law"):
        entry_for("allocate", PAPER, None)


def test_what_the_strategies_are_told():
    told = tell("maxent", 1000, Options(), PAPER, None)
    assert told.scale == "ppl"
    assert told.target == Target(20.0, 5.0)
    assert told.limits == (2.0, 90.0)
    assert tell("maxent", 1000, Options(), MONOTONE, None).target == Target(4.0, None)
    utility = tell("allocate", 1000, Options(), UTILITY, None).utility
    assert utility.u.tolist() == [1, -2]
    assert (utility.phi, utility.shape, utility.unit) == ("saturating", 0.7, 1000.0)
    assert tell("random", 1000, Options(), UTILITY, None) == Options()
    mine = tell("dos", 1000, Options(scale="ppl", target=Target(30, 3)), PAPER, None)
    assert mine.target == Target(30, 3)
    assert mine.limits == (2.0, 90.0)
    with pytest.raises(UserError, match="pass --law"):
        tell("maxent", 1000, Options(), None, None)
    with pytest.raises(UserError, match="bin utilities"):
        utility_of(PAPER)


def test_predicted_loss_is_confined_to_the_pilots():
    loss = loss_of(PAPER, 1000)
    found = loss(np.array([20.0, 200.0]), np.array([5.0, 5.0]))
    assert found[0] == pytest.approx(2 + 5 * 20**-0.1 * 25**-0.1 * 1000**-0.1)
    assert found[1] == np.inf
