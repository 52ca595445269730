"""Worker processes of this machine, started afresh (spawn): nothing of this process, no thread, no model is inherited.

A script that calls this must guard its main part with `if __name__ == "__main__":`, as Python's multiprocessing says.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pplscape.executors.base import Job
from pplscape.executors.workers import Died, Event, Server, Told

THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""Read once, when torch and tokenizers are imported."""


@dataclass(frozen=True, eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection


class Processes:
    """A `workers.Pool`. `threads` of each worker: by default the cores divided, unless OMP_NUM_THREADS is set."""

    def __init__(self, size: int, threads: int | None = None):
        self.size = size
        cores = len(os.sched_getaffinity(0))
        self._variables = {name: str(threads or max(1, cores // size)) for name in THREADS}
        if threads is None:
            self._variables = {k: v for k, v in self._variables.items() if k not in os.environ}
        self._context = multiprocessing.get_context("spawn")
        self._busy: set[_Worker] = set()
        self._spare: list[_Worker] = []

    def begin(self, job: Job) -> _Worker:
        worker = self._spare.pop() if self._spare else self._start()
        self._send(worker, ("begin", job))
        return worker

    def give(self, worker: _Worker, item: Any) -> None:
        self._send(worker, ("do", item))

    def wait(self) -> list[tuple[_Worker, Event]]:
        by_connection = {w.connection: w for w in self._busy}
        found = []
        for ready in wait(list(by_connection)):
            worker = by_connection[ready]  # type: ignore[index]
            event = _receive(worker)
            if not isinstance(event, Told):
                self._busy.discard(worker)
            found.append((worker, event))
        return found

    def spare(self, worker: _Worker) -> None:
        self._spare.append(worker)

    def end(self, worker: _Worker) -> None:
        self._busy.discard(worker)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def close(self) -> None:
        for worker in [*self._busy, *self._spare]:
            self.end(worker)
        self._spare = []

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        with _environment(self._variables):
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _send(self, worker: _Worker, message: tuple[str, Any]) -> None:
        self._busy.add(worker)
        with suppress(OSError):  # it died, and its closed connection says so
            worker.connection.send(message)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """What a process started inside finds in its environment before it imports anything."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _receive(worker: _Worker) -> Event:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):  # the process is gone, perhaps in the middle of a message
        worker.process.join()
        code = worker.process.exitcode or 0
        worker.connection.close()
        if code < 0:
            how = f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
            return Died(how)
        return Died(f"its process ended with exit code {code}")


def _serve(connection: Connection) -> None:
    """Main loop of a worker; it ends with the coordinator."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides what Ctrl-C means
    server = Server(lambda amount: connection.send(Told(amount)))
    with suppress(EOFError, BrokenPipeError):
        while True:
            kind, content = connection.recv()
            connection.send(server.begin(content) if kind == "begin" else server.do(content))
