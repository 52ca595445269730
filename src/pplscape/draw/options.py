"""What a strategy may be told beyond pool, budget and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pplscape.draw.program import Utility
from pplscape.statistics import Bins, Floats, Scale


@dataclass(frozen=True)
class Target:
    """Moments to reach; `std` None leaves the spread free."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Contained:
    """Chunks by `permanent.names_of`."""

    names: NDArray[np.uint64]
    """[n] ascending."""
    times: NDArray[np.int16]
    """[n] at least 1."""

    def of(self, names: NDArray[np.uint64]) -> NDArray[np.int16]:
        """How often each of `names` [m] is listed: 0 for those that are not."""
        if not len(self.names):
            return np.zeros(len(names), dtype=np.int16)
        at = np.minimum(np.searchsorted(self.names, names), len(self.names) - 1)
        return np.where(self.names[at] == names, self.times[at], 0).astype(np.int16)


@dataclass(frozen=True)
class Before:
    """Sums over chunks that are taken already, repeats counted."""

    chunks: float
    first: float
    """Sum of the winsorised values on the options' scale."""
    second: float
    """Sum of their squares."""
    bin_tokens: Floats
    """[K] by the options' bins; [1] without."""


@dataclass(frozen=True)
class Options:
    """Every field has a meaning for some strategies only; the others ignore it."""

    scale: Scale = "ppl"
    """Scale of `target` and `loss` (dos, maxent)."""
    target: Target | None = None
    """What to reach (dos, maxent), on `scale`."""
    limits: tuple[float, float] | None = None
    """Winsor limits on `scale`; None: the pool's own."""
    loss: Callable[[Floats, Floats], Floats] | None = None
    """Predicted loss [n] (nats/token) at (mean [n], std [n]) on `scale`: where an infeasible target moves to."""
    band: tuple[float, float] | None = None
    temperature: float = 1.0
    utility: Utility | None = None
    """Per-bin utilities (allocate)."""
    bins: Bins | None = None
    """The bins `utility` refers to."""
    hedge: float | None = 0.0
    """How much an allocation keeps to a mix (`hedge.allocate`); None: 0.4 or 0.6, more in doubt."""
    toward: Floats | None = None
    """[K] The mix that it keeps to; None: the pool's (allocate)."""
    max_epochs: float = 1.0
    """Most times a bin's tokens may be repeated (allocate)."""
    quotas: Mapping[str, float] = field(default_factory=dict)
    """Share of the budget that a source gives, by its name; other sources share what is left."""
    forced: frozenset[str] = frozenset()
    """Documents that are taken whole, at the budget's cost."""
    forbidden: frozenset[str] = frozenset()
    """Documents that are never taken."""

    contained: Contained | None = None
    """Chunks of an earlier selection, which are taken as often again."""
    nested: bool = False
    """The draw of a larger budget holds that of a smaller one (strategies that follow one fixed order)."""
    before: Before | None = None
    """What is taken already, of `contained` (dos and allocate go on from it)."""
    spread: Literal["var", "std"] = "var"
    """What the second term of the distance to the target compares: variances or standard deviations (dos)."""
    weights: tuple[float, float] | None = None
    """Of the distance's two terms (dos); None: both terms in standard errors."""
    stop: float | None = None
    """The distance at which to stop, whatever is left of the budget (dos)."""

    @property
    def grouped(self) -> bool:
        return bool(self.quotas or self.forced or self.forbidden or self.contained)
