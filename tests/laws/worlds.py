"""Synthetic worlds: a pool of chunks, tilted regimes, losses from a known truth. Used by tests and experiments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pplscape.runs import Compositions, RunTable

BASE_LOSS = 4.8
LARGEST = 512_000.0
JUMP = 0.1
MODELS = np.array([1e8, 1e7, 3e7, 1e6])
SMALL_MODELS = np.array([1e6, 2.5e5, 5e5, 1e5])
UNIQUE = np.array([LARGEST, 32_000.0, 128_000.0, 64_000.0])
DOMAIN_SHARES = np.array([1.0, 0.5, 0.25, 0.1, 0.75])
COLUMNS = (
    "tokens", "bin_tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "n_params", "unique_tokens", "domain_share",
)  # fmt: skip
LENGTHS = np.array([1.5, 1.2, 2.5])
"""Of the world `gp`: about 3 standard deviations of the pilots' mean, ln spread and ln D."""


def pool(seed: int = 0, n: int = 4000, noise_share: float = 0.08) -> np.ndarray:
    """Log-perplexities [n] of a pool with a clean body and a noisy tail."""
    rng = np.random.default_rng(seed)
    noisy = int(n * noise_share)
    return np.concatenate([rng.normal(4.9, 0.45, n - noisy), rng.normal(7.0, 0.5, noisy)])


def compositions(
    x: np.ndarray, weights: np.ndarray, tokens: np.ndarray, n_bins: int = 5
) -> tuple[Compositions, np.ndarray]:
    """Compositions of chunk weights [n, N] at sizes [n], and the pool's bin shares [K]."""
    edges = np.quantile(x, np.arange(1, n_bins) / n_bins)
    member = np.eye(n_bins)[np.searchsorted(edges, x, side="right")]
    weights = weights / weights.sum(1, keepdims=True)
    moments = {}
    for scale, value in (("nll", x), ("ppl", np.exp(x))):
        value = np.clip(value, *np.quantile(value, [0.005, 0.995]))
        mean = weights @ value
        moments[f"{scale}_mean"] = mean
        moments[f"{scale}_std"] = np.sqrt(np.maximum(weights @ value**2 - mean**2, 1e-12))
    bins = (weights @ member) * tokens[:, None]
    return Compositions(tokens=tokens, bin_tokens=bins, **moments), member.mean(0)


def regimes(x: np.ndarray, n: int) -> tuple[np.ndarray, list[str]]:
    """Chunk weights [n, N]: three random regimes, then tilts that differ in mean and spread."""
    rows, names = [np.ones_like(x)] * 3, ["random"] * 3
    grid = [(m, s) for s in (0.25, 0.7, 0.45) for m in (4.5, 5.0, 5.5, 4.2, 4.75, 5.25, 5.8, 6.5)]
    order = np.random.default_rng(7).permutation(len(grid))
    for i in range(n - 3):
        m, s = grid[order[i % len(grid)]]
        rows.append(np.exp(-0.5 * ((x - m) / s) ** 2) + 0.02)
        names.append(f"tilt-{m}-{s}" + (f"-{i}" if i >= len(grid) else ""))
    return np.asarray(rows), names


def table(
    truth: str = "utility",
    trunks: int = 12,
    sizes: tuple[float, ...] = (64_000.0, 181_000.0, LARGEST),
    noise: float = 0.005,
    shared: float = 0.5,
    seed: int = 0,
    n_bins: int = 5,
) -> RunTable:
    """Measured runs of a world; noise in nats, `shared` of its variance common to a trunk."""
    x = pool()
    weights, names = regimes(x, trunks)
    tokens = np.tile(sizes, trunks)
    found, share = compositions(x, np.repeat(weights, len(sizes), axis=0), tokens, n_bins)
    found = replace(found, **of_trunks(truth, np.repeat(np.arange(trunks), len(sizes)), tokens))
    clean = true_loss(truth, found, share)
    rng = np.random.default_rng(seed)
    trunk = np.repeat(rng.normal(size=trunks), len(sizes)) * np.sqrt(shared)
    error = noise * (trunk + rng.normal(size=len(clean)) * np.sqrt(1 - shared))
    return RunTable(
        **{k: getattr(found, k) for k in COLUMNS},
        loss=clean + error,
        base_loss=np.full(len(clean), BASE_LOSS),
        group=np.repeat([f"t{i}" for i in range(trunks)], len(sizes)),
        regime=np.repeat(names, len(sizes)),
        bin_share=share,
    )


def of_trunks(truth: str, trunk: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The columns [n] that trunks differ in besides composition: models, unique tokens, shares of domain text.

    The three random trunks have the same: they measure the seed noise.
    """
    trunk = np.maximum(trunk - 2, 0)
    if truth == "repeated":
        unique = UNIQUE[(trunk + trunk // 4) % len(UNIQUE)]
        return {"n_params": SMALL_MODELS[trunk % len(SMALL_MODELS)], "unique_tokens": np.minimum(unique, tokens)}
    found = {"n_params": MODELS[trunk % len(MODELS)]} if truth in ("chinchilla", "replayed") else {}
    if truth == "replayed":
        found["domain_share"] = DOMAIN_SHARES[trunk % len(DOMAIN_SHARES)]
    return found


def smooth(c: Compositions, seed: int, spread: float = 0.03, n_waves: int = 600) -> np.ndarray:
    """A draw [n] of the Gaussian process with kernel spread^2 / (1 + r^2 / 2), by random waves: that kernel is
    exp(-g r^2 / 2) averaged over exponential g."""
    rng = np.random.default_rng([seed, 2])
    x = np.stack([c.nll_mean, np.log(c.nll_std), np.log(c.tokens)], axis=-1) / LENGTHS
    waves = rng.normal(size=(3, n_waves)) * np.sqrt(rng.exponential(size=n_waves))
    return spread * np.sqrt(2 / n_waves) * np.cos(x @ waves + rng.uniform(0, 2 * np.pi, n_waves)).sum(1)


def true_loss(truth: str, c: Compositions, share: np.ndarray) -> np.ndarray:
    """Noise-free losses [n] of the worlds `flat` (`flat-0.1`: that exponent, not 0.35), `utility`, `power`,
    `jump-0.35` (`utility` with a jump; its exponent),
    `quadratic`, `monotone`, `paper`, `extended`, `chinchilla`, `repeated`, `replayed`, `gp-SEED`."""
    t = c.tokens / LARGEST
    if truth.startswith("gp-"):
        return true_loss("flat", c, share) * np.exp(smooth(c, int(truth.partition("-")[2])))
    if truth == "repeated":  # trunks differ in model and in unique tokens
        first = np.minimum(c.unique_tokens, c.tokens) / LARGEST
        best = (0.3 * 2.0 / (0.35 * 1.4)) ** (1 / 0.3) * first ** (0.35 / 0.3)
        n = c.n_params / 1e6
        v = np.minimum(n, best)
        return 2.2 + 2.0 * decayed(n, v, 3.0) ** -0.3 + 1.4 * decayed(t, first, 8.0) ** -0.35
    if truth == "replayed":  # trunks differ in model and in share of domain text
        r = c.domain_share
        own = 1.2 * r**0.6 * t**-0.35 + 0.15 * (r + 0.05) ** -0.6
        return 2.2 + 0.5 * (c.n_params / 1e8) ** -0.3 + own
    if truth.startswith("flat"):
        return 2.2 + (BASE_LOSS - 2.2) * (1 + 3 * t) ** -float(truth.partition("-")[2] or 0.35)
    if truth in ("utility", "power", "jump-0.35"):
        centre = (np.arange(len(share)) + 0.5) / len(share)
        worth = 5.0 * (1.2 - 8 * (centre - 0.5) ** 2 * np.where(centre > 0.5, 1.2, 0.8))
        z = c.bin_tokens / (share * LARGEST)
        phi = z**0.5 if truth == "power" else 2 * (1 - np.exp(-z / 2))
        left = 1 - JUMP * (truth == "jump-0.35")
        return 2.2 + left * (BASE_LOSS - 2.2) * (1 + phi @ (worth * share)) ** -0.35
    if truth == "chinchilla":  # a trunk is a model
        return 2.2 + 0.5 * (c.n_params / 1e8) ** -0.3 + 1.4 * t**-0.35
    if truth == "monotone":
        return 2.2 + 1.4 * t**-0.3 * np.exp(0.2 * (c.nll_mean - 5.0))
    if truth == "quadratic":
        a, b = c.nll_mean - 5.0, np.log(c.nll_std) - np.log(0.5)
        return 2.2 + 1.4 * t**-0.3 * np.exp(0.5 * (0.6 * a**2 + 0.1 * b**2) - 0.05 * b)
    if truth == "paper":
        m, s = c.ppl_mean, c.ppl_std
        return 2.2 + 400.0 / (m ** (0.30 - 3e-4 * s) * s ** (0.12 - 2e-4 * m) * c.tokens**0.3)
    if truth == "extended":  # a published law in other units of m and s: outside its family, inside the extended one
        m, s = c.ppl_mean / 100, c.ppl_std / 100
        return 2.2 + 1.4 / (m ** (0.2 - 0.03 * s) * s ** (0.1 - 0.02 * m) * t**0.3)
    raise ValueError(truth)


def decayed(total: np.ndarray, first: np.ndarray, r: float) -> np.ndarray:
    """F + F R (1 - exp(-(X / F - 1) / R)) of totals X and first passes F."""
    return first * (1 + r * (1 - np.exp(-(total / first - 1) / r)))
