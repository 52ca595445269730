"""Readers written from the formats' descriptions, independent of the writers."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Ids = list[int]


def jsonl(out: Path) -> list[dict[str, Any]]:
    lines = (f.read_text(encoding="utf-8").split("\n") for f in sorted((out / "jsonl").glob("*.jsonl")))
    return [json.loads(line) for line in itertools.chain(*lines) if line]


def parquet(out: Path) -> list[dict[str, Any]]:
    return [row for f in sorted((out / "parquet").glob("*.parquet")) for row in pq.read_table(f).to_pylist()]


def hf(out: Path) -> list[dict[str, Any]]:
    names = [entry["filename"] for entry in json.loads((out / "hf/state.json").read_text())["_data_files"]]
    tables = [pa.ipc.open_stream((out / "hf" / name).read_bytes()).read_all() for name in names]
    return pa.concat_tables(tables).to_pylist()


def megatron(out: Path) -> Iterator[Ids]:
    for prefix in (out / "megatron/data-path.txt").read_text().split():
        index = (out / f"{prefix}.idx").read_bytes()
        (sequences,), dtype = struct.unpack_from("<Q", index, 18), {4: "<i4", 8: "<u2"}[index[17]]
        lengths = np.frombuffer(index, "<i4", sequences, 34)
        starts = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
        data = (out / f"{prefix}.bin").read_bytes()
        assert len(data) == lengths.sum() * np.dtype(dtype).itemsize
        for start, length in zip(starts, lengths, strict=True):
            yield np.frombuffer(data, dtype, length, start).tolist()


def _items(data: bytes) -> Iterator[bytes]:
    (items,) = struct.unpack_from("<I", data)
    for start, end in itertools.pairwise(struct.unpack_from(f"<{items + 1}I", data, 4)):
        yield data[start:end]


def mds(out: Path) -> Iterator[Ids]:
    for shard in json.loads((out / "mds/index.json").read_text())["shards"]:
        dtype = shard["column_encodings"][2].removeprefix("ndarray:")
        for sample in _items((out / "mds" / shard["raw_data"]["basename"]).read_bytes()):
            name, array = struct.unpack_from("<II", sample)
            values = sample[12 + name :]
            assert len(values) == array
            rank, width = values[0] >> 2, 1 << (values[0] & 3)
            assert rank == 1
            ids = np.frombuffer(values, dtype, offset=1 + width)
            assert int.from_bytes(values[1 : 1 + width], "little") == len(ids)
            yield ids.tolist()


def litdata(out: Path) -> Iterator[Ids]:
    for chunk in json.loads((out / "litdata/index.json").read_text())["chunks"]:
        for item in _items((out / "litdata" / chunk["filename"]).read_bytes()):
            yield np.frombuffer(item, "<i4").tolist()
