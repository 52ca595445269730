"""Column contracts shared by all stages: names, types, units (in the schema metadata)."""

from __future__ import annotations

import pyarrow as pa


def _field(name: str, type_: pa.DataType, unit: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"unit": unit})


DOCUMENTS = pa.schema(
    [
        _field("doc_id", pa.string(), "id"),
        _field("source", pa.string(), "name of the input file without its suffixes"),
        _field("path", pa.string(), "input file"),
        _field("row", pa.int64(), "row of the input file, from 0"),
        _field("text", pa.large_string(), "unicode text"),
    ]
)

CHUNKS = pa.schema(
    [
        _field("doc_id", pa.string(), "id"),
        _field("chunk_index", pa.int32(), "position of the chunk in its document, from 0"),
        _field("char_start", pa.int64(), "code points"),
        _field("char_end", pa.int64(), "code points"),
        _field("length", pa.int32(), "tokens without BOS"),
        _field("n_bytes", pa.int32(), "UTF-8 bytes of the chunk's text"),
        _field("source", pa.string(), "name of the input file without its suffixes"),
    ]
)

SCORES = pa.schema(
    [
        _field("doc_id", pa.string(), "id"),
        _field("chunk_index", pa.int32(), "position of the chunk in its document, from 0"),
        _field("char_start", pa.int64(), "code points"),
        _field("char_end", pa.int64(), "code points"),
        _field("length", pa.int32(), "tokens without BOS"),
        _field("n_tokens", pa.int32(), "scored target tokens"),
        _field("n_bytes", pa.int32(), "UTF-8 bytes of the scored span"),
        _field("nll_sum", pa.float64(), "nats"),
        _field("source", pa.string(), "name of the input file without its suffixes"),
    ]
)

PROBED = SCORES.insert(8, _field("probe_nll_sum", pa.float64(), "nats, by the probe that did not see the document"))
"""Scores with a second opinion: learnability is (nll_sum - probe_nll_sum) / n_tokens, nats/token."""

LIKENED = SCORES.insert(8, _field("likeness", pa.float64(), "nats per n-gram: ln p_target - ln p_pool"))
"""Scores with a second axis that needs no model; see `draw.dsir`."""

REJECTED = pa.schema(
    [
        _field("doc_id", pa.string(), "id", nullable=True),
        _field("chunk_index", pa.int32(), "chunk, null for a whole document", nullable=True),
        _field("path", pa.string(), "input file"),
        _field("row", pa.int64(), "row of the input file, from 0"),
        _field("reason", pa.string(), "machine-readable"),
        _field("detail", pa.string(), "for a person"),
        _field("length", pa.int64(), "tokens lost, 0 where never tokenised"),
    ]
)

SELECTED = pa.schema(
    [
        _field("doc_id", pa.string(), "id"),
        _field("chunk_index", pa.int32(), "position of the chunk in its document, from 0"),
        _field("char_start", pa.int64(), "code points"),
        _field("char_end", pa.int64(), "code points"),
        _field("length", pa.int32(), "tokens without BOS"),
        _field("nll", pa.float64(), "nats per scored token"),
        _field("repeats", pa.int16(), "times the chunk is trained on"),
        _field("reason", pa.string(), "why it was taken"),
        _field("source", pa.string(), "name of the input file without its suffixes"),
    ]
)

RUN_FIELDS = (
    "run_id", "group", "regime", "seed", "tokens", "pool_tokens", "unique_tokens",
    "ppl_mean", "ppl_std", "nll_mean", "nll_std", "bin_tokens", "bin_unique_tokens", "bins_hash",
    "replay_share", "loss", "loss_se", "loss_general", "base_loss", "base_loss_general",
    "model", "weights", "proxy_of", "n_params", "epochs", "lr", "schedule", "status", "reason",
)  # fmt: skip
"""One pilot a line of runs.jsonl: losses in nats/token on *valid*, tokens without replay, moments chunk-weighted.
`model` and `weights` (their hash) are of the model that was trained; `proxy_of` names the model that made the scores
where that is another one."""
