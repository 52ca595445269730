"""The newest state of a run on disk, so that a killed run goes on where it stood.

FOLDER/step-N holds the learner's state (weights, optimiser) and progress.json; it appears under its name only when
complete, and the one before is deleted only then.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from pplscape.engines.base import Learner
from pplscape.manifest import cannot_write
from pplscape.training.ranks import agree, is_first

CHECKPOINT_SECONDS = 600.0
"""Between two checkpoints of a run: what a kill costs at most."""


class Checkpoints:
    """Saves and loads the newest state of one run."""

    def __init__(self, folder: Path, every: float = CHECKPOINT_SECONDS):
        self.folder, self.every = folder, every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """True when the last one is older than `every` seconds; of several processes the first decides."""
        return agree(time.monotonic() - self._last >= self.every)

    def save(self, learner: Learner, step: int, progress: dict[str, Any]) -> None:
        """Store the state after `step` steps. UserError when it cannot be written; the one before is then kept."""
        temporary, final = self.folder / "writing", self.folder / f"step-{step:09d}"
        try:
            if is_first():
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            learner.save_state(temporary)
            self._last = time.monotonic()
            if not is_first():
                return
            (temporary / "progress.json").write_text(json.dumps(progress))
            _flush(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(final, error) from error
        for old in self._found()[:-1]:
            shutil.rmtree(old)

    def load(self, learner: Learner) -> tuple[int, dict[str, Any]] | None:
        """Put the newest state into the learner; (steps done, progress), None where there is none."""
        found = agree(self._found())
        if not found:
            return None
        learner.load_state(found[-1])
        return int(found[-1].name.removeprefix("step-")), _progress(found[-1])

    def progress(self) -> dict[str, Any] | None:
        """What was stored beside the newest state."""
        found = self._found()
        return _progress(found[-1]) if found else None

    def clear(self) -> None:
        """Delete them all: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "progress.json").read_text())


def _flush(folder: Path) -> None:
    """To the disk, so that the rename never outlives the data."""
    for path in folder.iterdir():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
