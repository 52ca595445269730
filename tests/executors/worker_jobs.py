"""Jobs that misbehave in chosen ways; workers import this module by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pplscape.errors import UserError
from pplscape.executors import Tell
from pplscape.jobs import Scoring


def once(path: Path) -> bool:
    """True for the first process that asks, whoever it is."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(path: Path, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Squares:
    """item -> item * item, told `item` in two halves; items of `deadly` kill their worker, once or every time."""

    folder: Path
    deadly: tuple[int, ...] = ()
    always: bool = False
    bad: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    together: int = 0
    """So many items must be in work at the same time before the first is finished."""

    def __call__(self, tell: Tell) -> Callable[[int], int]:
        def work(item: int) -> int:
            tell(item)
            if self.together:
                (self.folder / f"begun-{item}").touch()
                for other in range(self.together):
                    wait_for(self.folder / f"begun-{other}")
            if item in self.deadly and (self.always or once(self.folder / f"died-{item}")):
                die()
            if item in self.bad:
                raise ZeroDivisionError("one over nothing")
            if item in self.refused:
                raise UserError("this cannot be done")
            tell(item)
            return item * item

        return work


@dataclass(frozen=True)
class Broken:
    """Cannot prepare itself."""

    def __call__(self, tell: Tell) -> Callable[[int], int]:
        raise ValueError("no model here")


@dataclass(frozen=True)
class Environment:
    """item -> the worker's environment variable of that name."""

    def __call__(self, tell: Tell) -> Callable[[str], str | None]:
        return os.environ.get


@dataclass(frozen=True)
class DisturbedScoring(Scoring):
    """Scoring whose first workers meet with accidents in the middle of a part."""

    folder: Path = field(kw_only=True)
    deadly: tuple[int, ...] = ()
    """Parts whose first worker is killed (SIGKILL) after it has scored some of the chunks."""
    stuck: tuple[int, ...] = ()
    """Parts whose first worker writes where it is, and waits for its end."""
    together: tuple[tuple[int, ...], ...] = ()
    """Groups of parts; those of a group must be in work at the same time."""

    def __call__(self, tell: Tell) -> Callable[[int], tuple[bytes, bytes]]:
        at: list[int] = []

        def disturbed(tokens: int) -> None:
            tell(tokens)
            part = at[-1]
            for group in self.together:
                if part in group:
                    (self.folder / f"begun-{part}").touch()
                    for other in group:
                        wait_for(self.folder / f"begun-{other}")
            if part in self.deadly and once(self.folder / f"died-{part}"):
                die()
            if part in self.stuck and once(self.folder / f"stuck-{part}.tmp"):
                import ray

                (self.folder / f"node-{part}").write_text(ray.get_runtime_context().get_node_id())
                (self.folder / f"stuck-{part}").touch()
                time.sleep(120)

        score_one = super().__call__(disturbed)

        def work(part: int) -> tuple[bytes, bytes]:
            at.append(part)
            return score_one(part)

        return work
