"""Every input format gives the same documents; every defect is a rejected row with a reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pplscape.errors import UserError
from pplscape.text.inputs import content_keys, form_of, name_of, size_of, source_of
from pplscape.text.read import Columns, Document, Rejected, read_documents, resolve_inputs

ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "First text."},
    {"id": 7, "text": "Zweiter, größer 🫀."},
    {"text": "Third."},
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)


def read(*patterns: Path | str, columns: Columns = Columns()) -> list[Document | Rejected]:
    return list(read_documents(resolve_inputs([str(p) for p in patterns]), columns))


def reasons(rows: list[Document | Rejected]) -> list[tuple[int, str]]:
    return [(r.row, r.reason) for r in rows if isinstance(r, Rejected)]


def texts(rows: list[Document | Rejected]) -> list[str]:
    return [r.text for r in rows if isinstance(r, Document)]


def two_members(data: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    half = len(data) // 2
    return compress(data[:half]) + compress(data[half:])


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_formats_give_the_same_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus.v1.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"id": ["a", "7", None], "text": [r["text"] for r in ROWS]}), path)
    else:
        compress = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[suffix]
        path.write_bytes(two_members(jsonl(ROWS), compress))
    rows = read(path)
    assert [(d.doc_id, d.text, d.row) for d in rows if isinstance(d, Document)] == [
        ("a", ROWS[0]["text"], 0),
        ("7", ROWS[1]["text"], 1),
        (f"corpus.v1.{suffix}/2", ROWS[2]["text"], 2),
    ]
    assert {d.source for d in rows if isinstance(d, Document)} == {"corpus.v1"}


def test_defects_are_rejected_and_reading_goes_on(tmp_path: Path) -> None:
    lines = [
        b"\xef\xbb\xbf" + json.dumps({"text": "good, after a byte-order mark"}).encode(),
        b'{"text": "cut off',
        b"[1, 2]",
        b'{"text": "\xff"}',
        b'{"text": "a\\u0000b"}',
        b'{"text": " \\n "}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"body": "x"}',
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": ' + b"[" * 100_000 + b"}",
        b'{"text": "last, with a Windows line end"}\r',
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows = read(path)
    assert texts(rows) == ["good, after a byte-order mark", "last, with a Windows line end"]
    assert reasons(rows) == [
        (1, "broken_json"),
        (2, "not_an_object"),
        (3, "invalid_utf8"),
        (4, "nul_bytes"),
        (5, "empty"),
        (6, "not_text"),
        (7, "not_text"),
        (8, "missing_text"),
        (9, "invalid_utf8"),
        (11, "broken_json"),
    ]


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_truncated_streams_keep_what_came_before(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    rows = [{"text": f"{i} " + os.urandom(200).hex()} for i in range(100)]
    (tmp_path / f"x.jsonl{suffix}").write_bytes(
        compress(jsonl(rows[:50])) + (tail := compress(jsonl(rows[50:])))[: len(tail) // 2]
    )
    found = read(tmp_path / f"x.jsonl{suffix}")
    kept = texts(found)
    assert len(kept) >= 50
    assert kept == [r["text"] for r in rows[: len(kept)]]
    assert reasons(found) == [(len(kept), "truncated")]


def test_damaged_gzip_is_one_rejected_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS)) + b"this is no gzip member")
    found = read(tmp_path / "x.jsonl.gz")
    assert len(texts(found)) == 3
    assert reasons(found) == [(3, "corrupt")]


def test_parquet_defects(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", None, b"also fine"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert texts(found) == ["fine", "also fine"]
    assert reasons(found) == [(1, "invalid_utf8"), (2, "not_text")]
    (tmp_path / "y.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    assert reasons(read(tmp_path / "y.parquet")) == [(0, "unreadable")]


def test_dotted_paths(tmp_path: Path) -> None:
    row = {"doc": {"body": "deep", "key": "k1"}, "flat.name": "flat"}
    (tmp_path / "x.jsonl").write_bytes(jsonl([row]))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    for path in tmp_path.iterdir():
        [document] = read(path, columns=Columns("doc.body", "doc.key"))
        assert isinstance(document, Document)
        assert (document.doc_id, document.text) == ("k1", "deep")
        assert texts(read(path, columns=Columns("flat.name"))) == ["flat"]
        with pytest.raises(UserError, match=r"no column 'text'.*doc\.body, doc\.key, flat\.name"):
            read(path)


def test_a_wrong_column_is_found_before_the_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(jsonl([{"body": "x"}] * 100) + b'{"text": "late"}\n')
    with pytest.raises(UserError, match="Available columns: body"):
        read(tmp_path / "x.jsonl")


def test_missing_files_name_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "abstracts.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"abstract\.jsonl; there are: abstracts\.jsonl"):
        resolve_inputs([str(tmp_path / "abstract.jsonl")])
    with pytest.raises(UserError, match="does not exist"):
        resolve_inputs([str(tmp_path / "no" / "abstract.jsonl")])
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(UserError, match="Cannot tell the format"):
        resolve_inputs([str(tmp_path / "x.docx")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file with a known suffix"):
        resolve_inputs([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="No input"):
        resolve_inputs([])


def test_folders_globs_and_names(tmp_path: Path) -> None:
    for name in ("b/y.txt", "a/x.py", "z.md", ".hidden/x.txt", "a/__pycache__/x.py", "a/x.pyc", "c/d/e.jsonl.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(b'{"text": "e"}\n') if name.endswith("gz") else name.encode())
    paths = resolve_inputs([str(tmp_path)])
    assert [name_of(p) for p in paths] == ["a/x.py", "b/y.txt", "c/d/e.jsonl.gz", "z.md"]
    assert [source_of(p) for p in paths] == ["a", "b", "e", "z"]
    assert [d.doc_id for d in read_documents(paths)] == ["a/x.py", "b/y.txt", "c/d/e.jsonl.gz/0", "z.md"]
    assert [name_of(p) for p in resolve_inputs([f"{tmp_path}/**/*.txt"])] == ["b/y.txt"]
    both = resolve_inputs([str(tmp_path / "a" / "x.py"), str(tmp_path / "b" / "y.txt"), str(tmp_path / "a")])
    assert [name_of(p) for p in both] == ["a/x.py", "b/y.txt"]
    assert resolve_inputs(both) == both


def test_equal_names_under_two_roots_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one/data", "two/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.txt").write_text(folder)
    paths = resolve_inputs([str(tmp_path / "one/data"), str(tmp_path / "two/data")])
    assert [name_of(p) for p in paths] == ["one/data/x.txt", "two/data/x.txt"]
    assert texts(list(read_documents(paths))) == ["one/data", "two/data"]


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffline\r\nend".encode())
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"packed")[:-9])
    found = read(tmp_path)
    assert texts(found) == ["line\r\nend"]
    assert [r.reason for r in found if isinstance(r, Rejected)] == ["invalid_utf8", "empty", "truncated"]


def test_urls(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/corpus/a.jsonl", jsonl(ROWS))
    memory.pipe("/bucket/corpus/sub/b.jsonl.gz", gzip.compress(jsonl(ROWS)))
    one = resolve_inputs(["memory://bucket/corpus/a.jsonl"])
    assert [d.doc_id for d in read_documents(one)] == ["a", "7", "a.jsonl/2"]
    folder = resolve_inputs(["memory://bucket/corpus"])
    assert [name_of(p) for p in folder] == ["a.jsonl", "sub/b.jsonl.gz"]
    assert len(list(read_documents(folder))) == 6
    assert [name_of(p) for p in resolve_inputs(["memory://bucket/corpus/*.jsonl"])] == ["a.jsonl"]
    assert content_keys(one)["a.jsonl"].endswith(f":{size_of(one[0])}")
    with pytest.raises(UserError, match="No such file"):
        resolve_inputs(["memory://bucket/none.jsonl"])
    with pytest.raises(UserError, match="nosuchprotocol"):
        resolve_inputs(["nosuchprotocol://x.jsonl"])


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        asked.update(options, name=name)
        return ROWS

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    [path] = resolve_inputs(["hf:org/name?split=test&revision=abc"])
    rows = list(read_documents([path]))
    assert asked == {"name": "org/name", "split": "test", "revision": "abc", "streaming": True}
    assert [r.doc_id for r in rows][:2] == ["a", "7"]
    assert form_of(path).stem == "name"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'pplscape\[datasets\]'"):
        list(read_documents([path]))


class _Failing(io.BytesIO):
    """A remote file whose connection breaks after the first block, or at once where all of it is asked for."""

    def read(self, n: int | None = -1) -> bytes:
        if self.tell() > 0 or n == len(self.getvalue()):
            raise RuntimeError("the connection was reset")  # of a library's own class, no OSError
        return super().read(100)


def test_a_remote_file_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/fails/a.jsonl", jsonl(ROWS * 50))
    [path] = resolve_inputs(["memory://fails/a.jsonl"])
    monkeypatch.setattr(type(memory), "_open", lambda self, inner, *_, **__: _Failing(jsonl(ROWS * 50)))
    rows = read_documents([path])
    assert isinstance(next(rows), Document)
    with pytest.raises(UserError, match=r"Cannot read memory://fails/a\.jsonl: the connection was reset.*run the same"):
        list(rows)
    memory.pipe("/fails/b.parquet", b"PAR1" + bytes(1000) + b"PAR1")
    with pytest.raises(UserError, match="connection was reset"):  # a failure, not damage of the file
        list(read_documents(["memory://fails/b.parquet"]))
    monkeypatch.setattr(type(memory), "info", lambda self, path, **_: 1 / 0)
    with pytest.raises(UserError, match=r"Cannot read memory://fails/a\.jsonl: division by zero"):
        content_keys([path])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jsonl").write_bytes(jsonl(ROWS))

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    for use in (read_documents, content_keys):
        with pytest.raises(UserError, match=r"Cannot read .*x\.jsonl: Permission denied"):
            list(use([str(tmp_path / "x.jsonl")]))


def test_a_folder_with_the_name_of_a_file_and_a_glob_without_match(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(UserError, match="no file with a known suffix"):
        resolve_inputs([str(tmp_path / "x.jsonl")])
    with pytest.raises(UserError, match=r"Nothing matches .*/\*\.txt"):
        resolve_inputs([f"{tmp_path}/*.txt"])
