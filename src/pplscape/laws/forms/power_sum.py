"""Sums of positive terms with many parameters, some of which may be held at given values (a published protocol).

Subclasses list all parameters; a variant leaves some out, the Python API holds others: `DataConstrained(fixed={...})`.
The law keeps held values in its frame, so that it predicts without being told them again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from pplscape.errors import UserError
from pplscape.laws.forms.base import Data, Floats, Form, Frame, Prior
from pplscape.runs import Compositions

FAR = 40.0
"""Trial steps of a fit may go anywhere: exponents stop here, far beyond any loss or number of repeats."""


class PowerSum(Form):
    """theta = the free parameters in the order of `parameters`, those in `logged` as logarithms."""

    parameters: ClassVar[tuple[str, ...]]
    logged: ClassVar[frozenset[str]]
    beliefs: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """(centre, spread) of the weak prior on theta, by parameter; dropped when values are held fixed by the user."""
    limits: ClassVar[Mapping[str, tuple[float, float]]]
    """Bounds on theta, by parameter; E, which must be logged, lies below the smallest loss."""
    tilt: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Coefficient -> (its exponent, the array of `data` with the logarithm it multiplies): moved together."""
    uses_composition = False

    def __init__(self, variant: str = "", scale: str | None = None, fixed: Mapping[str, float] | None = None):
        super().__init__(variant, scale)
        self.fixed = dict(fixed or {})
        unknown = [name for name in self.fixed if name not in self.parameters]
        if unknown:
            raise UserError(f"{self.spec} has no parameter {', '.join(unknown)}; it has {', '.join(self.parameters)}.")

    def absent(self) -> dict[str, float]:
        """Parameters that this variant lacks, with the theta that makes them vanish."""
        return {}

    def reframe(self, compositions: Compositions, frame: Frame) -> Frame:
        return replace(frame, own={"fixed": self.fixed}) if self.fixed else frame

    def held(self, frame: Frame) -> dict[str, float]:
        """Parameters that are not free, with their theta."""
        fixed = frame.own.get("fixed", {})
        return {k: float(np.log(v)) if k in self.logged else float(v) for k, v in fixed.items()} | self.absent()

    def names(self, frame: Frame) -> tuple[str, ...]:
        held = self.held(frame)
        return tuple(name for name in self.parameters if name not in held)

    def _free(self, frame: Frame) -> list[int]:
        return [self.parameters.index(name) for name in self.names(frame)]

    def whole(self, theta: Floats, frame: Frame) -> dict[str, Floats]:
        """All parameters' theta [..., 1] by name, held ones included."""
        found = {name: np.full((*theta.shape[:-1], 1), value) for name, value in self.held(frame).items()}
        return found | {name: theta[..., i : i + 1] for i, name in enumerate(self.names(frame))}

    @abstractmethod
    def terms(self, whole: Mapping[str, Floats], data: Data) -> tuple[Floats, dict[str, Floats]]:
        """(loss [B, n], its derivative [B, n] by every parameter's theta)."""

    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        loss, slopes = self.terms(self.whole(theta, frame), data)
        if not jacobian:
            return np.log(loss), None
        return np.log(loss), np.stack([slopes[k] for k in self.names(frame)], axis=-1) / loss[..., None]

    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        limits = np.array([self.limits.get(name, (-np.inf, np.inf)) for name in self.names(frame)])
        low, high = (np.tile(side, (len(smallest), 1)) for side in limits.T)
        if "E" in self.names(frame):
            high[:, self.names(frame).index("E")] = np.log(smallest)
        return low, high

    def basis(self, data: Data, frame: Frame) -> Floats:
        basis = np.eye(len(self.parameters))
        for coefficient, (exponent, column) in self.tilt.items():
            if column in data:
                at = self.parameters.index(coefficient), self.parameters.index(exponent)
                basis[at] = data[column].mean()
        free = self._free(frame)
        return basis[np.ix_(free, free)]

    def prior(self, frame: Frame) -> Prior | None:
        if frame.own.get("fixed"):
            return None
        found = [self.beliefs.get(name, (0.0, np.inf)) for name in self.names(frame)]
        return Prior(np.array([centre for centre, _ in found]), np.array([spread**-2 for _, spread in found]))

    def params(self, theta: Floats, frame: Frame) -> Floats:
        logged = [name in self.logged for name in self.names(frame)]
        return np.where(logged, np.exp(np.where(logged, theta, 0.0)), theta)

    def theta(self, params: Floats, frame: Frame) -> Floats:
        logged = [name in self.logged for name in self.names(frame)]
        return np.where(logged, np.log(np.where(logged, params, 1.0)), params)

    def candidates(self, found: list[dict[str, Floats | float]], frame: Frame, n_fits: int) -> Floats:
        """Starts theta [B, C, p] from dictionaries of theta [B] or one number; held parameters are passed over."""
        rows = [[np.broadcast_to(one[name], (n_fits,)) for name in self.names(frame)] for one in found]
        return np.moveaxis(np.asarray(rows, float), -1, 0)
