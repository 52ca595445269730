"""What a strategy may be told beyond pool, budget and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pplscape.draw.program import Utility
from pplscape.statistics import Bins, Floats, Scale


@dataclass(frozen=True)
class Target:
    """Moments to reach; `std` None leaves the spread free."""

    mean: float
    std: float | None


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
    max_epochs: float = 1.0
    """Most times a bin's tokens may be repeated (allocate)."""
    quotas: Mapping[str, float] = field(default_factory=dict)
    """Share of the budget that a source gives, by its name; other sources share what is left."""
    forced: frozenset[str] = frozenset()
    """Documents that are taken whole, at the budget's cost."""
    forbidden: frozenset[str] = frozenset()
    """Documents that are never taken."""

    @property
    def grouped(self) -> bool:
        return bool(self.quotas or self.forced or self.forbidden)
