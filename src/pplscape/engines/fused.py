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
        low_Vd = weight_Vd.to(hidden_Nd.dtype)
        to_hidden_Nd = torch.empty_like(hidden_Nd)
        to_weight_Vd = torch.zeros_like(weight_Vd, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden_Nd.device)
        for start in range(0, len(targets_N), slice_rows):
            rows = slice(start, start + slice_rows)
            hidden_nd, targets_n1 = hidden_Nd[rows], targets_N[rows, None]
            logp_nV = torch.log_softmax((hidden_nd @ low_Vd.T).float(), -1)
            total -= logp_nV.gather(1, targets_n1).sum()
            error_nV = logp_nV.exp_().scatter_add_(1, targets_n1, logp_nV.new_full(targets_n1.shape, -1.0))
            error_nV = error_nV.to(hidden_Nd.dtype)
            to_hidden_Nd[rows] = error_nV @ low_Vd
            to_weight_Vd += error_nV.T @ hidden_nd
        ctx.save_for_backward(to_hidden_Nd, to_weight_Vd.to(weight_Vd.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        to_hidden_Nd, to_weight_Vd = ctx.saved_tensors
        return to_hidden_Nd * grads[0], to_weight_Vd * grads[0], None, None
