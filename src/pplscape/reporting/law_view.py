"""The pilots and their law over the (mean, spread) plane, as several sections look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.laws.law import Law
from pplscape.reporting.figures_law import PlanePicture
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.surface import Mesh, Surface, hull, loss_surface, plane_box
from pplscape.reporting.words import NATS, number, tokens, visible
from pplscape.statistics import Floats

Facts = Mapping[str, Any]
SAME_SIZE = 0.05
"""Sizes whose logarithms differ by less count as one: pilots end within a chunk of their plan."""


def sizes_of(rows: Sequence[Facts]) -> list[list[Facts]]:
    """Runs grouped by training size, smallest first."""
    groups: list[list[Facts]] = []
    for row in sorted(rows, key=lambda r: r["tokens"]):
        if groups and np.log(row["tokens"] / groups[-1][-1]["tokens"]) < SAME_SIZE:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class LawView:
    """The pilots, the law fitted to them and the landscape they came from; what sections 2 and 3 draw on."""

    def __init__(self, run: RunFolder):
        self.run, self.rows = run, run.ok
        self.law = Law.from_json(run.law) if run.law else None
        if self.law:
            self.law.check()
        self.scale = (self.law.scale if self.law else None) or "nll"
        self.sizes = sizes_of(self.rows)
        self.n_params = next((r["n_params"] for r in self.rows if r.get("n_params")), None)
        self.base_loss = next((r["base_loss"] for r in self.rows if r.get("base_loss") is not None), None)

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """What the plane's figures show: all pilots and marks."""
        return plane_box([*self.points(self.rows), *self.marks.values()], self.scale)

    @cached_property
    def mesh(self) -> Mesh | None:
        """The feasible part of the box; None without a landscape, or where the law sees no composition."""
        landscape = self.run.landscape
        return Mesh.of(landscape, self.scale, self.box) if landscape and self.sees_composition else None

    def points(self, rows: Sequence[Facts]) -> Floats:
        """(mean, std) [n, 2] of runs on the plane's scale."""
        return np.array([[r[f"{self.scale}_mean"], r[f"{self.scale}_std"]] for r in rows], dtype=float).reshape(-1, 2)

    @property
    def marks(self) -> dict[str, tuple[float, float]]:
        """Where random, the selection and the optimum lie in the plane."""
        found = {}
        if self.run.landscape:
            pool = self.run.landscape["scale"][self.scale]
            found["random"] = (pool["mean"], pool["std"])
        if self.run.selection:
            achieved = self.run.selection["achieved"][self.scale]
            found["selection"] = (achieved["mean"], achieved["std"])
        if self.law and self.law.scale and self.law.optimum.get("mu") is not None:
            found["optimum"] = (self.law.optimum["mu"], self.law.optimum["sigma"])
        return found

    @property
    def sees_composition(self) -> bool:
        return self.law is not None and self.law.shape.uses_composition

    def surface(self, size: float) -> Surface | None:
        """The law over the plane at a training size; None when it cannot be drawn."""
        if self.law is None or self.run.landscape is None or self.mesh is None:
            return None
        try:
            return loss_surface(self.law, self.run.landscape, self.mesh, size, self.n_params)
        except UserError:  # a law on a user's own columns that no composition of this pool has
            return None

    def picture(self, rows: Sequence[Facts], size: float) -> PlanePicture:
        """One training size over the plane."""
        points = self.points(rows)
        gain = np.array([r["base_loss"] - r["loss"] for r in rows if r.get("base_loss") is not None])
        return PlanePicture(
            scale=self.scale, tokens=size, box=self.box, points=points if len(gain) == len(points) else points[:0],
            improvement=gain if len(gain) == len(points) else gain[:0], tips=[run_tip(r) for r in rows],
            surface=self.surface(size), base_loss=self.base_loss,
            hull=hull(*self.points(self.rows).T) if len(self.rows) > 2 else None,
            feasible=np.asarray(self.run.landscape["feasible"][self.scale]) if self.run.landscape else None,
            region=self._region(), marks=self.marks,
        )  # fmt: skip

    def _region(self) -> Floats | None:
        region = (self.law.optimum if self.law else {}).get("region")
        return np.asarray([*region, region[0]], dtype=float) if region else None


def run_tip(row: Facts) -> str:
    """A pilot in four lines."""
    loss = f"loss {number(row['loss'], 4)}" + (f" ± {number(row['loss_se'], 4)}" if row.get("loss_se") else "")
    lines = [f"{row['regime']}, seed {row['seed']}, {tokens(row['tokens'])}", f"{loss} {NATS}"]
    if row.get("base_loss") is not None:
        lines.append(f"improvement {number(row['base_loss'] - row['loss'], 4)} {NATS}")
    return visible(
        "\n".join([*lines, f"mean {number(row.get('nll_mean'))}, spread {number(row.get('nll_std'))} {NATS}"])
    )


def ends_of(interval: Any) -> tuple[float | None, float | None, bool]:
    """(low, high, identified) of a parameter's interval: [low, high], or a mapping where it is not identified."""
    if interval is None:
        return None, None, True
    if isinstance(interval, Mapping):
        return interval.get("low"), interval.get("high"), not interval.get("unidentified", False)
    return float(interval[0]), float(interval[1]), True
