"""Warnings about tables that look wrong; silence about tables that are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import worlds

from pplscape.laws.suspect import suspicions
from pplscape.runs import RunTable

HALF = np.arange(36) % 2 == 0


@pytest.mark.parametrize("truth", ["flat", "utility"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_sound_tables_raise_no_suspicion(truth: str, noise: float) -> None:
    assert suspicions(worlds.table(truth, noise=noise)) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: replace(r, tokens=np.where(HALF, r.tokens / 1e9, r.tokens)), "in millions or billions"),
        (lambda r: replace(r, tokens=r.tokens / 1e6), "D must be in tokens"),
        (lambda r: replace(r, loss=np.exp(r.loss)), "all runs is above 13 nats/token"),
        (lambda r: replace(r, loss=np.where(HALF, np.exp(r.loss), r.loss)), "18 of 36 runs is above 13"),
        (lambda r: replace(r, loss=np.where(HALF, r.loss / np.log(2), r.loss)), "are they in bits"),
        (lambda r: replace(r, loss=np.where(np.arange(36) == 7, 0.4, r.loss)), "run 8 has a loss of 0.4, far below"),
        (lambda r: replace(r, base_loss=np.full(36, 2.0)), "36 of 36 runs have a loss above the base model's"),
        (lambda r: replace(r, base_loss=np.full(36, 120.0)), "base_loss is 120"),
        (lambda r: replace(r, nll_mean=r.ppl_mean), "nll_mean reaches"),
        (lambda r: replace(r, ppl_mean=np.log(r.ppl_mean) - 4.5), "perplexity is at least 1"),
        (lambda r: replace(r, ppl_mean=r.ppl_mean / 3), "do not belong together"),
        (lambda r: replace(r, bin_tokens=r.bin_tokens * 2), "bins of 36 runs do not sum to D"),
        (lambda r: replace(r, nll_mean=np.full(36, 5.0)), "nll_mean do not vary"),
    ],
)
def test_what_looks_wrong_is_said(spoil: Callable[[RunTable], RunTable], words: str) -> None:
    assert words in " ".join(suspicions(spoil(worlds.table("flat"))))


def test_mixed_perplexity_of_a_good_model_is_found() -> None:
    """Perplexities of 3 to 10 are possible losses one by one; beside their logarithms they are not."""
    runs = worlds.table("flat")
    loss = runs.loss - 1.5
    mixed = replace(runs, loss=np.where(HALF, np.exp(loss), loss), base_loss=None)
    assert "are they in perplexity" in " ".join(suspicions(mixed))
