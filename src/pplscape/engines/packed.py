"""Linear layers for the forward pass on a CPU: oneDNN on weights laid out for it once.

PyTorch multiplies fp32 matrices on a CPU with MKL. On an AMD machine with AVX-512 oneDNN did the same product (768 x
2,048) in the same precision 1.3 times as fast for 512 rows and 1.5 times for 40. In bfloat16 the weights are converted
once instead of in every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pplscape.engines.head import cut_head

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""What packed and plain logits may differ by; dtypes that are packed."""

HEAD_BYTES = 2**30
"""Vocabulary heads up to this are laid out too: a second copy, because embeddings may share the weight and writing text
needs it."""


class PackedLinear(nn.Module):
    """x W^T + b for any leading shape; forward only. The weight is opaque: it can be multiplied with, not read."""

    def __init__(self, weight_oi: torch.Tensor, bias_o: torch.Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_oi.detach().to(dtype).contiguous())
        self.bias = None if bias_o is None else bias_o.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(x.to(self.dtype), self.weight, self.bias)


def multiply(x: torch.Tensor, weight_oi: torch.Tensor, bias_o: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b by oneDNN; the weight packed or plain."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_oi, bias_o, "none", [], "")


def packed_tiles(
    weight_Vd: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype, width: int
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Products with `width` rows each of a vocabulary head's weight, in order; of weights that never change."""
    weight_Vd = weight_Vd.detach().to(dtype)
    tiles = cut_head(weight_Vd, None if bias_V is None else bias_V.detach().to(dtype), width)
    if weight_Vd.nbytes <= HEAD_BYTES:
        return [PackedLinear(weight, bias, dtype) for weight, bias in tiles]
    return [partial(_converted, weight, bias) for weight, bias in tiles]


def _converted(weight_oi: torch.Tensor, bias_o: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return multiply(x.to(weight_oi.dtype), weight_oi, bias_o)


def can_pack(device: str, dtype: torch.dtype) -> bool:
    """Whether this machine's PyTorch has the operators, and they agree with its own."""
    if device != "cpu" or dtype not in TOLERANCE or not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = (torch.arange(n, dtype=torch.float32).reshape(s) / 64 - 0.5
                       for n, s in ((12, (3, 4)), (20, (5, 4)), (5, (5,))))  # fmt: skip
    try:
        with torch.inference_mode():
            ours = PackedLinear(weight, bias, dtype)(x).float()
            plain = multiply(x.to(dtype), weight.to(dtype), bias.to(dtype)).float()
    except (AttributeError, RuntimeError):
        return False
    expected = nn.functional.linear(x, weight, bias).float()  # a caller's autocast may have lowered it
    return all(torch.allclose(found, expected, atol=TOLERANCE[dtype]) for found in (ours, plain))


def pack(model: Any, dtype: torch.dtype, n_vocabulary: int) -> bool:
    """Replace the linear layers of a model by packed ones, all but its vocabulary head, which is read in tiles.

    False if that changed what the model computes; the model cannot be used then and must be loaded again.
    """
    ids = torch.arange(1, 9)[None] % n_vocabulary
    head, tolerance = model.get_output_embeddings(), TOLERANCE[dtype]
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if layer is not head and type(layer) in (nn.Linear, Conv1D):
                    weight = layer.weight.t() if type(layer) is Conv1D else layer.weight
                    setattr(parent, name, PackedLinear(weight, layer.bias, dtype))
        try:
            found = model(input_ids=ids, use_cache=False).logits.float()
        except (RuntimeError, AttributeError):  # a layer whose weight is read, not only multiplied with
            return False
    return torch.allclose(found, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def widest(model: Any) -> int:
    """The most inputs or outputs of any packed layer."""
    return max((max(m.weight.shape) for m in model.modules() if isinstance(m, PackedLinear)), default=0)
