"""Two processes under torchrun train the model that one process trains, and resume, also in another number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from train_jobs import kill, start

from pplscape.manifest import read_manifest
from pplscape.stages.train import train
from pplscape.training.schedule import Recipe

RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=96)
SCRIPT = """
import json, sys
from pplscape.stages.train import train
from pplscape.training.schedule import Recipe
train(**json.loads(sys.argv[1]), recipe=Recipe(**json.loads(sys.argv[2])))
"""


@pytest.fixture
def arguments(tiny_model_dir: Path, tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "dog", "loss", "twelve", "brown"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, 40))} for i in range(25)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "train.py").write_text(SCRIPT)
    return {
        "subset": str(tmp_path / "t.jsonl"), "model": str(tiny_model_dir), "chunk_tokens": 32, "dtype": "float32",
        "checkpoint_seconds": 0,
    }  # fmt: skip


def _torchrun(folder: Path, arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    script = [str(folder / "train.py"), json.dumps(arguments), json.dumps(RECIPE.__dict__)]
    return subprocess.Popen([*command, *script], env=environment, stderr=subprocess.DEVNULL)


def test_two_processes_train_one_model(arguments: dict[str, Any], tmp_path: Path) -> None:
    alone = train(**arguments, out=tmp_path / "alone", recipe=RECIPE)
    shared = arguments | {"out": str(tmp_path / "shared")}
    processes = start(shared | {"recipe": RECIPE}, ranks=2)
    checkpoints = tmp_path / "shared.partial/checkpoints"
    while processes[0].is_alive() and not any(int(p.name[5:]) >= 4 for p in checkpoints.glob("step-*")):
        time.sleep(0.02)
    kill(processes)
    assert checkpoints.exists(), "the run ended before it was killed"
    assert _torchrun(tmp_path, shared).wait() == 0
    ours, expected = (load_file(p / "model/model.safetensors") for p in (tmp_path / "shared", alone))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, atol=2e-5)
    steps = [
        [json.loads(line) for line in (p / "train.jsonl").read_text().splitlines()]
        for p in (tmp_path / "shared", alone)
    ]
    assert [s["tokens"] for s in steps[0]] == [s["tokens"] for s in steps[1]]
    np.testing.assert_allclose([s["loss"] for s in steps[0]], [s["loss"] for s in steps[1]], rtol=1e-4)
    np.testing.assert_allclose(
        [s["gradient_norm"] for s in steps[0]], [s["gradient_norm"] for s in steps[1]], rtol=1e-3
    )
    counts = [read_manifest(p)["counts"] for p in (tmp_path / "shared", alone)]
    assert counts[0]["tokens"] == counts[1]["tokens"]
