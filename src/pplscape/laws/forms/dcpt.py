"""`dcpt`: how much general text to replay (D-CPT law, Que et al., arXiv 2406.01375, equation 6).

    L = E + A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma

r = share of domain text in the mixture (1 - replay_share). The paper's D counts all tokens. In runs.jsonl D counts
domain tokens, r times all: the form is the same and only eta reads eta + beta.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import ClassVar

import numpy as np

from pplscape.laws.forms.base import EXPONENT, Data, Floats, Frame, log_amounts
from pplscape.laws.forms.power_sum import FAR, PowerSum
from pplscape.runs import Compositions


class DCPT(PowerSum):
    """Variant `one-model` leaves A / N^alpha out, for runs of one model."""

    name = "dcpt"
    variants = ("full", "one-model")
    columns: ClassVar[tuple[str, ...]] = ("tokens", "n_params", "domain_share")
    parameters = ("A", "B", "C", "E", "alpha", "beta", "gamma", "eta", "epsilon")
    logged = frozenset({"A", "B", "C", "E", "epsilon"})
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {
        "E": (-30.0, np.inf), "alpha": (0.0, 3.0), "beta": (0.0, 3.0), "gamma": (0.02, 3.0), "eta": (0.0, 5.0),
        "C": (-16.0, 5.0), "epsilon": (np.log(1e-3), np.log(0.5)),
    }  # fmt: skip
    beliefs: ClassVar[Mapping[str, tuple[float, float]]] = {
        "alpha": (EXPONENT, EXPONENT), "beta": (EXPONENT, EXPONENT), "gamma": (0.5, 0.5), "eta": (1.0, 1.0),
        "epsilon": (np.log(0.05), 1.5),
    }  # fmt: skip
    tilt: ClassVar[Mapping[str, tuple[str, str]]] = {"A": ("alpha", "log_n"), "B": ("beta", "log_d")}

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        assert compositions.domain_share is not None
        r = compositions.domain_share
        found = {"log_d": np.log(compositions.tokens), "r": r, "log_r": np.log(np.maximum(r, 1e-9))}
        if "n_params" in self.columns:
            assert compositions.n_params is not None
            found["log_n"] = np.log(compositions.n_params)
        return found

    def terms(self, whole: Mapping[str, Floats], data: Data) -> tuple[Floats, dict[str, Floats]]:
        epsilon = np.exp(whole["epsilon"])
        log_shifted = np.log(data["r"] + epsilon)
        size = np.exp(np.minimum(whole["B"] + whole["eta"] * data["log_r"] - whole["beta"] * data["log_d"], FAR))
        mixture = np.exp(whole["C"] - whole["gamma"] * log_shifted)
        floor = np.exp(whole["E"]) * np.ones_like(size)
        slopes = {
            "B": size,
            "C": mixture,
            "E": floor,
            "beta": -size * data["log_d"],
            "eta": size * data["log_r"],
            "gamma": -mixture * log_shifted,
            "epsilon": -mixture * whole["gamma"] * epsilon / (data["r"] + epsilon),
        }
        if "log_n" not in data:
            return floor + size + mixture, slopes
        model = np.exp(np.minimum(whole["A"] - whole["alpha"] * data["log_n"], FAR))
        slopes |= {"A": model, "alpha": -model * data["log_n"]}
        return floor + model + size + mixture, slopes

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        """Exponents and epsilon on a grid; (A, B, C, E) by non-negative least squares."""
        grid = {"alpha": [0.2, 0.5], "beta": [0.15, 0.35, 0.7], "eta": [0.2, 1.0], "gamma": [0.1, 0.5, 1.2]}
        grid["epsilon"] = list(np.log([0.01, 0.1]))
        held = self.held(frame)
        options = [[held[k]] if k in held else values for k, values in grid.items()]
        found: list[dict[str, Floats | float]] = []
        for values in product(*options):
            one = dict(zip(grid, values, strict=True))
            log_d = data["log_d"] - data["log_d"].mean()
            shifted = np.log(data["r"] + np.exp(one["epsilon"]))
            columns = [np.exp(one["eta"] * data["log_r"] - one["beta"] * log_d), np.exp(-one["gamma"] * shifted)]
            columns.append(np.ones_like(log_d))
            shift = [one["beta"] * data["log_d"].mean(), 0.0, 0.0]
            if "log_n" in data:
                columns.insert(0, np.exp(-one["alpha"] * (data["log_n"] - data["log_n"].mean())))
                shift.insert(0, one["alpha"] * data["log_n"].mean())
            logs = log_amounts(np.stack(columns, axis=-1), loss, weight) + shift
            names = ("A", "B", "C", "E")[-logs.shape[-1] :]
            found.append({**{k: logs[:, i] for i, k in enumerate(names)}, **one})
        return self.candidates(found, frame, len(loss))


class DCPTOneModel(DCPT):
    """one-model: L = E + B r^eta / D^beta + C / (r + epsilon)^gamma."""

    columns = ("tokens", "domain_share")

    def absent(self) -> dict[str, float]:
        return {"A": -np.inf, "alpha": 1.0}
