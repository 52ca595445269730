"""Real processes, killed for real: the files are those of an undisturbed run; a folder belongs to one process."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pplscape.manifest import read_manifest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
PREPARE = """
import os, time
from pplscape.cli import main
from pplscape.text import ingest
ingest.PART_CHARS = 2000
spool = ingest._spool
def slowly(*args, **named):
    spool(*args, **named)
    time.sleep(float(os.environ.get("DELAY", 0)))
ingest._spool = slowly
main()
"""


def test_killed_at_random_moments_the_files_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """A small run of the benchmark, which kills more often and the embedded model, too."""
    if not SCRIPT.exists():
        pytest.skip("benchmarks/ is not part of this installation")
    numbers = ["--kills", "3", "--model-kills", "0", "--worker-kills", "0", "--rows", "8", "--seed", "1"]
    options = [*numbers, "--out", str(tmp_path / "found.json")]
    subprocess.run([sys.executable, str(SCRIPT), *options], check=True, timeout=250)
    fresh, extension = json.loads((tmp_path / "found.json").read_text())
    for series in (fresh, extension):
        assert series["kills"] >= 1
        assert series["differing"] == series["done_twice"] == []
        assert series["parts"] > 5


def corpus(folder: Path, n: int = 60) -> str:
    rng = random.Random(0)
    words = ["patients", "court", "fox", "the", "treated", "dog", "loss", "twelve", "quick", "brown", "lazy"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choices(words, k=60))} for i in range(n)]
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def command(source: str, model: Path, out: Path) -> list[str]:
    options = {"--chunk-tokens": 64, "--min-tokens": 16, "--valid-tokens": 200, "--test-tokens": 200}
    typed = [str(part) for option in options.items() for part in option]
    return ["prepare", source, "--model", str(model), "--out", str(out), "--near-duplicates", "keep", *typed]


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PREPARE, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_the_second_of_two_processes_refuses_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    arguments = command(corpus(tmp_path), tiny_tokenizer_dir, tmp_path / "out")
    first = subprocess.Popen(
        [sys.executable, "-c", PREPARE, *arguments], stderr=subprocess.DEVNULL, env={**os.environ, "DELAY": "0.2"}
    )
    try:
        spool = tmp_path / "out.partial" / "spool"
        for _ in range(1200):
            if spool.exists() and any(spool.glob("corpus-*0.parquet")):
                break
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)
        second = run(arguments)
        assert second.returncode == 2
        assert f"Another process is writing {tmp_path / 'out'}" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.kill()
        first.wait()
    assert run(arguments).returncode == 0
    assert read_manifest(tmp_path / "out")["counts"]["documents"]["in"] == 60


def small_files() -> None:
    """No file above 3 kB, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_a_disk_without_room_is_one_sentence_and_the_work_goes_on_later(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    arguments = command(corpus(tmp_path), tiny_tokenizer_dir, tmp_path / "out")
    failed = run(arguments, preexec_fn=small_files)
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1].count("Cannot write") == 1
    assert "Free some space or choose another --out" in failed.stderr.replace("\n", " ")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.partial").rglob("*.tmp"))
    assert run(arguments).returncode == 0
    undisturbed = command(str(tmp_path / "c.jsonl"), tiny_tokenizer_dir, tmp_path / "whole")
    assert run(undisturbed).returncode == 0
    assert read_manifest(tmp_path / "out")["files"] == read_manifest(tmp_path / "whole")["files"]


SHELL = """
mount -t tmpfs -o size=200k none {folder} || exit 77
{python} -c "$CODE" {arguments}; echo "first: $?"
mount -o remount,size=50m {folder}
{python} -c "$CODE" {arguments}; echo "second: $?"
"""


def test_a_full_file_system(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """A real tmpfs of 200 kB, in a name space of its own; ENOSPC in the middle, then room."""
    (tmp_path / "disk").mkdir()
    arguments = " ".join(command(corpus(tmp_path, 600), tiny_tokenizer_dir, tmp_path / "disk/out"))
    script = SHELL.format(folder=tmp_path / "disk", python=sys.executable, arguments=arguments)
    try:
        found = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "CODE": PREPARE},
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare on this system")
    if found.returncode == 77 or "unshare" in found.stderr:
        pytest.skip("mounting a tmpfs is not allowed here")
    assert "first: 2" in found.stdout, found.stderr
    assert "second: 0" in found.stdout, found.stderr
    assert "No space left on device" in found.stderr
    assert "Traceback" not in found.stderr
