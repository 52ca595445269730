"""Scoring one part: chunks and texts in, the score table and the rejected rows out. Knows no files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape import schema
from pplscape.engines.base import Engine, Ids
from pplscape.text.tokenizer import Failed, attempt

SLICE_CHUNKS, SLICE_TOKENS, FIRST_TOKENS = 4096, 2**18, 2**15
"""Upper bounds on a slice: what is cut into batches at once, tokenised ahead, and told as progress. The first is small,
because nothing is computed while it is tokenised."""

Encoded = tuple[list[Ids], dict[int, str]]
"""(ids of each text, why there are none by position)."""


def score_part(
    engine: Engine, chunks: pa.Table, texts: list[str], contexts: list[Ids | Failed] | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> tuple[pa.Table, pa.Table]:  # fmt: skip
    """(scores, rejected) of the chunks of one part, slice by slice; `on_tokens` is told the tokens of each.

    A slice is tokenised in a second thread while the one before it is computed.
    """
    scores, rejected = [schema.SCORES.empty_table()], [schema.REJECTED.empty_table()]
    lengths = np.asarray(chunks["length"])
    slices = _slices(lengths)
    with ThreadPoolExecutor(1) as ahead:
        encoded = [ahead.submit(_encode, engine, texts[s]) for s in slices[:1]]
        for s, following in zip_longest(slices, slices[1:]):
            ready = encoded.pop().result()
            if following:
                encoded.append(ahead.submit(_encode, engine, texts[following]))
            part = chunks.slice(s.start, s.stop - s.start)
            before, ready = _followed(contexts[s], ready) if contexts else (None, ready)
            good, bad = _score_slice(engine, part, texts[s], ready, before)
            scores.append(good)
            rejected.append(bad)
            on_tokens(int(lengths[s].sum()))
    return pa.concat_tables(scores).combine_chunks(), pa.concat_tables(rejected).combine_chunks()


def _slices(lengths: NDArray[np.int32]) -> list[slice]:
    """Consecutive slices within the bounds above (one chunk at least)."""
    ends, start = np.cumsum(lengths, dtype=np.int64), 0
    found = []
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        within = int(np.searchsorted(ends, before + (SLICE_TOKENS if start else FIRST_TOKENS), side="right"))
        stop = max(start + 1, min(within, start + SLICE_CHUNKS))
        found.append(slice(start, stop))
        start = stop
    return found


def _followed(contexts: list[Ids | Failed], encoded: Encoded) -> tuple[list[Ids], Encoded]:
    """(contexts, encoded), in which a chunk whose context the tokenizer fails on has failed as well."""
    ids, failed = list(encoded[0]), dict(encoded[1])
    before: list[Ids] = []
    for i, context in enumerate(contexts):
        if isinstance(context, Failed):
            failed.setdefault(i, f"the text before it: {context.detail}")
            ids[i] = context = ids[i][:0]
        before.append(context)
    return before, (ids, failed)


def _score_slice(
    engine: Engine, chunks: pa.Table, texts: list[str], encoded: Encoded, contexts: list[Ids] | None
) -> tuple[pa.Table, pa.Table]:
    ids, failed = encoded
    lengths = np.asarray(chunks["length"])
    agrees = np.array([len(i) == n for i, n in zip(ids, lengths, strict=True)], dtype=bool)
    keep = np.flatnonzero(agrees)
    values = engine.nll([ids[i] for i in keep], [contexts[i] for i in keep] if contexts else None)
    sums = np.array([v.astype(np.float64).sum() for v in values])
    n_tokens = np.array([len(v) for v in values], dtype=np.int32)
    finite = np.isfinite(sums) & (n_tokens > 0)
    good = keep[finite]
    columns = {name: chunks[name].take(pa.array(good)) for name in chunks.column_names}
    n_bytes = columns["n_bytes"].to_numpy().copy()
    unscored = np.flatnonzero(n_tokens[finite] < lengths[good])  # a first token with nothing before it
    if unscored.size:
        n_bytes[unscored] -= np.array(engine.first_bytes([texts[i] for i in good[unscored]]), np.int32)
    columns |= {
        "n_bytes": pa.array(n_bytes), "n_tokens": pa.array(n_tokens[finite], pa.int32()),
        "nll_sum": pa.array(sums[finite], pa.float64()),
    }  # fmt: skip
    scores = pa.table({f.name: columns[f.name] for f in schema.SCORES}, schema=schema.SCORES)
    rejected = [
        (int(i), "tokenizer_failed", failed[i]) if i in failed
        else (int(i), "token_count_changed", f"cut with {lengths[i]} tokens, encoded to {len(ids[i])}")
        for i in np.flatnonzero(~agrees).tolist()
    ]  # fmt: skip
    rejected += [
        (int(keep[k]), "not_finite", f"the model's log-likelihood is not finite in {engine.facts.dtype}")
        if n_tokens[k] else (int(keep[k]), "nothing_scored", "a single token with nothing before it has no likelihood")
        for k in np.flatnonzero(~finite)
    ]  # fmt: skip
    return scores, _rejected_table(chunks, rejected)


def _encode(engine: Engine, texts: list[str]) -> Encoded:
    found = attempt(engine.encode, texts)
    failed = {i: f.detail for i, f in enumerate(found) if isinstance(f, Failed)}
    return [np.empty(0, np.int32) if isinstance(f, Failed) else f for f in found], failed


def _rejected_table(chunks: pa.Table, rejected: list[tuple[int, str, str]]) -> pa.Table:
    rows = [
        {
            "doc_id": chunks["doc_id"][i].as_py(), "chunk_index": chunks["chunk_index"][i].as_py(),
            "path": "", "row": -1, "reason": reason, "detail": detail, "length": chunks["length"][i].as_py(),
        }
        for i, reason, detail in sorted(rejected)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.REJECTED)
