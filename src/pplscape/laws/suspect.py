"""What looks wrong in a table of runs: mixed units, wrong scales, losses that no law can reach. Warnings, no errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.forms.base import Floats
from pplscape.laws.table import size_classes
from pplscape.runs import RunTable

MOST_NATS = 13.0
"""ln of a vocabulary of 440,000: an untrained model guesses at most this badly."""
NATS_A_BIT = float(np.log(2))
FEWEST_TOKENS = 1e4
"""Training runs smaller than this are rather given in millions or billions of tokens."""
SIZE_JUMP = 1e4
"""Neighbouring sizes this far apart: one of them is in other units."""
LONE_GAP = 0.25
"""A loss this far below the next one of its size, in ln L, and below all others, is no seed noise."""


def suspicions(runs: RunTable) -> list[str]:
    """Sentences for a table of runs; none if nothing looks wrong."""
    found = [_sizes(runs), _loss_scale(runs), _two_units(runs), _lone(runs), _base(runs), _moments(runs), _bins(runs)]
    return [sentence for sentence in found if sentence] + _alike(runs)


def _sizes(runs: RunTable) -> str | None:
    sizes = np.sort(runs.tokens)
    jump = sizes[1:] / sizes[:-1]
    if (jump > SIZE_JUMP).any():
        at = int(jump.argmax())
        return (
            f"D jumps from {sizes[at]:g} to {sizes[at + 1]:g}: are some runs in millions or billions of tokens? "
            "D must be in tokens throughout."
        )
    if sizes[-1] < FEWEST_TOKENS:
        return f"The largest D is {sizes[-1]:g}: D must be in tokens; is it in millions or billions?"
    return None


def _loss_scale(runs: RunTable) -> str | None:
    high = int((runs.loss > MOST_NATS).sum())
    if not high:
        return None
    which = "all runs" if high == len(runs) else f"{high} of {len(runs)} runs"
    return (
        f"The loss of {which} is above {MOST_NATS:g} nats/token, more than guessing costs: is it perplexity? "
        "Its natural logarithm is the loss."
    )


def _two_units(runs: RunTable) -> str | None:
    """Losses that fall into two groups a factor 1/ln 2 (bits), or an exponential (perplexity), apart."""
    parts = _two_groups(runs)
    if parts is None:
        return None
    low, high = (float(np.median(runs.loss[rows])) for rows in parts)
    for unit, factor in (("bits", 1 / NATS_A_BIT), ("perplexity", np.exp(low) / low)):
        if abs(np.log(high / low / factor)) < 0.1:
            return (
                f"{int(parts[1].sum())} of {len(runs)} runs have losses about {high / low:.2f} times those of the "
                f"others at like D: are they in {unit}? All losses must be in nats/token."
            )
    return None


def _two_groups(runs: RunTable) -> Sequence[NDArray[np.bool_]] | None:
    """(lower, upper) runs if ln L, what D explains aside, falls into two groups far apart for their width."""
    sizes = size_classes(runs.tokens)
    left = np.log(runs.loss)
    for size in set(sizes.tolist()):
        rows = sizes == size
        if rows.sum() < 3:
            return None
        left = left - np.where(rows, np.log(runs.loss)[rows].min(), 0.0)
    order = np.sort(left)
    at = int(np.diff(order).argmax())
    upper = left > order[at]
    if min(upper.sum(), (~upper).sum()) < 2:
        return None
    widths = [float(np.ptp(left[rows])) for rows in (upper, ~upper)]
    if order[at + 1] - order[at] < max(0.2, 2 * max(widths)):
        return None
    return ~upper, upper


def _lone(runs: RunTable) -> str | None:
    """A loss so low that it alone would decide the irreducible loss, which lies below every measured loss."""
    order = np.argsort(runs.loss)
    lowest, following = runs.loss[order[:2]]
    if np.log(following / lowest) < LONE_GAP:
        return None
    name = (runs.meta.get("run_id") or [f"run {i + 1}" for i in range(len(runs))])[order[0]]
    return (
        f"{name} has a loss of {lowest:.4g}, far below every other ({following:.4g} and more): the irreducible loss E "
        "cannot exceed it. Is it the same text, model and unit?"
    )


def _base(runs: RunTable) -> str | None:
    if runs.base_loss is None:
        return None
    base = float(np.nanmedian(runs.base_loss))
    if base > MOST_NATS:
        return f"base_loss is {base:.4g}, more nats/token than guessing costs: is it perplexity?"
    worse = int((runs.loss > base).sum())
    if not worse:
        return None
    return (
        f"{worse} of {len(runs)} runs have a loss above the base model's ({base:.4g}): training made it worse, or L0 "
        "is of other text or another unit."
    )


def _moments(runs: RunTable) -> str | None:
    if runs.nll_mean is not None and (runs.nll_mean > MOST_NATS).any():
        return f"nll_mean reaches {runs.nll_mean.max():.4g}: log-perplexity is in nats/token; is this perplexity?"
    if runs.ppl_mean is not None and (runs.ppl_mean < 1).any():
        return f"ppl_mean falls to {runs.ppl_mean.min():.4g}: perplexity is at least 1; is this log-perplexity?"
    if runs.nll_mean is not None and runs.ppl_mean is not None:
        low = int((np.log(runs.ppl_mean) < runs.nll_mean - 0.05).sum())
        if low:
            return (
                f"{low} runs have a mean perplexity below exp(nll_mean), which the mean of exponentials cannot be: "
                "ppl and nll columns do not belong together, or winsor limits differ widely."
            )
    return None


def _bins(runs: RunTable) -> str | None:
    if runs.bin_tokens is None:
        return None
    ratio = runs.bin_tokens.sum(1) / runs.tokens
    off = int((np.abs(ratio - 1) > 0.05).sum())
    if not off:
        return None
    return f"The bins of {off} runs do not sum to D (they are {ratio.min():.3g} to {ratio.max():.3g} of it)."


def _alike(runs: RunTable) -> list[str]:
    """Columns of composition that do not vary."""
    columns: dict[str, Floats | None] = {"nll_mean": runs.nll_mean, "ppl_mean": runs.ppl_mean}
    if runs.bin_tokens is not None:
        columns["bin_tokens"] = runs.bin_tokens / np.maximum(runs.bin_tokens.sum(1, keepdims=True), 1e-300)
    same = [k for k, v in columns.items() if v is not None and np.ptp(v, axis=0).max() <= 1e-6 * np.abs(v).max()]
    if not same:
        return []
    return [
        f"All runs have the same composition ({', '.join(same)} do not vary): they can only tell what D does; add "
        "pilots of other mean and spread."
    ]
