"""Pilots that would cure what a fit cannot know, by name, and how much they would narrow its interval.

Candidates are single pilots on a grid of compositions around those that ran, at their smallest and largest size and at
a quarter of the smallest. Two are chosen by V-optimality for the parameters in question (`laws.information`). What they
bring is measured by refits, not taken from that first-order theory: bounds, priors and curvature hold the interval of
an unidentified parameter far below what first order makes of it, so that its promises are too good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pplscape.laws.fit import Fit, setting_of
from pplscape.laws.forms.base import Floats, Form
from pplscape.laws.hull import Hull
from pplscape.laws.information import VAGUE, Knowledge, believed, derivatives, greedy, v_optimal
from pplscape.laws.law import distances
from pplscape.laws.noise import Noise
from pplscape.laws.table import labels, noise_weights
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import Compositions, RunTable

PILOTS = 2
WIDER = 1.25
"""Candidates lie in the pilots' hull in (ln mean, ln spread), widened by this factor about its centre."""
GRID = 5
SMALLER = 0.25
"""A size outside those that ran: this share of the smallest."""
WORTH_NAMING = 0.05
"""Pilots that narrow no interval by this share are not named."""
MOST_NAMES = 3
REFITS = 100
STEP = 1e-5
"""Of central differences, in steps of the form's basis."""


@dataclass(frozen=True)
class Menu:
    """Candidate pilots [C] and how to say them."""

    pilots: Compositions
    words: list[str]


def cure(
    fit: Fit, runs: RunTable, noise: Noise, names: Sequence[str], refits: Floats, feasible: Floats | None = None
) -> str | None:
    """A sentence naming the pilots that narrow the intervals of parameters `names` most; None if none is worth naming.

    `refits` [B, P]: all parameters of the fit's refits with that noise; `feasible`: (mean, std) points [m, 2] around
    what subsets can have, on the form's scale.
    """
    setting, theta = setting_of(fit.form, runs, fit.delta), fit.theta[None]
    menu = menu_of(fit.form, runs, feasible)
    if menu is None or fit.form.missing(menu.pilots, setting.frame):
        return None
    believes, slopes = believed(setting, fit.strength), derivatives(setting, theta)[1]
    known = Knowledge.of(believes, slopes, labels(runs, "group"), noise, noise_weights(runs))
    steps = STEP * fit.form.basis(setting.data, setting.frame).T
    up, down = (fit.form.params(theta + side * steps, setting.frame) for side in (1, -1))
    places = [list(fit.params).index(name) for name in names]
    lines = ((up - down) / (2 * STEP)).T[places]
    taken = pick(known, derivatives(setting, theta, menu.pilots)[1][0], lines)
    before, narrowing = _spreads(fit, refits, names), []
    for i in range(len(taken)):
        after = _refits(fit, runs, menu.pilots.take(taken[: i + 1]), noise)
        if after is None:
            return None
        narrowing.append(1 - _spreads(fit, after, names) / before)
    return say(taken, narrowing, names, menu.words)


def _spreads(fit: Fit, refits: Floats, names: Sequence[str]) -> Floats:
    """Root mean square distance [m] of refits [B, P] from the estimates, on the scale of their intervals."""
    params, order = fit.params, list(fit.params)
    away = [distances(name, params[name], refits[:, order.index(name)])[0] for name in names]
    return np.maximum(np.sqrt(np.mean(np.square(away), axis=1)), 1e-300)


def _refits(fit: Fit, runs: RunTable, pilots: Compositions, noise: Noise) -> Floats | None:
    """Parameters [REFITS, P] of refits to simulated losses of the runs and further pilots, each a trunk of its own.

    None for a form whose parameters depend on the table it is fitted to: they mean something else in a larger one.
    """
    loss = np.exp(fit.log_loss(pilots))
    asked = {k: v for k, v in vars(pilots).items() if v is not None}
    columns: dict[str, Any] = {k: np.concatenate([getattr(runs, k), v]) for k, v in asked.items()}
    new = [f"pilot {i + 1}" for i in range(len(pilots))]
    table = RunTable(
        **columns,
        loss=np.append(runs.loss, loss),
        base_loss=None if runs.base_loss is None else np.append(runs.base_loss, np.full(len(new), fit.frame.base_loss)),
        group=np.append(labels(runs, "group"), new),
        regime=np.append(labels(runs, "regime"), new),
        bin_share=runs.bin_share,
        bin_levels=runs.bin_levels,
        noise=None if runs.noise is None else np.append(runs.noise, np.full(len(new), np.median(runs.noise))),
    )
    frame = setting_of(fit.form, table, fit.delta).frame
    values = np.array([*fit.params.values()])
    if len(fit.form.names(frame)) != len(values):
        return None
    moved = replace(fit, frame=frame, theta=fit.form.theta(values, frame))
    if not np.allclose(moved.log_loss(runs), fit.log_loss(runs), atol=1e-6):
        return None
    return fit.form.params(uncertainty(moved, table, REFITS, noise=noise).draws, frame)


def separate(runs: RunTable, scale: str, noise: Noise, feasible: Floats | None = None) -> str | None:
    """A sentence naming the pilots that tell the effect of spread from that of the mean: the linear model of ln L on
    ln D, mean and ln spread; candidates from the whole box around the pilots, where their hull is hardly more than a
    line."""
    menu = _on_plane(scale, runs, feasible, box=True)

    def design(rows: Compositions) -> Floats:
        mean, std = rows.moments(scale)
        return np.stack([np.ones(len(rows)), np.log(rows.tokens), np.log(mean), np.log(std)], axis=-1)

    ran = design(runs)
    unit = np.where(np.ptp(ran, axis=0) > 0, ran.std(0), 1.0)
    known = Knowledge.of(np.eye(4) / VAGUE**2, ran[None] / unit, labels(runs, "group"), noise, noise_weights(runs))
    slopes, line = design(menu.pilots) / unit, np.eye(4)[None, 3:]
    taken, before = pick(known, slopes, line[0]), known.variance(line)[0]
    narrowing = []
    for i in taken:
        known = known.after(slopes[i][None, None])
        narrowing.append(1 - np.sqrt(known.variance(line)[0] / before))
    return say(taken, narrowing, ["the spread's effect"], menu.words)


def pick(known: Knowledge, slopes: Floats, lines: Floats) -> list[int]:
    """V-optimal pilots among candidates with derivatives [C, p], for parameters with derivatives [m, p]."""
    before = known.variance(lines[None])[0]
    able = np.isfinite(before) & (before > 0)
    if not able.any():
        return []
    asked = lines[able] / np.sqrt(before[able])[:, None]  # each parameter counts alike
    score = v_optimal(asked[None], np.full(len(asked), 1 / len(asked)))
    return greedy(known, slopes[:, None, None, :], np.ones(len(slopes)), PILOTS, score)[0]


def say(taken: Sequence[int], narrowing: Sequence[Floats], names: Sequence[str], words: Sequence[str]) -> str | None:
    """The sentence for pilots and the share [m] by which each narrows every interval, the earlier ones included."""
    parts: list[str] = []
    last = np.zeros(len(names))
    for i, reached in zip(taken, narrowing, strict=True):
        if (reached - last).max() < WORTH_NAMING:
            break
        if not parts:
            parts.append(f"A pilot {words[i]} would narrow the interval of {_shares(names, reached)}")
        else:
            which = "with another seed" if i == taken[0] else words[i]
            parts.append(f"a second {which}, in all, {_shares(names, reached)}")
        last = reached
    return "; ".join(parts) + "." if parts else None


def _shares(names: Sequence[str], narrowing: Floats) -> str:
    """`E by 45 % and aD by 30 %`: the most narrowed first."""
    order = np.argsort(-narrowing, kind="stable")[:MOST_NAMES]
    said = [f"{names[i]} by {narrowing[i]:.0%}" for i in order if narrowing[i] >= 0.005]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def menu_of(form: Form, runs: RunTable, feasible: Floats | None = None) -> Menu | None:
    """Candidates in the columns that a form looks at; None for columns that no grid is known for."""
    if form.scale is not None:
        return _on_plane(form.scale, runs, feasible)
    if "bin_tokens" in form.columns:
        return _of_bins(runs)
    if "n_params" in form.columns:
        return _of_models(runs)
    sizes = _sizes(runs)
    return Menu(Compositions(tokens=sizes), [f"of {_tokens(d)}" for d in sizes])


def _sizes(runs: RunTable) -> Floats:
    small, large = float(runs.tokens.min()), float(runs.tokens.max())
    return np.array([SMALLER * small, small, large])


def _tokens(size: float) -> str:
    return f"D = {float(f'{size:.2g}'):,.0f}"


def _on_plane(scale: str, runs: RunTable, feasible: Floats | None, box: bool = False) -> Menu:
    """Places on a grid in (ln mean, ln spread), at every size."""
    mean, std = runs.moments(scale)
    hull = Hull.of(np.log(np.stack([mean, std], axis=-1)))
    middle = (hull.corners.min(0) + hull.corners.max(0)) / 2
    wide = Hull(middle + WIDER * (hull.corners - middle))
    axes = [np.linspace(wide.corners[:, i].min(), wide.corners[:, i].max(), GRID) for i in (0, 1)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    points = np.unique(np.concatenate([points if box else points[wide.contains(points)], hull.corners]), axis=0)
    if feasible is not None and len(feasible) > 2:
        reach = Hull.of(np.stack([feasible[:, 0], (feasible**2).sum(1)], axis=-1))
        value = np.exp(points)
        inside = reach.contains(np.stack([value[:, 0], (value**2).sum(1)], axis=-1), slack=1e-6)
        points = points[inside] if inside.any() else hull.corners
    sizes = _sizes(runs)
    tokens, place = np.tile(sizes, len(points)), np.exp(np.repeat(points, len(sizes), axis=0))
    words = [f"at mean {m:.3g}, spread {s:.2g}, {_tokens(d)}" for (m, s), d in zip(place, tokens, strict=True)]
    columns = {f"{scale}_mean": place[:, 0], f"{scale}_std": place[:, 1]}
    return Menu(Compositions(tokens=tokens, **columns), words)


def _of_bins(runs: RunTable) -> Menu | None:
    """Random, and half the tokens from one bin, the rest random."""
    if runs.bin_share is None:
        return None
    share = np.asarray(runs.bin_share)
    mixes = np.concatenate([share[None], (share + np.eye(len(share))) / 2])
    mixed = ["of random text", *(f"with half its text from bin {b + 1}" for b in range(len(share)))]
    sizes = _sizes(runs)
    tokens = np.tile(sizes, len(mixes))
    bins = np.repeat(mixes, len(sizes), axis=0) * tokens[:, None]
    words = [f"{mix}, {_tokens(d)}" for mix in mixed for d in sizes]
    return Menu(Compositions(tokens=tokens, bin_tokens=bins), words)


def _of_models(runs: RunTable) -> Menu:
    """Models of the smallest, middle and largest size, and of a quarter of the smallest."""
    assert runs.n_params is not None
    small, large = float(runs.n_params.min()), float(runs.n_params.max())
    models = np.array([SMALLER * small, small, np.sqrt(small * large), large])
    sizes = _sizes(runs)
    tokens, n_params = np.tile(sizes, len(models)), np.repeat(models, len(sizes))
    words = [f"of N = {n:.2g}, {_tokens(d)}" for n, d in zip(n_params, tokens, strict=True)]
    return Menu(Compositions(tokens=tokens, n_params=n_params), words)
