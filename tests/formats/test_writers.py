"""The bytes of each format, by hand."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.formats import FORMATS, formats_of
from pplscape.formats.content import ContentSum, Row, Shard, id_dtype, text_sum, token_sum
from pplscape.formats.megatron import index_bytes
from pplscape.formats.text import ROWS

U16, I32 = np.dtype("<u2"), np.dtype("<i4")


def row(id_: str, chunk_index: int, lengths: tuple[int, ...]) -> Row:
    texts = [f"é{i}" for i in range(len(lengths))]
    cuts = tuple(2 * (i + 1) for i in range(len(lengths)))
    return Row(id_, "s", "f.jsonl", 3, 1, chunk_index, 10, "".join(texts), cuts, lengths)


def shard(dtype: np.dtype[Any] = U16) -> Shard:
    ids = [np.array(v, np.int32) for v in ([1, 2, 3], [258, 5], [6, 7, 8, 9])]
    return Shard(2, 3, [row("a", 4, (3, 2)), row("b#7", 7, (4,))], ids, dtype)


def facts(name: str, dtype: np.dtype[Any] = U16) -> dict[str, Any]:
    files = {k: len(v) for k, v in FORMATS[name].shard(shard(dtype)).items()}
    return {"rows": 2, "chunks": 3, "tokens": 9, "text_sum": "0", "files": files}


def test_megatron_index_by_hand() -> None:
    expected = b"MMIDIDX\x00\x00" + bytes.fromhex(
        "0100000000000000"  # version 1
        "08"  # uint16
        "0300000000000000"  # three sequences
        "0300000000000000"  # three document marks
        "030000000200000004000000"  # their lengths
        "0000000000000000" "0600000000000000" "0a00000000000000"  # their offsets: 0, 6 and 10 bytes
        "0000000000000000" "0200000000000000" "0300000000000000"  # two sequences, then one
    )  # fmt: skip
    assert index_bytes([3, 2, 4], [2, 1], U16) == expected
    wide = index_bytes([3, 2, 4], [2, 1], I32)
    assert wide[17] == 4
    assert struct.unpack_from("<3q", wide, 34 + 12) == (0, 12, 20)


def test_megatron_files() -> None:
    files = FORMATS["megatron"].shard(shard())
    assert set(files) == {"data-00002.bin", "data-00002.idx"}
    assert files["data-00002.bin"] == bytes.fromhex("010002000300020105000600070008000900")
    assert files["data-00002.idx"] == index_bytes([3, 2, 4], [2, 1], U16)
    paths = FORMATS["megatron"].index([facts("megatron")] * 2, U16)
    assert paths == {"data-path.txt": b"megatron/data-00000 megatron/data-00001\n"}


def test_mds_by_hand() -> None:
    (data,) = FORMATS["mds"].shard(shard()).values()
    index = json.loads(FORMATS["mds"].index([facts("mds")], U16)["index.json"])
    samples = [
        bytes.fromhex("01000000" "08000000" "04000000") + b"a" + bytes.fromhex("0403" "010002000300"),
        bytes.fromhex("01000000" "06000000" "05000000") + b"a" + bytes.fromhex("0402" "02010500"),
        bytes.fromhex("03000000" "0a000000" "07000000") + b"b#7" + bytes.fromhex("0404" "0600070008000900"),
    ]  # fmt: skip
    body = b"".join(samples)
    config = data[20 : len(data) - len(body)]
    assert data[:4] == bytes.fromhex("03000000")
    start = 20 + len(config)
    assert struct.unpack_from("<4I", data, 4) == (start, start + 21, start + 40, start + len(body))
    assert data[start:] == body
    described = json.loads(config)
    assert described["column_names"] == ["chunk_index", "id", "tokens"]
    assert described["column_encodings"] == ["int32", "str", "ndarray:uint16"]
    assert described["column_sizes"] == [4, None, None]
    (entry,) = index["shards"]
    assert {k: entry[k] for k in described} == described
    assert (entry["samples"], entry["raw_data"]["bytes"]) == (3, len(data))
    assert entry["raw_data"]["basename"] == "shard.00002.mds"


@pytest.mark.parametrize(("n", "head"), [(255, "04ff"), (256, "050001"), (65_536, "0600000100")])
def test_mds_arrays_take_the_narrowest_shape(n: int, head: str) -> None:
    long = Shard(0, 1, [row("a", 0, (n,))], [np.zeros(n, np.int32)], U16)
    (data,) = FORMATS["mds"].shard(long).values()
    assert data.endswith(b"a" + bytes.fromhex(head) + bytes(2 * n))


def test_litdata_by_hand() -> None:
    ((name, data),) = FORMATS["litdata"].shard(shard()).items()
    assert name == "chunk-0-2.bin"
    assert data[:20] == struct.pack("<5I", 3, 20, 32, 40, 56)
    assert np.frombuffer(data, "<i4", offset=20).tolist() == [1, 2, 3, 258, 5, 6, 7, 8, 9]
    index = json.loads(FORMATS["litdata"].index([facts("litdata")], U16)["index.json"])
    assert index["chunks"] == [{"chunk_bytes": 56, "chunk_size": 3, "dim": 9, "filename": name}]
    assert index["config"]["item_loader"] == "TokensLoader"


def test_jsonl_rows() -> None:
    (data,) = FORMATS["jsonl"].shard(shard()).values()
    first, second = (json.loads(line) for line in data.decode().splitlines())
    assert list(first) == ROWS.names
    assert first == {
        "id": "a", "text": "é0é1", "source": "s", "file": "f.jsonl", "row": 3, "copy": 1, "chunk_index": 4,
        "char_start": 10, "cuts": [2, 4], "tokens": 5, "replay": False,
    }  # fmt: skip
    assert (second["id"], second["tokens"]) == ("b#7", 4)
    assert row("a", 0, (3, 2)).chunks == ["é0", "é1"]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(400, U16), (65_499, U16), (65_500, I32), (151_936, I32)])
def test_ids_are_as_narrow_as_the_vocabulary_permits(vocabulary: int, dtype: np.dtype[Any]) -> None:
    assert id_dtype(vocabulary) == dtype


def test_sums_by_hand() -> None:
    one, two = (int.from_bytes(hashlib.blake2b(b, digest_size=16).digest(), "little") for b in (b"ab", "ß".encode()))
    assert text_sum(["ab", "ß", "ab"]) == f"{(2 * one + two) % 2**128:032x}"
    assert token_sum([[1, 258]]) == ContentSum().add([bytes.fromhex("0100000002010000")]).hex
    assert text_sum([]) == "0" * 32


@given(st.lists(st.text(max_size=5), max_size=8), st.randoms(use_true_random=False), st.integers(0, 8))
def test_sums_ignore_order_and_sharding_but_nothing_else(texts: list[str], shuffle: Any, cut: int) -> None:
    other = list(texts)
    shuffle.shuffle(other)
    assert text_sum(other) == text_sum(texts)
    merged = ContentSum(text_sum(texts[:cut])).merge(text_sum(texts[cut:]))
    assert merged.hex == text_sum(texts)
    assert text_sum([*texts, "one more"]) != text_sum(texts)


def test_unknown_formats() -> None:
    assert [f.name for f in formats_of(["mds", "jsonl", "mds"])] == ["mds", "jsonl"]
    with pytest.raises(UserError, match="Unknown format 'csv'; there are parquet, jsonl"):
        formats_of(["csv"])
    with pytest.raises(UserError, match="No format"):
        formats_of([])
