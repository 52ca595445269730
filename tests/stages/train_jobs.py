"""`train` in processes of its own, to be killed: forked off a server that has imported everything and runs no threads,
because a fresh interpreter needs seconds to import torch and transformers."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pplscape.stages.train", "pplscape.engines.sharded"])


def start(arguments: dict[str, Any], ranks: int = 1) -> list[Any]:
    """`train(**arguments)` at work, in as many processes, with what torchrun would tell each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    places = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {} for rank in range(ranks)]
    processes = [CONTEXT.Process(target=work, args=(arguments, place)) for place in places]
    for process in processes:
        process.start()
    return processes


def work(arguments: dict[str, Any], environment: dict[str, str]) -> None:
    """What each process does."""
    from pplscape.stages.train import train

    os.environ.update(environment)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if environment:
        import torch

        torch.set_num_threads(1)
    train(**arguments)


def kill(processes: list[Any]) -> None:
    """SIGKILL to all of them."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
