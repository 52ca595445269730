import numpy as np

from pplscape.draw.gate import judge, random_seeds
from pplscape.runs import RunTable


def test_percentile_decides():
    gains = np.linspace(-0.1, 0.9, 101)  # the 10th percentile is exactly 0
    assert not judge(gains, 3).passes
    assert judge(gains + 1e-6, 3).passes
    assert judge(gains + 0.1, 3).p10 == np.float64(0.1)


def test_unpredictable_resamples_count_as_no_gain():
    gains = np.full(100, 0.2)
    gains[:9] = np.nan
    assert judge(gains, 3).passes
    gains[:12] = np.inf
    assert not judge(gains, 3).passes


def test_three_random_seeds_or_no_verdict():
    gains = np.full(100, 0.2)
    assert not judge(gains, 2).passes
    assert "2 random-regime seeds" in judge(gains, 2).reason
    assert not judge(None, 3).passes
    assert "--runs" in judge(None, 0).reason


def test_counts_trunks_of_the_random_regime():
    runs = RunTable(
        tokens=np.ones(6),
        regime=np.array(["random", "random", "random", "tilt-0", "random", "mixture-1"]),
        group=np.array(["random-0", "random-0", "random-1", "tilt-0-0", "random-2", "x"]),
    )
    assert random_seeds(runs) == 3
    assert random_seeds(RunTable(tokens=np.ones(2))) == 0
