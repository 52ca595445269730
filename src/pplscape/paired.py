"""Paired comparison of training arms: the unit is the seed (same start, paired draw and order). Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
LEVEL = 0.9
REFERENCE = "random"
MEASURED = ("loss", "bits_per_byte", "loss_valid", "loss_general")


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with a Student t interval; low and high are None for a single pair."""

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str = f"paired t, {LEVEL:.0%}"


def paired_difference(values: Sequence[float]) -> Difference:
    """Student's t interval (level 90 %) of the mean of differences [n], n >= 1."""
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Difference(mean, None, None, len(sample))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
    return Difference(mean, mean - half, mean + half, len(sample))


def document_difference(before: Floats, after: Floats, tokens: Floats, draws: int = 2000, seed: int = 0) -> Difference:
    """Change of the loss of one text, nats/token, from NLL sums [n] by document before and after.

    Percentile bootstrap of whole documents (level 90 %), the same ones before and after; None for a single document.
    """
    change, n = np.asarray(after, float) - np.asarray(before, float), len(tokens)
    mean, method = float(change.sum() / np.sum(tokens)), f"bootstrap of documents, {LEVEL:.0%}"
    if n < 2:
        return Difference(mean, None, None, n, method)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    low, high = np.quantile(
        weights @ change / (weights @ np.asarray(tokens, float)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    )
    return Difference(mean, float(low), float(high), n, method)


Arm = Mapping[str, Any]
"""strategy, seed, tokens, loss, bits_per_byte, and loss_valid and loss_general (or None)."""


def compare_arms(arms: Sequence[Arm]) -> dict[str, Any]:
    """The content of comparison.json: every strategy against `random`, paired by seed, and a verdict in words."""
    base = next((a for a in arms if a["strategy"] == "base"), None)
    trained = [a for a in arms if a["strategy"] != "base"]
    names = list(dict.fromkeys(a["strategy"] for a in trained))
    reference = {a["seed"]: a for a in trained if a["strategy"] == REFERENCE}
    strategies = [_summary(name, [a for a in trained if a["strategy"] == name], reference, base) for name in names]
    return {
        "reference": REFERENCE,
        "base": {k: base[k] for k in MEASURED} if base else None,
        "arms": [dict(a) for a in trained],
        "strategies": strategies,
        "verdict": verdict(strategies),
    }


def _summary(name: str, arms: list[Arm], reference: Mapping[int, Arm], base: Arm | None) -> dict[str, Any]:
    pairs = [(a, reference[a["seed"]]) for a in arms if a["seed"] in reference]
    compared = pairs if name != REFERENCE else []

    def against(key: str) -> dict[str, Any] | None:
        return asdict(paired_difference([a[key] - r[key] for a, r in compared])) if compared else None

    general = [a["loss_general"] for a in arms if a["loss_general"] is not None]
    valid = [a["loss_valid"] for a in arms if a["loss_valid"] is not None]
    forgot = [g - base["loss_general"] for g in general] if base and base["loss_general"] is not None else []
    return {
        "strategy": name,
        "n": len(arms),
        "tokens": float(np.mean([a["tokens"] for a in arms])),
        "loss": float(np.mean([a["loss"] for a in arms])),
        "bits_per_byte": float(np.mean([a["bits_per_byte"] for a in arms])),
        "loss_valid": float(np.mean(valid)) if valid else None,
        "loss_general": float(np.mean(general)) if general else None,
        "difference": against("loss"),
        "difference_bits_per_byte": against("bits_per_byte"),
        "difference_general": against("loss_general") if general else None,
        "change_general": asdict(paired_difference(forgot)) if forgot else None,
    }


def verdict(strategies: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """One of three lights, and a sentence: does the first strategy beside random beat it beyond the noise?

    Only one strategy is judged, named beforehand by its place: picking the best of several would need wider intervals.
    """
    rivals = [s for s in strategies if s["difference"] is not None]
    if not rivals:
        return _light("not enough pilots", "Nothing was measured against random selection, so nothing can be said.")
    best = rivals[0]
    found = best["difference"]
    if found["low"] is None:
        return _light("not enough pilots", f"One pair of runs ({found['mean']:+.4f} nats/token) cannot show its noise.")
    numbers = f"{found['mean']:+.4f} nats/token, {found['low']:+.4f} to {found['high']:+.4f}, {found['n']} paired seeds"
    if found["high"] < 0:
        return _light("worth it", f"Selecting by '{best['strategy']}' beats random at equal tokens ({numbers}).")
    if found["low"] > 0:
        return _light("inside the noise", f"'{best['strategy']}' is worse than random ({numbers}): use random.")
    return _light("inside the noise", f"'{best['strategy']}' cannot be told from random ({numbers}): use random.")


def _light(light: str, sentence: str) -> dict[str, str]:
    return {"light": light, "sentence": sentence}
