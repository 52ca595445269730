"""Handing items to workers that may fail or die: what all executors with workers share.

A worker holds one item at a time. The item of a worker that died is given to another; one that fails TRIES times ends
the run with an error that names it. Results of a worker that was given up are never used, so each item counts once.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pplscape.errors import UserError
from pplscape.executors.base import Done, Job, Lost, Tell, Where, ignore

TRIES = 2
"""How often an item, or the start of a worker, may fail. A lost machine is nobody's fault and does not count."""


@dataclass(frozen=True)
class Ready:
    """The worker has prepared itself for the job."""

    where: Where


@dataclass(frozen=True)
class Told:
    """So much more is done; the worker goes on."""

    amount: int


@dataclass(frozen=True)
class Result:
    """The item is done; `told`: what was done of it and not told yet."""

    value: Any
    told: int = 0


@dataclass(frozen=True)
class Failed:
    """An exception; the worker lives on."""

    error: Exception


@dataclass(frozen=True)
class Died:
    """The worker is gone, and how."""

    how: str
    machine_lost: bool = False


Event = Ready | Told | Result | Failed | Died


class Pool(Protocol):
    """Up to `size` workers, known by handles; every `begin` and `give` is answered by an event."""

    size: int

    def begin(self, job: Job) -> Any:
        """A spare or a new worker starts to prepare itself; its handle."""
        ...

    def give(self, worker: Any, item: Any) -> None: ...

    def wait(self) -> list[tuple[Any, Event]]:
        """Blocks until something happened."""
        ...

    def spare(self, worker: Any) -> None:
        """The worker waits for another job."""
        ...

    def end(self, worker: Any) -> None:
        """Kills a worker."""
        ...

    def close(self) -> None:
        """Kills all."""
        ...


class Workers:
    """Executor over a pool."""

    def __init__(self, pool: Pool):
        self.pool = pool

    @property
    def size(self) -> int:
        return self.pool.size

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def map(
        self, job: Job, items: Sequence[Any], *, tell: Tell = ignore, name: Callable[[Any], str] = str,
        ahead: int | None = None, lost: Lost | None = None,
    ) -> Iterator[Done]:  # fmt: skip
        run = _Run(self.pool, job, items, tell, name, ahead, lost)
        try:
            yield from run.all()
        finally:
            run.close()


class _Run:
    """One `map`."""

    def __init__(
        self, pool: Pool, job: Job, items: Sequence[Any], tell: Tell, name: Callable[[Any], str], ahead: int | None,
        lost: Lost | None,
    ):  # fmt: skip
        self.pool, self.job, self.items, self.tell, self.name, self.ahead = pool, job, items, tell, name, ahead
        self.lost = lost
        self.waiting = deque(range(len(items)))
        self.unfinished = set(self.waiting)
        self.failures: Counter[int | None] = Counter()
        self.holds: dict[Any, int | None] = {}
        """Worker -> position of its item; None while it prepares itself."""
        self.idle: list[Any] = []
        self.where: dict[Any, Where] = {}
        self.told: Counter[Any] = Counter()

    def all(self) -> Iterator[Done]:
        while self.unfinished:
            self._hire()
            self._give()
            for worker, event in self.pool.wait():
                if worker in self.holds:
                    yield from self._after(worker, event)

    def close(self) -> None:
        for worker in self.holds:
            self.pool.end(worker)
        for worker in self.idle:
            self.pool.spare(worker)

    def _hire(self) -> None:
        wanted = min(self.pool.size, len(self.unfinished)) - len(self.holds) - len(self.idle)
        for _ in range(wanted):
            self.holds[self.pool.begin(self.job)] = None

    def _give(self) -> None:
        while self.idle and self.waiting and self._near(self.waiting[0]):
            worker, index = self.idle.pop(), self.waiting.popleft()
            self.holds[worker] = index
            self.pool.give(worker, self.items[index])

    def _near(self, index: int) -> bool:
        return self.ahead is None or index <= min(self.unfinished) + self.ahead

    def _after(self, worker: Any, event: Event) -> Iterator[Done]:
        if isinstance(event, Told):
            self.told[worker] += event.amount
            return self.tell(event.amount)
        index = self.holds.pop(worker)
        told = self.told.pop(worker, 0)
        if isinstance(event, Failed) and index is None:
            self.pool.spare(worker)  # to try once more
        elif not isinstance(event, Died):
            self.idle.append(worker)
        if isinstance(event, Ready):
            self.where[worker] = event.where
            self.failures[None] = 0
        elif isinstance(event, Result):
            assert index is not None
            self.tell(event.told)
            self.unfinished.discard(index)
            yield Done(index, self.items[index], event.value, self.where[worker])
        else:
            self.tell(-told)
            if index is not None:
                self.waiting.appendleft(index)
            self._blame(index, worker, event)
            if index is not None and self.failures[index] >= TRIES:
                assert self.lost is not None
                assert isinstance(event, Died)
                self.waiting.remove(index)
                self.unfinished.discard(index)
                yield Done(index, self.items[index], self.lost(self.items[index], event.how), self.where[worker])

    def _blame(self, index: int | None, worker: Any, event: Failed | Died) -> None:
        """Raise when it is enough, unless deaths over an item may be taken for its result."""
        if isinstance(event, Failed) and isinstance(event.error, UserError):
            raise event.error
        self.failures[index] += not (isinstance(event, Died) and event.machine_lost)
        if self.failures[index] < TRIES or (index is not None and self.lost and isinstance(event, Died)):
            return
        what = "A worker could not be started" if index is None else f"{self.name(self.items[index])} failed"
        where = f" (last on {self.where[worker]})" if worker in self.where else ""
        if isinstance(event, Failed):
            event.error.add_note(f"{what} {TRIES} times{where}.")
            raise event.error
        raise UserError(
            f"{what} {TRIES} times{where}: {event.how}. What is finished is kept: run the same command again, with "
            "fewer --workers if memory was short."
        )


class Server:
    """What runs inside a worker."""

    def __init__(self, tell: Tell, node: str | None = None):
        self._tell, self._node = tell, node
        self._work: Callable[[Any], Any] | None = None

    def begin(self, job: Job) -> Ready | Failed:
        self._work = None
        try:
            self._work = job(self._tell)
        except Exception as error:  # noqa: BLE001 - the coordinator decides
            return Failed(_portable(error))
        return Ready(Where.here(self._node))

    def do(self, item: Any) -> Result | Failed:
        assert self._work is not None, "begin first"
        try:
            return Result(self._work(item))
        except Exception as error:  # noqa: BLE001 - the coordinator decides
            return Failed(_portable(error))


def _portable(error: Exception) -> Exception:
    """The exception with its traceback as a note, since tracebacks stay in their process."""
    if not isinstance(error, UserError):
        error.add_note("In the worker:\n" + traceback.format_exc())
    try:
        pickle.dumps(error)
        copy.copy(error)  # made again from its arguments, as in the other process
    except Exception:  # noqa: BLE001 - whatever an exception's constructor does
        return RuntimeError("\n".join([repr(error), *getattr(error, "__notes__", [])]))
    return error
