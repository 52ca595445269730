"""A synthetic landscape, and pilots of worlds whose losses are known. Used by tests and experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pplscape.adaptive import Menu
from pplscape.landscape_facts import ScoredPool
from pplscape.runs import Compositions, RunTable

BUDGET, BASE, FLOOR, BETA = 100_000, 4.5, 3.0, 0.35
SIZES = (12_500, 25_000, 50_000, 100_000)
WORTH = {"dirty": (0.4, 0.8, 1.2, 1.6, -0.2), "mild": (0.8, 1.0, 1.2, 1.2, 0.8), "flat": (1.0,) * 5}
"""What a token of each bin is worth; an average token 1, but for the dirty world's noise."""
FIRST = (0, 0, 0, 1, 5, 9, 14, 18, 25, 30, 37, 40)
"""A first round on a menu: random three times, tilts, mixtures."""


def scored_pool(n: int = 4000, seed: int = 0) -> ScoredPool:
    """Chunks of 64-256 tokens, a tenth of them noise."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.9, rng.normal(4.5, 0.6, n), rng.normal(7, 0.4, n))
    length = rng.integers(64, 257, n)
    return ScoredPool(length, length, 4 * length, x * length, np.zeros(n, int), ("all",), pa.table({}), {})


def true_loss(world: str, compositions: Compositions) -> np.ndarray:
    """Noise-free loss [n], nats/token."""
    assert compositions.bin_tokens is not None
    gain = np.maximum(1 + 6 * compositions.bin_tokens @ np.asarray(WORTH[world]) / BUDGET, 0.1)
    return FLOOR + (BASE - FLOOR) * gain**-BETA


def pilots(
    menu: Menu,
    world: str,
    trunks: Sequence[int] = FIRST,
    sizes: Sequence[int] = SIZES,
    noise: float = 0.003,
    seed: int = 0,
    round_: str = "",
) -> RunTable:
    """Measured runs of regimes of the menu; relative noise, half of its variance shared by a trunk."""
    rng = np.random.default_rng(seed)
    one = menu.at(1.0).take(np.repeat(trunks, len(sizes)))
    tokens = np.tile(np.asarray(sizes, float), len(trunks))
    assert one.bin_tokens is not None
    asked = replace(one, tokens=tokens, unique_tokens=tokens, bin_tokens=one.bin_tokens * tokens[:, None])
    shared = np.repeat(rng.normal(size=len(trunks)), len(sizes)) + rng.normal(size=len(tokens))
    names = ["random" if k == 0 else f"{menu.kinds[k]}-{i}{round_}" for i, k in enumerate(trunks)]
    assert menu.whole.bin_tokens is not None
    return RunTable(
        **{k: v for k, v in vars(asked).items() if v is not None},
        loss=true_loss(world, asked) * np.exp(noise / np.sqrt(2) * shared),
        base_loss=np.full(len(tokens), BASE),
        group=np.repeat([f"{n}-{round_}{i}" for i, n in enumerate(names)], len(sizes)),
        regime=np.repeat(names, len(sizes)),
        seed=np.repeat([i if k == 0 else 0 for i, k in enumerate(trunks)], len(sizes)),
        bin_share=menu.whole.bin_tokens[0] / menu.whole.tokens[0],
    )
