"""One training run with its journal and checkpoints: killed at any moment, it ends as if it had not been."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pplscape.engines.base import Ids, Learner
from pplscape.manifest import cannot_write
from pplscape.progress import Progress
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.loop import Progressed, Record, Replay, Step, run_steps, skip_steps, take_step
from pplscape.training.ranks import agree, is_first
from pplscape.training.schedule import Recipe
from pplscape.training.tracker import Tracker


@dataclass
class Run:
    """What a run is made of; `journal` is its train.jsonl, one line a step, written as it goes."""

    learner: Learner
    chunks: Sequence[Ids]
    recipe: Recipe
    replayed: Sequence[Ids]
    checkpoints: Checkpoints
    tracker: Tracker
    journal: Path

    def train(self) -> Progressed:
        """All steps, from the last checkpoint if there is one. FloatingPointError: see `Learner.step`."""
        steps = run_steps(self.chunks, self.recipe)
        replay = Replay(self.replayed) if self.replayed else None
        at = self._resumed(steps, replay)
        first = len(at.steps)
        try:
            with self._progress(steps) as progress, open(self.journal if is_first() else os.devnull, "a") as journal:
                progress.skip(at.tokens)
                for number, step in enumerate(steps[first:], first + 1):
                    take_step(self.learner, step, self.recipe, at, replay)
                    journal.write(json.dumps(at.steps[-1]) + "\n")
                    self.tracker.log(at.steps[-1], number)
                    progress.add(step.tokens)
                    if self.checkpoints.due and number < len(steps):
                        journal.flush()
                        self.checkpoints.save(self.learner, number, {})
        except OSError as error:
            raise cannot_write(self.journal, error) from error
        finally:
            self.tracker.close()
        return at

    def _progress(self, steps: Sequence[Step]) -> Progress:
        return Progress("train", sum(s.tokens for s in steps), quiet=not is_first())

    def _resumed(self, steps: Sequence[Step], replay: Replay | None) -> Progressed:
        """Puts the learner and the journal where the last checkpoint stood, else at the beginning."""
        found = self.checkpoints.load(self.learner)
        if found is None:
            self.learner.reset()
        done = found[0] if found else 0
        records: list[Record] = []
        if is_first():
            lines = self.journal.read_text().splitlines(keepends=True)[:done] if done else []
            self.journal.write_text("".join(lines))
            records = [json.loads(line) for line in lines]
        records = agree(records)
        return skip_steps(steps[:done], self.recipe, replay, records)
