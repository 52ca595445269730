"""Paired differences with t and BCa intervals, Holm, data-efficiency factors. Pure numpy and scipy.

Losses in nats/token; a sample is one value a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]
LEVEL, RESAMPLES, FEWEST = 0.9, 9_999, 3
GRID = 4_001
"""Points at which random's curve is inverted: to 1e-7 of the factor."""


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences; intervals at LEVEL and p (two-sided t test), None for fewer than 3 pairs."""

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
    boot = stats.bootstrap(
        (d,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return Paired(
        len(d), float(d.mean()), (float(d.mean() - half), float(d.mean() + half)), (float(boot.low), float(boot.high)),
        float(stats.ttest_1samp(d, 0.0).pvalue),
    )  # fmt: skip


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

    Monotone cubic (PCHIP) in ln(size); losses that rise by noise are first made to fall (isotonic).
    """
    order = np.argsort(sizes)
    size, value = np.asarray(sizes, float)[order], _falling(np.asarray(losses, float)[order])
    if loss <= value[-1]:
        return Efficiency(float(size[-1]), "" if loss == value[-1] else ">")
    if loss >= value[0]:
        return Efficiency(float(size[0]), "" if loss == value[0] else "<")
    keep = np.concatenate([[True], np.diff(value) < 0])
    curve = PchipInterpolator(np.log(size[keep]), value[keep])
    grid = np.linspace(np.log(size[0]), np.log(size[-1]), GRID)
    return Efficiency(float(np.exp(np.interp(-loss, -curve(grid), grid))), "")


def _falling(values: Floats) -> Floats:
    """The nearest non-increasing sequence in least squares (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for v in values:
        blocks.append([v, 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    return np.concatenate([np.full(int(n), v) for v, n in blocks])


def efficiency_interval(
    arm: Sequence[float], curve: Mapping[float, Sequence[float]], resamples: int = 1_999
) -> tuple[float, float]:
    """Percentile interval of the DEF; seeds of the arm and of every size are resampled. `curve`: size -> losses."""
    rng = np.random.default_rng(0)

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(rng.choice(np.asarray(values, float), len(values))))

    found = [
        efficiency(mean(arm), list(curve), [mean(v) for v in curve.values()]).factor for _ in range(resamples)
    ]  # fmt: skip
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def document_interval(difference: Floats, tokens: Floats, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Interval of sum(difference) / sum(tokens) over resampled documents: the test text's own sampling error.

    `difference` [documents]: NLL of the arm minus random's, mean over seeds.
    """
    rng = np.random.default_rng(0)
    index = rng.integers(len(difference), size=(resamples, len(difference)))
    found = difference[index].sum(axis=1) / tokens[index].sum(axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
