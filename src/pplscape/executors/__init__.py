"""Where work runs: in this process, in worker processes of this machine, on a Ray cluster.

A job is a function that prepares a worker once (loads a model) and gives the function that does one item. An executor
applies it to many items and hands results over as they are done. Results depend on the items alone, so executors and
numbers of workers differ in time only. `ranks` is the way without any coordinator: processes that share a file system.
"""

from __future__ import annotations

from pplscape.errors import UserError
from pplscape.executors.base import Done, Executor, InProcess, Job, Lost, Tell, TwoStep, Where

EXECUTORS = ("local", "ray")

__all__ = ["EXECUTORS", "Done", "Executor", "InProcess", "Job", "Lost", "Tell", "TwoStep", "Where", "open_executor"]


def open_executor(
    name: str = "local", workers: int | None = None, threads: int | None = None, address: str | None = None,
    gpus: bool = True,
) -> Executor:  # fmt: skip
    """A context manager that gives workers back. `workers`: local one, on Ray as many as the cluster holds.
    `threads`: CPU threads of each. `address`: of a Ray cluster; none starts Ray on this machine. `gpus`: a worker on
    Ray has one, where there are any.

    UserError for an unknown name, numbers below 1, an address without Ray, or where Ray is missing.
    """
    if name not in EXECUTORS:
        raise UserError(f"Unknown executor '{name}'; choose one of {', '.join(EXECUTORS)}.")
    for option, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"--{option} {value} must be 1 or more.")
    if name == "ray":
        from pplscape.executors.on_ray import open_ray

        return open_ray(workers, threads, address, gpus)
    if address is not None:
        raise UserError("--address is that of a Ray cluster; pass --executor ray as well.")
    if (workers or 1) == 1 and threads is None:
        return InProcess()
    from pplscape.executors.processes import Processes
    from pplscape.executors.workers import Workers

    return Workers(Processes(workers or 1, threads))
