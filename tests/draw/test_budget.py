import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplscape.draw.budget import fill, parse_budget
from pplscape.errors import UserError


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("2e6", 2_000_000), ("2M", 2_000_000), ("1.5k", 1500), ("2_000", 2000), ("3B", 3 * 10**9), ("10%", 100),
     ("29 %", 290), (500, 500), (2.5e3, 2500), ("100%", 1000), (" 7 tokens", 7), ("0.1t", 10**11)],
)  # fmt: skip
def test_reads(text, tokens):
    assert parse_budget(text, 1000) == tokens


@pytest.mark.parametrize("text", ["", "many", "-5", "2X", "nan", "inf", "1e400", "0", "0%", "1.2.3", "10%%"])
def test_refuses(text):
    with pytest.raises(UserError, match="budget"):
        parse_budget(text, 1000)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(0, 400))
def test_fill_is_exact(lengths, budget):
    length = np.asarray(lengths)
    order = np.random.default_rng(0).permutation(len(length))
    rows = fill(order, length, budget)
    left = budget - length[rows].sum()
    assert left >= 0
    assert len(set(rows.tolist())) == len(rows)
    rest = np.setdiff1d(order, rows)
    assert not len(rest) or left < length[rest].min()
    prefix = np.searchsorted(np.cumsum(length[order]), budget, side="right")
    assert rows[:prefix].tolist() == order[:prefix].tolist()
