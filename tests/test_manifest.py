"""Stage folders: skipped, resumed, refused, locked, and complete after a real kill -9."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pplscape.errors import StaleOutput, UserError
from pplscape.manifest import StageFolder, fingerprint_input, read_manifest, write_atomic


def _stage(out: Path, value: int = 1, overwrite: bool = False) -> StageFolder:
    return StageFolder(out, stage="test", version=1, config={"value": value}, inputs={}, overwrite=overwrite)


def _write(out: Path, value: int = 1, overwrite: bool = False) -> None:
    with _stage(out, value, overwrite) as folder:
        assert not folder.finished
        folder.write_json("a.json", {"value": value})
        folder.write_table("sub/t.parquet", pa.table({"x": [value]}))
        folder.finish({"in": 1, "out": 1})


def test_a_finished_stage_is_skipped(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    with _stage(tmp_path / "s") as folder:
        assert folder.finished
    manifest = read_manifest(tmp_path / "s")
    assert set(manifest["files"]) == {"a.json", "sub/t.parquet"}
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["a.json", "manifest.json", "sub"]


def test_another_configuration_is_refused_then_overwritten(tmp_path: Path) -> None:
    _write(tmp_path / "s", 1)
    with pytest.raises(StaleOutput, match=r"different: config.*--overwrite"):
        _stage(tmp_path / "s", 2).__enter__()
    _write(tmp_path / "s", 2, overwrite=True)
    assert json.loads((tmp_path / "s/a.json").read_text()) == {"value": 2}


def test_a_folder_of_the_users_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(StaleOutput, match="not a finished stage folder"):
            _stage(tmp_path / "s", overwrite=overwrite).__enter__()
    assert (tmp_path / "s/thesis.tex").exists()


def test_a_file_or_a_foreign_manifest_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StaleOutput):
        _stage(tmp_path / "file", overwrite=True).__enter__()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(StaleOutput, match="something else"):
        _stage(tmp_path / "other", overwrite=True).__enter__()


def test_killed_between_manifest_and_rename(tmp_path: Path) -> None:
    _write(tmp_path / "s")
    whole = fingerprint_input(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "s.partial")
    with pytest.raises(StaleOutput, match="unfinished work"):
        _stage(tmp_path / "s", 2).__enter__()
    with _stage(tmp_path / "s") as folder:
        assert folder.finished
    assert fingerprint_input(tmp_path / "s") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_unfinished_work_is_resumed(tmp_path: Path) -> None:
    with _stage(tmp_path / "s") as folder:  # left without finish(), as after Ctrl-C
        folder.write_json("part-0.json", 0)
    with _stage(tmp_path / "s") as folder:
        assert folder.has("part-0.json")
        assert not folder.has("part-1.json")
    with pytest.raises(StaleOutput, match="unfinished work"):
        _stage(tmp_path / "s", 2).__enter__()


def test_fingerprint_ignores_volatile_facts(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    changed = read_manifest(tmp_path / "b") | {"run": {"seconds": 1e9, "host": "elsewhere", "versions": {}}}
    (tmp_path / "b/manifest.json").write_text(json.dumps(changed))
    assert fingerprint_input(tmp_path / "a") == fingerprint_input(tmp_path / "b")


def _hold(out: Path, ready: object) -> None:
    with _stage(out):
        ready.set()  # type: ignore[attr-defined]
        time.sleep(30)


def test_two_processes_on_one_folder_the_second_refuses(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "s", ready))
    process.start()
    try:
        assert ready.wait(20)
        with pytest.raises(UserError, match="Another process"):
            _stage(tmp_path / "s").__enter__()
    finally:
        process.kill()
        process.join()
    _write(tmp_path / "s")  # a killed process leaves no lock behind


SLOW_STAGE = """
import sys, time
from pathlib import Path
from pplscape.manifest import StageFolder
with StageFolder(Path(sys.argv[1]), stage="slow", version=1, config={}, inputs={}) as folder:
    if not folder.finished:
        for i in range(40):
            name = f"part-{i:02d}.json"
            if not folder.has(name):
                folder.write_json(name, list(range(i * 1000)))
                time.sleep(0.01)
        folder.finish({"in": 40, "out": 40})
"""


def test_killed_anywhere_the_files_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_STAGE]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    for delay in (0.15, 0.25, 0.35, 0.45):
        process = subprocess.Popen([*command, str(tmp_path / "killed")])
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    whole, killed = read_manifest(tmp_path / "whole"), read_manifest(tmp_path / "killed")
    assert whole["files"] == killed["files"]
    assert len(whole["files"]) == 40


def test_a_full_disk_is_one_clear_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(UserError, match=r"Cannot write .*Free some space"):
        write_atomic(Path("/dev/full/part"), b"x")


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("pplscape.manifest.fcntl.flock", without)
    with pytest.warns(UserWarning, match="no file locks .No locks available.: make sure that only one process"):
        _write(tmp_path / "s")
    assert read_manifest(tmp_path / "s")["counts"] == {"in": 1, "out": 1}


def test_finished_by_another_process_while_this_one_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _stage(tmp_path / "s")
    make = StageFolder._make_partial

    def late(self: StageFolder) -> None:
        monkeypatch.undo()
        _write(tmp_path / "s")
        make(self)

    monkeypatch.setattr(StageFolder, "_make_partial", late)
    with ours as folder:
        assert folder.finished
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


@pytest.mark.parametrize("survive", range(4))
def test_killed_at_any_step_of_replacing_an_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survive: int
) -> None:
    """The old folder is renamed, the new one gets its name, the old one is removed: in this order."""
    _write(tmp_path / "s", 1)
    steps = [survive]

    def counted(function: Any) -> Any:
        def step(*args: Any, **options: Any) -> Any:
            if Path(args[0]).name.startswith("s") and steps[0] == 0:
                raise KeyboardInterrupt
            steps[0] -= Path(args[0]).name.startswith("s")
            return function(*args, **options)

        return step

    monkeypatch.setattr("pplscape.manifest.os.replace", counted(os.replace))
    monkeypatch.setattr("pplscape.manifest.shutil.rmtree", counted(shutil.rmtree))
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "s", 2, overwrite=True)
    monkeypatch.undo()
    with _stage(tmp_path / "s", 2, overwrite=True) as folder:
        assert folder.finished
    assert json.loads((tmp_path / "s/a.json").read_text()) == {"value": 2}
    assert not (tmp_path / "s.partial").exists()


def test_what_a_killed_run_left_half_written_is_no_data(tmp_path: Path) -> None:
    with _stage(tmp_path / "s") as folder:
        folder.write_json("a.json", 1)
        (folder.partial / "b.json.tmp").write_text("ha")
        (folder.partial / "spool").mkdir()
        (folder.partial / "spool" / "part").write_text("work")
        folder.finish({})
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["a.json", "manifest.json"]
    assert set(read_manifest(tmp_path / "s")["files"]) == {"a.json"}


def test_no_space_left_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_atomic(tmp_path / "part", b"x")
    assert not list(tmp_path.iterdir())
