import numpy as np
import pytest

from pplscape.draw.outlook import Oracle, budgets, crossing, look
from pplscape.runs import Compositions


def power(asked):
    """L = 3 + (D q)^-0.5 with quality q = nll_mean: a selection of quality q is worth q times the tokens."""
    return 3 + (asked.tokens * asked.nll_mean) ** -0.5


def at(tokens, quality=1.0):
    return Compositions(tokens=np.array([float(tokens)]), nll_mean=np.array([quality]))


def test_efficiency_is_the_quality_and_gains_are_paired():
    noise = np.linspace(-0.3, 0.3, 41)[:, None]

    def resampled(asked):
        return power(asked)[None] + noise  # shared by all compositions: gains are certain

    oracle = Oracle(power, lambda a: (power(a) - 0.1, power(a) + 0.1), resampled, seeds=3)
    view = look(oracle, at(1000, 2.0), 1000, at(10_000), [(at(500, 2.0), 500), (at(2000, 2.0), 2000)])
    gain = 1000**-0.5 - 2000**-0.5
    assert view.predicted["efficiency"]["factor"] == pytest.approx(2.0, rel=2e-3)
    assert view.predicted["efficiency"]["low"] == pytest.approx(2.0, rel=2e-3)
    assert view.predicted["efficiency"]["censored"] is None
    assert view.predicted["gain"] == pytest.approx({"mean": gain, "law": gain, "low": gain, "high": gain})
    assert view.gate.passes
    assert [p["tokens"] for p in view.curve] == [500, 2000]
    assert view.curve[0]["selection"]["loss"] == pytest.approx(3 + 1000**-0.5)
    assert view.curve[0]["random"]["loss"] == pytest.approx(3 + 500**-0.5)
    assert view.predicted["selection"]["low"] == pytest.approx(view.predicted["selection"]["loss"] - 0.1)


def test_losses_are_the_chosen_laws_and_gains_are_not():
    """The chosen law sees no composition, another decided the selection: the level is the former's."""

    def size_only(asked):
        return 3.5 + asked.tokens**-0.5

    def resampled(asked):
        return power(asked)[None] * np.ones((5, 1))

    near = (lambda a: (size_only(a) - 0.1, size_only(a) + 0.1), None, 3, "d-only", power, "utility")
    gain = 1000**-0.5 - 2000**-0.5
    for draws in (None, resampled):
        oracle = Oracle(size_only, near[0], draws, *near[2:])
        view = look(oracle, at(1000, 2.0), 1000, at(10_000), [(at(500, 2.0), 500)])
        for key in ("selection", "random"):
            assert view.predicted[key]["loss"] == pytest.approx(3.5 + 1000**-0.5)
        assert view.predicted["gain"]["mean"] == pytest.approx(gain)
        assert view.predicted["efficiency"]["factor"] == pytest.approx(2.0, rel=2e-3)
        assert (view.predicted["form"], view.predicted["decider"]) == ("d-only", "utility")
        assert view.curve[0]["random"]["loss"] == view.curve[0]["selection"]["loss"]
        assert view.curve[0]["gain"]["mean"] == pytest.approx(500**-0.5 - 1000**-0.5)


def test_a_law_without_tokens_saves_none_and_wastes_none():
    """By the constant law random has the same loss at every size, which no factor of tokens reaches or misses."""

    def constant(asked):
        return np.full(len(asked), 3.5)

    oracle = Oracle(constant, lambda a: (constant(a) - 0.1, constant(a) + 0.1), None, 3, "constant", power, "utility")
    view = look(oracle, at(1000, 2.0), 1000, at(10_000), [])
    assert view.predicted["efficiency"] is None
    assert view.predicted["gain"]["mean"] == pytest.approx(1000**-0.5 - 2000**-0.5)


def test_without_pilots_there_is_a_prediction_but_no_verdict():
    nothing = np.full
    oracle = Oracle(power, lambda a: (nothing(len(a), np.nan), nothing(len(a), np.nan)), None, seeds=0)
    view = look(oracle, at(1000, 100.0), 1000, at(10_000), [])
    assert not view.gate.passes
    assert view.predicted["gain"]["low"] is None
    assert view.predicted["selection"]["low"] is None
    assert view.predicted["efficiency"]["censored"] == "above"


def test_crossing():
    factors, loss = np.array([0.5, 1, 2, 4]), np.array([3.0, 2, 1, 1])
    assert crossing(factors, loss, 1.5) == pytest.approx(2**0.5)
    assert crossing(factors, loss, 2.0) == 1
    assert crossing(factors, loss, 0.5) == 4
    assert crossing(factors, loss, 9.0) == 0.5


def test_budgets_span_an_eighth_to_twice_and_stay_in_the_pool():
    assert len(budgets(1000, 10_000)) >= 8
    assert budgets(1000, 10_000)[0] == 125
    assert budgets(1000, 10_000)[-1] == 2000
    assert max(budgets(1000, 1500)) == 1500
    assert 1 in budgets(3, 100)
