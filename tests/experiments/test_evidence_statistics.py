"""The evidence statistics against scipy, closed forms and hand-made tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from evidence.analysis import Table, arms_table, compositions_text, failures_list, fill, summarise
from evidence.falsify import bowl_or_monotone, same_moments, verdicts
from evidence.predictions import judge
from evidence.statistics import document_interval, efficiency, efficiency_interval, holm, paired


def test_paired_is_scipys_t_interval_and_test() -> None:
    d = np.random.default_rng(0).normal(-0.02, 0.01, 8)
    found = paired(list(d))
    reference = stats.ttest_1samp(d, 0)
    interval = reference.confidence_interval(0.9)
    assert found.t == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(reference.pvalue)
    assert found.bca is not None
    assert found.bca[0] < found.mean < found.bca[1]
    assert np.ptp(found.bca) < np.ptp(found.t)  # eight normal values: the bootstrap knows no t tail


def test_two_pairs_have_no_interval() -> None:
    assert paired([0.1, 0.2]).t is None
    assert paired([0.0, 0.0, 0.0]).p is None  # the gate was shut: the same runs


def test_holm_by_hand() -> None:
    """Holm 1979: 4 p values, steps 4p1, 3p2, ... made monotone."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_efficiency_of_a_known_curve() -> None:
    """Random's loss is 4 - 0.3 ln(size): an arm 0.1 nats lower needs exp(1/3) times fewer tokens."""
    sizes = [0.5, 1, 2, 4]
    losses = [4 - 0.3 * np.log(s) for s in sizes]
    assert efficiency(3.9, sizes, losses).factor == pytest.approx(np.exp(1 / 3), rel=1e-6)
    assert efficiency(4.0, sizes, losses).factor == pytest.approx(1.0, rel=1e-6)
    beyond, short = efficiency(3.0, sizes, losses), efficiency(5.0, sizes, losses)
    assert (beyond.factor, beyond.censored) == (4.0, ">")
    assert (short.factor, short.censored) == (0.5, "<")


def test_efficiency_of_a_noisy_curve_is_monotone() -> None:
    sizes, losses = [0.5, 1, 2, 4], [4.2, 4.0, 4.02, 3.7]  # 1 and 2 pooled: 4.01
    factors = [efficiency(x, sizes, losses).factor for x in np.linspace(4.19, 3.71, 30)]
    assert np.all(np.diff(factors) > 0)


def test_efficiency_interval_shrinks_to_the_point_without_noise() -> None:
    curve = {s: [4 - 0.3 * np.log(s)] * 3 for s in (0.5, 1.0, 2.0)}
    assert efficiency_interval([3.95] * 4, curve, 50) == pytest.approx((np.exp(1 / 6),) * 2, rel=1e-6)


def test_document_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        tokens = rng.integers(100, 300, 80).astype(float)
        low, high = document_interval(tokens * rng.normal(-0.02, 0.05, 80), tokens, 400)
        inside += low < -0.02 < high
    assert 165 <= inside <= 195


def rows(method: str, losses: list[float], size: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "cell": f"primary/pool-30/{method}/{s}", "experiment": "primary", "pool": "pool-30", "method": method,
            "seed": s, "size": size, "status": "ok", "reason": None, "tokens": 1000 * size, "loss_test": loss,
            "loss_valid": loss + 0.1, "loss_general": 4.0, "bits_per_byte_test": loss / 2, "share_clean": 0.7,
            "nll_test": [loss * 60.0, loss * 40.0], **more,
        }
        for s, loss in enumerate(losses)
    ]  # fmt: skip


def test_summary_of_a_table_made_by_hand(tmp_path: Path) -> None:
    table = Table(
        [
            *rows("base", [5.0]),
            *rows("random", [4.00, 4.02, 4.01]),
            *rows("random", [4.2, 4.2, 4.2], 0.5),
            *rows("random", [3.8, 3.8, 3.8], 2.0),
            *rows("oracle", [3.90, 3.93, 3.90]),
            *rows("mid", [3.97, 3.98, 3.98]),
            *rows("low", [4.3, 4.3, 4.31]),
            {**rows("paper+dos", [0.0])[0], "status": "failed", "reason": "no optimum"},
        ],
        "pool-30",
        [60, 40],
    )
    found = summarise(table)
    assert found["best_simple"] == "mid"
    assert found["arms"]["mid"]["random"]["mean"] == pytest.approx(-0.1 / 3)
    assert found["arms"]["mid"]["share_of_oracle"] == pytest.approx(1 / 3)
    assert set(found["arms"]) == {"random", "oracle", "mid", "low"}
    assert "holm" not in found["arms"]["oracle"]["random"]
    assert found["arms"]["low"]["random"]["holm"] == pytest.approx(2 * found["arms"]["low"]["random"]["p"])
    assert 1.0 < found["arms"]["mid"]["efficiency"]["factor"] < found["arms"]["oracle"]["efficiency"]["factor"] < 2.0
    assert found["arms"]["mid"]["documents"] == pytest.approx((-0.1 / 3, -0.1 / 3))
    assert "no optimum" in failures_list(found)
    assert arms_table(found).splitlines()[2].startswith("| oracle | 3 | 3.9100 |")


def test_regret_is_what_is_missing_of_the_best_composition() -> None:
    """Random 4.00 and 4.02 (seed noise 0.014); two compositions gain 0.1 and 0.06, an arm 0.05: half is missing."""
    mixed = [*rows("composition:0", [3.90]), *rows("composition:1", [3.94])]
    mixed = [r | {"experiment": "compositions"} for r in mixed]
    arms = [*rows("random", [4.00, 4.02]), *rows("mid", [3.95, 3.97])]
    found = summarise(Table([*arms, *mixed], "pool-30"))
    assert found["compositions"]["best"] == "composition:0"
    assert found["compositions"]["gain"] == pytest.approx(0.1)
    assert found["arms"]["mid"]["regret"] == pytest.approx(0.5)
    assert "| mid | +50% |" in compositions_text(found)
    noisy = summarise(Table([*rows("random", [4.00, 4.20]), *rows("mid", [3.95, 3.97]), *mixed], "pool-30"))
    assert noisy["arms"]["mid"]["regret"] is None
    assert "no regrets" in compositions_text(noisy)


def test_the_best_composition_is_chosen_on_valid() -> None:
    """So that its test loss is not the luckiest of 64."""
    mixed = [r | {"experiment": "compositions"} for r in rows("composition:0", [3.90])]
    lucky = [r | {"experiment": "compositions", "loss_valid": 5.0} for r in rows("composition:1", [3.80])]
    found = summarise(Table([*rows("random", [4.00, 4.02]), *mixed, *lucky], "pool-30"))["compositions"]
    assert (found["best"], found["largest_on_test"]) == ("composition:0", pytest.approx(0.2))


def test_shapes_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    shift = {"shape:box": 0.0, "shape:maxent": 0.0, "shape:two-point": 0.05}
    runs = [
        {"method": m, "seed": s, "loss_test": 4 + d + rng.normal(0, 0.002), "nll_mean": 4.2, "nll_std": 0.3}
        for m, d in shift.items()
        for s in range(5)
    ]
    found = same_moments(runs)
    assert found["moments"]["box"] == (4.2, 0.3)
    assert found["pairs"]["box − two-point"]["mean"] == pytest.approx(-0.05, abs=0.005)
    assert found["pairs"]["box − two-point"]["holm"] < 0.05 < found["pairs"]["box − maxent"]["holm"]
    assert "two moments are not enough" in verdicts({"F1": found})["F1"]


@pytest.mark.parametrize(("curve", "better"), [(0.0, "monotone"), (0.2, "bowl")])
def test_a_bowl_and_a_slope_are_told_apart(curve: float, better: str) -> None:
    rng = np.random.default_rng(1)
    mean = np.repeat(np.linspace(3.6, 4.8, 7), 3)
    loss = 4 + 0.1 * (mean - 4.2) + curve * (mean - 4.2) ** 2 + rng.normal(0, 0.003, len(mean))
    runs = [
        {"method": f"tilt:{m:.1f}", "nll_mean": m, "loss_test": x} for m, x in zip(mean, loss, strict=True)
    ]  # fmt: skip
    found = bowl_or_monotone(runs)
    assert min(found["errors"], key=lambda k: found["errors"][k]) == better
    assert found["inside"] == (better == "bowl")


def test_laws_are_judged_by_arm_not_by_run() -> None:
    """Two arms, one with three seeds: errors 0.1 and 0.3, gain 1."""
    made = [("random", 4.0, 4.1)] * 3 + [("mid", 4.0, 3.7)]
    runs = [
        {
            "form": "paper", "method": m, "size": 1.0, "base_loss": 5.0, "loss_valid": loss, "predicted": p,
            "low": p - 0.2, "high": p + 0.2, "chosen": True,
        }
        for m, loss, p in made
    ]  # fmt: skip
    (found,) = judge(runs).values()
    assert found["mae"] == pytest.approx(0.2)
    assert found["mae_over_gain"] == pytest.approx(0.2)
    assert found["coverage"] == pytest.approx(0.5)
    assert found["bias"] == pytest.approx(-0.1)


def test_fill_replaces_between_markers_only() -> None:
    page = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert fill(page, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    assert fill(page, "y", "new") == page
