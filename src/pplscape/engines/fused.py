"""Training's vocabulary head: cross-entropy and its gradients in one pass over slices of positions.

The gradient of a summed cross-entropy is known as soon as the logits are: `softmax - onehot`. Computing it in the
forward pass keeps no logits for the backward pass and computes none twice, where recomputing them would cost a third
more matrix products of the head.
"""

from __future__ import annotations

from typing import Any

import torch


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over N positions of the cross-entropy of `hidden_Nd @ weight_Vd.T` with targets_N, in nats.

    Products are computed in the dtype of `hidden_Nd`, the softmax and all sums in fp32. `slice_rows` bounds the logits
    alive at once: slice_rows x V. The gradient to the weight has the weight's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_Nd: torch.Tensor, weight_Vd: torch.Tensor, targets_N: torch.Tensor, slice_rows: int
    ) -> torch.Tensor:
        low_Vd, rows = weight_Vd.to(hidden_Nd.dtype), min(slice_rows, len(targets_N))
        to_hidden_Nd = torch.empty_like(hidden_Nd)
        to_weight_Vd = torch.zeros_like(weight_Vd, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_Nd.device)
        product_nV = hidden_Nd.new_empty(rows, len(low_Vd))
        logits_nV = product_nV if product_nV.dtype == torch.float32 else product_nV.float()
        part_Vd = None if product_nV.dtype == torch.float32 else torch.empty_like(low_Vd)
        for start in range(0, len(targets_N), slice_rows):
            here = slice(start, start + slice_rows)
            hidden_nd, targets_n1 = hidden_Nd[here], targets_N[here, None]
            low_nV, error_nV = product_nV[: len(hidden_nd)], logits_nV[: len(hidden_nd)]
            torch.mm(hidden_nd, low_Vd.T, out=low_nV)
            if part_Vd is not None:
                error_nV.copy_(low_nV)
            largest_n1 = error_nV.amax(-1, keepdim=True)
            target_n1 = error_nV.gather(1, targets_n1) - largest_n1
            sum_n1 = error_nV.sub_(largest_n1).exp_().sum(-1, keepdim=True)
            total += (sum_n1.log() - target_n1).sum()
            error_nV.div_(sum_n1).scatter_add_(1, targets_n1, error_nV.new_full(targets_n1.shape, -1.0))
            if part_Vd is None:
                to_weight_Vd.addmm_(error_nV.T, hidden_nd)
            else:
                low_nV.copy_(error_nV)
                to_weight_Vd += torch.mm(low_nV.T, hidden_nd, out=part_Vd)
            torch.mm(low_nV, low_Vd, out=to_hidden_Nd[here])
        ctx.save_for_backward(to_hidden_Nd, to_weight_Vd.to(weight_Vd.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        to_hidden_Nd, to_weight_Vd = ctx.saved_tensors
        return to_hidden_Nd * grads[0], to_weight_Vd * grads[0], None, None
