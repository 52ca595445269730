"""Learning rates by tokens, never by steps: the same recipe for every regime, size and strategy.

Warm-up, constant, then a decay to 0 (WSD). A trunk has no decay; its branches have nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pplscape.errors import UserError

DECAYS = {
    "sqrt": lambda passed: 1.0 - math.sqrt(passed),
    "cosine": lambda passed: 0.5 * (1.0 + math.cos(math.pi * passed)),
}
"""Share of the learning rate that is left when a share `passed` of the cooldown is over."""


@dataclass(frozen=True)
class Recipe:
    """What is held equal over all runs that are compared."""

    learning_rate: float = 1e-3
    """Peak."""
    warmup_tokens: int = 8192
    cooldown_share: float = 0.15
    """Share of a run's tokens in its cooldown; 1: the decay begins at once."""
    step_tokens: int = 4096
    """Domain tokens per optimiser step; whole chunks, so a step may end up to one chunk late."""
    replay_share: float = 0.0
    """Share of the trained tokens that is general text, on top of the domain tokens."""
    decay: str = "sqrt"
    """Shape of the cooldown: `sqrt` (1 - sqrt) or `cosine`."""
    lora_rank: int = 0
    """Rank of the trained adapters of all linear layers; 0 trains every weight."""

    def __post_init__(self) -> None:
        """UserError for values that no run could be made with."""
        bounds = {
            "learning_rate": self.learning_rate > 0, "warmup_tokens": self.warmup_tokens >= 0,
            "cooldown_share": 0 < self.cooldown_share <= 1, "step_tokens": self.step_tokens > 0,
            "replay_share": 0 <= self.replay_share < 1, "lora_rank": self.lora_rank >= 0,
        }  # fmt: skip
        if wrong := [name for name, good in bounds.items() if not good]:
            raise UserError(
                f"{wrong[0]} = {getattr(self, wrong[0])} is out of range: rates and sizes above 0, shares below 1."
            )
        if self.decay not in DECAYS:
            raise UserError(f"decay = '{self.decay}' is unknown; choose one of {', '.join(DECAYS)}.")

    def constant(self, done: int) -> float:
        """Learning rate after `done` domain tokens of a trunk."""
        return self.learning_rate * min(1.0, (done + self.step_tokens) / max(1, self.warmup_tokens))

    def cooled(self, done: int, cooldown_done: float, cooldown_tokens: int) -> float:
        """Learning rate in a cooldown of `cooldown_tokens` begun `cooldown_done` tokens ago."""
        return self.constant(done) * DECAYS[self.decay](min(1.0, cooldown_done / max(1, cooldown_tokens)))

    def split(self, tokens: int) -> tuple[int, int]:
        """(constant, cooldown) tokens of a run of this size."""
        cooldown = round(tokens * self.cooldown_share)
        return tokens - cooldown, cooldown
