"""Small synthetic pools."""

import numpy as np

from pplscape.draw.microbins import Cells
from pplscape.draw.pool import Pool


def make_pool(n: int = 2000, seed: int = 0, noise: float = 0.1) -> Pool:
    """n chunks of 64-256 tokens in documents of 8, three sources; `noise` of them far above the rest."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 1 - noise, rng.normal(3, 0.5, n), rng.normal(6, 0.5, n))
    length = np.where(rng.random(n) < 0.8, 256, rng.integers(64, 256, n))
    return Pool.of(
        [f"doc{i // 8:06d}" for i in range(n)],
        np.arange(n) % 8,
        length,
        x,
        [("a", "b", "c")[i // 8 % 3] for i in range(n)],
    )


def spent(pool: Pool, draw) -> int:
    return int((draw.times * pool.length).sum())


def cells_of(values: np.ndarray, length: np.ndarray) -> Cells:
    """Every chunk its own cell."""
    return Cells(np.ones(len(values)), length.astype(float), values, values**2)
