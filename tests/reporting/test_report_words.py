"""Numbers as people read them."""

import pytest

from pplscape.reporting import words
from pplscape.reporting.words import GLUE


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456, "1.235"),
        (-0.0324, "−0.032"),
        (-0.0001, "0.000"),
        (12345.6, "12,345.600"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_number(value, text):
    assert words.number(value) == text


def test_number_with_sign():
    assert words.number(0.5, 2, sign=True) == "+0.50"
    assert words.number(-0.5, 2, sign=True) == "−0.50"
    assert words.number(0.0, 2, sign=True) == "0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (123.4, "123"), (1.5, "1.50"), (98765, "98,765"), (0, "0"), (-2.0, "−2.00")],
)
def test_significant(value, text):
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950 tokens"), (128_000, "128_k tokens"), (999_900, "1.00_M tokens"), (2.5e9, "2.50_B tokens"), (None, "–")],
)
def test_tokens(value, text):
    assert words.tokens(value) == text.replace("_", GLUE)


@pytest.mark.parametrize(
    ("value", "text"), [(0.2, "under 1 s"), (12, "12_s"), (600, "10_min"), (7200, "2.0_h"), (3 * 86400, "3.0_days")]
)
def test_seconds(value, text):
    assert words.seconds(value) == text.replace("_", GLUE)


def test_listed():
    assert words.listed([]) == "nothing"
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcdef"), 3) == "a, b, c and 3 more"


def test_interval_needs_both_ends():
    assert words.with_interval({"mean": 0.1, "low": None, "high": None}) == "0.100"
    assert words.with_interval({"mean": 0.1, "low": 0.05, "high": 0.2}) == "0.100 [0.050, 0.200]"
    assert words.with_interval(None) == "–"


def test_visible_replaces_what_html_forbids():
    assert words.visible("a\x00b\x1b\n\tc\udcff") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}\n\tc?"
