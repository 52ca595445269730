"""regmix: 512 mixtures of 17 domains predict 13 losses of held-out mixtures; LightGBM as the peer.

The utility law sees the 17 weights as bins, D as constant, L(0) as that of a uniform guess over the vocabulary.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from published.rows import Row, columns, numbers, tables
from scipy import stats

from pplscape.laws.fit import Fit, fit_form
from pplscape.runs import Compositions, RunTable

TABLE = "regmix"
PUBLISHED = {
    "arxiv": 99.6, "freelaw": 99.71, "pubmed_central": 99.08, "wikipedia_en": 99.45, "dm_mathematics": 97.2,
    "github": 99.77, "stackexchange": 99.73, "gutenberg_pg_19": 99.18, "pile_cc": 98.92, "ubuntu_irc": 96.87,
    "hackernews": 98.51, "pubmed_abstracts": 99.19, "uspto_backgrounds": 99.12,
}  # fmt: skip
"""Spearman x 100 of LightGBM on the 256 held-out 1M mixtures."""
TOKENS = 1e9
"""Of every 1M proxy (arXiv 2407.01492); any constant gives the same law."""
BASE_LOSS = float(np.log(50432))
"""nats/token of a uniform guess, GPT-NeoX vocabulary."""
TARGETS = ("1m", "60m", "1B")
PEER = "LightGBM"
TOLERANCE = 0.3
"""Points of Spearman x 100 that count as nothing: LightGBM's versions differ by about as much."""


def mixture(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(index [n], weights [n, 17], rows summing to 1) of `train_mixture_1m` and the like."""
    found = columns(tables() / TABLE / f"{name}.csv")
    weights = np.stack([numbers(found, k) for k in found if k != "index"], axis=1)
    return np.array(found["index"]), weights / weights.sum(1, keepdims=True)


def losses(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(index [n], losses [n] by domain, nats/token)."""
    found = columns(tables() / TABLE / f"{name}.csv")
    short = {k: k.removeprefix("metric/the_pile_").removesuffix("_val_loss") for k in found if k != "index"}
    return np.array(found["index"]), {v: numbers(found, k) for k, v in short.items()}


def joined(split: str, size: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Mixtures and losses of one split in the same order."""
    left, weights = mixture(f"{split}_mixture_{size}")
    right, values = losses(f"{split}_pile_loss_{size}")
    where = {index: i for i, index in enumerate(right)}
    order = np.array([where[index] for index in left])
    return weights, {k: v[order] for k, v in values.items()}


def compositions(weights: np.ndarray) -> Compositions:
    return Compositions(tokens=np.full(len(weights), TOKENS), bin_tokens=weights * TOKENS)


def runs(domain: str) -> RunTable:
    """The 512 proxies as a table of runs; bin shares: their mean mixture."""
    weights, values = joined("train", "1m")
    at = compositions(weights)
    base = np.full(len(weights), BASE_LOSS)
    return RunTable(at.tokens, bin_tokens=at.bin_tokens, loss=values[domain], base_loss=base, bin_share=weights.mean(0))


def spearman(predicted: np.ndarray, measured: np.ndarray) -> float:
    """x 100, as published."""
    return 100 * float(stats.spearmanr(predicted, measured).statistic)


def fitted(domain: str, spec: str = "utility") -> Fit:
    return fit_form(spec, runs(domain))


def ours(spec: str) -> dict[str, dict[str, float]]:
    """Spearman x 100 by target and domain."""
    found: dict[str, dict[str, float]] = {size: {} for size in TARGETS}
    for domain in PUBLISHED:
        fit = fitted(domain, spec)
        for size in TARGETS:
            weights, values = joined("test", size)
            found[size][domain] = spearman(fit.log_loss(compositions(weights)), values[domain])
    return found


def peer(python: str) -> dict[str, dict[str, float]]:
    """The same by LightGBM, run by another Python that has it."""
    weights, values = joined("train", "1m")
    asked = {size: joined("test", size) for size in TARGETS}
    task = {
        "x": weights.tolist(),
        "y": {k: values[k].tolist() for k in PUBLISHED},
        "at": {size: w.tolist() for size, (w, _) in asked.items()},
    }
    script = Path(__file__).with_name("lightgbm_peer.py")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(script)], input=json.dumps(task), capture_output=True, text=True, check=True, env=clean
    )
    predicted = json.loads(done.stdout)
    return {size: {k: spearman(np.array(predicted[size][k]), asked[size][1][k]) for k in PUBLISHED} for size in TARGETS}


def rows(
    python: str | None = None, specs: tuple[str, ...] = ("utility", "utility:power"), kept: Sequence[Row] = ()
) -> list[Row]:
    """LightGBM (with `python`, one that has it, else as it was in `kept`) beside what was published, and our laws
    beside both."""
    found = {spec: ours(spec) for spec in specs}
    before = {row.figure: row.ours for row in kept if row.by == PEER and row.ours is not None}
    if python:
        found = {PEER: peer(python), **found}
    elif before:
        found = {PEER: {size: {k: before[f"{size} {k}"] for k in PUBLISHED} for size in TARGETS}, **found}
    every = [_row(size, domain, by, found) for size in TARGETS for domain in PUBLISHED for by in found]
    return every + [_mean(size, by, found[by][size]) for size in TARGETS for by in found]


def _row(size: str, domain: str, by: str, found: dict[str, dict[str, dict[str, float]]]) -> Row:
    figure, value = f"{size} {domain}", found[by][size][domain]
    published = PUBLISHED[domain] if size == "1m" else None
    reference = published if published is not None or PEER not in found else found[PEER][size][domain]
    if reference is None or (by == PEER and published is None):
        return Row(TABLE, figure, published, value, None, "nothing published", by)
    if by == PEER:
        return Row(
            TABLE, figure, published, value, abs(value - reference) <= TOLERANCE, f"within {TOLERANCE} points", by
        )
    against = "the published LightGBM" if published is not None else "LightGBM run here"
    how = f"not more than {TOLERANCE} points below {against}"
    return Row(TABLE, figure, published, value, value >= reference - TOLERANCE, how, by)


def _mean(size: str, by: str, values: dict[str, float]) -> Row:
    published = float(np.mean(list(PUBLISHED.values()))) if size == "1m" else None
    return Row(TABLE, f"{size} mean of 13", published, float(np.mean(list(values.values()))), None, "mean", by)
