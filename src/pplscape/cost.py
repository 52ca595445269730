"""What a stage will cost before it runs: tokens, FLOPs, seconds on this machine. Used by every --dry-run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pplscape.config import RunConfig

SCORE_FLOPS, TRAIN_FLOPS = 2, 6
"""Per parameter and token: forward only, and forward + backward."""
UTILISATION = 0.3
"""Share of the measured matrix-product rate that a small model reaches; an assumption, said so where it is printed."""


@dataclass(frozen=True)
class Cost:
    """Tokens, floating-point operations and the seconds they take at `UTILISATION` of the measured matmul rate."""

    tokens: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens, {self.flops:.2e} FLOPs, about {self.seconds:,.0f} s "
            f"({self.seconds / 3600:.2f} device-hours) at {UTILISATION:.0%} of this CPU's measured matmul rate"
        )


def estimate(tokens: int, n_params: int, flops_per_token: int) -> Cost:
    """Cost of `tokens` at `flops_per_token` (SCORE_FLOPS or TRAIN_FLOPS) per parameter."""
    flops = float(flops_per_token) * n_params * tokens
    return Cost(tokens, flops, flops / (UTILISATION * matmul_rate()))


def flow_costs(config: RunConfig, pool_tokens: int, n_params: int) -> list[tuple[str, Cost]]:
    """What a whole run will compute, stage by stage: scoring, pilots, measuring them, and the arms at the end."""
    from pplscape.design import SIZE_FACTORS
    from pplscape.draw.budget import parse_budget

    runs = (config.pilots.designed + config.pilots.random_seeds) * len(SIZE_FACTORS)
    arms = (2 + len(config.baselines)) * config.arm_seeds
    heldout = config.valid_tokens + config.general_tokens
    trained = arms * parse_budget(config.budget, pool_tokens)
    probed = 2 * parse_budget(config.probe_tokens, pool_tokens)
    probes = [
        ("probes", estimate(probed, n_params, TRAIN_FLOPS)),
        ("scoring by them", estimate(pool_tokens, n_params, SCORE_FLOPS)),
    ]
    return [
        ("scoring", estimate(pool_tokens, n_params, SCORE_FLOPS)),
        *(probes if config.second_axis == "learnability" else []),
        ("pilots", estimate(config.pilots.tokens, n_params, TRAIN_FLOPS)),
        ("measuring pilots", estimate(runs * heldout, n_params, SCORE_FLOPS)),
        (f"{arms} arms", estimate(trained, n_params, TRAIN_FLOPS)),
        ("measuring arms", estimate((arms + 1) * (heldout + config.test_tokens), n_params, SCORE_FLOPS)),
    ]


@cache
def matmul_rate(size: int = 1024) -> float:
    """FLOP/s of one fp32 matrix product of this size here and now (best of three)."""
    a = np.ones((size, size), dtype=np.float32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def count_parameters(model: str) -> int:
    """Parameters of a model from its configuration alone; nothing is loaded. 0 for a folder without one."""
    if Path(model).exists() and not (Path(model) / "config.json").exists():
        return 0
    from pplscape.engines.loading import load_model_config, n_parameters

    return n_parameters(load_model_config(model))


def prepared_tokens(prepared: Path, split: str = "pool") -> int:
    """Tokens of a split of a prepared folder."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts = sorted((prepared / "chunks" / split).glob("part-*.parquet"))
    return sum(pc.sum(pq.read_table(p, columns=["length"])["length"]).as_py() or 0 for p in parts)
