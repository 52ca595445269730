"""NLL of targets from hidden states, the vocabulary in tiles: logits exist for some rows and some columns at a time.

The log-sum-exp of all columns is that of the tiles' own, carried in float64, so memory depends neither on the
vocabulary nor on the batch.

Shapes: N positions, n rows of a tile, c columns of a tile, d hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

TILE_ROWS = {"cpu": 1024, "cuda": 8192}
TILE_COLUMNS = {"cpu": 1024, "cuda": 8192}
"""A tile's fp32 logits take 4 MiB on a CPU and 256 MiB on a GPU; their log-softmax as much again, and rows that it
does not show clearly twice as much."""
LEAST = -64.0
"""Log-probabilities, nats, above this are exact to 4e-6 in float32."""

Tile = Callable[[torch.Tensor], torch.Tensor]
"""hidden [n, d] -> logits [n, c] of some columns, at best TILE_COLUMNS."""


def tiled_nll(hidden_Nd: torch.Tensor, targets_N: torch.Tensor, tiles: Sequence[Tile]) -> torch.Tensor:
    """[N] fp32 NLL, nats, without gradients; the tiles' columns, in order, are the vocabulary.

    A logit of +inf or NaN gives a result that is not finite.
    """
    rows = max(1, min(len(targets_N), TILE_ROWS[hidden_Nd.device.type]))
    found = [_rows_nll(h, t, tiles) for h, t in _slices(rows, hidden_Nd, targets_N)]
    return torch.cat(found) if found else hidden_Nd.new_empty(0, dtype=torch.float32)


def _slices(rows: int, *tensors: torch.Tensor) -> Any:
    return zip(*(t.split(rows) if len(t) else () for t in tensors), strict=True)


def _rows_nll(hidden_nd: torch.Tensor, targets_n: torch.Tensor, tiles: Sequence[Tile]) -> torch.Tensor:
    total_n = torch.full(targets_n.shape, -torch.inf, device=hidden_nd.device, dtype=torch.float64)
    target_logit_n = torch.full_like(total_n, torch.nan)
    start = 0
    for tile in tiles:
        logits_nc = tile(hidden_nd).float()
        width = logits_nc.shape[1]
        at_n = targets_n - start
        here_n = logits_nc.gather(1, at_n.clamp(0, width - 1)[:, None])[:, 0].double()
        target_logit_n = torch.where((at_n >= 0) & (at_n < width), here_n, target_logit_n)
        total_n = torch.logaddexp(total_n, _log_sum_exp(logits_nc))
        start += width
    return (total_n - target_logit_n).float()


def _log_sum_exp(logits_nc: torch.Tensor) -> torch.Tensor:
    """[n] float64. What log-softmax takes from a column is the sum: two passes where torch.logsumexp needs four.

    Where the first column is far below the sum, as a masked token's is, the difference does not show it.
    """
    chance_n = logits_nc.log_softmax(-1)[:, 0].clone()  # a view would keep the whole log-softmax
    total_n = logits_nc[:, 0].double() - chance_n
    unclear_n = ~(chance_n > LEAST)
    if unclear_n.any():
        total_n[unclear_n] = logits_nc[unclear_n].logsumexp(-1).double()
    return total_n
