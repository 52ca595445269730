"""Paired differences with t and BCa intervals, Holm, data-efficiency factors. Pure numpy and scipy.

Losses in nats/token; a sample is one value a seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]
LEVEL, RESAMPLES, FEWEST = 0.9, 9_999, 3
FEWEST_RESAMPLED = 5
"""Seeds that a bootstrap over seeds needs: three values have ten different resamples."""
GRID = 4_001
"""Points at which random's curve is inverted: to 1e-7 of the factor."""


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences; intervals at LEVEL and p (two-sided t test).

    `t` and `p` are None for fewer than 3 pairs, `bca` for fewer than FEWEST_RESAMPLED.
    """

    n: int
    mean: float
    t: tuple[float, float] | None
    bca: tuple[float, float] | None
    p: float | None


def paired(differences: Sequence[float]) -> Paired:
    """Statistics of differences [n], one a seed; n >= 1."""
    d = np.asarray(differences, dtype=float)
    if len(d) < FEWEST or np.ptp(d) == 0:
        return Paired(len(d), float(d.mean()), None, None, None)
    half = stats.t.ppf((1 + LEVEL) / 2, len(d) - 1) * stats.sem(d)
    ends = (float(d.mean() - half), float(d.mean() + half))
    return Paired(len(d), float(d.mean()), ends, _bca(d), float(stats.ttest_1samp(d, 0.0).pvalue))


def _bca(d: Floats) -> tuple[float, float] | None:
    if len(d) < FEWEST_RESAMPLED:
        return None
    found = stats.bootstrap(
        (d,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p values: never below those before them in ascending order."""
    names = sorted(p, key=lambda name: p[name])
    found, most = {}, 0.0
    for rank, name in enumerate(names):
        most = max(most, min(1.0, (len(names) - rank) * p[name]))
        found[name] = most
    return found


@dataclass(frozen=True)
class Efficiency:
    """Tokens that random needs for a loss, in units of the arm's. `censored`: "", ">" or "<" the measured range."""

    factor: float
    censored: str


def efficiency(loss: float, sizes: Sequence[float], losses: Sequence[float]) -> Efficiency:
    """DEF of an arm with `loss` at size 1, from random's mean `losses` at `sizes` (multiples of the arm's tokens).

    Monotone cubic (PCHIP) in ln(size); losses that rise by noise are first made to fall (isotonic). Of sizes that then
    tie only the smallest is kept, so the measured range ends where random first reached its lowest loss.
    """
    order = np.argsort(sizes)
    size = np.asarray(sizes, float)[order]
    value = isotonic_regression(np.asarray(losses, float)[order], increasing=False).x
    keep = np.concatenate([[True], np.diff(value) < 0])
    size, value = size[keep], value[keep]
    if loss <= value[-1]:
        return Efficiency(float(size[-1]), "" if loss == value[-1] else ">")
    if loss >= value[0]:
        return Efficiency(float(size[0]), "" if loss == value[0] else "<")
    grid = np.linspace(np.log(size[0]), np.log(size[-1]), GRID)
    return Efficiency(float(np.exp(np.interp(-loss, -PchipInterpolator(np.log(size), value)(grid), grid))), "")


BySeed = Mapping[int, float]
"""Seed -> loss."""


def of_arm(arm: BySeed, curve: Mapping[float, BySeed]) -> dict[float, BySeed]:
    """Random's curve (size -> seed -> loss) at the arm's seeds alone; sizes without one are left out."""
    found = {size: {s: x for s, x in losses.items() if s in arm} for size, losses in curve.items()}
    return {size: losses for size, losses in found.items() if losses}


def efficiency_interval(
    arm: BySeed, curve: Mapping[float, BySeed], resamples: int = 1_999
) -> tuple[Efficiency, Efficiency] | None:
    """Percentile interval of the DEF; None below FEWEST_RESAMPLED seeds. `curve`: size -> seed -> loss (`of_arm`).

    Seeds are resampled, and a seed brings the arm's run and all of random's runs that it has. A resample that leaves a
    size without a run is drawn again. An end beyond the measured sizes is censored, as the point is.
    """
    if len(arm) < FEWEST_RESAMPLED:
        return None
    found = [
        efficiency(_mean(arm, seeds), list(curve), [_mean(losses, seeds) for losses in curve.values()])
        for seeds in _seeds(arm, curve, resamples)
    ]
    place = int(len(found) * (1 - LEVEL) / 2)
    low = sorted(found, key=lambda e: 0.0 if e.censored == "<" else e.factor)[place]
    high = sorted(found, key=lambda e: np.inf if e.censored == ">" else e.factor)[-1 - place]
    return low, high


def _mean(losses: BySeed, seeds: Sequence[int]) -> float:
    return float(np.mean([losses[s] for s in seeds if s in losses]))


def _seeds(arm: BySeed, curve: Mapping[float, BySeed], resamples: int) -> Iterator[list[int]]:
    rng, done = np.random.default_rng(0), 0
    while done < resamples:
        seeds = rng.choice(list(arm), len(arm)).tolist()
        if all(any(s in losses for s in seeds) for losses in curve.values()):
            done += 1
            yield seeds


def document_interval(difference: Floats, tokens: Floats, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Interval of sum(difference) / sum(tokens) over resampled documents: the test text's own sampling error.

    `difference` [documents]: NLL of one arm minus another's, mean over seeds, nats; `tokens` [documents]: scored ones.
    """
    rng = np.random.default_rng(0)
    index = rng.integers(len(difference), size=(resamples, len(difference)))
    found = difference[index].sum(axis=1) / tokens[index].sum(axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
