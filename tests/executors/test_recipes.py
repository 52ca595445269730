"""The recipes for ranks in docs/scaling.md, as they stand there: the files are those of one process.

Only sizes change: two ranks on this machine, a port that is free. torchrun is the real one; `srun` is a stand-in that
starts the command it is given once a task, with the variables that Slurm sets.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import PARTS, assert_same_scores, workers_of

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_NTASKS=2 "$@" & started+=($!); done
for one in "${started[@]}"; do wait "$one" || failed=1; done
exit ${failed:-0}
"""


def recipe(first_words: str) -> str:
    """The one indented block of the page that begins with these words."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.read_text(), flags=re.MULTILINE)
    (found,) = (b for b in map(textwrap.dedent, blocks) if b.startswith(first_words))
    return found


def sized(text: str, **sizes: str) -> str:
    """`text` with these values of its options; each must be there once."""
    for name, value in sizes.items():
        text, n = re.subn(rf"(?<=--{name.replace('_', '-')} )\S+", value, text)
        assert n == 1, name
    return text


@pytest.fixture
def scratch(parted: Path, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """What the recipes call $SCRATCH, with a folder of the programs that they call."""
    folder, programs = tmp_path / "scratch", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (folder / "prepared").symlink_to(parted)
    (folder / "model").symlink_to(tiny_model_dir)
    python = shlex.quote(sys.executable)
    texts = {name: f'#!/bin/bash\nexec {python} -m {module} "$@"\n' for name, module in (
        ("pplscape", "pplscape"), ("torchrun", "torch.distributed.run"),
    )}  # fmt: skip
    for name, text in (texts | {"srun": SRUN}).items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return folder


def run(script: str, scratch: Path, **variables: str) -> None:
    """Bash runs the script, which must succeed."""
    path = f"{scratch.parent / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SCRATCH": str(scratch), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_made_by_two_ranks(scores: Path, reference: Path) -> None:
    """The rank that finished did every second part, so the other one did the others."""
    assert_same_scores(scores, reference)
    (by_the_last,) = workers_of(scores).values()
    assert by_the_last in (list(range(0, PARTS, 2)), list(range(1, PARTS, 2)))


def test_torchrun(scratch: Path, tiny_reference: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = sized(recipe("torchrun"), nnodes="1", nproc_per_node="2", rdzv_endpoint=f"$HEAD:{port}")
    run(script, scratch, HEAD="localhost")
    assert_made_by_two_ranks(scratch / "scores", tiny_reference)


def test_slurm(scratch: Path, tiny_reference: Path) -> None:
    run(recipe("#!/bin/bash"), scratch, SLURM_CPUS_PER_TASK="1")
    assert_made_by_two_ranks(scratch / "scores", tiny_reference)
