"""General text to replay beside a selection: chunks of a prepared corpus at random, by their permanent uniforms.

Budgets count domain tokens only; a replay share s of all that is trained is therefore s / (1 - s) times the selection's
tokens, as `training.loop` replays them. Random, because general text is to stay as it is.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.budget import fill
from pplscape.draw.permanent import bits_of_hashes, hash_documents, uniforms_of_bits
from pplscape.draw.rule import SIGMAS
from pplscape.errors import UserError
from pplscape.schema import SELECTED
from pplscape.text.prepared import Prepared

REASON = "replay"


def replay_tokens(tokens: int, share: float) -> int:
    """Tokens of general text beside `tokens` of the domain; UserError for a share outside [0, 1)."""
    if not 0 <= share < 1:
        raise UserError(f"--replay-share {share} must be at least 0 and below 1.")
    return math.floor(tokens * share / (1 - share))


def draw_replay(prepared: Prepared, tokens: int, seed: int) -> tuple[pa.Table, int]:
    """At most `tokens` of the general pool at random (schema.SELECTED, nll not known), and what the pool holds.

    Short by less than one chunk, the same for the same seed, nested in `tokens`. In memory: what is taken. UserError if
    the pool holds less than is asked for.
    """
    held = chunks = longest = 0
    for k in prepared.parts("pool"):
        length = pq.read_table(prepared.file("chunks", "pool", k), columns=["length"])["length"].to_numpy()
        held, chunks, longest = held + int(length.sum()), chunks + len(length), max(longest, *length, 0)
    if held < tokens:
        raise UserError(
            f"The text to replay holds {held} tokens, {tokens} are asked for: prepare more of it or lower "
            "--replay-share."
        )
    share = tokens / held if held else 0.0
    half = SIGMAS * math.sqrt(share * (1 - share) * longest / max(held, 1)) + 8 * longest / max(held, 1)
    while True:
        table, h = _below(prepared, share + half, seed)
        rows = fill(np.argsort(h, kind="stable"), table["length"].to_numpy().astype(np.int64), tokens, prefix=True)
        if len(rows) < len(h) or len(h) == chunks:
            return _selected(table.take(pa.array(np.sort(rows)))), held
        half *= 8


def _below(prepared: Prepared, limit: float, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Chunks of the pool whose permanent uniform is below `limit`, with the uniforms."""
    found, uniforms = [], [np.empty(0)]
    for k in prepared.parts("pool"):
        table = pq.read_table(prepared.file("chunks", "pool", k))
        ids = table["doc_id"].cast(pa.string()).combine_chunks()
        h = uniforms_of_bits(bits_of_hashes(seed, hash_documents(ids), table["chunk_index"].to_numpy()))
        at = np.flatnonzero(h < limit)
        found.append(table.take(pa.array(at)))
        uniforms.append(h[at])
    return pa.concat_tables(found), np.concatenate(uniforms)


def _selected(chunks: pa.Table) -> pa.Table:
    n = len(chunks)
    added = {
        "nll": pa.array(np.full(n, np.nan)),
        "repeats": pa.array(np.ones(n, np.int16)),
        "reason": pa.repeat(REASON, n),
    }
    return pa.table(
        [(added[f.name] if f.name in added else chunks[f.name]).cast(f.type) for f in SELECTED], schema=SELECTED
    )
