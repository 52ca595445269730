"""The table of training runs as arrays: what laws are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Compositions:
    """What was, or could be, trained on: n subsets. Every array is [n] or [n, K]; a missing column is None."""

    tokens: Floats
    """D: domain tokens trained, replay excluded."""
    nll_mean: Floats | None = None
    nll_std: Floats | None = None
    ppl_mean: Floats | None = None
    ppl_std: Floats | None = None
    bin_tokens: Floats | None = None
    """[n, K] tokens trained per bin, repeats included."""
    bin_unique_tokens: Floats | None = None
    n_params: Floats | None = None
    unique_tokens: Floats | None = None
    """U: how many of the D tokens are different ones."""
    domain_share: Floats | None = None
    """r: share of domain text in what was trained on, 1 - replay_share."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Any) -> Any:
        """The rows `index` (integers, booleans or a slice) of every column, as the same class."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "bin_share"}
        return replace(self, **{k: v[index] for k, v in columns.items() if isinstance(v, np.ndarray)})

    def moments(self, scale: str, reading: str = "std") -> tuple[Floats, Floats]:
        """(mu, s) on `scale` (`nll` or `ppl`); s is the standard deviation or, for reading `var`, the variance."""
        mean, std = (self.nll_mean, self.nll_std) if scale == "nll" else (self.ppl_mean, self.ppl_std)
        if mean is None or std is None:
            raise KeyError(f"{scale}_mean, {scale}_std")
        return mean, std if reading == "std" else std**2


@dataclass(frozen=True)
class RunTable(Compositions):
    """Measured runs: compositions plus what came out."""

    loss: Floats = field(default_factory=lambda: np.empty(0))
    """Validation loss, nats/token."""
    base_loss: Floats | None = None
    """L(0): loss of the base model on the same text."""
    group: NDArray[np.str_] | None = None
    """Runs that share a trunk, and so their noise."""
    regime: NDArray[np.str_] | None = None
    seed: NDArray[np.int64] | None = None
    bin_share: Floats | None = None
    """[K] the pool's token share per bin (the same for all runs)."""
    bin_levels: int = 1
    """Levels of a second axis that each range of log-perplexity is cut into (`statistics.Bins`)."""
    bins_hash: str | None = None
    noise: Floats | None = None
    """Seed noise of each run's loss, nats/token, where known."""
    meta: Mapping[str, Any] = field(default_factory=dict)
