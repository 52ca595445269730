"""The choice of the law redone: is some text better, and what does the law that says so then predict?

Whether a law of composition beats one to which no text is better rests on a dozen regimes. In every resample the
regimes are weighted anew (Bayesian bootstrap: Rubin, Ann. Stat. 1981; for cross-validated errors as in Yao et al.,
arXiv 1704.02030): where the law of composition has the smaller weighted error it predicts, by one of its refits,
elsewhere the law without preference.

The forms are not refitted to resampled trunks: with a dozen trunks, a third of them missing in each resample, the law
that decides is so much worse than the one that was fitted that clear gains drown
(docs/decisions.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.choose import Trial, cross_validate, make_forms
from pplscape.laws.forms.base import Floats
from pplscape.laws.forms.utility import Alike, Utility
from pplscape.laws.law import Law
from pplscape.laws.table import left_out_units
from pplscape.runs import Compositions, RunTable

NULLS = ("constant", "d-only", "d-only:anchored")
"""The laws to which all selections of one size are alike."""


def losses_again(law: Law, runs: RunTable, asked: Compositions, n_resamples: int, seed: int) -> Floats:
    """Losses [B, n] in nats/token of the compositions `asked`, with the choice between `law` and no preference redone.

    `law` must have refits. Predictions below half of the smallest loss that was measured, or further above the largest
    than the two are apart, are NaN: outside their pilots moment laws explode.
    """
    draws = np.asarray(law.draw_log_losses(asked))
    losses = np.exp(draws[np.arange(n_resamples) % len(draws)])
    low, high = float(runs.loss.min()), float(np.append(runs.loss, law.base_loss or 0.0).max())
    losses[(losses < low / 2) | (losses > 2 * high - low)] = np.nan
    null = without_preference(law, runs)
    if null is not None and null.fit is not None:
        alone = np.exp(null.fit.log_loss(asked))
        losses[~composition_wins(law, null, runs, n_resamples, seed)] = alone
    return losses


def without_preference(law: Law, runs: RunTable) -> Trial | None:
    """Of the laws to which no text is better, the one with the smallest cross-validated error; None without any.

    A utility law must also beat itself with all bins alike: that repeats of a bin are worth less is no preference.
    """
    forms = make_forms(NULLS) + ([Alike(law.shape.variant)] if isinstance(law.shape, Utility) else [])
    trials = [cross_validate(form, runs) for form in forms]
    usable = [t for t in trials if t.skipped is None]
    return min(usable, key=lambda t: float(t.errors(runs.loss).mean())) if usable else None


def composition_wins(law: Law, null: Trial, runs: RunTable, n_resamples: int, seed: int) -> NDArray[np.bool_]:
    """[B] whether `law` has the smaller cross-validated error, regimes weighted at random; never if it cannot be
    cross-validated on these runs."""
    trial = cross_validate(law.shape, runs)
    if trial.skipped is not None:
        return np.zeros(n_resamples, bool)
    _, members = np.unique(left_out_units(runs), return_inverse=True)
    less = np.bincount(members, weights=null.errors(runs.loss) - trial.errors(runs.loss))
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(less)), n_resamples)
    return np.asarray(weights @ less > 0)
