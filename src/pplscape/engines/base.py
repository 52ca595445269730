"""What a scoring engine is, and how its work is cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
"""Token ids of one chunk, without BOS."""
Nll = NDArray[np.float32]
"""Negative log-likelihood of each scored target, nats."""

BEGINNINGS = 128
"""To begin a batch costs as much as the positions of a full one, divided by this, would."""


@dataclass(frozen=True)
class EngineFacts:
    """What a result depends on; stored in every manifest that scores or trains."""

    engine: str
    model: str
    revision: str | None
    weights: str | None
    """sha256 over a local folder's weight files, or the hub's commit: other weights are another model."""
    tokenizer: str
    """sha256 of the tokenizer's serialised form."""
    dtype: str
    bos: str
    """`none`, or the token put before every chunk."""
    n_params: int
    max_positions: int | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Engine(Protocol):
    """Scores chunks and writes text. A chunk's NLL does not depend on its batch, to the dtype's accuracy."""

    facts: EngineFacts

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, the tokenizer's own additions off."""
        ...

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        """Per-token NLL of each chunk given the ids before it (BOS, then its context if any), which are not scored;
        n_tokens = its length, one less where nothing stands before it."""
        ...

    def first_bytes(self, texts: Sequence[str]) -> list[int]:
        """UTF-8 bytes of each text's first token: what is not scored where nothing stands before a chunk."""
        ...

    def sample(self, n: int, length: int, seed: int) -> list[str]:
        """`n` texts of at most `length` tokens at temperature 1; the same for the same seed."""
        ...


class Learner(Engine, Protocol):
    """An engine that can be trained: one chunk is one sequence, so nothing attends across documents."""

    def reset(self) -> None:
        """Back to the base model, with a fresh optimiser."""
        ...

    def step(self, chunks: Sequence[Ids], learning_rate: float) -> dict[str, float]:
        """One optimiser step on all chunks (token-weighted); `loss`: their mean NLL before it, in nats.

        FloatingPointError when the loss or its gradient is not finite; the weights are then unchanged.
        """
        ...

    def snapshot(self) -> Any:
        """A copy of weights and optimiser state, for `restore`."""
        ...

    def restore(self, snapshot: Any) -> None: ...

    def save_state(self, folder: Path) -> None:
        """Weights and optimiser state as files, for `load_state` in another process."""
        ...

    def load_state(self, folder: Path) -> None: ...

    def save(self, folder: Any) -> None:
        """Write the model so that it can be loaded by the same engine."""
        ...


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Token ids of each text with a transformers tokenizer, its own additions (BOS, EOS) off; [] for no texts."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False) if texts else []
    return [np.asarray(e.ids, dtype=np.int32) for e in encoded]


def length_buckets(lengths: Sequence[int], max_tokens: int, most: int | None = None) -> list[NDArray[np.intp]]:
    """Cut items into batches of similar length: rows x longest <= `most` (max_tokens; one row at least), at the least
    cost: the positions computed, padding included, and max_tokens / BEGINNINGS more for every batch.

    Longest first, ties by position: a pure function of the lengths. Right padding then costs little, and under causal
    attention it cannot change a result, so no attention mask is needed.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    longest = np.maximum(1, np.asarray(lengths, dtype=np.int64)[order])
    starts = _cheapest_starts(longest, most or max_tokens, max(1, max_tokens // BEGINNINGS))
    return np.split(order, starts[1:]) if len(order) else []


def _cheapest_starts(longest: NDArray[np.int64], most: int, beginning: int) -> list[int]:
    """Where batches of items, longest first, begin at the least cost: a shortest path over the cuts, from the end.

    A batch that begins between items of one length is full: otherwise it could begin earlier, at no cost. So only
    where the length changes are all ends tried.
    """
    n = len(longest)
    cost, ends = np.zeros(n + 1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    changes = np.diff(longest, prepend=-1) != 0
    for start in range(n - 1, -1, -1):
        each = int(longest[start])
        end = min(n, start + max(1, most // each))
        if changes[start]:
            end = start + 1 + int(np.argmin(cost[start + 1 : end + 1] + each * np.arange(1, end - start + 1)))
        ends[start], cost[start] = end, beginning + each * (end - start) + cost[end]
    starts = [0]
    while starts[-1] < n:
        starts.append(int(ends[starts[-1]]))
    return starts[:-1]


def even_batches(lengths: Sequence[int], max_tokens: int) -> list[NDArray[np.intp]]:
    """Cut items, longest first, into batches of about equal total length, at most `max_tokens` (one item at least)."""
    total = int(np.sum(lengths))
    enough = total / max(1, -(-total // max_tokens))
    batches: list[list[int]] = []
    count = max_tokens
    for i in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable"):
        if not batches or count >= enough or count + lengths[i] > max_tokens:
            batches.append([])
            count = 0
        batches[-1].append(i)
        count += lengths[i]
    return [np.array(batch, dtype=np.intp) for batch in batches]
