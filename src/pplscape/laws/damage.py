"""Runs that no law anchored at the base's loss can follow: their text did harm first, and more of it mended that.

Laws of moments fall from infinity, and losses above L0 at small sizes are theirs to explain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pplscape.laws.table import labels, rows_of, seed_noise
from pplscape.runs import RunTable

REASON = "above the base model's loss, below which its trunk falls with more tokens: no utility law rises first"

NOISES, USUAL = 3.0, 0.003
"""So many times the relative seed noise, and the noise where no regime is repeated."""
MOST = 0.25
"""Where a larger share of the trunks rises first it is the training that does harm (its rate, say), not a text."""


def without_first_damage(runs: RunTable) -> tuple[RunTable, list[dict[str, Any]]]:
    """(the runs without those above the base's loss whose trunk falls below it with more tokens, the runs left out).

    Only of tables with bins, where utilities decide. The first steps on text very unlike what the base knows do harm.
    The laws anchored at L0 fall from it, or rise where utilities are negative, but do not do both: the misfit of one
    such trunk would be taken for noise everywhere (of a pool with 60 % dirt three times the noise, and so a stronger
    hedge and more dirt). A trunk that stays above L0 stays whole: that is harm that a utility can say. So does what is
    above it by less than NOISES times the seed noise: leaving out unlucky runs alone would flatter. Nothing is left out
    where more than MOST of the trunks rose.
    """
    if runs.base_loss is None or runs.bin_tokens is None:
        return runs, []
    groups, above = labels(runs, "group"), np.log(runs.loss / runs.base_loss) > NOISES * (seed_noise(runs) or USUAL)
    mended = {g: runs.tokens[(groups == g) & ~above].max(initial=0.0) for g in set(groups[above].tolist())}
    harmed = above & np.array([n < mended.get(g, 0.0) for g, n in zip(groups.tolist(), runs.tokens, strict=True)])
    if not 0 < len(set(groups[harmed])) <= MOST * len(set(groups)):
        return runs, []
    names = runs.meta.get("run_id") or [f"run {i + 1}" for i in range(len(runs))]
    left_out = [{"run": str(names[i]), "reason": REASON} for i in np.flatnonzero(harmed)]
    return rows_of(runs, np.flatnonzero(~harmed)), left_out
