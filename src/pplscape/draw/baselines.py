"""Strategies that need no law. Each is `(pool, budget, seed, options) -> Draw`; budgets are tokens."""

from __future__ import annotations

import numpy as np

from pplscape.draw.budget import fill
from pplscape.draw.options import Options
from pplscape.draw.permanent import uniforms
from pplscape.draw.pool import Draw, Pool
from pplscape.errors import UserError
from pplscape.statistics import make_bins

STRATA = 10
"""Equal-token log-perplexity bins of `stratified`."""


def full(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Every chunk once; the budget must be the pool."""
    if budget < pool.tokens:
        raise UserError(
            f"Strategy full takes the whole pool of {pool.tokens} tokens, more than the budget of {budget}; "
            "use --budget 100% or strategy random."
        )
    return Draw(np.ones(len(pool), dtype=np.int16), "full")


def random(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """In order of the permanent uniforms: every chunk is as likely as any other."""
    return Draw.of_rows(pool, fill(pool.order(seed), pool.length, budget), "random")


def stratified(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Tokens proportional to the pool in every (log-perplexity bin, source), random inside.

    Systematic sampling: chunks of a stratum are laid end to end in random order on [0, 1), shifted by a random part
    of a chunk, and the chunks with the lowest positions are taken over all strata.
    """
    bins = make_bins(pool.x, pool.length, STRATA)
    stratum = pool.source * bins.n + bins.of(pool.x)
    order = np.lexsort((pool.uniforms(seed), stratum))
    label, first, of = np.unique(stratum[order], return_index=True, return_inverse=True)
    length = pool.length[order]
    before = np.cumsum(length) - length
    total = np.add.reduceat(length, first)
    shift = uniforms(seed, [pool.source_names[s // bins.n] for s in label], label % bins.n)
    position = (before - before[first][of] + shift[of] * length) / total[of]
    return Draw.of_rows(pool, fill(order[np.argsort(position, kind="stable")], pool.length, budget), "stratified")


def low(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """The lowest perplexities."""
    return Draw.of_rows(pool, fill(np.argsort(pool.x, kind="stable"), pool.length, budget), "low")


def high(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """The highest perplexities."""
    return Draw.of_rows(pool, fill(np.argsort(-pool.x, kind="stable"), pool.length, budget), "high")


def mid(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Token ranks 50 % +- half the budget's share."""
    order = np.argsort(np.abs(pool.token_rank() - 0.5), kind="stable")
    return Draw.of_rows(pool, fill(order, pool.length, budget), "mid")


def band(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Random among the chunks whose token rank lies in `options.band` = (low, high) quantiles."""
    if options.band is None:
        raise UserError("Strategy band needs --band LOW,HIGH: two quantiles of log-perplexity, such as 0.2,0.8.")
    lo, hi = options.band
    if not 0 <= lo < hi <= 1:
        raise UserError(f"The band {lo},{hi} is not a range of quantiles: 0 <= LOW < HIGH <= 1.")
    rank = pool.token_rank()
    order = pool.order(seed)
    order = order[((rank >= lo) & (rank <= hi))[order]]
    tokens = int(pool.length[order].sum())
    if tokens < budget:
        raise UserError(f"The band {lo},{hi} holds {tokens} tokens, less than the budget of {budget}; widen it.")
    return Draw.of_rows(pool, fill(order, pool.length, budget), "band", {"band": [lo, hi], "band_tokens": tokens})


def temperature(pool: Pool, budget: int, seed: int, options: Options) -> Draw:
    """Without replacement with weights exp(z / temperature), z the standardised winsorised log-perplexity.

    Gumbel top-k on the permanent uniforms. Large |temperature| is near random, small positive near `high`, small
    negative near `low`.
    """
    if options.temperature == 0:
        raise UserError("The temperature must not be 0: use strategy high or low.")
    value = pool.values("nll")
    z = (value - value.mean()) / (value.std() or 1.0)
    gumbel = -np.log(-np.log(pool.uniforms(seed)))
    order = np.argsort(-(z / options.temperature + gumbel), kind="stable")
    return Draw.of_rows(pool, fill(order, pool.length, budget), "temperature", {"temperature": options.temperature})
