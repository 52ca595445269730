"""Training over several processes: weights, gradients and optimiser state sharded by PyTorch's FSDP (`fully_shard`).

Every process takes every n-th row of a step; gradients are those of the mean over all the step's tokens, as in one
process. Started by torchrun; a checkpoint holds whole tensors, so another number of processes can go on from it.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from pplscape.engines.learner import TransformersLearner, writing
from pplscape.engines.transformers import Row
from pplscape.errors import UserError
from pplscape.training.ranks import is_first, rank, world


class ShardedLearner(TransformersLearner):
    """A `TransformersLearner` whose network is spread over the processes of torchrun.

    It trains and saves; what it cannot do is what one training does not need: score, sample, take snapshots.
    UserError with adapters, whose few weights need no sharding.
    """

    def __init__(self, model: str, *, lora_rank: int = 0, **options: Any):
        if lora_rank:
            raise UserError("Adapters are trained by one process; start it without torchrun, or set lora_rank to 0.")
        super().__init__(model, **options)
        if not dist.is_initialized():
            if self.device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("nccl" if self.device == "cuda" else "gloo")

    @cached_property
    def _loaded(self) -> tuple[Any, bool]:
        network, plain = super()._loaded
        blocks = set(network._no_split_modules or ())
        for module in list(network.modules()):
            if type(module).__name__ in blocks:
                fully_shard(module)
        fully_shard(network)
        network.row_total = super()._total  # FSDP gathers the weights around this call, as around forward
        register_fsdp_forward_method(network, "row_total")
        return network, plain

    def _total(self, rows: list[Row]) -> torch.Tensor:
        return self.model.row_total(rows)

    def _accumulate(self, rows: list[Row]) -> float:
        """Of this process's rows; every process makes as many passes, because each waits for all."""
        targets = sum(r.n_targets for r in rows)
        mine = rows[rank() :: world()]
        batches = [[mine[i] for i in b] for b in self._micro_batches(mine)]
        passes = torch.tensor(len(batches), device=self.device)
        dist.all_reduce(passes, dist.ReduceOp.MAX)
        total = torch.zeros((), device=self.device)
        for number in range(int(passes)):
            real = number < len(batches)
            # FSDP averages the gradients over processes; ours are sums
            share = world() / targets if real else 0.0
            total += self._backward(batches[number] if real else rows[:1], share) / world()
        dist.all_reduce(total)
        return float(total)

    def _clip(self) -> float:
        return float(_whole(super()._clipped()))

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return _whole(tensor)

    def _like(self, tensor: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        if isinstance(own, DTensor) and tensor.shape == own.shape:
            return distribute_tensor(tensor, own.device_mesh, own.placements)
        return tensor

    def _write(self, tensors: dict[str, torch.Tensor], path: Path, facts: dict[str, str]) -> None:
        if is_first():
            super()._write(tensors, path, facts)
        dist.barrier()

    def save(self, folder: Path) -> None:
        tied = set(self.model.all_tied_weights_keys or ())
        state = {name: _whole(t).cpu() for name, t in self.model.state_dict().items() if name not in tied}
        if is_first():
            with writing():
                self.model.save_pretrained(folder, state_dict=state, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)
        dist.barrier()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
