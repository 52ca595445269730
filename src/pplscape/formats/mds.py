"""MosaicML streaming shards: one sample a chunk, `tokens` as a 1-D array, with its row's id and its chunk's place.

    shard = u32 samples  u32 offsets [samples + 1]  JSON of the columns  samples
    sample = u32 size of each column of variable size, then the columns' bytes, columns by name

Layout after `streaming/base/format/mds` (mosaicml-streaming 0.13).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplscape.formats.content import Facts, Files, Format, Shard

SIZE_LIMIT = 1 << 26
"""What the library would have split at; readers only report it."""


def columns_of(dtype: np.dtype[Any]) -> dict[str, tuple[str, int | None]]:
    """Encoding and fixed size (bytes) of each column, by name."""
    return {"chunk_index": ("int32", 4), "id": ("str", None), "tokens": (f"ndarray:{dtype.name}", None)}


def _config(dtype: np.dtype[Any]) -> dict[str, Any]:
    columns = columns_of(dtype)
    return {
        "column_encodings": [encoding for encoding, _ in columns.values()], "column_names": list(columns),
        "column_sizes": [size for _, size in columns.values()],
        "compression": None, "format": "mds", "hashes": [], "size_limit": SIZE_LIMIT, "version": 2,
    }  # fmt: skip


def encode_array(values: np.ndarray) -> bytes:
    """A 1-D array of known dtype: one byte for rank and width of the shape, the shape, the values."""
    width = 0 if len(values) < 1 << 8 else 1 if len(values) < 1 << 16 else 2
    shape = struct.pack(f"<{'BHI'[width]}", len(values))
    return bytes([values.ndim << 2 | width]) + shape + values.tobytes()


def encode_sample(id_: str, chunk_index: int, tokens: np.ndarray) -> bytes:
    name, array = id_.encode(), encode_array(tokens)
    return struct.pack("<II", len(name), len(array)) + struct.pack("<i", chunk_index) + name + array


def _shard(shard: Shard) -> Files:
    samples = [
        encode_sample(row.id, row.chunk_index + i, ids.astype(shard.dtype))
        for row, chunks in shard.rows_with_ids()
        for i, ids in enumerate(chunks)
    ]
    config = json.dumps(_config(shard.dtype), sort_keys=True).encode()
    sizes = np.array([0, *map(len, samples)])
    offsets = np.cumsum(sizes) + 4 * (1 + len(sizes)) + len(config)
    head = struct.pack("<I", len(samples)) + offsets.astype("<u4").tobytes()
    return {f"shard.{shard.number}.mds": head + config + b"".join(samples)}


def _index(shards: Sequence[Facts], dtype: np.dtype[Any]) -> Files:
    entries = []
    for shard in shards:
        ((name, size),) = shard["files"].items()
        raw = {"basename": name, "bytes": size, "hashes": {}}
        entries.append(_config(dtype) | {"raw_data": raw, "samples": shard["chunks"], "zip_data": None})
    index = {"shards": entries, "version": 2}
    return {"index.json": json.dumps(index, sort_keys=True).encode() + b"\n"}


MDS = Format("mds", has_tokens=True, shard=_shard, index=_index)
