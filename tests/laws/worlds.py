"""Synthetic worlds: a pool of chunks, tilted regimes, losses from a known truth. Used by tests and experiments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pplscape.runs import Compositions, RunTable

BASE_LOSS = 4.8
LARGEST = 512_000.0
MODELS = np.array([1e8, 1e7, 3e7, 1e6])
COLUMNS = ("tokens", "bin_tokens", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "n_params")


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
    if truth == "chinchilla":
        found = replace(found, n_params=np.repeat(MODELS[np.arange(trunks) % len(MODELS)], len(sizes)))
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


def true_loss(truth: str, c: Compositions, share: np.ndarray) -> np.ndarray:
    """Noise-free losses [n] of the worlds `flat` (`flat-0.1`: that exponent, not 0.35), `utility`, `power`,
    `quadratic`, `monotone`, `paper`, `extended`, `chinchilla`."""
    t = c.tokens / LARGEST
    if truth.startswith("flat"):
        return 2.2 + (BASE_LOSS - 2.2) * (1 + 3 * t) ** -float(truth.partition("-")[2] or 0.35)
    if truth in ("utility", "power"):
        centre = (np.arange(len(share)) + 0.5) / len(share)
        worth = 5.0 * (1.2 - 8 * (centre - 0.5) ** 2 * np.where(centre > 0.5, 1.2, 0.8))
        z = c.bin_tokens / (share * LARGEST)
        phi = 2 * (1 - np.exp(-z / 2)) if truth == "utility" else z**0.5
        return 2.2 + (BASE_LOSS - 2.2) * (1 + phi @ (worth * share)) ** -0.35
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
