"""Which pilots to run: regimes, training sizes, nested sub-pools. Pure numpy.

A regime is a token share per fine log-perplexity bin. Candidates are exponential tilts of the pool towards a grid of
(mean, spread) targets and Dirichlet mixtures of coarse bins; a greedy D-optimal choice among them decorrelates mean
and spread (windows of the sorted pool would tie them together). Depletion: the pilot of size D_i sees only a sub-pool
P_i with D_i / |P_i| = budget / |pool|, so that a pilot runs short of good text just as the main run will.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.statistics import Bins

Floats = NDArray[np.float64]
Index = NDArray[np.intp]
SIZE_FACTORS = (0.125, 0.25, 0.5, 1.0)
"""Training sizes as shares of the largest: a doubling grid over 8x."""
NEGLIGIBLE = 1e-4
"""Smaller shares of a regime are set to zero: they would not buy a chunk."""
CAP_SAFETY = 0.8
"""A regime may ask for this share of what a sub-pool holds of a bin on average."""

TRUNK_SHARE = 0.5
"""Of a run's noise variance, common to a trunk's branches: about what was measured on real text (docs, "How many pilots
do I need?")."""
MOST_WORTH = 60.0
"""Spread of what a bin's tokens may be worth, all tokens moved there, in noises of a run: 30 % of the loss at 0.5 %."""


@dataclass(frozen=True)
class Regime:
    """One way of mixing the pool. `shares` [F] sum to 1; None draws from the sub-pool at random."""

    name: str
    kind: str
    seed: int
    shares: tuple[float, ...] | None
    mean: float
    std: float

    @property
    def group(self) -> str:
        """The trunk: runs of one group share weights and noise."""
        return f"{self.name}-{self.seed}"


@dataclass(frozen=True)
class Fine:
    """The fine bins of the pool: token share [F], mean [F] and within-bin variance [F] of log-perplexity."""

    share: Floats
    mean: Floats
    variance: Floats

    @classmethod
    def of(cls, bins: Bins, x: Floats, length: NDArray, second: Floats | None = None) -> Fine:
        index = bins.of(x, second)
        weight = np.bincount(index, length, bins.n)
        mean = np.bincount(index, length * x, bins.n) / weight
        variance = np.bincount(index, length * (x - mean[index]) ** 2, bins.n) / weight
        return cls(np.asarray(bins.share), mean, variance)

    def moments(self, shares: Floats) -> tuple[float, float]:
        """(mean, std) of log-perplexity under token shares [F]."""
        mean = float(shares @ self.mean)
        return mean, float(np.sqrt(shares @ (self.variance + (self.mean - mean) ** 2)))


def capped(shares: Floats, cap: Floats) -> Floats:
    """The shares [F] cut at `cap` [F], the excess spread over the rest in proportion. Needs sum(cap) >= 1."""
    shares = shares / shares.sum()
    for _ in range(len(shares)):
        over = shares > cap
        if not over.any():
            break
        room = np.where(over, 0.0, shares)
        shares = np.where(over, cap, shares)
        missing = 1.0 - shares.sum()
        if missing <= 1e-12:
            break
        shares = shares + missing * (room / room.sum() if room.sum() > 0 else (cap - shares) / (cap - shares).sum())
    return np.minimum(shares, cap) / np.minimum(shares, cap).sum()


def tilt(fine: Fine, mean: float, std: float, cap: Floats) -> Floats:
    """Shares ~ pool share x exp(a z + b z^2) whose moments come closest to the target; z = standardised bin mean."""
    from scipy.optimize import least_squares

    pool_mean, pool_std = fine.moments(fine.share)
    z = np.clip((fine.mean - pool_mean) / pool_std, -4, 4)

    def shares(theta: Floats) -> Floats:
        logit = np.log(fine.share) + theta[0] * z + theta[1] * z**2
        return capped(np.exp(logit - logit.max()), cap)

    def miss(theta: Floats) -> Floats:
        m, s = fine.moments(shares(theta))
        return np.array([m - mean, s - std, 1e-4 * theta[0], 1e-4 * theta[1]])

    return shares(least_squares(miss, [0.0, 0.0], bounds=(-30, 30)).x)


def candidates(fine: Fine, coarse: Index, cap: Floats, seed: int, levels: int = 1) -> list[tuple[str, Floats]]:
    """(kind, shares) of tilts on a 6 x 3 grid of targets and 24 Dirichlet mixtures of the coarse bins [F] -> K.

    Bins with `levels` of a second axis are mixed by products of two such mixtures, as an additive law sees them.
    """
    _, std = fine.moments(fine.share)
    order = np.argsort(fine.mean)
    cumulative = np.cumsum(fine.share[order])
    targets = fine.mean[order][np.searchsorted(cumulative, np.linspace(0.1, 0.9, 6))]
    found = [("tilt", tilt(fine, float(m), f * std, cap)) for m in targets for f in (0.25, 0.55, 0.85)]
    rng = np.random.default_rng(seed)
    n_coarse = int(coarse.max()) + 1
    for _ in range(24):
        weights = rng.dirichlet(np.full(n_coarse // levels, 0.7))
        if levels > 1:
            weights = np.outer(weights, rng.dirichlet(np.full(levels, 0.7))).ravel()
        pool_coarse = np.bincount(coarse, fine.share, n_coarse)
        found.append(("mixture", capped(fine.share * (weights / pool_coarse)[coarse], cap)))
    return found


def most_shares(fine: Fine, depletion: float) -> Floats:
    """What a regime may ask for of each fine bin [F]: what a sub-pool holds of it, with some room."""
    return np.maximum(CAP_SAFETY * fine.share / depletion, fine.share)


def thinned(shares: Floats) -> Floats:
    """The shares [F] without those that would not buy a chunk."""
    kept = np.where(shares < NEGLIGIBLE, 0.0, shares)
    return kept / kept.sum()


def features(fine: Fine, coarse: Index, shares: Floats, levels: int = 1) -> Floats:
    """What a law could see of a regime: a quadratic in (mean, spread), the coarse bin shares, those of the levels."""
    pool_mean, pool_std = fine.moments(fine.share)
    mean, std = fine.moments(shares)
    m, s = (mean - pool_mean) / pool_std, std / pool_std - 1
    axes = [coarse] if levels == 1 else [coarse // levels, coarse % levels]
    uneven = [np.bincount(axis, shares) * (axis.max() + 1) - 1 for axis in axes]
    return np.concatenate([[1, m, s, m * m, s * s, m * s], *uneven])


def choose_regimes(
    fine: Fine, coarse: Index, depletion: float, n_designed: int, n_random: int, seed: int, levels: int = 1
) -> list[Regime]:
    """`n_random` seeds of the random regime and the greedy D-optimal `n_designed` among the candidates."""
    if fine.moments(fine.share)[1] < 1e-6:
        raise UserError(
            "All chunks have the same perplexity: there is no landscape to explore; train on a random subset."
        )
    if n_designed + n_random < 1:
        raise UserError("A plan needs at least one regime: give --designed or --random-seeds.")
    pool = candidates(fine, coarse, most_shares(fine, depletion), seed, levels)
    rows = np.stack([features(fine, coarse, s, levels) for _, s in pool])
    random_row = features(fine, coarse, fine.share, levels)
    information = 1e-3 * np.eye(rows.shape[1]) + n_random * np.outer(random_row, random_row)
    mean, std = fine.moments(fine.share)
    regimes = [Regime("random", "random", s, None, mean, std) for s in range(n_random)]
    left = list(range(len(pool)))
    for _ in range(min(n_designed, len(pool))):
        inverse = np.linalg.inv(information)
        gains = [rows[i] @ inverse @ rows[i] for i in left]
        best = left.pop(int(np.argmax(gains)))
        information += np.outer(rows[best], rows[best])
        kind, shares = pool[best]
        shares = thinned(shares)
        number = sum(r.kind == kind for r in regimes)
        regimes.append(Regime(f"{kind}-{number}", kind, 0, tuple(float(v) for v in shares), *fine.moments(shares)))
    return regimes


def diagnose(regimes: list[Regime], sizes: list[int]) -> dict[str, Any]:
    """Condition number of (1, mean, spread, mean x spread), standardised; VIF and correlation of mean and spread."""
    mean, std = np.array([r.mean for r in regimes]), np.array([r.std for r in regimes])
    correlation = float(np.corrcoef(mean, std)[0, 1]) if mean.std() > 0 and std.std() > 0 else 1.0
    columns = [np.ones(len(mean)), _standard(mean), _standard(std), _standard(mean) * _standard(std)]
    return {
        "condition_number": float(np.linalg.cond(np.stack(columns, axis=1))),
        "vif": 1.0 / max(1e-12, 1.0 - correlation**2),
        "mean_std_correlation": correlation,
        "d_span": sizes[-1] / sizes[0],
        "runs": len(regimes) * len(sizes),
        "trunks": len(regimes),
    }


def expected_error(trunks: Floats, asked: Floats, random: Floats, n_sizes: int) -> float:
    """How sure a predicted gain over random will be: its standard error, root mean square over what is `asked` [m, K],
    as a multiple of one run's noise; from bin shares of the planned trunks [n, K] and of random [K].

    By a law in which the bins' worths add up, the same at every size: generalised least squares with TRUNK_SHARE of the
    noise's variance common to the `n_sizes` branches of a trunk, and worths believed to within MOST_WORTH.
    """
    variance = TRUNK_SHARE + (1 - TRUNK_SHARE) / n_sizes
    precision = trunks.T @ trunks / variance + np.eye(len(random)) / MOST_WORTH**2
    lines = asked - random
    return float(np.sqrt(np.mean(np.einsum("mk,mk->m", lines, np.linalg.solve(precision, lines.T).T))))


def _standard(values: Floats) -> Floats:
    return (values - values.mean()) / (values.std() or 1.0)


def trunk_tokens(sizes: list[int], cooldown_share: float) -> int:
    """Tokens trained for one trunk and its branches."""
    return round((1 - cooldown_share) * sizes[-1] + cooldown_share * sum(sizes))


def choose_sizes(pilot_tokens: int, n_trunks: int, cooldown_share: float, budget: int, step: int) -> list[int]:
    """Sizes on the doubling grid that spend `pilot_tokens` over all trunks; none above the budget."""
    unit = trunk_tokens([round(1e6 * f) for f in SIZE_FACTORS], cooldown_share) / 1e6
    largest = min(budget, int(pilot_tokens / n_trunks / unit))
    sizes = [int(largest * f) for f in SIZE_FACTORS]
    if sizes[0] < 2 * step and largest == budget:
        raise UserError(
            f"The budget of {budget:,} tokens is too small for pilots at an eighth of it ({sizes[0]:,} tokens, under "
            f"two optimiser steps); give --step-tokens {max(1, sizes[0] // 2):,} or less, or a larger budget."
        )
    if sizes[0] < 2 * step:
        need = int(2 * step / SIZE_FACTORS[0] * n_trunks * unit)
        raise UserError(
            f"{pilot_tokens:,} pilot tokens are too few for {n_trunks} trunks: the smallest run would have "
            f"{sizes[0]:,} tokens, under two optimiser steps. Give --pilot-tokens {need:,} or fewer regimes."
        )
    return sizes


@dataclass(frozen=True)
class Trunk:
    """Chunk indices of one trunk: `segments[i]` continue it to size i, `branches[i]` are the cooldown of size i."""

    segments: list[Index]
    branches: list[Index]
    pool_tokens: list[int]

    def of(self, size: int) -> Index:
        """All chunks that the run of this size was trained on."""
        return np.concatenate([*self.segments[: size + 1], self.branches[size]])


def draw_trunk(
    regime: Regime, fine_bin: Index, length: NDArray, order: Floats, membership: Floats, sizes: list[int],
    cooldown_share: float, depletion: float,
) -> Trunk:  # fmt: skip
    """Draw a regime's chunks.

    `order` and `membership` are permanent uniforms [n]: which chunk comes first, and which sub-pools it belongs to.
    """
    total = float(length.sum())
    used = np.zeros(len(length), dtype=bool)
    segments, branches, pools, done = [], [], [], 0
    for size in sizes:
        inside = membership < min(1.0, size / depletion / total)
        pools.append(int(length[inside].sum()))
        cooldown = round(size * cooldown_share)
        segment = draw_shares(regime.shares, fine_bin, length, order, inside & ~used, size - cooldown - done)
        used[segment] = True
        done += int(length[segment].sum())
        segments.append(segment)
        branches.append(draw_shares(regime.shares, fine_bin, length, order, inside & ~used, cooldown))
    return Trunk(segments, branches, pools)


def draw_shares(
    shares: tuple[float, ...] | None, fine_bin: Index, length: NDArray, order: Floats, available: NDArray[np.bool_],
    tokens: int,
) -> Index:  # fmt: skip
    """Chunks with the given token shares per bin, lowest `order` first, within half a chunk of `tokens` in total.

    What a bin lacks is carried to the next bin, at last to whatever bin has text left; returned in `order`.
    """
    index = np.flatnonzero(available)
    index = index[np.argsort(order[index], kind="stable")]
    if shares is None:
        return index[: _nearest(np.cumsum(length[index]), tokens)]
    taken: list[Index] = []
    carry = 0.0
    for b in np.flatnonzero(np.asarray(shares) > 0):
        in_bin = index[fine_bin[index] == b]
        want = shares[b] * tokens + carry
        count = _nearest(np.cumsum(length[in_bin]), want)
        taken.append(in_bin[:count])
        carry = want - float(length[in_bin[:count]].sum())
    chosen = np.concatenate(taken) if taken else np.empty(0, dtype=np.intp)
    if carry > 0:
        rest = index[~np.isin(index, chosen)]
        chosen = np.concatenate([chosen, rest[: _nearest(np.cumsum(length[rest]), carry)]])
    return chosen[np.argsort(order[chosen], kind="stable")]


def _nearest(cumulative: NDArray, tokens: float) -> int:
    """How many items bring the cumulative sum nearest to `tokens`."""
    if tokens <= 0 or len(cumulative) == 0:
        return 0
    k = int(np.searchsorted(cumulative, tokens))
    if k == len(cumulative):
        return k
    below = cumulative[k - 1] if k else 0
    return k + 1 if cumulative[k] - tokens < tokens - below else k
