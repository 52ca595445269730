"""The training loop: chunks in a given order, one recipe, exact token counts. Works on any `Learner`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pplscape.engines.base import Ids, Learner
from pplscape.training.schedule import Recipe

Report = Callable[[int], None]
"""Told the domain tokens of every finished step."""


@dataclass
class Progressed:
    """Where a run stands: domain tokens, replay tokens, and one record a step."""

    tokens: int = 0
    replay_tokens: int = 0
    steps: list[dict[str, float]] = field(default_factory=list)

    def copy(self) -> Progressed:
        return Progressed(self.tokens, self.replay_tokens, list(self.steps))


@dataclass
class Replay:
    """General text mixed into every step: the next chunks of an endless, fixed order."""

    chunks: Sequence[Ids]
    position: int = 0

    def take(self, tokens: float) -> list[Ids]:
        """Whole chunks until `tokens` are reached (none for 0)."""
        taken: list[Ids] = []
        count = 0
        while count < tokens and self.chunks:
            taken.append(self.chunks[self.position % len(self.chunks)])
            count += len(taken[-1])
            self.position += 1
        return taken


def steps_of(chunks: Sequence[Ids], step_tokens: int) -> Iterator[list[Ids]]:
    """Whole chunks in order, about `step_tokens` a step; the last step may be smaller, no token is dropped."""
    step: list[Ids] = []
    count = 0
    for chunk in chunks:
        step.append(chunk)
        count += len(chunk)
        if count >= step_tokens:
            yield step
            step, count = [], 0
    if step:
        yield step


def train_constant(
    learner: Learner, chunks: Sequence[Ids], recipe: Recipe, at: Progressed, replay: Replay | None = None,
    report: Report = lambda tokens: None,
) -> None:  # fmt: skip
    """Continue a trunk over `chunks` at the constant (after warm-up) learning rate; updates `at`."""
    for step in steps_of(chunks, recipe.step_tokens):
        report(_one_step(learner, step, recipe, recipe.constant(at.tokens), at, replay))


def train_cooldown(
    learner: Learner, chunks: Sequence[Ids], recipe: Recipe, at: Progressed, replay: Replay | None = None,
    report: Report = lambda tokens: None,
) -> None:  # fmt: skip
    """Finish a run over `chunks` with the 1-sqrt decay; updates `at`."""
    start, total = at.tokens, sum(len(c) for c in chunks)
    for step in steps_of(chunks, recipe.step_tokens):
        rate = recipe.cooled(at.tokens, at.tokens - start, total)
        report(_one_step(learner, step, recipe, rate, at, replay))


def _one_step(
    learner: Learner, step: list[Ids], recipe: Recipe, rate: float, at: Progressed, replay: Replay | None
) -> int:
    tokens = sum(len(c) for c in step)
    general = replay.take(tokens * recipe.replay_share / (1 - recipe.replay_share)) if replay else []
    loss = learner.step(step + general, rate)
    at.tokens += tokens
    at.replay_tokens += sum(len(c) for c in general)
    at.steps.append({"tokens": at.tokens, "loss": loss, "learning_rate": rate})
    return tokens


def train_run(
    learner: Learner, chunks: Sequence[Ids], recipe: Recipe, replay: Replay | None = None,
    report: Report = lambda tokens: None,
) -> Progressed:  # fmt: skip
    """A whole run: reset, warm-up, constant, cooldown over exactly these chunks in this order."""
    learner.reset()
    at = Progressed()
    lengths = np.cumsum([len(c) for c in chunks])
    constant, _ = recipe.split(int(lengths[-1]))
    cut = int(np.searchsorted(lengths, constant, side="right"))
    train_constant(learner, chunks[:cut], recipe, at, replay, report)
    train_cooldown(learner, chunks[cut:], recipe, at, replay, report)
    return at
