"""gadre_overtraining: extrapolation to 300 times the compute. The form is a short file, as in docs/new-form.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from published.rows import Row, columns, near, numbers, tables

from pplscape.laws.fit import Fit, fit_form
from pplscape.laws.forms.base import Data, Floats, Frame, weighted_least_squares
from pplscape.laws.forms.power_sum import PowerSum
from pplscape.runs import Compositions, RunTable

TABLE = "gadre_overtraining"
FITTED = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
"""0.011B to 0.41B at M = 20, and the first at M = 320: Table 2 of arXiv 2403.08540, `fit_ds` of the repository."""
TARGETS = (("1.4B, M = 640", 1.43e9, 32.0, 0.007103), ("6.9B, M = 20", 6.88e9, 1.0, 0.007320))
ERRORS = ((0.036365, "1.4B, M = 640"), (0.000464, "6.9B, M = 20"))


class Overtraining(PowerSum):
    """L = E + A N^-eta + B D^-eta: one exponent, so that over-training moves the loss alike at every compute."""

    name = "overtraining"
    columns = ("tokens", "n_params")
    parameters = ("A", "B", "E", "eta")
    logged = frozenset({"A", "B", "E"})
    limits: ClassVar = {"E": (-30.0, np.inf), "eta": (0.01, 3.0)}

    def data(self, compositions: Compositions, frame: Frame) -> Data:
        return {"log_n": np.log(compositions.n_params), "log_d": np.log(compositions.tokens)}

    def terms(self, whole: Mapping[str, Floats], data: Data) -> tuple[Floats, dict[str, Floats]]:
        by_n = np.exp(whole["A"] - whole["eta"] * data["log_n"])
        by_d = np.exp(whole["B"] - whole["eta"] * data["log_d"])
        floor = np.exp(whole["E"]) * np.ones_like(by_n)
        slopes = {"A": by_n, "B": by_d, "E": floor, "eta": -by_n * data["log_n"] - by_d * data["log_d"]}
        return floor + by_n + by_d, slopes

    def starts(self, data: Data, loss: Floats, weight: Floats, frame: Frame) -> Floats:
        found: list[dict[str, Floats | float]] = []
        for eta in np.linspace(0.05, 0.8, 16):
            design = np.stack([np.exp(-eta * data["log_n"]), np.exp(-eta * data["log_d"]), np.ones(loss.shape[1])], -1)
            logs = np.log(np.maximum(weighted_least_squares(design, loss, weight / loss**2), 1e-6))
            found.append({"A": logs[:, 0], "B": logs[:, 1], "E": logs[:, 2], "eta": eta})
        return self.candidates(found, frame, len(loss))


def runs(dataset: str) -> RunTable:
    """All models trained on one set; `noise` constant in nats."""
    found = columns(tables() / TABLE / "gadre_104_models.csv")
    keep = np.array(found["dataset"]) == dataset
    n, d, loss, m = (numbers(found, k)[keep] for k in ("N", "D", "loss_c4_val", "chinchilla_multiplier"))
    model = np.array(found["model"])[keep]
    return RunTable(tokens=d, n_params=n, loss=loss, noise=np.full(len(n), 0.01), meta={"m": m, "model": model})


def chosen(table: RunTable) -> np.ndarray:
    """The five runs of the default fit [n]."""
    model, m = table.meta["model"], table.meta["m"]
    return (np.isin(model, FITTED) & (m == 1)) | ((model == FITTED[0]) & (m == 16))


def fitted(dataset: str) -> Fit:
    """Least squares in L over five runs: a Huber threshold that nothing reaches, and weights under which residuals of
    ln L have the normal equations of residuals of L."""
    table = runs(dataset)
    table = table.take(chosen(table))
    fit = fit_form(Overtraining(), table, delta=1e3)
    for _ in range(8):
        off = np.exp(fit.log_loss(table)) / table.loss - 1
        bend = np.divide(np.log1p(off), off, out=np.ones_like(off), where=np.abs(off) > 1e-9)
        table = replace(table, noise=0.01 * np.sqrt(bend / (1 + off)))
        fit = fit_form(Overtraining(), table, delta=1e3)
    return fit


def rows() -> list[Row]:
    found = []
    for dataset, words in (("rpj", "RedPajama"), ("c4_original", "C4"), ("rw_original", "RefinedWeb")):
        table, fit = runs(dataset), fitted(dataset)
        for name, n, m, published in TARGETS:
            at = np.flatnonzero((np.abs(table.n_params / n - 1) < 0.01) & (table.meta["m"] == m))
            if len(at) == 0:
                continue
            error = abs(float(np.exp(fit.log_loss(table)[at[0]]) / table.loss[at[0]]) - 1)
            figure = f"trained on {words}: relative error of C4 loss, {name}"
            if dataset == "rpj":
                found.append(near(TABLE, figure, published, error, 1e-4, "published to 4 digits"))
            else:
                found.append(Row(TABLE, figure, None, error, None, "ours only"))
    for value, name in ERRORS:
        how = "needs the errors of single tasks; the file holds only a mean over all tasks"
        found.append(Row(TABLE, f"17-task top-1 error, {name}", value, None, None, how))
    return found
