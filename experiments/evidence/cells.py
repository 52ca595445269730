"""What is run, in which order. A cell is one trained arm: pool, method, seed, size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HEADLINE_SEEDS, SWEEP_SEEDS = 8, 3
CHOOSING_SEEDS = (100, 101)
"""Seeds that no test run uses."""
CHOOSING_SIZE = 0.25
CHOOSE, CHOOSE_RATE = "choose", "choose-rate"
RATES = (5e-4, 1e-3, 2e-3)
"""Learning rates tried with the larger model."""
BANDS = ("band:0.05,0.55", "band:0.2,0.7", "band:0.4,0.9", "band:0.5,1")
SIMPLE = ("low", "mid", "high", "stratified", "temperature:1", "temperature:-1")
LAWS = ("paper+dos", "paper+maxent", "utility+allocate", "utility+hedged", "auto")
OTHER_LAWS = ("extended+maxent", "quadratic+maxent")
ROUNDS, WIDE = "-rounds", "-wide"
"""Ends of an arm's name: pilots in two rounds, the second planned by the first; twice the trunks, half as long."""
RUN = ("run", f"run{ROUNDS}", f"run{WIDE}")
"""What the product does from raw text: near-duplicates removed, then `auto+likeness`."""
OTHER_PILOTS = tuple(f"auto+likeness{end}" for end in (ROUNDS, WIDE))
LIKENED = {"auto+likeness": "levels", "run": "run"}
LIKENED |= {name + end: folder + end for name, folder in LIKENED.items() for end in (ROUNDS, WIDE)}
"""Arms on levels of likeness to the valid text: their law has pilots of its own, in this folder of the pool."""
TOWARD = ("auto+likeness", "run")
"""Of these, those whose allocation is hedged towards the mix of the valid text; the others keep to the pool's."""
MATCHED = {"matched+likeness": "auto+likeness", "run-matched": "run"}
"""Random text in the target's mix over the bins and levels of these arms, on their text: no pilots, no gate."""
WORDS = ("dsir",)
"""Baselines that know the valid text's words, beside the band of the better half by likeness."""
PROBED = ("learnable",)
"""Arms that need scores with learnability, which cost a probe on each half of the pool."""
CURVE = (0.5, 2.0)
LONG_CURVE = (0.25, 4.0)
COMPOSITIONS = 64
REPLAY = "+replay:"
"""In an arm's name, before the share of its training tokens that is text of the base model's, beside the D tokens."""
REPLAYED = ("random", "run")
REPLAY_SHARES = (0.05, 0.2)
SHAPES = ("two-point", "maxent", "box")
"""F1: the same mean and spread of log-perplexity in three shapes."""
LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
"""F4 and F3: means of log-perplexity at these quantiles of the pool."""
SMALLER = 0.25
"""F3: the same at this part of D."""
CORNERS = ("0.3,0.15", "0.3,0.35", "0.7,0.15", "0.7,0.35")
"""F2: a low and a high mean (quantile of the pool), each with a narrow and a wide spread (share of its range)."""
LARGER = "F6"
"""Experiment of the cells trained with the larger model, on the draws of the base."""
TRANSFERRED = ("random", "run", "oracle", "auto+likeness", "auto", "paper+dos", "mid", "low", "high")
"""F6: arms that span what was measured, from the best to the worst."""
BY_BYTE, VARIANCE = "by-byte:", "variance"
"""F7: the band that follows, of loss per byte; the published law whose sigma is the variance, drawn like
`paper+maxent`."""


@dataclass(frozen=True)
class Cell:
    experiment: str
    pool: str
    method: str
    seed: int
    size: float = 1.0
    """Tokens as a multiple of D."""

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.pool}/{self.method}/{self.seed}/{self.size:g}"

    @property
    def drawn(self) -> str:
        """The method that says what is drawn: the same with and without replay."""
        return self.method.partition(REPLAY)[0]

    @property
    def replay_share(self) -> float:
        return float(self.method.partition(REPLAY)[2] or 0)

    @property
    def file(self) -> str:
        return re.sub(r"[^\w.+-]", "_", self.name) + ".json"

    @property
    def on_test(self) -> bool:
        """Cells that choose something see the valid text only."""
        return self.experiment not in (CHOOSE, CHOOSE_RATE)


def choosing(pool: str) -> list[Cell]:
    """The band is chosen on valid, at a quarter of D."""
    return [Cell(CHOOSE, pool, m, seed, CHOOSING_SIZE) for seed in CHOOSING_SEEDS for m in BANDS]


def rates(pool: str) -> list[Cell]:
    """The larger model's learning rate is chosen on valid, by random at a quarter of D."""
    return [
        Cell(CHOOSE_RATE, pool, f"random:{rate:g}", seed, CHOOSING_SIZE) for seed in CHOOSING_SEEDS for rate in RATES
    ]


def chosen_band(losses: Mapping[str, float]) -> str:
    """The band with the lowest mean valid loss; `losses`: method -> loss."""
    return min(BANDS, key=lambda m: losses[m])


def headline(band: str) -> tuple[str, ...]:
    """The arms of the two primary endpoints."""
    return ("random", "oracle", "mid", band, *LAWS)


def primary(pool: str, band: str) -> Iterator[Cell]:
    """All arms of a seed before the next seed; random's curve over D when half of the seeds are there."""
    yield Cell("primary", pool, "base", 0)
    half = HEADLINE_SEEDS // 2
    for seeds in (range(half), range(half, HEADLINE_SEEDS)):
        for seed in seeds:
            yield from (Cell("primary", pool, m, seed) for m in headline(band))
        sizes = CURVE if seeds[0] == 0 else LONG_CURVE
        yield from (Cell("primary", pool, "random", seed, size) for size in sizes for seed in range(SWEEP_SEEDS))


def likened(pool: str) -> Iterator[Cell]:
    """What `run` does where a target text is given."""
    arms = ("auto+likeness", "run", *MATCHED)
    yield from (Cell("primary", pool, m, seed) for seed in range(HEADLINE_SEEDS) for m in arms)


def sweep(pool: str, band: str) -> Iterator[Cell]:
    """All other methods, three seeds; first those that `auto+likeness` is to be held against."""
    others = [
        m for m in (f"{band}+likeness", *WORDS, *OTHER_PILOTS, *SIMPLE, *OTHER_LAWS, *PROBED) if m not in headline(band)
    ]
    yield from (Cell("primary", pool, m, seed) for seed in range(SWEEP_SEEDS) for m in others)


def compositions(pool: str) -> Iterator[Cell]:
    """Random compositions: what could have been reached."""
    yield from (Cell("compositions", pool, f"composition:{k}", 0) for k in range(COMPOSITIONS))


def falsify(pool: str, band: str) -> Iterator[Cell]:
    """F1: one pair of moments in three shapes. F4: seven means, one spread; F3: the same with fewer tokens.

    F2: two means with two spreads each. F7: what is drawn with the measure, or the meaning of sigma, changed.
    """
    yield from (Cell("F1", pool, f"shape:{shape}", seed) for seed in range(SWEEP_SEEDS) for shape in SHAPES)
    yield from (Cell("F4", pool, f"tilt:{q:g}", seed) for seed in range(SWEEP_SEEDS) for q in LEVELS)
    yield from (Cell("F3", pool, f"tilt:{q:g}", seed, SMALLER) for seed in range(SWEEP_SEEDS) for q in LEVELS)
    yield from (Cell("F2", pool, f"corner:{corner}", seed) for seed in range(SWEEP_SEEDS) for corner in CORNERS)
    changed = (f"{BY_BYTE}{band.removeprefix('band:')}", VARIANCE)
    yield from (Cell("F7", pool, method, seed) for seed in range(SWEEP_SEEDS) for method in changed)


def larger(pool: str, band: str) -> list[Cell]:
    """F6: draws of the base model, trained with the larger one."""
    return [Cell(LARGER, pool, m, seed) for seed in range(SWEEP_SEEDS) for m in (*TRANSFERRED, band)]


def replayed(pool: str) -> Iterator[Cell]:
    """Forgetting: how much of it a little of the base model's own text prevents, and what that costs."""
    methods = [f"{m}{REPLAY}{share:g}" for share in REPLAY_SHARES for m in REPLAYED]
    yield from (Cell("replay", pool, m, seed) for seed in range(SWEEP_SEEDS) for m in methods)


def plan(pool: str, band: str) -> list[Cell]:
    """Everything of one pool after the choice of the band, primary endpoints first."""
    arms = primary(pool, band), likened(pool), sweep(pool, band)
    parts = (*arms, compositions(pool), falsify(pool, band), replayed(pool))
    return [cell for part in parts for cell in part]


def unchanged(method: str) -> str:
    """The arm that a method of F7 is held against."""
    return "paper+maxent" if method == VARIANCE else f"band:{method.removeprefix(BY_BYTE)}"


def seen_by(method: str) -> str | None:
    """The law that knows by what a method chooses: a folder of LIKENED, "" for that of perplexity alone, None for none:
    origins, words and probes are in no law's bins, and former arms on likeness had other bins."""
    arm = MATCHED.get(method, method)
    if "likeness" in arm or arm.startswith("run"):
        return LIKENED.get(arm)
    return None if arm in ("oracle", *WORDS, *PROBED) or arm.startswith(BY_BYTE) else ""


def arguments(method: str) -> dict[str, Any]:
    """Arguments of `pplscape.select` for a method; `law` True: it needs the law, `runs` True: and the pilots."""
    if method in MATCHED:
        return {"strategy": "matched", "law": True}
    method = method.removesuffix(ROUNDS).removesuffix(WIDE).removesuffix("+likeness")
    if method == VARIANCE:
        return arguments("paper+maxent") | {"form": None}
    if method.startswith(BY_BYTE):
        return arguments(unchanged(method))
    name, _, told = method.partition(":")
    form, _, strategy = name.rpartition("+")
    numbers = tuple(float(v) for v in told.split(",")) if told and name in ("band", "temperature") else ()
    if form:
        told = {"strategy": strategy, "form": form, "law": True}
        hedges = {"allocate": {"hedge": 0.0}, "hedged": {"strategy": "allocate"}}
        return told | hedges.get(strategy, {})
    if name == "band":
        return {"strategy": "band", "band": numbers}
    if name == "temperature":
        return {"strategy": "temperature", "temperature": numbers[0]}
    if name in ("auto", *RUN):
        return {"strategy": "auto", "law": True, "runs": True}
    return {"strategy": {"oracle": "random"}.get(name, name)}
