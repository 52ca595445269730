"""Small synthetic pools."""

import numpy as np
import pyarrow as pa

from pplscape.draw.microbins import Cells
from pplscape.draw.pool import Pool
from pplscape.schema import PROBED


def make_pool(n: int = 2000, seed: int = 0, noise: float = 0.1) -> Pool:
    """n chunks of 64-256 tokens in documents of 8, three sources; `noise` of them far above the rest."""
    return Pool.from_table(score_table(n, seed, noise))


def score_table(n: int, seed: int = 0, noise: float = 0.1, shift: float = 0.0) -> pa.Table:
    """schema.PROBED of such a pool; `shift` moves all log-perplexities."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 1 - noise, rng.normal(3, 0.5, n), rng.normal(6, 0.5, n)) + shift
    length = np.where(rng.random(n) < 0.8, 256, rng.integers(64, 256, n))
    start = np.arange(n) % 8 * 1000
    return pa.table(
        {
            "doc_id": [f"doc{i // 8:06d}" for i in range(n)], "chunk_index": np.arange(n) % 8, "char_start": start,
            "char_end": start + 1000, "length": length, "n_tokens": np.ones(n, int), "n_bytes": length * 4,
            "nll_sum": x, "probe_nll_sum": x - np.random.default_rng(seed + 1).normal(0.3 * x, 0.4),
            "source": [("a", "b", "c")[i // 8 % 3] for i in range(n)],
        }
    ).cast(PROBED)  # fmt: skip


def spent(pool: Pool, draw) -> int:
    return int((draw.times * pool.length).sum())


def cells_of(values: np.ndarray, length: np.ndarray) -> Cells:
    """Every chunk its own cell."""
    return Cells(np.ones(len(values)), length.astype(float), values, values**2)
