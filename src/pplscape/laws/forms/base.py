"""What a law's form is: parameters, prediction, derivative, good starts. Pure numpy, batched over fits.

Shapes: n runs, p parameters, B fits at once (cross-validation folds, resamples, starts). `theta` is what the fitter
moves; `params` are the same numbers under the names and units of the published formulas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.runs import Compositions

Floats = NDArray[np.float64]
Data = dict[str, Any]
"""Arrays a form derives from compositions once per fit: [n] or [n, ...]."""


@dataclass(frozen=True)
class Frame:
    """Constants of a fit, kept with the law: prediction needs them, the fitter does not move them."""

    unit: float = 1.0
    """Tokens of the largest pilot."""
    base_loss: float | None = None
    """L(0) in nats/token."""
    bin_share: tuple[float, ...] | None = None
    """The pool's token share of each bin."""
    bin_levels: int = 1
    """Levels of a second axis that each range of log-perplexity is cut into."""
    centre: tuple[float, float] = (0.0, 0.0)
    """Where a quadratic is expanded: mean over the pilots of its two coordinates."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What only this form keeps, as JSON has it: kernel points, values held fixed. Written by `Form.reframe`."""

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Frame:
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Penalty:
    """Quadratic penalty `0.5 noise^2 strength theta' matrix theta`; a strength is 1 / (prior spread)^2 of theta.

    The strength is chosen from the candidates by approximate leave-one-regime-out error.
    """

    matrix: Floats
    strengths: tuple[float, ...]
    estimated: bool = False
    """The spread is a variance of the law itself: refits draw it from its posterior (`shrinkage`), not the weakest."""


@dataclass(frozen=True)
class Prior:
    """Weak belief about theta, worth one run: penalty `0.5 noise^2 sum precision (theta - centre)^2`.

    It decides only what the runs cannot: with two sizes and L(0), say, exponent and floor trade off along a valley of
    equal fit, and extrapolation would depend on where the optimiser happened to stop.
    """

    centre: Floats
    precision: Floats
    """[p]; 0 for no belief."""


EXPONENT = 0.3
"""Typical exponent of loss in training tokens (0.28-0.37 in arXiv 2203.15556 and its replications)."""

ALIVE = 0.01
"""Share of the loss that every term of a start has: of a term near 0 the logarithm has no slope, and a fit that starts
there never gets it back (`dcpt`: residuals of ten times the noise where the grid's best had no mixture term)."""


class Form(ABC):
    """A law's form. Subclasses state the formula, its source and the class constants below."""

    name: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ("",)
    columns: ClassVar[tuple[str, ...]] = ("tokens",)
    default_scale: ClassVar[str | None] = None
    """`ppl` or `nll` for forms that use moments."""
    uses_size: ClassVar[bool] = True
    uses_composition: ClassVar[bool] = True
    uses_base: ClassVar[bool] = False
    composition_terms: ClassVar[int] = 0
    """Free numbers that only differences between regimes can tell, a common factor included; 0 if shrunk or none."""
    at_one_size: ClassVar[bool] = False
    """Can be fitted to runs of one D, if asked for by name; the law then holds for that D only."""
    origin: str = ""
    """Where `get_form` found the class of a user's own form: `module:Class` or `path.py:Class`."""

    def __init__(self, variant: str = "", scale: str | None = None):
        if variant and variant not in self.variants:
            raise UserError(f"Form {self.name} has no variant '{variant}'; it has: {', '.join(self.variants)}.")
        self.variant = variant or self.variants[0]
        self.scale = None if self.default_scale is None else scale or self.default_scale

    @property
    def spec(self) -> str:
        """What `get_form` takes to make this form again; the default variant is not spelt out."""
        name, kind = self.name, type(self)
        if self.origin or not kind.__module__.startswith(__package__):
            name = self.origin or f"{kind.__module__}:{kind.__qualname__}"
        return name if self.variant == self.variants[0] else f"{name}:{self.variant}"

    @property
    def reading(self) -> str:
        """How s reads: `std` or `var`."""
        return "var" if self.variant == "var" else "std"

    def missing(self, compositions: Compositions, frame: Frame) -> list[str]:
        """Names of columns the form needs and the table lacks."""
        needed = list(self.columns)
        if self.scale is not None:
            needed += [f"{self.scale}_mean", f"{self.scale}_std"]
        lacking = [name for name in needed if getattr(compositions, name) is None]
        return lacking + (["base_loss"] if self.uses_base and frame.base_loss is None else [])

    def unsuited(self, compositions: Compositions) -> str | None:
        """Why these pilots cannot tell what the form asks, though its columns are there; None if they can."""
        return None

    def reframe(self, compositions: Compositions, frame: Frame) -> Frame:
        """The frame with the constants that this form takes from the pilots."""
        return frame

    @abstractmethod
    def data(self, compositions: Compositions, frame: Frame) -> Data:
        """What `evaluate` needs of n compositions."""

    @abstractmethod
    def names(self, frame: Frame) -> tuple[str, ...]:
        """Names of `params`, in order."""

    @abstractmethod
    def evaluate(self, theta: Floats, data: Data, frame: Frame, jacobian: bool = True) -> tuple[Floats, Floats | None]:
        """theta [B, p] -> (ln of the predicted loss [B, n], its derivative [B, n, p] or None)."""

    @abstractmethod
    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """Candidates theta [B, C, p] for losses [B, n] and weights [B, n] (0 = left out) by variable projection."""

    @abstractmethod
    def bounds(self, frame: Frame, smallest: Floats) -> tuple[Floats, Floats]:
        """Box [B, p], [B, p] on theta; no irreducible loss lies above `smallest` [B], the smallest loss in the fit."""

    def basis(self, data: Data, frame: Frame) -> Floats:
        """[p, p] linear map from well-conditioned steps to theta. A bounded parameter's row is 0 but for a positive
        diagonal. Default: theta itself, as long as `names`."""
        return np.eye(len(self.names(frame)))

    def penalty(self, frame: Frame) -> Penalty | None:
        """Shrinkage of theta, none by default."""
        return None

    def prior(self, frame: Frame) -> Prior | None:
        """Weak belief about exponents, none by default."""
        return None

    def params(self, theta: Floats, frame: Frame) -> Floats:
        """theta [..., p] -> parameters [..., len(names)] in the formula's units."""
        return theta

    def theta(self, params: Floats, frame: Frame) -> Floats:
        """Inverse of `params`: any theta that predicts the same."""
        return params

    def log_loss(self, params: Floats, compositions: Compositions, frame: Frame) -> Floats:
        """ln of the loss [B, n] that parameters [B, len(names)] predict."""
        lacking = self.missing(compositions, frame)
        if lacking:
            raise UserError(f"Form {self.spec} needs {', '.join(lacking)} to predict.")
        return self.evaluate(self.theta(params, frame), self.data(compositions, frame), frame, jacobian=False)[0]


def believe(n: int, beliefs: Mapping[int, tuple[float, float]]) -> Prior:
    """A prior on some of n parameters: index -> (centre, spread)."""
    at = np.zeros(n)
    precision = np.zeros(n)
    for index, (centre, spread) in beliefs.items():
        at[index], precision[index] = centre, spread**-2
    return Prior(at, precision)


def gap_floor_grid(loss: Floats, weight: Floats, n: int = 16) -> Floats:
    """Irreducible losses to try [B, n]: from 0 to just below the smallest loss in use, denser towards it."""
    smallest = np.where(weight > 0, loss, np.inf).min(-1)
    share = 1 - np.geomspace(1, 3e-3, n)
    return smallest[:, None] * share


def box(low: Sequence[float | Floats], high: Sequence[float | Floats], smallest: Floats) -> tuple[Floats, Floats]:
    """Bounds [B, p] from one number, or one array [B], a parameter."""
    return tuple(  # type: ignore[return-value]
        np.stack([np.broadcast_to(value, smallest.shape) for value in side], axis=-1).astype(float)
        for side in (low, high)
    )


def weighted_least_squares(design: Floats, target: Floats, weight: Floats, ridge: Floats | None = None) -> Floats:
    """Batched linear least squares: design [..., n, q], target [..., n], weight [..., n] -> [..., q].

    Columns are scaled; a ridge of 1e-10 keeps empty designs solvable. `ridge` [..., q, q] is added as it is.
    """
    scale = np.sqrt(np.maximum(np.einsum("...nq,...n->...q", design**2, weight), 1e-300))
    scaled = design / scale[..., None, :]
    gram = np.einsum("...nq,...n,...nr->...qr", scaled, weight, scaled, optimize=True)
    gram = gram + 1e-10 * np.eye(design.shape[-1])
    if ridge is not None:
        gram = gram + ridge / (scale[..., None, :] * scale[..., :, None])
    right = np.einsum("...nq,...n->...q", scaled, weight * target)
    return np.linalg.solve(gram, right[..., None])[..., 0] / scale


def non_negative_least_squares(design: Floats, target: Floats, weight: Floats) -> Floats:
    """Batched least squares with coefficients >= 0: design [n, q], target [B, n], weight [B, n] -> [B, q].

    Exact: all 2^q supports are tried, so only for few columns.
    """
    q = design.shape[-1]
    best = np.zeros((len(target), q))
    best_error = np.full(len(target), np.inf)
    for support in product((False, True), repeat=q):
        chosen = np.flatnonzero(support)
        if not len(chosen):
            continue
        found = weighted_least_squares(design[:, chosen], target, weight)
        error = (weight * (found @ design[:, chosen].T - target) ** 2).sum(-1)
        better = (found >= 0).all(-1) & (error < best_error)
        full = np.zeros_like(best)
        full[:, chosen] = found
        best[better], best_error[better] = full[better], error[better]
    return best


def log_amounts(columns: Floats, loss: Floats, weight: Floats) -> Floats:
    """ln of the non-negative amounts [B, q] of columns [n, q] that are closest to losses [B, n] in relative terms, each
    large enough for its term to be ALIVE."""
    linear = non_negative_least_squares(columns, loss, weight / loss**2)
    return np.log(np.maximum(linear, ALIVE * loss.mean(1, keepdims=True) / columns.mean(0)))
