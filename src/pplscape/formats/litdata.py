"""LitData's token chunks, which litgpt's `LitData` module streams: one item a chunk of text, blocks cut across items.

    chunk = u32 items  u32 offsets [items + 1]  token ids (int32)

Layout after `litdata/streaming/writer.py` and its `TokensLoader` (litdata 0.2.76). Ids are int32: unsigned 16-bit
tensors are unknown to older versions. The reader drops less than one block at the end of each shard.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplscape.formats.content import Facts, Files, Format, Shard

INT32_TENSOR = "no_header_tensor:16"
LEAF = '[1, {"type": null, "context": null, "children_spec": []}]'
"""PyTorch's serialised tree of one leaf: an item is one tensor."""


def _shard(shard: Shard) -> Files:
    sizes = np.array([0, *(4 * len(ids) for ids in shard.ids)])
    offsets = np.cumsum(sizes) + 4 * (1 + len(sizes))
    head = struct.pack("<I", len(shard.ids)) + offsets.astype("<u4").tobytes()
    return {f"chunk-0-{shard.index}.bin": head + np.concatenate(shard.ids).astype("<i4").tobytes()}


def _index(shards: Sequence[Facts], dtype: np.dtype[Any]) -> Files:
    chunks = []
    for shard in shards:
        ((name, size),) = shard["files"].items()
        chunks.append({"chunk_bytes": size, "chunk_size": shard["chunks"], "dim": shard["tokens"], "filename": name})
    config = {
        "compression": None, "chunk_size": None, "chunk_bytes": max(c["chunk_bytes"] for c in chunks),
        "data_format": [INT32_TENSOR], "data_spec": LEAF, "encryption": None, "item_loader": "TokensLoader",
    }  # fmt: skip
    return {"index.json": json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode() + b"\n"}


LITDATA = Format("litdata", has_tokens=True, shard=_shard, index=_index)
