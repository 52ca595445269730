"""One training over several processes, as torchrun starts them: who am I, and what does the first one say?

The first process owns the output folder; the others compute beside it and write nothing. Without torchrun there is one
process and every function here is trivial, without torch.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

T = TypeVar("T")


def world() -> int:
    """Number of processes (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """True for the process that writes."""
    return rank() == 0


def agree(value: T) -> T:
    """The first process's value, in all of them; the processes wait for one another."""
    if world() == 1:
        return value
    import torch.distributed

    box: list[Any] = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
