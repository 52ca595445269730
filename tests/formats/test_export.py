"""export: what independent readers get back is exactly what was selected, whatever was killed on the way."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import readers
from conftest import World, selected_table

from pplscape.errors import StaleOutput, UserError
from pplscape.formats import FORMATS
from pplscape.formats.content import text_sum, token_sum
from pplscape.manifest import StageFolder, read_manifest
from pplscape.stages.export import export
from pplscape.text.cutback import write_subset
from pplscape.text.prepared import Prepared

SHARD_TOKENS = 2_500


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        world.selection, corpus=world.prepared, formats=list(FORMATS), model=str(world.tokenizer),
        out=tmp_path_factory.mktemp("e") / "out", shard_tokens=SHARD_TOKENS,
    )  # fmt: skip


@pytest.mark.parametrize("read", [readers.parquet, readers.jsonl, readers.hf])
def test_text_comes_back_chunk_by_chunk(world: World, exported: Path, read: Callable[[Path], Any]) -> None:
    rows = read(exported)
    chunks = [r["text"][a:b] for r in rows for a, b in zip([0, *r["cuts"]], r["cuts"], strict=False)]
    assert Counter(chunks) == world.chunks()
    assert all(r["cuts"][-1] == len(r["text"]) for r in rows)
    for r in rows:
        doc_id = "#".join(r["id"].split("#")[:2])  # the documents' own ids hold one #
        assert world.texts[doc_id][r["char_start"] :].startswith(r["text"])
    assert sum(r["tokens"] for r in rows) == world.tokens
    assert text_sum(chunks) == read_manifest(exported)["counts"]["facts"]["text_sum"]


@pytest.mark.parametrize("read", [readers.megatron, readers.mds, readers.litdata])
def test_ids_come_back_chunk_by_chunk(world: World, exported: Path, read: Callable[[Path], Any]) -> None:
    ids = list(read(exported))
    assert Counter(map(tuple, ids)) == world.ids()
    assert sum(map(len, ids)) == world.tokens == read_manifest(exported)["counts"]["tokens"]
    assert token_sum(ids) == read_manifest(exported)["counts"]["facts"]["token_sum"]


def test_rows_are_those_of_the_subset(world: World, exported: Path, tmp_path: Path) -> None:
    prepared = Prepared(world.prepared)
    write_subset(prepared, world.selection, tmp_path / "subset")
    raw = (tmp_path / "subset/a.jsonl").read_bytes() + gzip.decompress((tmp_path / "subset/b.jsonl.gz").read_bytes())
    subset = [json.loads(line) for line in raw.splitlines()]
    rows = readers.parquet(exported)
    assert Counter((r["id"], r["text"]) for r in rows) == Counter((r["id"], r["text"]) for r in subset)
    assert {r["file"] for r in rows} == {"a.jsonl", "b.jsonl.gz"}


def test_repeats_come_after_all_that_is_new(exported: Path) -> None:
    copies = [r["copy"] for r in readers.parquet(exported)]
    assert copies == sorted(copies)
    assert set(copies) == {1, 2, 3}


def test_megatron_documents_are_rows(exported: Path) -> None:
    rows = readers.parquet(exported)
    sizes: list[int] = []
    for index in sorted((exported / "megatron").glob("*.idx")):
        data = index.read_bytes()
        sequences, marks = struct.unpack_from("<QQ", data, 18)
        sizes += np.diff(np.frombuffer(data, "<i8", marks, 34 + 12 * sequences)).tolist()
    assert sizes == [len(r["cuts"]) for r in rows]
    assert max(sizes) > 1


def test_shards_are_bounded_and_described(world: World, exported: Path) -> None:
    shards = [json.loads(line) for line in (exported / "shards.jsonl").read_text().splitlines()]
    assert len(shards) > 3
    unit = 8_000  # UTF-8 bytes of a part of the corpus, which is never split; a token has at least one byte
    assert all(s["tokens"] < SHARD_TOKENS + unit for s in shards)
    assert all(s["tokens"] >= SHARD_TOKENS for s in shards[:-1])
    assert sum(s["tokens"] for s in shards) == world.tokens
    for shard in shards:
        for name, files in shard["files"].items():
            assert all((exported / name / f).stat().st_size == size for f, size in files.items())
    assert not list(exported.glob("spool*"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".png"}


@pytest.mark.parametrize("at", [1, 9, 25, "landscape.png"])
def test_killed_anywhere_it_resumes_to_the_same_bytes(
    world: World, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | str
) -> None:
    written: list[str] = []
    real = StageFolder.write_bytes

    def write(self: StageFolder, name: str, data: bytes) -> None:
        if at in (len(written), name):
            raise KeyboardInterrupt
        written.append(name)
        real(self, name, data)

    options: dict[str, Any] = {
        "corpus": world.prepared, "formats": list(FORMATS), "model": str(world.tokenizer), "out": tmp_path / "out",
        "shard_tokens": SHARD_TOKENS,
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            export(world.selection, **options)
    done = sorted((tmp_path / "out.partial/shards").glob("*.json"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.partial/parquet").glob("*")}
    files_a_shard = 7
    assert len(done) == (at // files_a_shard if isinstance(at, int) else len(before))
    out = export(world.selection, **options)
    rewritten = [p for p, t in before.items() if (out / "parquet" / p.name).stat().st_mtime_ns != t]
    assert len(rewritten) <= len(before) - len(done)
    mine, whole = files_of(out), files_of(exported)
    del mine["manifest.json"], whole["manifest.json"]
    assert mine == whole


def test_sigkill_while_a_shard_is_written(world: World, exported: Path, tmp_path: Path) -> None:
    """A process that is killed outright, in the middle of a file; run again, the bytes of an undisturbed export."""
    out = tmp_path / "out"
    told = (
        f"corpus={str(world.prepared)!r}, formats={list(FORMATS)!r}, model={str(world.tokenizer)!r}, out={str(out)!r}"
    )
    code = f"""
import os, signal
from pplscape import manifest
from pplscape.stages.export import export
replaced, calls = os.replace, []
def killed(source, target):
    calls.append(target)
    if len(calls) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    replaced(source, target)
os.replace = killed
export({str(world.selection)!r}, shard_tokens={SHARD_TOKENS}, {told})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert sorted((tmp_path / "out.partial/shards").glob("*.json"))
    assert not out.exists()
    export(
        world.selection, corpus=world.prepared, formats=list(FORMATS), model=str(world.tokenizer), out=out,
        shard_tokens=SHARD_TOKENS,
    )  # fmt: skip
    mine, whole = files_of(out), files_of(exported)
    del mine["manifest.json"], whole["manifest.json"]
    assert mine == whole


def test_the_same_again_is_skipped_and_another_refused(world: World, tmp_path: Path) -> None:
    out = export(world.selection, corpus=world.prepared, formats=["jsonl"], out=tmp_path / "o")
    before = (out / "manifest.json").stat().st_mtime_ns
    export(world.selection, corpus=world.prepared, formats=["jsonl"], out=out)
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(StaleOutput):
        export(world.selection, corpus=world.prepared, formats=["parquet"], out=out)
    assert read_manifest(out)["counts"]["facts"]["token_sum"] is None


def test_dry_run_writes_nothing(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(world.selection, corpus=world.prepared, formats=["mds"], out=tmp_path / "o", dry_run=True)
    assert f"{world.tokens:,} tokens as mds, in about 1 shards" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


def chunks_of(world: World) -> list[dict[str, Any]]:
    return Prepared(world.prepared).chunks("pool").to_pylist()


def test_a_tokenizer_that_counts_otherwise_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pplscape.stages import export as module

    monkeypatch.setattr(module, "encode", lambda tokenizer, texts: [np.zeros(3, np.int32) for _ in texts], raising=True)
    with pytest.raises(UserError, match=r"was selected with \d+ tokens and is encoded to 3"):
        export(world.selection, corpus=world.prepared, formats=["mds"], model=str(world.tokenizer), out=tmp_path / "o")


def test_selections_that_do_not_fit_are_refused(
    world: World, tmp_path: Path, reselect: Callable[..., Path]
) -> None:  # fmt: skip
    chunks = chunks_of(world)
    key = (chunks[0]["doc_id"], chunks[0]["chunk_index"])
    one = selected_table(chunks, {key: 1})
    cases = [
        (pa.concat_tables([one, one]), {}, "is selected twice: give it repeats instead"),
        (one.set_column(3, one.schema.field(3), pa.array([1], pa.int64())), {}, "the corpus that this selection"),
        (one.set_column(0, one.schema.field(0), pa.array(["doc#999"])), {}, "'doc#999' in its pool"),
        (one, {"tokens": 1}, "its selection.json says 1"),
        (one.set_column(6, one.schema.field(6), pa.array([0], pa.int16())), {}, "selects nothing"),
    ]
    for i, (table, facts, message) in enumerate(cases):
        selection = reselect(table, **facts).rename(tmp_path / f"s{i}")
        with pytest.raises(UserError, match=message):
            export(selection, corpus=world.prepared, formats=["jsonl"], out=tmp_path / f"o{i}")


def test_bad_requests_get_one_sentence(world: World, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    options: dict[str, Any] = {"corpus": world.prepared, "out": tmp_path / "o"}
    with pytest.raises(UserError, match="megatron hold token ids: pass --model"):
        export(world.selection, formats=["parquet", "megatron"], **options)
    with pytest.raises(UserError, match="shard_tokens = 0"):
        export(world.selection, shard_tokens=0, **options)
    other = tmp_path / "tokenizer"
    other.mkdir()
    for file in tiny_tokenizer_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="differs from that of"):
        export(world.selection, formats=["mds"], model=str(other), **options)
    with pytest.raises(UserError, match=r"no .*selection.json; make it with: pplscape select"):
        export(tmp_path, **options)
