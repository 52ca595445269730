"""Paired intervals against closed forms, and the verdict's words."""

from __future__ import annotations

import pytest
from scipy import stats

from pplscape.paired import compare_arms, paired_difference


def test_t_interval_equals_scipys() -> None:
    values = [-0.02, -0.05, -0.03, -0.01]
    found = paired_difference(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))


def _arm(strategy: str, seed: int, loss: float) -> dict[str, object]:
    return {
        "strategy": strategy,
        "seed": seed,
        "tokens": 100,
        "loss": loss,
        "bits_per_byte": loss / 3,
        "loss_valid": loss,
        "loss_general": 2 + loss,
    }


def test_arms_are_paired_by_seed() -> None:
    arms = [_arm("base", 0, 5.0)]
    arms += [_arm("random", s, 4.0 + 0.1 * s) for s in range(3)]
    arms += [_arm("allocate", s, 3.9 + 0.1 * s + 0.001 * s) for s in (2, 0, 1)]
    found = compare_arms(arms)
    allocate = found["strategies"][1]
    assert allocate["difference"]["mean"] == pytest.approx(-0.099)
    assert allocate["change_general"]["mean"] == pytest.approx(-0.999)
    assert found["verdict"]["light"] == "worth it"
    assert found["strategies"][0]["difference"] is None


@pytest.mark.parametrize(
    ("shift", "light", "words"),
    [
        ((0.1, 0.1, 0.11), "inside the noise", "worse than random"),
        ((0.1, -0.1, 0.0), "inside the noise", "cannot be told"),
    ],
)
def test_verdicts(shift: tuple[float, ...], light: str, words: str) -> None:
    arms = [_arm("random", s, 4.0) for s in range(3)] + [_arm("low", s, 4.0 + d) for s, d in enumerate(shift)]
    found = compare_arms(arms)["verdict"]
    assert found["light"] == light
    assert words in found["sentence"]


def test_one_pair_is_not_enough() -> None:
    assert compare_arms([_arm("random", 0, 4.0), _arm("low", 0, 3.0)])["verdict"]["light"] == "not enough pilots"
