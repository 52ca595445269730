"""What finding out costs, against what it saves. One unit for both: tokens of the main run.

Training costs 6 floating-point operations per parameter and token, a forward pass 2: scoring a token costs a third of
training on one. Evaluation is left out; it is small and every choice of data needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pplscape.reporting.folder import RunFolder

FORWARD_SHARE = 1 / 3
"""Cost of scoring a token over the cost of training on it."""


@dataclass(frozen=True)
class Costs:
    """Tokens of training, or their equivalent; None where the stage has not run."""

    budget: int | None
    scored: int | None
    """Tokens of the pool, each scored once; where probes measured learnability, by one of them, too."""
    piloted: int | None
    """Tokens trained over all pilots, shared trunks counted once, and over probes."""
    seconds_scoring: float | None
    seconds_piloting: float | None
    seconds_training: float | None
    """Of the arm trained longest."""
    tokens_training: int | None

    @property
    def overhead(self) -> float | None:
        """Scoring and pilots in tokens of training."""
        if self.scored is None or self.piloted is None:
            return None
        return FORWARD_SHARE * self.scored + self.piloted

    @property
    def share(self) -> float | None:
        """Overhead as a share of the main run."""
        return self.overhead / self.budget if self.overhead is not None and self.budget else None

    def break_even(self, efficiency: float | None) -> float | None:
        """Budget (tokens) at which the tokens saved pay for scoring and pilots; None when nothing is saved."""
        if self.overhead is None or efficiency is None or efficiency <= 1:
            return None
        return self.overhead / (efficiency - 1)

    @property
    def seconds_per_token(self) -> float | None:
        """Measured time of training on one token, from the arms, else from the pilots."""
        pairs = ((self.seconds_training, self.tokens_training), (self.seconds_piloting, self.piloted))
        return next((s / t for s, t in pairs if s and t), None)


def costs_of(run: RunFolder) -> Costs:
    """Costs from the plan, the runs and the clocks of the manifests."""

    def clock(stage: str) -> float | None:
        return (run.manifest(stage) or {}).get("run", {}).get("seconds")

    piloted = run.planned or None
    if piloted is None and run.runs:
        largest: dict[str, int] = {}
        for row in run.ok:
            largest[row["group"]] = max(largest.get(row["group"], 0), int(row["tokens"]))
        piloted = sum(largest.values())
    landscape = run.landscape or {}
    probes = landscape.get("scoring", {}).get("probe", {"scored_tokens": 0, "trained_tokens": 0})
    arms = [m for m in run.manifests.values() if m.get("stage") == "train" and m.get("counts", {}).get("tokens")]
    longest = max(arms, key=lambda m: m["run"]["seconds"], default=None)
    return Costs(
        budget=run.budget,
        scored=landscape["tokens"] + probes["scored_tokens"] if landscape else None,
        piloted=int(piloted) + probes["trained_tokens"] if piloted else None,
        seconds_scoring=clock("score"),
        seconds_piloting=clock("pilot"),
        seconds_training=longest["run"]["seconds"] if longest else None,
        tokens_training=longest["counts"]["tokens"] if longest else None,
    )
