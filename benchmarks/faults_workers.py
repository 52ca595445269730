"""The series of `faults.py` that kills `score --workers 2`: its coordinator, or one of its worker processes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from pplscape.stages.prepare import prepare

if TYPE_CHECKING:
    from faults import Series

VICTIMS = ("coordinator", "worker")
MOST_PARTS, MOST_SECONDS = 6, 0.3
"""A kill falls up to so many new parts and seconds after the one before, or after the start."""
PATIENCE = 30.0
"""Seconds in which workers must end after their coordinator has died."""
GIVEN_UP = ("failed 2 times", "could not be started 2 times")
"""How a run ends whose kills hit the same part twice, or two workers that start: allowed, it is started again."""


@dataclass(frozen=True)
class Scoring:
    """One `pplscape score --workers 2` with the fake engine."""

    prepared: Path
    model: str
    out: Path

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pplscape", "score", self.prepared, "--model", self.model, "--engine", "fake",
                   "--out", self.out, "--workers", "2"]  # fmt: skip
        with open(self.log, "ab") as log:
            return subprocess.Popen(command, stderr=log)

    @property
    def log(self) -> Path:
        return self.out.with_name(self.out.name + ".log")

    def parts(self) -> dict[str, tuple[int, int]]:
        """Inode and time of every part that is done."""
        folders = (self.out.with_name(self.out.name + ".partial"), self.out)
        return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for f in folders for p in f.glob("part-*.parquet")}


def prepared_in_parts(files: list[str], model: str, part: int, folder: Path) -> Path:
    with patch("pplscape.text.ingest.PART_CHARS", part), patch("pplscape.text.write.PART_BYTES", part):
        return prepare(files, model=model, out=folder / "prepared", chunk_tokens=128, min_tokens=16, valid=0, test=0)


def run_workers(found: Series, prepared: Path, model: str, kills: int, folder: Path, rng: random.Random) -> Series:
    """Kill until there are so many kills, every run until it has finished."""
    undisturbed, start = Scoring(prepared, model, folder / "two-undisturbed"), time.monotonic()
    finish(undisturbed.start(), undisturbed)
    found.seconds = time.monotonic() - start
    wanted = hashes(undisturbed.out)
    found.parts = sum(name.endswith(".parquet") for name in wanted)
    while found.kills < kills:
        job = Scoring(prepared, model, folder / f"two-killed-{found.runs}")
        found.runs += 1
        done = disturb(job, kills, found, rng)
        got = hashes(job.out)
        found.differing += [name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)]
        found.done_twice += [name for name, file in job.parts().items() if done.get(name, file) != file]
        shutil.rmtree(job.out)
    return found


def disturb(job: Scoring, kills: int, found: Series, rng: random.Random) -> dict[str, tuple[int, int]]:
    """Run the job to its end with kills on the way; the parts that were there at each kill, as they were."""
    process, done = job.start(), dict[str, tuple[int, int]]()
    while True:
        victim = rng.choice(VICTIMS)
        if found.kills >= kills or not strike(process, victim, job, rng, found):
            if finish(process, job):
                return done
            found.given_up += 1
            process = job.start()
            continue
        found.kills += 1
        found.killed_in[victim] += 1
        done = job.parts() | done
        if victim == "coordinator":
            process = job.start()


def strike(process: subprocess.Popen[bytes], victim: str, job: Scoring, rng: random.Random, found: Series) -> bool:
    """Kill at a random moment; False if the run ended before."""
    at, delay = len(job.parts()) + rng.randrange(MOST_PARTS), rng.uniform(0, MOST_SECONDS)
    reached = within(600, lambda: process.poll() is not None or (len(job.parts()) >= at and workers(process.pid)))
    assert reached, "the run stands still"
    time.sleep(delay)
    at_work = workers(process.pid)
    if process.poll() is not None or not at_work:
        return False
    os.kill(process.pid if victim == "coordinator" else rng.choice(at_work), signal.SIGKILL)
    if victim == "coordinator":
        process.wait()
        within(PATIENCE, lambda: not any(map(alive, at_work)))
        found.left_behind += sum(map(alive, at_work))
    return True


def finish(process: subprocess.Popen[bytes], job: Scoring) -> bool:
    """Wait for the end; False if the run gave up with one of the errors that many kills allow."""
    if process.wait() == 0:
        return True
    said = job.log.read_text()
    if not any(words in " ".join(said.split()) for words in GIVEN_UP):
        raise RuntimeError(said)
    return False


def within(seconds: float, condition: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def workers(coordinator: int) -> list[int]:
    """Its worker processes, in the order of their ids."""
    found = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _parent(p) == coordinator]
    return sorted(pid for pid in found if b"--multiprocessing-fork" in _read(Path(f"/proc/{pid}/cmdline")))


def alive(pid: int) -> bool:
    return _parent(Path(f"/proc/{pid}")) is not None


def _parent(process: Path) -> int | None:
    """None of a process that has ended."""
    after_name = _read(process / "stat").rpartition(b")")[2].split()
    return int(after_name[1]) if after_name and after_name[0] != b"Z" else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended just now
        return b""


def hashes(out: Path) -> dict[str, str]:
    """sha256 of every file, but the manifest, which names the processes."""
    files = (p for p in out.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
