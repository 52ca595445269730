"""Losses with standard errors from per-chunk NLL sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pplscape.engines.base import Engine, Ids


@dataclass(frozen=True)
class TextLoss:
    """Per-document sums over one text set: NLL (nats), scored tokens, bytes."""

    doc_id: list[str]
    nll_sum: NDArray[np.float64]
    n_tokens: NDArray[np.int64]
    n_bytes: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats per token over all text."""
        return float(self.nll_sum.sum() / self.n_tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        return float(self.nll_sum.sum() / np.log(2) / self.n_bytes.sum())

    @property
    def standard_error(self) -> float:
        """Of `loss`, by the delta method for a ratio over documents (0 for a single document)."""
        n = len(self.nll_sum)
        if n < 2:
            return 0.0
        residual = self.nll_sum - self.loss * self.n_tokens
        return float(np.sqrt(n / (n - 1) * np.sum(residual**2)) / self.n_tokens.sum())


def measure(engine: Engine, chunks: Sequence[Ids], doc_ids: Sequence[str], n_bytes: Sequence[int]) -> TextLoss:
    """Score chunks and add them up by document (order of first appearance)."""
    values = engine.nll(chunks)
    names = list(dict.fromkeys(doc_ids))
    position = {name: i for i, name in enumerate(names)}
    index = np.array([position[d] for d in doc_ids])
    totals = [np.bincount(index, weights=w, minlength=len(names)) for w in (
        [float(v.astype(np.float64).sum()) for v in values], [len(v) for v in values], n_bytes,
    )]  # fmt: skip
    return TextLoss(names, totals[0].astype(np.float64), totals[1].astype(np.int64), totals[2].astype(np.int64))
