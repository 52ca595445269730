"""Worker processes: real ones, killed, failing, and scoring."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PARTS, assert_same_scores, workers_of
from worker_jobs import Broken, Environment, Squares

from pplscape.errors import UserError
from pplscape.executors import InProcess, open_executor
from pplscape.stages.score import score


def test_items_are_done_at_the_same_time_by_distinct_processes(tmp_path: Path) -> None:
    with open_executor(workers=3) as executor:
        told: list[int] = []
        done = list(executor.map(Squares(tmp_path, together=3), range(3), tell=told.append))
        assert {one.item: one.value for one in done} == {i: i * i for i in range(3)}
        pids = {one.where.pid for one in done}
        assert len(pids) == 3
        assert os.getpid() not in pids
        assert sum(told) == 2 * sum(range(3))
        again = {one.where.pid for one in executor.map(Squares(tmp_path, deadly=(2,)), range(5))}
        assert again & pids, "workers stay for the next job"
    assert list(InProcess().map(Squares(tmp_path), range(4)))[3].value == 9


def test_a_killed_workers_item_is_done_again(tmp_path: Path) -> None:
    with open_executor(workers=2) as executor:
        done = {one.item: one for one in executor.map(Squares(tmp_path, deadly=(1, 3)), range(5))}
    assert {i: one.value for i, one in done.items()} == {i: i * i for i in range(5)}
    assert (tmp_path / "died-1").exists()
    assert (tmp_path / "died-3").exists()


def test_what_fails_twice_is_named(tmp_path: Path) -> None:
    with open_executor(workers=2) as executor:
        with pytest.raises(UserError, match=r"part 1 failed 2 times .*: killed by SIGKILL \(out of memory\?\)"):
            list(executor.map(Squares(tmp_path, deadly=(1,), always=True), range(3), name=lambda i: f"part {i}"))
        with pytest.raises(ZeroDivisionError, match="one over nothing") as found:
            list(executor.map(Squares(tmp_path, bad=(2,)), range(3), name=lambda i: f"part {i}"))
        notes = "\n".join(found.value.__notes__)
        assert "part 2 failed 2 times" in notes
        assert "worker_jobs.py" in notes
        with pytest.raises(UserError, match="this cannot be done"):
            list(executor.map(Squares(tmp_path, refused=(2,)), range(3)))
        with pytest.raises(ValueError, match="no model here"):
            list(executor.map(Broken(), range(3)))


def test_cores_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS"]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    for given, threads, expected in (("3", None, ["3", "4"]), ("3", 2, ["2", "2"])):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        with open_executor(workers=2, threads=threads) as executor:
            found = {one.item: one.value for one in executor.map(Environment(), names)}
        assert [found[n] for n in names] == expected
        assert os.environ.get("OMP_NUM_THREADS") == given


def test_two_workers_one_killed_give_the_same_files(
    parted: Path, bigram_dir: Path, reference: Path, tmp_path: Path, disturb: Callable[..., Path]
) -> None:
    assert len(workers_of(reference)) == 1
    marks = disturb(deadly=(2,), together=((0, 1),))
    found = score(parted, model=str(bigram_dir), engine="fake", out=tmp_path / "two", workers=2)
    assert (marks / "died-2").exists()
    assert_same_scores(found, reference)
    by = workers_of(found)
    assert sorted(p for parts in by.values() for p in parts) == list(range(PARTS))
    assert next(w for w, parts in by.items() if 0 in parts) != next(w for w, parts in by.items() if 1 in parts)


def test_a_real_model_in_two_processes(
    parted: Path, tiny_model_dir: Path, tiny_reference: Path, tmp_path: Path
) -> None:
    found = score(parted, model=str(tiny_model_dir), out=tmp_path / "two", workers=2, threads=1)
    assert_same_scores(found, tiny_reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "mpi"}, "Unknown executor 'mpi'"),
        ({"workers": 0}, "--workers 0 must be 1 or more"),
        ({"threads": -1}, "--threads -1 must be 1 or more"),
        ({"address": "there:1"}, "pass --executor ray as well"),
        ({"engine": "ngram", "workers": 2}, "--engine ngram runs in one process"),
        ({"engine": "ngram", "rank": 0, "ranks": 2}, "--engine ngram runs in one process"),
        ({"rank": 1}, "--rank and --ranks belong together"),
        ({"rank": 2, "ranks": 2}, "--rank 2 --ranks 2 is no rank"),
    ],
)
def test_bad_requests(parted: Path, bigram_dir: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(parted, model=str(bigram_dir), out=tmp_path / "s", **{"engine": "fake"} | options)
