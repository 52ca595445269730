"""Paired intervals against closed forms, and the verdict's words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pplscape.paired import compare_arms, document_difference, paired_difference


def test_t_interval_equals_scipys() -> None:
    values = [-0.02, -0.05, -0.03, -0.01]
    found = paired_difference(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_documents_are_resampled_in_pairs() -> None:
    """Against the delta method for a ratio of sums; what documents have in common before and after drops out."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 400, 300).astype(float)
    before = tokens * rng.normal(4, 1, 300)
    change = rng.normal(0.05, 0.2, 300)
    found = document_difference(before, before + tokens * change, tokens)
    mean = (tokens * change).sum() / tokens.sum()
    error = np.sqrt(np.sum((tokens * (change - mean)) ** 2)) / tokens.sum()
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.645 * error, abs=0.15 * error)
    assert found.high == pytest.approx(mean + 1.645 * error, abs=0.15 * error)
    same = document_difference(before, before + 0.1 * tokens, tokens)
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))
    assert document_difference(before[:1], before[:1] + 1, tokens[:1]).low is None


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
    assert allocate["difference_general"]["mean"] == pytest.approx(-0.099)
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
