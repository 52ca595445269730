"""datablations: repeated data (Muennighoff et al.); five parameters held, the decay constants fitted."""

from __future__ import annotations

import numpy as np
from published.rows import Row, columns, near, numbers, tables

from pplscape.laws.fit import LEAST_DELTA, Fit, fit_form, fit_many, setting_of
from pplscape.laws.forms import Frame, get_form
from pplscape.laws.forms.base import Floats
from pplscape.laws.forms.data_constrained import DataConstrained
from pplscape.runs import RunTable

TABLE = "datablations"
HELD = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596, "beta": 0.3526596}
R_D, R_N = 15.387756, 5.309743
HUBER_SUM, R2, R2_WITHOUT = 0.0158259366, 0.7722046085, 0.4451684379
DATA_ONLY, PARAMETERS_ONLY = (2.9157212, 0.7354468935), (713.0015, 0.4487786132)
"""R*, R^2."""


def runs(name: str = "fit_set") -> RunTable:
    """The 182 runs of the default fit, or all 296 parsed (`runs`)."""
    found = columns(tables() / TABLE / f"datablations_{name}.csv")
    d, u, n, loss = (numbers(found, k) for k in ("D_tokens", "U_unique_tokens", "N", "loss"))
    return RunTable(tokens=d, unique_tokens=u, n_params=n, loss=loss)


def r_squared(log_loss: Floats, table: RunTable) -> float:
    """Share of the variance of the losses (nats/token) explained."""
    left = table.loss - np.exp(log_loss)
    return float(1 - (left**2).sum() / ((table.loss - table.loss.mean()) ** 2).sum())


def protocol(variant: str = "both") -> Fit:
    """The published protocol: only R_D*, R_N* (or one of them) free."""
    return fit_form(DataConstrained(variant, fixed=HELD), runs(), delta=LEAST_DELTA)


def nearby() -> tuple[dict[str, float], float]:
    """(R_D*, R_N*; Huber sum) where the polish stops that starts from the published values."""
    form, table = DataConstrained(fixed=HELD), runs()
    setting = setting_of(form, table, LEAST_DELTA)
    start = np.log([[R_D, R_N]])
    weight = np.ones((1, len(table)))
    theta, value, _ = fit_many(setting, np.log(table.loss)[None], weight, start, precise=True)
    return dict(zip(("R_D", "R_N"), np.exp(theta[0]).tolist(), strict=True)), float(value[0])


def without_decay(table: RunTable) -> Floats:
    """ln L [n] of the held parameters with N and D as they are."""
    return get_form("chinchilla").log_loss(np.array([list(HELD.values())])[:, [0, 1, 2, 3, 4]], table, Frame())[0]


def rows() -> list[Row]:
    table, fit = runs(), protocol()
    there = DataConstrained(fixed=HELD)
    frame = there.reframe(table, Frame())
    at_published = r_squared(there.log_loss(np.array([[R_D, R_N]]), table, frame)[0], table)
    close, value = nearby()
    start = "polished from the published values"
    found = [
        near(TABLE, "R^2 at the published R_D*, R_N*", R2, at_published, 1e-8),
        near(TABLE, "R^2 without decay", R2_WITHOUT, r_squared(without_decay(table), table), 1e-8),
        near(TABLE, "Huber sum", HUBER_SUM, value, 1e-6, start),
        near(TABLE, "R_D*", R_D, close["R_D"], 2e-3, start),
        near(TABLE, "R_N*", R_N, close["R_N"], 2e-3, start),
    ]
    for variant, name, (decay, r2) in (("data", "R_D", DATA_ONLY), ("parameters", "R_N", PARAMETERS_ONLY)):
        one = protocol(variant)
        at = DataConstrained(variant, fixed=HELD)
        same = r_squared(at.log_loss(np.array([[decay]]), table, at.reframe(table, Frame()))[0], table)
        found.append(near(TABLE, f"decay of {variant} only: R^2 at the published {name}*", r2, same, 1e-6))
        how = f"our fit; its R^2 {r_squared(one.log_loss(table), table):.4f}, its Huber sum {one.objective:.6f}"
        found.append(near(TABLE, f"decay of {variant} only: {name}*", decay, one.params[name], 1e-2, how))
    how = "the fit of pplscape: the published point is a local minimum in a flat valley"
    found.append(Row(TABLE, "lowest Huber sum", HUBER_SUM, fit.objective, fit.objective <= HUBER_SUM + 1e-9, how))
    found += [Row(TABLE, f"{k}* there", v, fit.params[k], None, how) for k, v in (("R_D", R_D), ("R_N", R_N))]
    found.append(Row(TABLE, "R^2 there", R2, r_squared(fit.log_loss(table), table), None, how))
    free = fit_form("data-constrained", table, delta=LEAST_DELTA)
    how = "ours only: all seven parameters free; " + ", ".join(f"{k} {v:.4g}" for k, v in free.params.items())
    found.append(Row(TABLE, "all free: Huber sum", None, free.objective, None, how))
    found.append(Row(TABLE, "all free: R^2", None, r_squared(free.log_loss(table), table), None, "ours only"))
    return found
