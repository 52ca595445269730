"""A folder for `datasets.load_from_disk`: Arrow streams beside `state.json` and `dataset_info.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pplscape.formats.content import Facts, Files, Format, Shard
from pplscape.formats.text import ROWS, table_of
from pplscape.manifest import fingerprint


def _feature(type_: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(type_):
        return {"feature": _feature(type_.value_type), "_type": "Sequence"}  # `List` is unknown before datasets 4
    return {"dtype": str(type_), "_type": "Value"}


FEATURES = {f.name: _feature(f.type) for f in ROWS}
_SCHEMA = pa.schema(
    [pa.field(f.name, f.type) for f in ROWS],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


def _name(index: int, total: int) -> str:
    return f"data-{index:05d}-of-{total:05d}.arrow"


def _shard(shard: Shard) -> Files:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table_of(shard.rows).cast(_SCHEMA), max_chunksize=1000)
    return {_name(shard.index, shard.total): sink.getvalue().to_pybytes()}


def _index(shards: Sequence[Facts], dtype: np.dtype[Any]) -> Files:
    names = [_name(i, len(shards)) for i in range(len(shards))]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint([s["text_sum"] for s in shards])[:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": "train",
    }  # fmt: skip
    info = {
        "citation": "", "description": "", "features": FEATURES, "homepage": "", "license": "",
        "splits": {"train": {"name": "train", "num_examples": sum(s["rows"] for s in shards)}},
    }  # fmt: skip
    found = {"state.json": state, "dataset_info.json": info}
    return {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in found.items()}


HF = Format("hf", has_tokens=False, shard=_shard, index=_index)
