"""What an executor is, and the simplest one."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

Tell = Callable[[int], None]
"""Is told how much more is done (tokens) while an item is being worked on."""
Work = Callable[[Any], Any]
"""item -> result"""
Job = Callable[[Tell], Work]
"""Prepares a worker. Items, results and, for workers of their own, the job itself must be picklable."""

Lost = Callable[[Any, str], Any]
"""(item, how its workers died) -> a value in place of its result"""


@dataclass(frozen=True)
class TwoStep:
    """Work whose reading may run beside the computing of the item before it."""

    read: Work
    compute: Work

    def __call__(self, item: Any) -> Any:
        return self.compute(self.read(item))


@dataclass(frozen=True)
class Where:
    """The process that did an item."""

    host: str
    pid: int
    node: str | None = None
    """Ray's id of the node."""

    @classmethod
    def here(cls, node: str | None = None) -> Where:
        return cls(platform.node(), os.getpid(), node)

    def __str__(self) -> str:
        return ":".join(str(v) for v in (self.host, self.node, self.pid) if v is not None)


@dataclass(frozen=True)
class Done:
    """One item and its result."""

    index: int
    """Position among the items."""
    item: Any
    value: Any
    where: Where


class Executor(Protocol):
    """Applies a job to items; a context manager, in which workers stay between calls of `map`."""

    @property
    def size(self) -> int:
        """Workers at most."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, t: TracebackType | None) -> None:
        """Ends the workers."""

    def map(
        self, job: Job, items: Sequence[Any], *, tell: Tell = ..., name: Callable[[Any], str] = ...,
        ahead: int | None = None, lost: Lost | None = None,
    ) -> Iterator[Done]:  # fmt: skip
        """Every item once, in order of completion. `name`: an item in an error message. `ahead`: at most so many items
        beyond the first unfinished one are begun, which bounds what waits for it. `lost`: the value of an item whose
        workers died again and again; without it that ends everything with an error.
        """
        ...


def ignore(amount: int) -> None:
    """A `Tell` that nobody listens to."""


class InProcess:
    """One item after the other, here; of `TwoStep` work the next item is read meanwhile, in a thread."""

    size = 1

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(
        self, job: Job, items: Sequence[Any], *, tell: Tell = ignore, name: Callable[[Any], str] = str,
        ahead: int | None = None, lost: Lost | None = None,
    ) -> Iterator[Done]:  # fmt: skip
        if items:
            work = job(tell)
            done = _read_ahead(work, items) if isinstance(work, TwoStep) else map(work, items)
            for index, (item, value) in enumerate(zip(items, done, strict=True)):
                yield Done(index, item, value, Where.here())


def _read_ahead(work: TwoStep, items: Sequence[Any]) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(work.read, items[0])
        for following in [*items[1:], None]:
            ready = reading.result()
            if following is not None:
                reading = reader.submit(work.read, following)
            yield work.compute(ready)


def in_order(done: Iterator[Done]) -> Iterator[Any]:
    """The results in the order of the items."""
    waiting: dict[int, Any] = {}
    following = 0
    for one in done:
        waiting[one.index] = one.value
        while following in waiting:
            yield waiting.pop(following)
            following += 1
