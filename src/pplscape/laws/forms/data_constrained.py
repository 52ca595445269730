"""`data-constrained`: repeated data and excess parameters are worth ever less (Muennighoff et al., arXiv 2305.16264).

    L = E + A / N'^alpha + B / D'^beta
    D' = U + U R_D* (1 - exp(-R_D / R_D*)),  R_D = D / U - 1 repeats of U unique tokens (D' = D up to one epoch)
    N' = V + V R_N* (1 - exp(-R_N / R_N*)),  R_N = N / V - 1,  V = min(N, N_opt(U))
    N_opt(U) = (alpha A U^beta / (beta B))^(1 / alpha): the parameters for which U tokens are compute-optimal

N_opt follows from `alpha A / N^alpha = beta B / D^beta`, the balance behind the paper's G and C(U).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import numpy as np

from pplscape.laws.forms.base import EXPONENT, Data, Floats, Frame, log_amounts
from pplscape.laws.forms.power_sum import FAR, PowerSum
from pplscape.runs import Compositions

NO_DECAY = 30.0
"""ln R*: repeats are worth as much as fresh tokens to the last digit."""
REPEATED = 1.05
"""More epochs than this are repeats; below it is rounding."""


class DataConstrained(PowerSum):
    """Variants: `data` lets only repeated tokens lose value (N' = N), `parameters` only excess parameters (D' = D)."""

    name = "data-constrained"
    variants = ("both", "data", "parameters", "one-model")
    columns: ClassVar[tuple[str, ...]] = ("tokens", "unique_tokens", "n_params")
    parameters = ("A", "B", "E", "alpha", "beta", "R_D", "R_N")
    logged = frozenset({"A", "B", "E", "R_D", "R_N"})
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "E": (-30.0, np.inf), "alpha": (0.02, 3.0), "beta": (0.02, 3.0),
        "R_D": (np.log(0.05), np.log(1e4)), "R_N": (np.log(0.05), np.log(1e4)),
    }  # fmt: skip
    beliefs: ClassVar[Mapping[str, tuple[float, float]]] = {"R_D": (np.log(15.4), 1.0), "R_N": (np.log(5.3), 1.0)}
    tilt: ClassVar[Mapping[str, tuple[str, str]]] = {"A": ("alpha", "log_n"), "B": ("beta", "log_d")}

    def absent(self) -> dict[str, float]:
        return {"data": {"R_N": NO_DECAY}, "parameters": {"R_D": NO_DECAY}}.get(self.variant, {})

    def unsuited(self, compositions: Compositions) -> str | None:
        assert compositions.unique_tokens is not None
        if self.variant != "parameters" and (compositions.tokens <= REPEATED * compositions.unique_tokens).all():
            return "no run repeats its data (D > U); needs runs of several epochs"
        return None

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        assert compositions.unique_tokens is not None
        unique = np.minimum(compositions.unique_tokens, compositions.tokens)
        found = {"log_d": np.log(compositions.tokens), "log_u": np.log(unique)}
        if "n_params" in self.columns:
            assert compositions.n_params is not None
            found["log_n"] = np.log(compositions.n_params)
        return found

    def terms(self, whole: Mapping[str, Floats], data: Data) -> tuple[Floats, dict[str, Floats]]:
        log_d, _, by_r = worth(data["log_d"], data["log_u"], whole["R_D"])
        data_term = np.exp(np.minimum(whole["B"] - whole["beta"] * log_d, FAR))
        floor = np.exp(whole["E"])
        slopes = {
            "B": data_term,
            "E": floor * np.ones_like(data_term),
            "beta": -data_term * log_d,
            "R_D": -data_term * whole["beta"] * by_r,
        }
        if "log_n" not in data:
            return floor + data_term, slopes
        by_n = self._parameter_term(whole, data, slopes)
        return floor + data_term + by_n, slopes

    def _parameter_term(self, whole: Mapping[str, Floats], data: Data, slopes: dict[str, Floats]) -> Floats:
        """A / N'^alpha [B, n]; adds its derivatives to `slopes`."""
        alpha, beta = whole["alpha"], whole["beta"]
        balance = np.log(alpha) - np.log(beta) + whole["A"] - whole["B"] + beta * data["log_u"]
        excess = balance / alpha < data["log_n"]
        log_v = np.where(excess, balance / alpha, data["log_n"])
        log_n, by_v, by_r = worth(data["log_n"] + 0 * log_v, log_v, whole["R_N"])
        term = np.exp(np.minimum(whole["A"] - alpha * log_n, FAR))
        pull = np.where(excess, -term * alpha * by_v, 0.0)
        slopes["A"] = term + pull / alpha
        slopes["B"] = slopes["B"] - pull / alpha
        slopes["alpha"] = -term * log_n + pull * (1 / alpha - balance / alpha) / alpha
        slopes["beta"] = slopes["beta"] + pull * (data["log_u"] - 1 / beta) / alpha
        slopes["R_N"] = -term * alpha * by_r
        return term

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """(alpha, beta, R*) on a grid; (A, B, E) by non-negative least squares with N' = N."""
        held = self.held(frame)
        found: list[dict[str, Floats | float]] = []
        exponents = [[held[k]] if k in held else list(np.linspace(0.15, 0.75, 5)) for k in ("alpha", "beta")]
        decays = [[held[k]] if k in held else list(np.log([1.0, 5.0, 20.0, 100.0])) for k in ("R_D", "R_N")]
        for alpha, beta, r_d in product(*exponents, decays[0]):
            log_d = worth(data["log_d"], data["log_u"], np.array([r_d]))[0]
            columns = [np.exp(-beta * (log_d - log_d.mean())), np.ones_like(log_d)]
            shift = [beta * log_d.mean(), 0.0]
            if "log_n" in data:
                columns.insert(0, np.exp(-alpha * (data["log_n"] - data["log_n"].mean())))
                shift.insert(0, alpha * data["log_n"].mean())
            logs = log_amounts(np.stack(columns, axis=-1), loss, weight) + shift
            names = ("A", "B", "E")[-logs.shape[-1] :]
            amounts: dict[str, Floats | float] = {k: logs[:, i] for i, k in enumerate(names)}
            fixed = {"alpha": alpha, "beta": beta, "R_D": r_d}
            found += [{**amounts, **fixed, "R_N": r_n} for r_n in decays[1]]
        return self.candidates(found, frame, len(loss))


class DataConstrainedOneModel(DataConstrained):
    """one-model: L = E + B / D'^beta, for runs of one model: N' is left out with its term."""

    columns = ("tokens", "unique_tokens")
    beliefs: ClassVar[Mapping[str, tuple[float, float]]] = {"beta": (EXPONENT, EXPONENT), "R_D": (np.log(15.4), 1.0)}

    def absent(self) -> dict[str, float]:
        return {"A": -np.inf, "alpha": 1.0, "R_N": NO_DECAY}


def worth(log_total: Floats, log_first: Floats, log_r: Floats) -> tuple[Floats, Floats, Floats]:
    """(ln X', d ln X' / d ln F, d ln X' / d ln R*) of X' = F + F R* (1 - exp(-(X / F - 1) / R*)), X = total, F = first.

    All as logarithms, shapes broadcast.
    """
    r = np.exp(log_r)
    repeats = np.expm1(np.clip(log_total - log_first, 0.0, FAR))
    decay = np.exp(-repeats / r)
    effective = 1 - r * np.expm1(-repeats / r)
    by_first = 1 - (1 + repeats) * decay / effective
    by_r = (-r * np.expm1(-repeats / r) - repeats * decay) / effective
    return log_first + np.log(effective), by_first, by_r
