"""The safe gate: leave random selection only when the gain survives choosing the law again.

A selection optimised on a fitted law looks better than it is (the winner's curse). So the full-data selection is kept
fixed, the choice of the law is redone (`laws.again`), and each resample predicts `L_random - L_selected`. The gate
passes if the 10th percentile of these gains is above zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pplscape.runs import RunTable
from pplscape.statistics import Floats

PERCENTILE = 10.0
LEAST_SEEDS = 3
"""Random-regime pilots from fewer seeds say nothing of the noise floor."""


@dataclass(frozen=True)
class Verdict:
    """The `gate` of selection.json."""

    passes: bool
    p10: float | None
    """10th percentile of the predicted gain over random, nats/token."""
    resamples: int
    reason: str


def random_seeds(runs: RunTable) -> int:
    """How many separately trained trunks of the random regime the pilots hold."""
    if runs.regime is None:
        return 0
    labels = np.asarray(runs.regime).astype(str)
    is_random = np.array([r.startswith("random") for r in labels], dtype=bool)
    of = runs.group if runs.group is not None else runs.seed
    return len(set(np.asarray(of if of is not None else labels)[is_random].tolist()))


def judge(gain: Floats | None, seeds: int) -> Verdict:
    """Verdict on gains [B] = predicted L_random - L_selected of each resample; None when there are no pilots.

    A resample whose prediction is not finite counts as no gain.
    """
    if gain is None:
        return Verdict(
            False,
            None,
            0,
            "The gate needs the table of pilot runs (--runs), resamples, and a law with refits (fit --bootstrap).",
        )
    p10 = float(np.percentile(np.where(np.isfinite(gain), gain, 0.0), PERCENTILE))
    if seeds < LEAST_SEEDS:
        reason = f"Only {seeds} random-regime seeds among the pilots; {LEAST_SEEDS} are needed to know the noise."
        return Verdict(False, p10, len(gain), reason)
    share = float(np.mean(gain > 0))
    if p10 > 0:
        reason = f"{share:.0%} of {len(gain)} resamples predict a gain over random; 10th percentile {p10:.4f} nats."
    else:
        reason = (
            f"Only {share:.0%} of {len(gain)} resamples predict a gain over random "
            f"(10th percentile {p10:.4f} nats): inside the noise."
        )
    return Verdict(p10 > 0, p10, len(gain), reason)
