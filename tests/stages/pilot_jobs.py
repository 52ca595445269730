"""Pilots whose workers are killed in the middle of a trunk; workers import this module by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pplscape.executors import Tell
from pplscape.pilots import Asked, Piloting, Rows


@dataclass(frozen=True)
class DisturbedPiloting(Piloting):
    """Workers kill themselves (SIGKILL) in the middle of the trunks `deadly`, so often for each."""

    folder: Path = field(kw_only=True)
    deadly: dict[str, int] = field(default_factory=dict)
    step: int = 9
    """At which step of the worker's on this trunk."""

    def __call__(self, tell: Tell) -> Callable[[Asked], Rows]:
        at: list[str] = []

        def disturbed(tokens: int) -> None:
            tell(tokens)
            at.append(at[-1])
            if len(at) > self.step and self._mark(at[-1]):
                os.kill(os.getpid(), signal.SIGKILL)

        run_one = super().__call__(disturbed)

        def run(asked: Asked) -> Rows:
            at[:] = [asked.regime.group]
            return run_one(asked)

        return run

    def _mark(self, trunk: str) -> bool:
        """True while too few workers were killed."""
        killed = len(list(self.folder.glob(f"{trunk}-killed-*")))
        if killed < self.deadly.get(trunk, 0):
            (self.folder / f"{trunk}-killed-{killed}").touch()
            return True
        return False
