"""Learning rates by tokens, never by steps: the same recipe for every regime, size and strategy.

Warm-up, constant, then a `1 - sqrt` cooldown (WSD). A trunk has no cooldown; its branches have nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pplscape.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """What is held equal over all runs that are compared."""

    learning_rate: float = 1e-3
    """Peak."""
    warmup_tokens: int = 8192
    cooldown_share: float = 0.15
    """Share of a run's tokens in its cooldown."""
    step_tokens: int = 4096
    """Domain tokens per optimiser step; whole chunks, so a step may end up to one chunk late."""
    replay_share: float = 0.0
    """Share of the trained tokens that is general text, on top of the domain tokens."""

    def __post_init__(self) -> None:
        """UserError for values that no run could be made with."""
        bounds = {
            "learning_rate": self.learning_rate > 0, "warmup_tokens": self.warmup_tokens >= 0,
            "cooldown_share": 0 < self.cooldown_share < 1, "step_tokens": self.step_tokens > 0,
            "replay_share": 0 <= self.replay_share < 1,
        }  # fmt: skip
        if wrong := [name for name, good in bounds.items() if not good]:
            raise UserError(
                f"{wrong[0]} = {getattr(self, wrong[0])} is out of range: rates and sizes above 0, shares below 1."
            )

    def constant(self, done: int) -> float:
        """Learning rate after `done` domain tokens of a trunk."""
        return self.learning_rate * min(1.0, (done + self.step_tokens) / max(1, self.warmup_tokens))

    def cooled(self, done: int, cooldown_done: int, cooldown_tokens: int) -> float:
        """Learning rate in a cooldown of `cooldown_tokens` begun `cooldown_done` tokens ago (1-sqrt)."""
        left = 1.0 - math.sqrt(min(1.0, cooldown_done / max(1, cooldown_tokens)))
        return self.constant(done) * left

    def split(self, tokens: int) -> tuple[int, int]:
        """(constant, cooldown) tokens of a run of this size."""
        cooldown = round(tokens * self.cooldown_share)
        return tokens - cooldown, cooldown
