"""Workers on a Ray cluster: plain actors, one a GPU or one for every few CPU threads.

Actors send results back and the coordinator writes them, so the output folder need not be shared between machines; what
items are read from (a prepared corpus, score files, the model) must be readable on all of them under the same path.
"""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pplscape.errors import UserError
from pplscape.executors.base import Job
from pplscape.executors.workers import Died, Event, Failed, Ready, Result, Server, Workers

try:
    import ray
    from ray.exceptions import ObjectLostError, RayActorError
except ModuleNotFoundError as missing:
    raise UserError(f"--executor ray needs {missing.name}; install it with: pip install 'pplscape[ray]'") from missing

CPU_THREADS = 4
"""Threads of a worker where no GPU is: fewer, and every core holds a copy of the model; more, and they wait."""
PATIENCE = 60.0
"""Seconds without any worker before the user is told."""


def open_ray(workers: int | None, threads: int | None, address: str | None, gpus: bool) -> Workers:
    """Connect to the cluster at `address` (none: the one that RAY_ADDRESS names, else a new one on this machine).
    `gpus`: the work is done on GPUs where there are any.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
        where = address or os.environ.get("RAY_ADDRESS") or "local"  # never a cluster that happens to run here
        ray.init(address=where, log_to_driver=False, logging_level=logging.WARNING)
    try:
        return Workers(RayPool(workers, threads, gpus, ours))
    except UserError:
        if ours:
            ray.shutdown()
        raise


@dataclass(eq=False)
class _Worker:
    actor: Any
    node: str | None = None
    told: int = field(default=0)


class RayPool:
    """A `workers.Pool` of actors with `threads` CPUs each and, where the cluster has GPUs, one GPU.

    `size`: by default as many as the cluster holds. An actor that dies is replaced wherever there is room.
    """

    def __init__(self, size: int | None, threads: int | None, use_gpus: bool, shut_down: bool):
        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        gpus = sum(int(n.get("GPU", 0)) for n in nodes) if use_gpus else 0
        most = max((int(n.get("CPU", 0)) for n in nodes), default=0)
        self._threads = threads or (1 if gpus else max(1, min(CPU_THREADS, most)))
        if self._threads > most:
            raise UserError(
                f"No node of the Ray cluster has {self._threads} CPUs for a worker; the largest has {most}."
            )
        room = gpus or sum(int(n.get("CPU", 0)) // self._threads for n in nodes)
        self.size, self._shut_down, self._with_gpu = size or room, shut_down, gpus > 0
        self._pending: dict[Any, _Worker] = {}
        self._spare: list[_Worker] = []
        self._job: tuple[Any, Any] | None = None

    def begin(self, job: Job) -> _Worker:
        if self._job is None or self._job[0] is not job:
            self._job = job, ray.put(job)  # once, not once a worker
        worker = self._spare.pop() if self._spare else self._start()
        self._pending[worker.actor.begin.remote([self._job[1]])] = worker
        return worker

    def give(self, worker: _Worker, item: Any) -> None:
        self._pending[worker.actor.do.remote(item)] = worker

    def wait(self) -> list[tuple[_Worker, Event]]:
        ready: list[Any] = []
        while not ready:
            ready, _ = ray.wait(list(self._pending), timeout=PATIENCE)
            if not ready and not any(w.node for w in self._pending.values()):
                need = f"{self._threads} CPUs" + (" and a GPU" if self._with_gpu else "")
                warnings.warn(f"Ray has started no worker for {PATIENCE:.0f} s; each needs {need}.", stacklevel=2)
        return [(worker, _event(ref, worker)) for ref in ready for worker in [self._pending.pop(ref)]]

    def spare(self, worker: _Worker) -> None:
        self._spare.append(worker)

    def end(self, worker: _Worker) -> None:
        self._pending = {ref: w for ref, w in self._pending.items() if w is not worker}
        ray.kill(worker.actor)

    def close(self) -> None:
        for worker in {*self._pending.values(), *self._spare}:
            self.end(worker)
        self._spare = []
        if self._shut_down:
            ray.shutdown()

    def _start(self) -> _Worker:
        options = {"num_cpus": self._threads, "num_gpus": int(self._with_gpu), "max_restarts": 0}
        return _Worker(ray.remote(_Actor).options(**options).remote(os.getcwd()))


class _Actor:
    """`workers.Server` in a process of Ray's."""

    def __init__(self, folder: str) -> None:
        """`folder`: where relative paths begin, as they do for the coordinator."""
        with suppress(OSError):  # it may not exist here, and need not where all paths are absolute
            os.chdir(folder)
        self._told = 0
        self._server = Server(self._hear, ray.get_runtime_context().get_node_id())

    def _hear(self, amount: int) -> None:
        self._told += amount

    def begin(self, job: list[Any]) -> Ready | Failed:
        return self._server.begin(ray.get(job[0]))

    def do(self, item: Any) -> Result | Failed:
        self._told = 0
        answer = self._server.do(item)
        return Result(answer.value, self._told) if isinstance(answer, Result) else answer


def _event(ref: Any, worker: _Worker) -> Event:
    try:
        event = ray.get(ref)
    except (RayActorError, ObjectLostError) as error:  # lost may also be the result, with the machine that held it
        ray.kill(worker.actor)
        alive = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        lost = worker.node is not None and worker.node not in alive
        how = "its machine left the cluster" if lost else str(error).strip().splitlines()[0]
        return Died(how, machine_lost=lost)
    if isinstance(event, Ready):
        worker.node = event.where.node
    return event
