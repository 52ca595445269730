"""NLL of targets from hidden states, the vocabulary in tiles: logits exist for some rows and some columns at a time.

The log-sum-exp is carried from tile to tile with its running maximum (Milakov and Gimelshein 2018, arXiv 1805.02867),
so memory depends neither on the vocabulary nor on the batch.

Shapes: N positions, n rows of a tile, c columns of a tile, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TILE_ROWS = {"cpu": 1024, "cuda": 8192}
TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Upper bound on the fp32 logits alive at once."""

Columns = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(hidden [n, d], first column, end column) -> logits [n, c]."""


def tiled_nll(hidden_Nd: torch.Tensor, targets_N: torch.Tensor, n_vocabulary: int, columns: Columns) -> torch.Tensor:
    """[N] fp32 NLL, nats, without gradients. A logit that is not finite gives a result that is not finite."""
    device = hidden_Nd.device.type
    rows = max(1, min(len(targets_N), TILE_ROWS[device]))
    width = min(n_vocabulary, max(1, TILE_BYTES[device] // (4 * rows)))
    found = [_rows_nll(h, t, n_vocabulary, columns, width) for h, t in _slices(rows, hidden_Nd, targets_N)]
    return torch.cat(found) if found else hidden_Nd.new_empty(0, dtype=torch.float32)


def _slices(rows: int, *tensors: torch.Tensor) -> Any:
    return zip(*(t.split(rows) if len(t) else () for t in tensors), strict=True)


def _rows_nll(
    hidden_nd: torch.Tensor, targets_n: torch.Tensor, n_vocabulary: int, columns: Columns, width: int
) -> torch.Tensor:
    peak_n = torch.full(targets_n.shape, -torch.inf, device=hidden_nd.device)
    total_n, target_logit_n = torch.zeros_like(peak_n), torch.zeros_like(peak_n)
    for start in range(0, n_vocabulary, width):
        end = min(start + width, n_vocabulary)
        logits_nc = columns(hidden_nd, start, end).float()
        at_n = targets_n - start
        here = logits_nc.gather(1, at_n.clamp(0, end - start - 1)[:, None])[:, 0]
        target_logit_n = torch.where((at_n >= 0) & (at_n < end - start), here, target_logit_n)
        higher_n = torch.maximum(peak_n, logits_nc.amax(-1))
        terms_n = logits_nc.sub_(higher_n[:, None]).exp_().sum(-1)
        total_n = total_n * (peak_n - higher_n).exp() + terms_n
        peak_n = higher_n
    return peak_n + total_n.log() - target_logit_n
