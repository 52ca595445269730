"""select with a corpus: whole documents, nesting, replay, exports, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pplscape.cli import app
from pplscape.draw.replay import draw_replay, replay_tokens
from pplscape.draw.stream import read_selected
from pplscape.errors import UserError
from pplscape.formats.content import text_sum
from pplscape.laws.forms.base import Frame
from pplscape.laws.law import Law
from pplscape.manifest import StageFolder, fingerprint_input, read_manifest
from pplscape.schema import SCORES
from pplscape.stages.prepare import prepare
from pplscape.stages.select import select
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns, Document, read_documents, resolve_inputs

CHUNKING = {"chunk_tokens": 64, "min_tokens": 16}


class World(NamedTuple):
    corpus: Path
    general: Path
    scores: Path
    model: Path


def texts(n: int, word: str) -> list[str]:
    return [f"{word} {i} " + " ".join(f"{word}{(i * 7 + j * j) % 911}" for j in range(30 + i % 40)) for i in range(n)]


def write_jsonl(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": f"{path.stem}{i}", "text": t}) + "\n" for i, t in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def world(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("world")
    prepared = {}
    for name, n in (("case", 50), ("common", 40)):
        source = write_jsonl(base / f"{name}.jsonl", texts(n, name))
        prepared[name] = prepare(
            [str(source)], model=str(tiny_tokenizer_dir), out=base / f"{name}-prepared", **CHUNKING
        )
    return World(prepared["case"], prepared["common"], scored(prepared["case"], base / "scores"), tiny_tokenizer_dir)


def scored(corpus: Path, out: Path, shift: float = 0.0) -> Path:
    chunks = Prepared(corpus).chunks("pool")
    x = np.random.default_rng(0).normal(4.0, 0.6, len(chunks)) + shift
    extra = {"n_tokens": chunks["length"], "nll_sum": pa.array(x * chunks["length"].to_numpy())}
    table = pa.table({f.name: extra[f.name] if f.name in extra else chunks[f.name] for f in SCORES}).cast(SCORES)
    inputs = {"prepared": corpus}
    with StageFolder(out, stage="score", version=1, config={}, inputs=inputs) as folder:
        folder.write_table("part-00000.parquet", table.slice(0, len(table) // 2))
        folder.write_table("part-00001.parquet", table.slice(len(table) // 2))
        folder.finish({"in": len(table), "out": len(table), "facts": {"chunk_tokens": 64}})
    return out


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "selection.json").read_text())


def ids(folder: Path) -> set[tuple[str, int]]:
    table = read_selected(folder)
    return set(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True))


def test_whole_documents_come_back_as_they_were(world: World, tmp_path: Path) -> None:
    out = select(
        world.scores, budget="40%", strategy="low", whole_documents=True, corpus=world.corpus, out=tmp_path / "o"
    )
    found = content(out)
    of_document: dict[str, int] = {}
    for row in Prepared(world.corpus).chunks("pool").to_pylist():
        of_document[row["doc_id"]] = of_document.get(row["doc_id"], 0) + row["length"]
    taken = {d for d, _ in ids(out)}
    assert found["unit"] == "document"
    assert found["tokens"] == sum(of_document[d] for d in taken)
    assert 0 <= found["budget"] - found["tokens"] < max(of_document.values())
    source = (world.corpus.parent / "case.jsonl").read_bytes().splitlines()
    rejected = {r["doc_id"] for p in (world.corpus / "rejected").glob("*") for r in pq.read_table(p).to_pylist()}
    written = (out / "subset/case.jsonl").read_bytes().splitlines()
    whole = {json.loads(line)["id"] for line in written if line in source}
    assert whole >= taken - rejected  # a document that lost no chunk keeps its bytes
    assert len(written) >= len(taken)
    assert not (out / "documents").exists()


def test_an_earlier_selection_is_contained(world: World, tmp_path: Path) -> None:
    told: dict[str, Any] = {"strategy": "maxent", "target_mean": 4.2, "scale": "nll"}
    first = select(world.scores, budget="20%", out=tmp_path / "a", **told)
    second = select(world.scores, budget="45%", contains=first, seed=1, out=tmp_path / "b", **told)
    assert ids(first) < ids(second)
    assert 0 <= content(second)["budget"] - content(second)["tokens"] < 64
    whole = select(world.scores, budget="90%", contains=second, whole_documents=True, out=tmp_path / "c", **told)
    assert ids(second) < ids(whole)


def test_replay_is_drawn_beside_the_budget(world: World, tmp_path: Path) -> None:
    out = select(
        world.scores, budget="30%", strategy="random", replay=world.general, replay_share=0.25, corpus=world.corpus,
        out=tmp_path / "o",
    )  # fmt: skip
    found, table = content(out), pq.read_table(out / "replay/selected/part-00000.parquet")
    wanted = found["tokens"] // 3  # a quarter of the whole is a third of the rest
    assert found["replay"]["tokens"] == sum(table["length"].to_pylist())
    assert 0 <= wanted - found["replay"]["tokens"] < 64
    assert set(table["reason"].to_pylist()) == {"replay"}
    assert 0 <= found["budget"] - found["tokens"] < 64
    written = [json.loads(line)["text"] for line in (out / "replay/subset/common.jsonl").read_text().splitlines()]
    assert "".join(sorted("".join(written))) == "".join(sorted("".join(Prepared(world.general).texts("pool", table))))
    assert "general text to replay" in (out / "summary.md").read_text()


def test_replay_by_hand(world: World) -> None:
    general = Prepared(world.general)
    chunks = general.chunks("pool")
    held = sum(chunks["length"].to_pylist())
    assert replay_tokens(900, 0.1) == 100
    assert replay_tokens(900, 0.0) == 0
    before: set[tuple[str, int]] = set()
    for tokens in (0, 100, held // 3, held // 2, held):
        table, all_tokens = draw_replay(general, tokens, 7)
        now = set(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True))
        assert all_tokens == held
        assert 0 <= tokens - sum(table["length"].to_pylist()) < 64
        assert before <= now
        before = now
    assert len(before) == len(chunks)
    with pytest.raises(UserError, match="prepare more of it or lower"):
        draw_replay(general, held + 1, 7)
    with pytest.raises(UserError, match="at least 0 and below 1"):
        replay_tokens(10, 1.0)


def test_the_subset_holds_the_selected_texts_by_hash(world: World, tmp_path: Path) -> None:
    out = select(world.scores, budget="50%", strategy="random", corpus=world.corpus, out=tmp_path / "o")
    wanted = Prepared(world.corpus).texts("pool", read_selected(out))
    rows = [r for r in read_documents(resolve_inputs([str(out / "subset")]), Columns()) if isinstance(r, Document)]
    left = "".join(r.text for r in rows)
    cut = []
    for text in wanted:  # rows follow the corpus, as the selected table does not: every text is there once
        at = left.index(text)
        cut.append(left[at : at + len(text)])
        left = left[:at] + left[at + len(text) :]
    assert left == ""
    assert text_sum(cut) == text_sum(wanted)
    assert content(out)["subset"]["tokens"] == content(out)["tokens"]


def test_export_at_once(world: World, tmp_path: Path) -> None:
    arguments = ["select", str(world.scores), "--budget", "30%", "--strategy", "random", "--out", str(tmp_path / "o")]
    export = ["--corpus", str(world.corpus), "--export", "parquet,litdata", "--model", str(world.model)]
    for _ in range(2):  # the second time there is nothing to do
        done = CliRunner().invoke(app, [*arguments, *export])
        assert done.exit_code == 0, done.output
    out = tmp_path / "o"
    assert read_manifest(out / "export")["counts"]["tokens"] == content(out)["tokens"]
    assert sorted(p.name for p in (out / "export").iterdir() if p.is_dir()) == ["configs", "litdata", "parquet"]
    for told, message in (
        ({"formats": ["parquet"]}, "as --corpus"),
        ({"formats": ["tar"], "corpus": world.corpus}, "Unknown format 'tar'"),
        ({"formats": ["mds"], "corpus": world.corpus}, "mds hold token ids: pass --model"),
    ):
        with pytest.raises(UserError, match=message):
            select(world.scores, budget="30%", out=tmp_path / "p", **told)
    assert not (tmp_path / "p").exists()


def test_dos_on_the_command_line(world: World, tmp_path: Path) -> None:
    arguments = ["select", str(world.scores), "--budget", "30%", "--strategy", "dos", "--out", str(tmp_path / "o"),
                 "--target-mean", "4.1", "--target-std", "0.5", "--scale", "nll"]  # fmt: skip
    dos = ["--dos-spread", "std", "--dos-weights", "1,2", "--dos-stop", "0.05"]
    assert CliRunner().invoke(app, [*arguments, *dos]).exit_code == 0
    found = content(tmp_path / "o")
    assert found["draw"]["weights"] == {"mu": 1.0, "s": 2.0}
    assert found["draw"]["spread"] == "std"
    assert 0 < found["tokens"] == found["budget"] - found["draw"]["stopped"]
    assert any("below the budget" in w for w in found["warnings"])
    bad = CliRunner().invoke(app, [*arguments, "--dos-weights", "much"])
    assert "Cannot read --dos-weights" in str(bad.exception)


@pytest.mark.parametrize("broken", ["prepared again", "missing part", "rows lost", "no replay", "tokenizer"])
def test_inputs_that_changed_since_scoring(world: World, tmp_path: Path, broken: str) -> None:
    scores, told = shutil.copytree(world.scores, tmp_path / "scores"), {"corpus": world.corpus}
    if broken == "prepared again":
        source = write_jsonl(tmp_path / "case.jsonl", texts(50, "case")[::-1])
        told = {"corpus": prepare([str(source)], model=str(world.model), out=tmp_path / "again", **CHUNKING)}
        assert fingerprint_input(told["corpus"]) != fingerprint_input(world.corpus)
        message = "is not the corpus these scores were made of"
    elif broken == "missing part":
        (scores / "part-00001.parquet").unlink()
        message = "a file is missing or has changed; score again"
    elif broken == "rows lost":
        table = pq.read_table(scores / "part-00000.parquet")
        pq.write_table(table.slice(3), scores / "part-00000.parquet")
        message = "a file is missing or has changed; score again"
    elif broken == "no replay":
        told = {"replay_share": 0.1}
        message = "give both or neither"
    else:
        manifest = read_manifest(scores)
        manifest["counts"]["facts"]["tokenizer"] = "another"
        (scores / "manifest.json").write_text(json.dumps(manifest))
        told = {"replay": world.general, "replay_share": 0.1}
        message = "prepare the general text again with the scores' model"
    with pytest.raises(UserError, match=message):
        select(scores, budget="30%", strategy="random", out=tmp_path / "o", **told)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.partial").exists()


def law_of(tmp_path: Path, edges: tuple[float, ...], limits: tuple[float, float]) -> Path:
    share = (1 / (len(edges) + 1),) * (len(edges) + 1)
    params = {"E": 2.0, "beta": 0.5, "tau": 0.7, "J": 0.0} | {f"u_{b}": 1.0 + b for b in range(len(share))}
    law = Law(
        "utility", None, "std", params, Frame(1e4, 4.5, share), bins={"edges": edges, "share": share, "hash": "h"}
    )
    law = replace(law, winsor={"nll": limits, "ppl": tuple(np.exp(limits).tolist())})
    (tmp_path / "law.json").write_text(json.dumps(law.to_json()))
    return tmp_path / "law.json"


def test_bins_that_are_empty_here(world: World, tmp_path: Path) -> None:
    """Two of the law's bins hold no chunk of this pool: they get nothing, the budget is filled, and it is said so."""
    law = law_of(tmp_path, (1.0, 3.8, 4.2, 30.0), (2.0, 8.0))
    found = content(select(world.scores, budget="30%", strategy="allocate", law=law, out=tmp_path / "o"))
    assert found["pool_bin_tokens"][0] == found["bin_tokens"][0] == found["bin_tokens"][4] == 0
    assert 0 <= found["budget"] - found["tokens"] < 64
    assert found["draw"]["duality_gap"] < 1e-9
    assert any("fitted on another pool" in w for w in found["warnings"])
    assert "duality gap" in (tmp_path / "o/summary.md").read_text()


def test_scores_in_another_unit_are_refused(world: World, tmp_path: Path) -> None:
    law = law_of(tmp_path, (3.5, 4.0, 4.5), (2.0, 6.0))
    scores = scored(world.corpus, tmp_path / "bits", shift=20.0)
    with pytest.raises(UserError, match="another unit or another model's scores"):
        select(scores, budget="30%", strategy="low", law=law, out=tmp_path / "o")


def test_a_full_disk_while_text_is_written(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".jsonl"):
            raise OSError(28, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    told: dict[str, Any] = {"budget": "30%", "strategy": "random", "corpus": world.corpus, "out": tmp_path / "o"}
    with pytest.raises(UserError, match=r"Cannot write .*case.jsonl: No space left on device. Free some"):
        select(world.scores, **told)
    monkeypatch.undo()
    assert content(select(world.scores, **told))["subset"]["rows"] > 0


def test_killed_while_text_is_written(world: World, tmp_path: Path) -> None:
    """SIGKILL in the middle of the cut-back; run again, the bytes of an undisturbed run."""
    code = f"""
import os, signal
from pplscape.text import cutback
from pplscape.stages.select import select
dump = cutback._cut_row
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
cutback._cut_row = killed
told = dict(strategy="random", budget="40%", corpus={str(world.corpus)!r})
select({str(world.scores)!r}, out={str(tmp_path / "o")!r}, **told)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "o.partial/subset/case.jsonl.tmp").exists()
    contents = []
    for out in (tmp_path / "o", tmp_path / "undisturbed"):
        select(world.scores, strategy="random", budget="40%", out=out, corpus=world.corpus)
        files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json")
        contents.append([(p.relative_to(out), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]
    assert {str(name) for name, _ in contents[0]} >= {"subset/case.jsonl", "selection.json", "summary.md"}
