"""Lanes: on a CPU several batches are computed at a time, each by a thread of its own with its share of the cores.

One operation on all cores waits for the slowest of them, hundreds of times a batch; in lanes a core that is late holds
up nothing. Every lane has the same number of threads, so results do not depend on which lane takes a batch, and where
that number is one they are bit for bit those of one thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

MOST = 8
"""Lanes share one interpreter: more of them would wait for it."""
LANE_BYTES = 256 * 2**20
"""Upper bound on the widest activations of all lanes together."""
EACH = 2
"""Batches a lane must have: with fewer, some lanes would end much earlier than others, and all threads are better used
on one batch after the other."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def lanes_for(threads: int, bytes_each: int) -> int:
    """The most lanes that divide `threads` evenly and whose activations of `bytes_each` keep within the bounds."""
    most = min(threads, MOST, LANE_BYTES // max(1, bytes_each))
    return max((n for n in range(1, most + 1) if threads % n == 0), default=1)


def keeps_state(network: torch.nn.Module) -> bool:
    """Whether a forward pass changes the network, so that two at a time would disturb one another.

    In transformers rotary positions do whose frequencies follow the length of the batch (`dynamic_rope_update`).
    """
    kinds = [getattr(module, "rope_type", "") for module in network.modules()]
    kinds = [name for kind in kinds for name in (kind.values() if isinstance(kind, dict) else [kind])]
    return any("dynamic" in str(name) or name == "longrope" for name in kinds)


def in_lanes(work: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> list[Result]:
    """`work` of every item, in order; the first error, in order, ends all. At least as many items as lanes.

    Grad modes and autocast belong to threads too, so `work` has to set its own.
    """
    assert len(items) >= lanes, "a lane without an item would never begin"
    threads = torch.get_num_threads()
    ready = threading.Barrier(lanes + 1)

    def begin() -> None:
        try:
            torch.get_num_threads()  # a thread's first call takes the process' number; only then one of its own stays
            torch.set_num_threads(max(1, threads // lanes))  # fewer threads than lanes: lowered since they were counted
            ready.wait()
        except BaseException:
            ready.abort()
            raise

    with ThreadPoolExecutor(lanes, initializer=begin) as pool:
        try:
            running = _begun(pool, work, items, ready)
            torch.set_num_threads(threads)  # lanes have changed the process' number, which threads begun meanwhile take
            return [future.result() for future in running]
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _begun(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item], ready: threading.Barrier
) -> list[Future[Result]]:
    """The items' futures once every lane has begun."""
    try:
        running = [pool.submit(work, item) for item in items]
        ready.wait()
    except BaseException:
        ready.abort()  # lanes that still wait for one that cannot begin would wait for ever
        raise
    return running
