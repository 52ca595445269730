"""Runs that no law here can follow: their text did harm first, and more of the same text mended it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pplscape.laws.table import labels, rows_of, seed_noise
from pplscape.runs import RunTable

REASON = "above the base model's loss, below which its trunk falls with more tokens: no law rises first"

NOISES, USUAL = 3.0, 0.003
"""So many times the relative seed noise, and the noise where no regime is repeated."""


def without_first_damage(runs: RunTable) -> tuple[RunTable, list[dict[str, Any]]]:
    """(the runs without those above the base's loss whose trunk falls below it with more tokens, the runs left out).

    The first steps on text very unlike what the base knows do harm. Laws fall from L0, or rise from it where utilities
    are negative, but do not do both: the misfit of one such trunk would be taken for noise everywhere (of a pool with
    60 % dirt three times the noise, and so a stronger hedge and more dirt). A trunk that stays above L0 stays whole:
    that is harm that a utility can say. So does what is above it by less than NOISES times the seed noise: leaving out
    unlucky runs alone would flatter.
    """
    if runs.base_loss is None:
        return runs, []
    groups, above = labels(runs, "group"), np.log(runs.loss / runs.base_loss) > NOISES * (seed_noise(runs) or USUAL)
    mended = {g: runs.tokens[(groups == g) & ~above].max(initial=0.0) for g in set(groups[above].tolist())}
    harmed = above & np.array([n < mended.get(g, 0.0) for g, n in zip(groups.tolist(), runs.tokens, strict=True)])
    if not harmed.any():
        return runs, []
    names = runs.meta.get("run_id") or [f"run {i + 1}" for i in range(len(runs))]
    left_out = [{"run": str(names[i]), "reason": REASON} for i in np.flatnonzero(harmed)]
    return rows_of(runs, np.flatnonzero(~harmed)), left_out
