"""Megatron's indexed dataset: `PREFIX.bin` holds token ids, `PREFIX.idx` where sequences and documents lie.

    idx = "MMIDIDX\\0\\0"  u64 version 1  u8 dtype code  u64 sequences  u64 document marks
          i32 length of each sequence (tokens)  i64 its offset in the .bin (bytes)
          i64 document marks: 0, then the number of sequences up to the end of each document

A sequence is a chunk, so ids are exactly those that were scored; a document is a row, a run of adjacent chunks.
Megatron's GPT dataset shuffles and concatenates *sequences*. No end-of-document token is added.
Layout after `megatron/core/datasets/indexed_dataset.py` (megatron-core 0.16).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from pplscape.formats.content import Facts, Files, Format, Shard

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
DTYPE_CODES = {"<i4": 4, "<u2": 8}


def index_bytes(lengths: Sequence[int], documents: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """The .idx of sequences with these lengths (tokens), grouped into documents of so many sequences each."""
    sizes = np.asarray(lengths, dtype="<i4")
    ends = np.cumsum(sizes, dtype=np.int64) * dtype.itemsize
    marks = np.concatenate([[0], np.cumsum(documents, dtype=np.int64)])
    head = MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype.str], len(sizes), len(marks))
    offsets = np.concatenate([[0], ends[:-1]]) if len(sizes) else ends
    return head + sizes.tobytes() + offsets.astype("<i8").tobytes() + marks.astype("<i8").tobytes()


def _shard(shard: Shard) -> Files:
    prefix = f"data-{shard.number}"
    lengths = [len(ids) for ids in shard.ids]
    return {
        f"{prefix}.bin": np.concatenate(shard.ids).astype(shard.dtype).tobytes(),
        f"{prefix}.idx": index_bytes(lengths, [len(row.cuts) for row in shard.rows], shard.dtype),
    }


def _index(shards: Sequence[Facts], dtype: np.dtype[Any]) -> Files:
    """The prefixes for `--data-args-path`: without weights Megatron takes each by its size."""
    return {"data-path.txt": " ".join(f"megatron/data-{i:05d}" for i in range(len(shards))).encode() + b"\n"}


MEGATRON = Format("megatron", has_tokens=True, shard=_shard, index=_index)
