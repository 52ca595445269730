"""The training loop: chunks in a given order, one recipe, exact token counts. Works on any `Learner`.

A run is a list of steps that follows from its chunks and its recipe alone, so a killed run goes on at the step after
its last checkpoint and ends in the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pplscape.engines.base import Ids, Learner
from pplscape.training.schedule import Recipe

Report = Callable[[int], None]
"""Told the domain tokens of every finished step."""
Record = dict[str, Any]
"""What is known of a finished step: domain tokens so far, mean loss before the step (nats/token), learning rate,
gradient norm before clipping."""


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    chunks: Sequence[Ids]
    learning_rate: float

    @property
    def tokens(self) -> int:
        return sum(len(c) for c in self.chunks)


@dataclass
class Progressed:
    """Where a run stands: domain tokens, replay tokens, and one record a step."""

    tokens: int = 0
    replay_tokens: int = 0
    steps: list[Record] = field(default_factory=list)

    def copy(self) -> Progressed:
        return Progressed(self.tokens, self.replay_tokens, list(self.steps))


@dataclass
class Replay:
    """General text mixed into the steps: the next chunks of an endless, fixed order."""

    chunks: Sequence[Ids]
    position: int = 0

    def take(self, tokens: float) -> list[Ids]:
        """Whole chunks, as near to `tokens` as they come."""
        taken: list[Ids] = []
        count = 0.0
        while self.chunks:
            chunk = self.chunks[self.position % len(self.chunks)]
            if count + len(chunk) / 2 > tokens:
                break
            taken.append(chunk)
            count += len(chunk)
            self.position += 1
        return taken

    def take_due(self, step: Step, share: float, at: Progressed) -> list[Ids]:
        """What is due with this step, so that of all tokens so far `share` is general text: a chunk may be more than a
        step's share, which is then paid by every second step or third."""
        return self.take((at.tokens + step.tokens) * share / (1 - share) - at.replay_tokens)


def batches_of(chunks: Sequence[Ids], step_tokens: int) -> Iterator[list[Ids]]:
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


def constant_steps(chunks: Sequence[Ids], recipe: Recipe, done: int) -> Iterator[Step]:
    """Of a trunk that has seen `done` domain tokens: the constant (after warm-up) learning rate."""
    for batch in batches_of(chunks, recipe.step_tokens):
        step = Step(batch, recipe.constant(done))
        yield step
        done += step.tokens


def cooldown_steps(chunks: Sequence[Ids], recipe: Recipe, done: int) -> Iterator[Step]:
    """The end of a run that has seen `done` domain tokens: the decay over exactly these chunks.

    A step takes the rate of its middle, so that a small pilot's only step is annealed too and sizes stay comparable.
    """
    start, total = done, sum(len(c) for c in chunks)
    for batch in batches_of(chunks, recipe.step_tokens):
        tokens = sum(len(c) for c in batch)
        yield Step(batch, recipe.cooled(done, done - start + tokens / 2, total))
        done += tokens


def run_steps(chunks: Sequence[Ids], recipe: Recipe) -> list[Step]:
    """A whole run over exactly these chunks in this order: warm-up, constant, cooldown."""
    constant, _ = recipe.split(sum(len(c) for c in chunks))
    cut, done = 0, 0
    while cut < len(chunks) and done + len(chunks[cut]) <= constant:
        done += len(chunks[cut])
        cut += 1
    return [*constant_steps(chunks[:cut], recipe, 0), *cooldown_steps(chunks[cut:], recipe, done)]


def take_step(learner: Learner, step: Step, recipe: Recipe, at: Progressed, replay: Replay | None = None) -> None:
    """Train on one step; updates `at`. FloatingPointError: see `Learner.step`; the weights are then unchanged."""
    general = replay.take_due(step, recipe.replay_share, at) if replay else []
    facts = learner.step([*step.chunks, *general], step.learning_rate)
    at.tokens += step.tokens
    at.replay_tokens += sum(len(c) for c in general)
    at.steps.append({"tokens": at.tokens, **facts, "learning_rate": step.learning_rate})


def train_steps(
    learner: Learner, steps: Iterator[Step] | Sequence[Step], recipe: Recipe, at: Progressed,
    replay: Replay | None = None, report: Report = lambda tokens: None,
) -> None:  # fmt: skip
    """Train on all of `steps`; updates `at`."""
    for step in steps:
        take_step(learner, step, recipe, at, replay)
        report(step.tokens)


def skip_steps(steps: Sequence[Step], recipe: Recipe, replay: Replay | None, records: list[Record]) -> Progressed:
    """Where a run stands after `steps`, which were trained before a kill and left `records`."""
    at = Progressed(steps=list(records))
    for step in steps:
        general = replay.take_due(step, recipe.replay_share, at) if replay else []
        at.tokens += step.tokens
        at.replay_tokens += sum(len(c) for c in general)
    return at
