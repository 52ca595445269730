"""A corpus of several parts, a model that is not uniform, and the comparison of two score folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_jobs import DisturbedScoring

from pplscape.manifest import MANIFEST, read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.prepared import Prepared

PARTS = 6


@pytest.fixture(scope="session")
def bigram_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the fake engine whose likelihoods differ from token to token."""
    folder = tmp_path_factory.mktemp("bigram") / "model"
    shutil.copytree(tiny_tokenizer_dir, folder)
    np.save(folder / "counts.npy", np.random.default_rng(0).exponential(size=(400, 400)))
    return folder


@pytest.fixture(scope="session")
def parted(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of PARTS parts."""
    folder = tmp_path_factory.mktemp("parted")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "the", "treated", "1998", "é", "dog", "loss", "twelve"]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, 60))} for i in range(8 * PARTS)]
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplscape.text.write.PART_BYTES", sum(len(r["text"].encode()) for r in rows[:8]))
        out = prepare(
            [str(folder / "c.jsonl")], model=str(tiny_tokenizer_dir), out=folder / "prepared", chunk_tokens=64,
            min_tokens=16, valid=0, test=0, near_duplicates="keep",
        )  # fmt: skip
    assert len(Prepared(out).parts("pool")) >= PARTS
    return out


@pytest.fixture(scope="session")
def reference(parted: Path, bigram_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the bigram model, made in one process."""
    return score(parted, model=str(bigram_dir), engine="fake", out=tmp_path_factory.mktemp("one") / "scores")


@pytest.fixture(scope="session")
def tiny_reference(parted: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the tiny transformer, made in one process with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return score(parted, model=str(tiny_model_dir), out=tmp_path_factory.mktemp("tiny") / "scores")
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """disturb(deadly=(2,)): the next `score` runs a DisturbedScoring; the folder where it leaves its marks."""

    def now(**how: Any) -> Path:
        folder = tmp_path / "marks"
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr("pplscape.stages.score.Scoring", partial(DisturbedScoring, folder=folder, **how))
        return folder

    return now


def data_files(out: Path) -> dict[str, bytes]:
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


def assert_same_scores(found: Path, reference: Path) -> None:
    """Same bytes, same ledger, same fingerprint, nothing else left behind."""
    ours, theirs = read_manifest(found), read_manifest(reference)
    assert data_files(found) == data_files(reference)
    assert {k: v for k, v in ours.items() if k != "run"} == {k: v for k, v in theirs.items() if k != "run"}
    assert set(ours["files"]) == set(data_files(found))
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in reference.iterdir())
    assert not found.with_name(found.name + ".partial").exists()


def workers_of(out: Path) -> dict[str, list[int]]:
    """Parts by the process that scored them."""
    return read_manifest(out)["run"]["parts"]
