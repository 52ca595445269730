"""From files to lists of token ids: training chunks, held-out chunks, general text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pplscape.engines.base import Engine, Ids
from pplscape.errors import UserError
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns, Rejected, read_documents, resolve_inputs
from pplscape.training.evaluate import TextLoss, measure
from pplscape.training.schedule import Recipe


@dataclass(frozen=True)
class HeldOut:
    """Chunks of one text set, by document."""

    chunks: list[Ids]
    doc_id: list[str]
    source: list[str]
    n_bytes: list[int]
    rejected: Counter[str] = field(default_factory=Counter)
    """Documents (and ends of one token, which have nothing to predict) left out, by reason."""

    def loss(self, engine: Engine) -> TextLoss:
        return measure(engine, self.chunks, self.doc_id, self.n_bytes)

    def take(self, index: np.ndarray) -> HeldOut:
        """The chunks at these positions."""
        return HeldOut(
            [self.chunks[i] for i in index], [self.doc_id[i] for i in index], [self.source[i] for i in index],
            [self.n_bytes[i] for i in index], self.rejected,
        )  # fmt: skip


def heldout_of(corpus: Prepared, split: str, engine: Engine) -> HeldOut:
    """All chunks of the valid or test split. UserError when the split is empty."""
    found = HeldOut([], [], [], [])
    for number in corpus.parts(split):
        table, texts = corpus.part(split, number)
        found.chunks.extend(engine.encode(texts))
        found.doc_id.extend(table["doc_id"].to_pylist())
        found.source.extend(table["source"].to_pylist())
        found.n_bytes.extend(table["n_bytes"].to_pylist())
    if not found.chunks:
        raise UserError(f"{corpus.path} has no {split} text; prepare with a larger held-out share or --heldout.")
    return found


def heldout_from_files(patterns: Sequence[str], engine: Engine, chunk_tokens: int) -> HeldOut:
    """Documents of any input files, cut every `chunk_tokens` token ids."""
    found = HeldOut([], [], [], [])
    for document in read_documents(resolve_inputs(patterns), Columns()):
        if isinstance(document, Rejected):
            found.rejected[document.reason] += 1
            continue
        (ids,) = engine.encode([document.text])
        pieces = [ids[i : i + chunk_tokens] for i in range(0, len(ids), chunk_tokens)]
        if pieces and len(pieces[-1]) < 2:
            found.rejected["one_token"] += 1
            pieces.pop()
        found.chunks.extend(pieces)
        found.doc_id.extend([document.doc_id] * len(pieces))
        found.source.extend([document.source] * len(pieces))
        found.n_bytes.extend([len(document.text.encode())] + [0] * (len(pieces) - 1) if pieces else [])
    if not found.chunks:
        why = ", ".join(f"{n} {reason}" for reason, n in found.rejected.items()) or "no documents"
        raise UserError(f"No text could be read from {', '.join(patterns)}: {why}.")
    return found


def read_general(
    patterns: Sequence[str] | None, engine: Engine, chunk_tokens: int, recipe: Recipe
) -> tuple[HeldOut | None, list[Ids]]:
    """(general text to measure forgetting on, general chunks to replay): alternate documents, whether or not any are
    replayed, so that every model is measured on the same text and never on text it was trained on.
    """
    if not patterns:
        if recipe.replay_share:
            raise UserError("replay_share needs general text to replay; pass --general or set it to 0.")
        return None, []
    everything = heldout_from_files(patterns, engine, chunk_tokens)
    names = {name: i for i, name in enumerate(dict.fromkeys(everything.doc_id))}
    if len(names) < 2 and not recipe.replay_share:
        return everything, []
    if len(names) < 2:
        raise UserError("Replaying and measuring general text needs at least two documents; give more with --general.")
    odd = np.array([names[d] % 2 == 1 for d in everything.doc_id])
    replayed = [everything.chunks[i] for i in np.flatnonzero(~odd)] if recipe.replay_share else []
    return everything.take(np.flatnonzero(odd)), replayed


def chunk_ids(corpus: Prepared, chunks: pa.Table, engine: Engine) -> list[Ids]:
    """Token ids of the given pool chunks, in the given order."""
    return engine.encode(corpus.texts("pool", chunks)) if chunks.num_rows else []


def with_repeats(chunks: pa.Table, order: np.ndarray) -> np.ndarray:
    """Row indices in training order: every chunk once in ascending `order` [n], then those with repeats left, ..."""
    times = np.asarray(chunks["repeats"])
    ranked = np.argsort(order, kind="stable")
    epochs = [ranked[times[ranked] > epoch] for epoch in range(int(times.max(initial=0)))]
    return np.concatenate(epochs) if epochs else np.empty(0, dtype=np.intp)
