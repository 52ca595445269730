"""F1: the box that has a mean and a spread given. What a pool holds between two values is no uniform distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STARTS = 500
"""Lower ends that are tried."""


def band_with_moments(
    x: NDArray[np.float64], tokens: NDArray[np.int64], mean: float, std: float
) -> tuple[float, float]:
    """Quantiles, by `tokens` [n], of the band of `x` [n] whose chunks have this mean, and the spread nearest to `std`.

    ValueError if no band has the mean.
    """
    order = np.argsort(x, kind="stable")
    x = x[order]
    first, second = (np.concatenate([[0.0], np.cumsum(x**k)]) for k in (1, 2))

    def moments(start: int, end: int) -> tuple[float, float]:
        n = end - start
        middle = (first[end] - first[start]) / n
        return middle, float(np.sqrt(max(0.0, (second[end] - second[start]) / n - middle**2)))

    found = []
    for start in np.unique(np.linspace(0, np.searchsorted(x, mean) - 1, STARTS).astype(int)):
        low, high = int(start) + 1, len(x)
        if start < 0 or x[start] > mean or moments(int(start), high)[0] < mean:
            continue
        while low < high:  # the mean grows with the upper end
            middle = (low + high) // 2
            low, high = (middle + 1, high) if moments(int(start), middle)[0] < mean else (low, middle)
        found.append((abs(moments(int(start), low)[1] - std), int(start), low))
    if not found:
        raise ValueError(f"no band of the pool has the mean {mean:.3f}")
    share = np.concatenate([[0.0], np.cumsum(tokens[order])]) / tokens.sum()
    _, start, end = min(found)
    return float(share[start]), float(share[end])
