"""Limits of the irreducible loss and of exponents: the values that the runs do not reject, by inverting a test.

E and the exponents lie along a valley of nearly equal fit that ends at bounds (E = 0, E = the smallest loss). How far
estimates scatter depends on where on the valley they are, so quantiles of refits held E in 69 to 98 % of simulated data
sets where 90 were asked for. A test of one value needs no such symmetry: with the parameter held there the others are
well identified, and the rise of the objective above its minimum is asymptotically what it is for any identified
parameter, whether or not the runs could have told this one (`valley`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pplscape.laws.fit import Fit, Setting, setting_of
from pplscape.laws.forms.base import Floats
from pplscape.laws.identified import EXPONENTS, edges, identified
from pplscape.laws.table import labels, noise_weights
from pplscape.laws.valley import Valley, furthest, valley_of
from pplscape.runs import RunTable

ROUNDS = 30
"""Most values tried on a side; a limit beyond the last is that value."""
CLOSE = 0.02
"""A value whose normal score is this near the wanted one is the limit."""
WIDE = 0.99
"""E and the exponents must be told wherever in this interval the true E is."""
Ends = tuple[Floats, Floats]
"""(low [T], high [T])"""


class Limits(NamedTuple):
    """What the runs say of E and the exponents of T tables."""

    ends: Mapping[str, Ends]
    """By parameter, in the units of the form's formula; a side that the runs do not reject ends at the bound."""
    told: NDArray[np.bool_]
    """[T] whether runs like these tell them: here, and if the truth were at either end of the WIDE interval of E."""


def limits_of(
    fit: Fit, runs: RunTable, level: float = 0.9, seed: int = 0
) -> tuple[dict[str, tuple[float, float]], bool]:
    """((low, high) at `level` of E and the exponents of one fit, whether they are identified)."""
    setting = setting_of(fit.form, runs, fit.delta)
    found = limits(
        setting, fit.theta[None], np.log(runs.loss)[None], noise_weights(runs), labels(runs, "group"), level, seed
    )
    return {name: (float(low[0]), float(high[0])) for name, (low, high) in found.ends.items()}, bool(found.told[0])


def limits(
    setting: Setting,
    theta: Floats,
    log_loss: Floats,
    weight: Floats,
    groups: NDArray[np.str_],
    level: float = 0.9,
    seed: int = 0,
    names: Sequence[str] = ("E", *EXPONENTS),
) -> Limits:
    """Limits of each of `names` that the form has, for T tables of the same compositions.

    theta [T, p] are the fits, log_loss [T, n], weight [n]. Without ends for parameters that are not one coordinate of
    theta. A data set may be lucky: its estimate lies where the valley is steep, though the next data set's will not.
    So what it tells is asked again of runs without noise that lie on the law at either end of the WIDE interval of E.
    """
    valley, own = valley_of(setting, theta, log_loss, weight, groups, seed, names=names)
    ends = _ends(setting, valley, own, level)
    told = _identified(setting, valley, ends)
    for sign in (-1.0, 1.0):
        rows = np.flatnonzero(told)
        if len(rows) and "E" in own:
            far = _limit(valley.rows(rows), own["E"], sign, float(ndtri(0.5 + WIDE / 2)))
            there = valley.without_residuals(rows, far)
            told[rows] = _identified(setting, there, _ends(setting, there, own, level))
    return Limits(ends, told)


def _ends(setting: Setting, valley: Valley, own: Mapping[str, int], level: float) -> dict[str, Ends]:
    """By parameter (low [T], high [T])."""
    ends = {}
    for name, i in own.items():
        sides = [_limit(valley, i, sign, float(ndtri(0.5 + level / 2))) for sign in (-1.0, 1.0)]
        at = setting.form.names(setting.frame).index(name)
        values = [setting.form.params(side, setting.frame)[:, at] for side in sides]
        ends[name] = (np.minimum(*values), np.maximum(*values))
    return ends


def _identified(setting: Setting, valley: Valley, ends: Mapping[str, Ends]) -> NDArray[np.bool_]:
    """[T] whether all limits of a table are those of identified parameters."""
    smallest = np.exp(valley.problem.log_loss.min(1))
    low, high = edges(setting.form, setting.frame, smallest)
    names = setting.form.names(setting.frame)
    found = np.ones(len(smallest), bool)
    for name, (left, right) in ends.items():
        at = names.index(name)
        found &= [
            identified(name, (left[t], right[t]), (low[t, at], high[t, at]), smallest[t]) for t in range(len(found))
        ]
    return found


def _limit(valley: Valley, i: int, sign: float, wanted: float) -> Floats:
    """theta [T, p] on the profile, its coordinate i the limit on one side: outwards in growing steps, then by regula
    falsi."""
    low, high = (side[:, i] for side in valley.problem.bounds())
    start, edge, extent = valley.theta[:, i], low if sign < 0 else high, high - low
    room = np.abs(edge - start)
    n = len(start)
    _, direction, information, own = valley.look(np.arange(n), valley.theta, i)
    noise = np.median(np.hypot(valley.trunk, valley.run), axis=1)
    first = wanted * noise / np.sqrt(np.maximum(information, 1e-300))
    distance = np.minimum(first, furthest(np.zeros(n), room, extent))
    inner, inner_score, inner_theta = np.zeros(n), np.zeros(n), valley.theta.copy()
    outer, outer_score = np.full(n, np.inf), np.full(n, np.inf)
    rows = np.flatnonzero(room > 0)
    for _ in range(ROUNDS):
        if not len(rows):
            break
        held = start[rows] + sign * distance[rows]
        ahead = (held - inner_theta[rows, i])[:, None] * direction[rows]
        theta = valley.hold(rows, i, inner_theta[rows], ahead, held, own[rows])
        score, turned, _, steep = valley.look(rows, theta, i)
        beyond = score > wanted
        outside, inside = rows[beyond], rows[~beyond]
        outer[outside], outer_score[outside] = distance[outside], score[beyond]
        inner[inside], inner_score[inside], inner_theta[inside] = distance[inside], score[~beyond], theta[~beyond]
        direction[inside], own[inside] = turned[~beyond], steep[~beyond]
        near = (np.abs(score - wanted) < CLOSE) | (inner[rows] >= 0.999 * outer[rows])
        done = near | (~beyond & (distance[rows] >= room[rows]))
        distance[rows[done]] = np.where(near & beyond, outer[rows], inner[rows])[done]
        rows = rows[~done]
        distance[rows] = _next(
            inner[rows], inner_score[rows], outer[rows], outer_score[rows], wanted, room[rows], extent[rows]
        )
    found = inner_theta
    found[:, i] = np.where(inner >= room, edge, start + sign * distance)
    return found


def _next(
    inner: Floats,
    inner_score: Floats,
    outer: Floats,
    outer_score: Floats,
    wanted: float,
    room: Floats,
    extent: Floats,
) -> Floats:
    """The next distance [B]: further out while nothing was rejected, else where the score would be the wanted one."""
    growth = np.clip(1.1 * wanted / np.maximum(inner_score, 1e-3), 1.3, 3.0)
    further = np.minimum(inner * growth, furthest(inner, room, extent))
    share = (wanted - inner_score) / np.maximum(np.minimum(outer_score, wanted + 3.0) - inner_score, 1e-9)
    between = inner + np.clip(share, 0.1, 0.9) * (np.where(np.isfinite(outer), outer, inner) - inner)
    return np.where(np.isfinite(outer), between, further)
