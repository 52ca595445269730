"""One stage by processes that share a file system and nothing else: Slurm tasks, torchrun, a shell loop.

Rank r of n does the items whose position is r modulo n. Ranks may start in any order, die and be started again; the one
that leaves last, if nothing is missing, finishes the folder. A run without ranks takes up what ranks left, and does the
rest. Needs a file system with working `flock` (local, NFS 4, Lustre mounted with flock, GPFS).

    .lock          shared by the ranks at work: a process without a rank is refused, and a rank while such a one works
    .lock-rank-R   held by rank R: the same rank a second time is refused
    .lock-door     held while a rank comes or goes: one at a time
    .lock-ranks    their number: others that divide the work differently are refused
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pplscape.errors import UserError
from pplscape.manifest import LOCK, StageFolder, take_lock

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """Position `number` of `of`; UserError for what is none."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UserError(f"--rank {self.number} --ranks {self.of} is no rank: it goes from 0 to --ranks minus 1.")

    def share(self, items: list[T]) -> list[T]:
        return items[self.number :: self.of]


def rank_of(rank: int | None, ranks: int | None) -> Rank | None:
    """UserError if only one of the two is given."""
    if rank is None or ranks is None:
        if rank is not ranks:
            raise UserError("--rank and --ranks belong together: which one this process is, and of how many.")
        return None
    return Rank(rank, ranks)


class RankFolder(StageFolder):
    """The folder of a stage as one rank sees it; `leave` instead of `finish`."""

    def __init__(self, rank: Rank, out: Path, **identity: Any):
        super().__init__(out, **identity)
        self.rank = rank
        self._own: Any = None

    def __enter__(self) -> RankFolder:
        while not self._found_finished():
            self._make_partial()
            with suppress(FileNotFoundError), self.in_turn():  # not found: given its final name by another just now
                if not self._found_finished():
                    self._enter()
                return self
        return self

    def _enter(self) -> None:
        try:
            self._take_locks()
        except BaseException:
            self.__exit__()
            raise

    def _take_locks(self) -> None:
        number = self.partial / f"{LOCK}-ranks"
        self._lock = take_lock(self.partial / LOCK)
        if self._lock is not None:  # nobody else is at work
            self._take_up()
            if self.finished:
                return
            number.write_text(str(self.rank.of))
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        else:
            self._lock = take_lock(self.partial / LOCK, shared=True)
            if self._lock is None:
                raise self._busy()
            if number.read_text() != str(self.rank.of):
                raise UserError(
                    f"{number.read_text()} ranks are writing {self.out}, this is rank {self.rank.number} of "
                    f"{self.rank.of}; let those finish, or give all the same --ranks."
                )
        self._own = take_lock(self.partial / f"{LOCK}-rank-{self.rank.number}")
        if self._own is None:
            raise UserError(f"Rank {self.rank.number} is at work on {self.out} already; every rank is started once.")

    def __exit__(self, *_: object) -> None:
        for handle in (self._own, self._lock):
            if handle is not None:
                handle.close()

    def leave(self, missing: Callable[[], int], finish: Callable[[], None]) -> int:
        """Call when the share is done: the last rank calls `finish` if nothing is `missing`. What is missing now."""
        assert self._lock is not None
        with self.in_turn():
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            left = missing()
            if not left:
                alone = take_lock(self.partial / LOCK)
                if alone is not None:  # else others are still at work: the last of them finishes
                    with alone:
                        finish()
            return left

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Waits until no other rank comes or goes."""
        with open(self.partial / f"{LOCK}-door", "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
