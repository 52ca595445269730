"""summary.md of a selection: its numbers are those of selection.json, and corpus text stays text."""

from __future__ import annotations

import copy
import re
from typing import Any

from pplscape.reporting.selection_summary import summary

LOSS = {"loss": 3.5, "low": 3.4, "high": 3.6}
FACTS: dict[str, Any] = {
    "strategy": "auto", "used": "allocate", "unit": "chunk", "budget": 1000, "tokens": 990, "unique_tokens": 900,
    "n_chunks": 11, "pool_tokens": 5000, "pool_chunks": 60, "target": None,
    "achieved": {"nll": {"mean": 4.25, "std": 0.5}, "ppl": {"mean": 80.0, "std": 9.0}},
    "pool_moments": {"nll": {"mean": 5.0, "std": 1.0}, "ppl": {"mean": 150.0, "std": 90.0}},
    "bins": {"edges": [4.0, 6.0], "share": [0.4, 0.4, 0.2], "hash": "x"}, "bin_tokens": [290, 700, 0],
    "unique_bin_tokens": [200, 700, 0],
    "pool_bin_tokens": [200, 3800, 1000], "source_tokens": {"a_b": 990, "<web>": 0},
    "pool_source_tokens": {"a_b": 4000, "<web>": 1000}, "kl_to_pool": 0.321,
    "draw": {"duality_gap": 1.5e-12}, "law": {"form": "utility", "scale": "nll", "chosen": "utility"},
    "predicted": {
        "selection": LOSS, "random": {"loss": 3.7, "low": 3.6, "high": 3.8}, "level": 0.9,
        "gain": {"mean": 0.2, "law": 0.25, "low": 0.05, "high": 0.3},
        "efficiency": {"factor": 2.5, "low": 1.5, "high": 8.0, "censored": None},
    },
    "gate": {"passes": True, "p10": 0.1, "resamples": 200, "reason": "99% of 200 resamples."},
    "budget_curve": [{"tokens": 500, "selection": LOSS, "random": {"loss": 3.9, "low": 3.8, "high": 4.0}}],
    "budget_curve_of": "allocate", "warnings": ["Look out."],
    "samples": [
        {"doc_id": "d", "chunk_index": 2, "source": "a_b", "nll": 3.9, "bin": 0, "taken": True,
         "text": "# Head <script>alert(1)</script> | a*b* `x` [l](http://e.org) &lt; \x07"},
        {"doc_id": "e", "chunk_index": 0, "source": "<web>", "nll": 6.5, "bin": 2, "taken": False,
         "text": "word " * 99},
    ],
}  # fmt: skip


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [c.strip() for c in re.split(r"(?<!\\)\|", line)[2:-1]]


def test_the_numbers_of_selection_json() -> None:
    text = summary(FACTS)
    assert "990 tokens of a budget of 1.00\N{NO-BREAK SPACE}k tokens (10 short)" in text
    assert "90 tokens are repeats" in text
    assert row(text, "1: below 4.00")[:3] == ["200", "290", "0"]
    assert row(text, "2: 4.00 to 6.00")[:3] == ["3,800", "700", "3,100"]
    assert row(text, "3: from 6.00") == ["1,000", "0", "1,000", "20.0\N{NO-BREAK SPACE}%", "0.0\N{NO-BREAK SPACE}%"]
    assert row(text, r"a\_b")[:3] == ["4,000", "990", "–"]
    once = summary({**FACTS, "tokens": 900})
    assert row(once, r"\<web\>")[:3] == ["1,000", "0", "1,000"]
    assert row(text, "KL to the pool, nats") == ["0", "0.321"]
    assert row(text, "gain over random") == ["+0.2000 [+0.0500, +0.3000] nats/token"]
    assert row(text, "tokens random needs for the same loss") == ["2.50 [1.50, 8.00] times"]
    assert row(text, "500") == ["3.5000 [3.4000, 3.6000]", "3.9000 [3.8000, 4.0000]", "+0.4000"]
    assert "> **Warning.** Look out." in text
    assert "Losses by the law utility." in text
    assert "duality gap of 1.5e-12" in text
    assert "Gate passed: 99% of 200 resamples." in text


def test_a_gain_inside_the_noise_is_warned_of() -> None:
    assert "inside the noise" not in summary(FACTS)
    facts = copy.deepcopy(FACTS)
    facts["predicted"]["gain"]["low"] = -0.01
    assert "> **Warning.** The gain is inside the noise" in summary(facts)


def test_a_law_without_tokens_has_no_row_of_them() -> None:
    facts = copy.deepcopy(FACTS)
    facts["predicted"]["efficiency"] = None
    assert "tokens random needs" not in summary(facts)
    assert row(summary(facts), "gain over random")


def test_both_laws_are_named_where_two_speak() -> None:
    text = summary({**FACTS, "law": {"form": "paper", "scale": "ppl", "chosen": "gp"}})
    assert "Losses by the law gp; paper decided what to take." in text


def test_text_of_a_corpus_is_neither_markdown_nor_html() -> None:
    text = summary(FACTS)
    assert "<script>" not in text
    assert r"\# Head \<script\>alert(1)\</script\> \| a\*b\* \`x\` \[l\](http://e.org) &amp;lt; �" in text
    assert "**Bin 1, taken**" in text
    assert "**Bin 3, left**" in text
    assert len(text.split("6.50 nats/token")[1].splitlines()[0]) < 330
    assert r"\<web\>" in text


def test_without_a_law() -> None:
    text = summary({**FACTS, "law": None, "predicted": None, "gate": None, "budget_curve": None, "samples": []})
    assert "law expects" not in text
    assert "Samples" not in text
    assert "other budgets" not in text
