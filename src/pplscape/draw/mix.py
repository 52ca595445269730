"""Where on the landscape a target text lies: the mix of bins that an allocation should keep to, where it is hedged.

A pool's own mix holds its dirt; a target's does not. Chunks of the target are counted in the law's bins, and

    q_cell = w_cell (q_bin / w_bin) (q_level / w_level)      normalised,   w: the pool's shares

with bins and levels each counted alone, because a target is short. A count p differs from w by chance too, so each
difference is shrunk by how sure it is, as in the nonnegative garrote (Breiman 1995):

    q = w + (p - w) max(0, 1 - v / (p - w)^2),    v = w (1 - w) / n        normalised

n is how many independent chunks the target is worth: those of a document are alike, so it is found from the spread of p
over documents, n = sum p (1 - p) / sum var(p). A target drawn from the pool itself gives nearly the pool's mix back; a
bin that it clearly avoids, such as that of garbled text, keeps little. Fewer than LEAST_DOCUMENTS say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw.columns import axis_of, log_perplexity, second
from pplscape.draw.scores import score_files
from pplscape.errors import UserError
from pplscape.statistics import Bins, Floats

LEAST_DOCUMENTS = 8
"""Fewer do not tell how much they differ from one another."""


@dataclass(frozen=True)
class Located:
    """Scored chunks of a target text."""

    x: Floats
    """[n] log-perplexity, nats/token."""
    second: Floats
    """[n] the second axis; empty without one."""
    length: NDArray[np.int64]
    """[n] tokens."""
    document: NDArray[np.intp]
    """[n] number of the document that a chunk is of."""
    axis: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Located:
        """From the folder of `score` or `locate`. UserError where no chunk has a finite score."""
        table = pa.concat_tables([pq.read_table(file) for file in score_files(folder)])
        x, other, length = log_perplexity(table), second(table), table["length"].to_numpy().astype(np.int64)
        fine = np.isfinite(x) & (np.isfinite(other) if len(other) else True)
        if not fine.any():
            raise UserError(f"{folder} holds no chunk with a score: give `pplscape score` a target text.")
        document = np.unique(table["doc_id"].to_numpy(), return_inverse=True)[1]
        other = other[fine] if len(other) else other
        return cls(x[fine], other, length[fine], document[fine], axis_of(table.column_names))


def target_mix(target: Located, bins: Bins, pool: Floats) -> Floats:
    """The target's share of every bin [K], positive where the pool holds tokens; `pool` [K]: its tokens in each bin.

    A target without the second axis of `bins` leaves the pool's levels as they are.
    """
    share = np.asarray(pool, dtype=np.float64).reshape(-1, bins.n_levels) / np.sum(pool)
    mix = share * _ratio(bins.coarse.of(target.x), target, share.sum(1))[:, None]
    if bins.levels and target.axis == bins.axis:
        mix = mix * _ratio(bins.of(target.x, target.second) % bins.n_levels, target, share.sum(0))
    return (mix / mix.sum()).ravel()


def _ratio(of: NDArray[np.intp], target: Located, share: Floats) -> Floats:
    """q / w [C] for chunks that lie in the classes `of` [n]; `share` [C]: w. What the pool lacks stays 0."""
    counted = np.zeros((target.document.max() + 1, len(share)))
    np.add.at(counted, (target.document, of), np.where(share[of] > 0, target.length, 0))
    documents, there = counted[counted.sum(1) > 0], share > 0
    if len(documents) < LEAST_DOCUMENTS or there.sum() == 1:
        return there.astype(np.float64)
    p = documents.sum(0) / documents.sum()
    residual = documents - p * documents.sum(1, keepdims=True)
    variance = len(documents) / (len(documents) - 1) * (residual**2).sum(0) / documents.sum() ** 2
    spread = float((p * (1 - p)).sum())
    n = min(spread / variance.sum(), len(of)) if variance.sum() > 0 else len(documents)
    v = share * (1 - share) / n
    sure = np.maximum(0.0, 1 - np.divide(v, (p - share) ** 2, out=np.ones_like(v), where=p != share))
    q = share + (p - share) * sure
    return np.divide(q, share * q.sum(), out=np.zeros_like(q), where=there)
