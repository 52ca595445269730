"""Ranks: any order, any death, one finish; doubles are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import assert_same_scores, data_files
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.executors.ranks import Rank, RankFolder
from pplscape.manifest import StageFolder, read_manifest
from pplscape.stages.score import score

ITEMS = 5
IDENTITY: dict = {"stage": "score", "version": 1, "config": {}, "inputs": {}}


def rank_folder(out: Path, number: int, of: int = 2, **options: object) -> RankFolder:
    return RankFolder(Rank(number, of), out, **(IDENTITY | options))


def missing(folder: StageFolder) -> list[int]:
    return [i for i in range(ITEMS) if not folder.has(f"{i}.txt")]


def work(folder: RankFolder, most: int = ITEMS) -> None:
    for i in folder.rank.share(list(range(ITEMS)))[:most]:
        folder.write_text(f"{i}.txt", str(i))


def leave(folder: RankFolder) -> int:
    return folder.leave(lambda: len(missing(folder)), lambda: folder.finish({"by": folder.rank.number}))


def assert_whole(out: Path) -> None:
    assert sorted(p.name for p in out.iterdir()) == [*(f"{i}.txt" for i in range(ITEMS)), "manifest.json"]
    assert not out.with_name("o.partial").exists()


def test_shares_are_a_partition() -> None:
    for of in range(1, 7):
        items = [i for r in range(of) for i in Rank(r, of).share(list(range(ITEMS)))]
        assert sorted(items) == list(range(ITEMS))
    with pytest.raises(UserError, match="--rank 3 --ranks 3 is no rank"):
        Rank(3, 3)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["come", "half", "all", "leave", "die"])), max_size=25))
def test_whatever_ranks_do_the_last_one_finishes(deeds: list[tuple[int, str]]) -> None:
    """Each deed of each of three ranks in any order; what they left undone is then done in order."""
    with TemporaryDirectory() as base:
        out, at_work, whole = Path(base) / "o", dict[int, RankFolder](), set[int]()
        finish = [(r, deed) for r in range(3) for deed in ("come", "all", "leave")]
        for rank, deed in [*deeds, *finish]:
            folder = at_work.get(rank)
            if deed == "come" and folder is None:
                entered = rank_folder(out, rank, 3).__enter__()
                if not entered.finished:
                    at_work[rank] = entered
            elif folder is not None and deed in ("half", "all"):
                work(folder, 1 if deed == "half" else ITEMS)
                whole |= {rank} if deed == "all" else set()
            elif folder is not None and deed in ("leave", "die"):
                if deed == "leave":
                    leave(folder)
                folder.__exit__()
                del at_work[rank]
            if out.exists():
                assert len(whole | {r for r in range(3) if not missing_share(out, r)}) == 3
        assert not at_work
        assert_whole(out)


def missing_share(out: Path, rank: int) -> list[int]:
    return [i for i in Rank(rank, 3).share(list(range(ITEMS))) if not (out / f"{i}.txt").exists()]


def test_doubles_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "o"
    with rank_folder(out, 0) as first:
        with pytest.raises(UserError, match=r"Rank 0 is at work .* already"), rank_folder(out, 0):
            pass
        with pytest.raises(UserError, match=r"2 ranks are writing .*, this is rank 1 of 3"), rank_folder(out, 1, 3):
            pass
        with pytest.raises(UserError, match="Another process is writing"), StageFolder(out, **IDENTITY):
            pass
        with rank_folder(out, 1) as second:
            work(first)
            assert leave(first) > 0
            work(second)
        with rank_folder(out, 1):  # it died before it left; started again, it finds nothing to do
            pass
    with StageFolder(out, **IDENTITY) as alone:
        assert missing(alone) == []
        with pytest.raises(UserError, match="Another process is writing"), rank_folder(out, 0):
            pass
        alone.finish({})
    assert_whole(out)
    with rank_folder(out, 0) as late:
        assert late.finished


def test_another_number_of_ranks_may_take_over(tmp_path: Path) -> None:
    with rank_folder(tmp_path / "o", 0, 3) as folder:
        work(folder)
        leave(folder)
    for r in range(2):
        with rank_folder(tmp_path / "o", r, 2) as folder:
            work(folder)
            leave(folder)
    assert_whole(tmp_path / "o")
    assert read_manifest(tmp_path / "o")["counts"] == {"by": 1}


def test_scoring_by_ranks_in_one_process(parted: Path, bigram_dir: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    for r in (2, 0, 1):
        score(parted, model=str(bigram_dir), engine="fake", out=out, rank=r, ranks=3)
        assert out.exists() == (r == 1)
    assert_same_scores(out, reference)
    with pytest.raises(UserError, match="run `pplscape prepare` once"):
        score(parted.parent / "c.jsonl", model=str(bigram_dir), engine="fake", out=out, rank=0, ranks=2)


def test_a_killed_rank_is_started_again(parted: Path, bigram_dir: Path, reference: Path, tmp_path: Path) -> None:
    """Two processes at the same time; one is killed (SIGKILL) in the middle of its share."""
    out = tmp_path / "s"
    command = [sys.executable, "-m", "pplscape", "score", str(parted), "--model", str(bigram_dir), "--engine", "fake",
               "--out", str(out), "--ranks", "2"]  # fmt: skip
    killed = f"""
import os, signal
from pplscape.manifest import StageFolder
from pplscape.cli import main
write = StageFolder.write_bytes
def and_die(self, name, data):
    if name == "part-00002.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, data)
StageFolder.write_bytes = and_die
main({[*command[3:], "--rank", "0"]!r})
"""
    first = subprocess.Popen([sys.executable, "-c", killed])
    second = subprocess.Popen([*command, "--rank", "1"], stderr=subprocess.PIPE, text=True)
    assert first.wait() == -signal.SIGKILL
    _, said = second.communicate()
    assert second.returncode == 0
    assert "parts are left to other ranks" in said
    assert not out.exists()
    assert len(data_files(out.with_name("s.partial"))) > 2
    subprocess.run([*command, "--rank", "0"], check=True, env=dict(os.environ))
    assert_same_scores(out, reference)


def test_the_command_line_passes_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pplscape.cli import main

    seen: dict = {}
    stage: Callable[..., None] = lambda *_, **options: seen.update(options)  # noqa: E731
    monkeypatch.setattr("pplscape.stages.score.score", stage)
    with pytest.raises(SystemExit):
        main(["score", "p", "--model", "m", "--out", str(tmp_path), "--executor", "ray", "--workers", "3", "--threads",
              "2", "--address", "there:6379", "--rank", "1", "--ranks", "4"])  # fmt: skip
    expected = {"executor": "ray", "workers": 3, "threads": 2, "address": "there:6379", "rank": 1, "ranks": 4}
    assert expected.items() <= seen.items()
