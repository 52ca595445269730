"""Kill prepare and score with SIGKILL at random moments until they finish: are the data files the same?

    python benchmarks/faults.py [--kills 30] [--model-kills 6] [--worker-kills 12] [--out FILE]

Four series, each repeated with new folders until it has its kills: a corpus prepared and scored with the fake engine;
the same as an extension of a folder that holds half of the files; a small corpus scored with the embedded model; a
prepared corpus scored by two worker processes, of which one, or their coordinator, is killed. Every process is a real
one and is killed at a random time (seeded) while it works. Parts are made small, so that there are many. At the end
every file of the killed folders must have the sha256 of the undisturbed run, the counts must be equal, no part may have
been done twice, and no worker may outlive its coordinator. Series that get no kills are not run and keep their rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults_workers import prepared_in_parts, run_workers
from transformers import PreTrainedTokenizerFast

from pplscape import manifest
from pplscape.flow import model_path
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text import ingest, write

LAST_FILE = re.compile(r"/(spool/[\w-]+|(documents|chunks)/\w+/part-\d+|scores.partial/part-\d+)\.parquet$")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pplscape.stages.score", "pplscape.engines.transformers", "transformers"])
WORDS = [f"{a}{b}{c}" for a in "bcdfglmnprstvw" for b in "aeiou" for c in ("", "n", "rs", "lt", "nd")]


def write_corpus(folder: Path, n_files: int, rows: int, seed: int = 0) -> list[str]:
    """Compressed JSONL files with repeats, defects and a damaged end."""
    rng = random.Random(seed)
    texts: list[str] = []
    paths = []
    for i in range(n_files):
        lines = []
        for _ in range(rows):
            kind = rng.random()
            text = " ".join(rng.choices(WORDS, k=rng.randint(10, 400)))
            if kind < 0.1 and texts:
                text = rng.choice(texts) + rng.choice(["", " and so on"])
            texts.append(text)
            lines.append("{broken" if kind > 0.97 else json.dumps({"text": text if kind < 0.95 else " "}))
        data = gzip.compress("\n".join(lines).encode(), mtime=0)
        path = folder / f"part-{i:02d}.jsonl.gz"
        path.write_bytes(data[:-100] if i == n_files - 1 else data)
        paths.append(str(path))
    return paths


def small_tokenizer(folder: Path) -> str:
    """A byte-level BPE of 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)


@dataclass
class Job:
    """One prepare and score."""

    files: list[str]
    model: str
    engine: str
    part: int
    out: str = ""
    log: str = ""

    def start(self) -> Any:
        """A process at work; forked off a server that has imported everything and runs no threads."""
        process = CONTEXT.Process(target=work, args=(self,))
        process.start()
        return process


def work(job: Job) -> None:
    """What every process does: both stages, and a line in the log for every file written."""
    model = model_path(job.model)
    ingest.PART_CHARS = write.PART_BYTES = job.part
    written = manifest.write_atomic

    def logged(path: Path, data: bytes) -> None:
        written(path, data)
        with open(job.log, "a") as log:
            log.write(f"{path}\n")

    manifest.write_atomic = logged
    sys.stderr = open(job.log + ".stderr", "a")  # noqa: SIM115 - until the process ends
    if job.engine == "transformers":
        import torch

        torch.set_num_threads(1)
    prepared = prepare(
        job.files, model=model, out=f"{job.out}/prepared", chunk_tokens=128, min_tokens=16, valid=2000, test=2000
    )
    score(prepared, model=model, out=f"{job.out}/scores", engine=job.engine)


@dataclass
class Series:
    """What came of one series."""

    name: str
    kills: int = 0
    runs: int = 0
    seconds: float = 0.0
    """Of the undisturbed run."""
    parts: int = 0
    differing: list[str] = field(default_factory=list)
    done_twice: list[str] = field(default_factory=list)
    """Parts that a run did although one before had done them; a part's last file makes it done."""
    killed_in: Counter[str] = field(default_factory=Counter)
    """What was there when it was killed, or which process it was."""
    given_up: int = 0
    """Runs that ended with an error, because one part's workers were killed twice, and were started again."""
    left_behind: int = 0
    """Workers that did not end after their coordinator."""


def files_of(out: Path) -> dict[str, Any]:
    """The manifests of both stages, without what may differ."""
    found: dict[str, Any] = {}
    for stage in ("prepared", "scores"):
        facts = json.loads((out / stage / "manifest.json").read_text())
        found |= {f"{stage}/{name}": sha256 for name, sha256 in facts["files"].items()}
        found[f"{stage}/counts"] = facts["counts"]
    found["folders"] = sorted(p.name for p in out.iterdir())
    return found


def finish(process: Any, job: Job) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(Path(job.log + ".stderr").read_text())


def run_series(name: str, job: Job, kills: int, folder: Path, rng: random.Random, base: Path | None = None) -> Series:
    """Kill until there are so many kills; `base` is a folder that every run starts from."""
    found = Series(name)

    def fresh(out: str) -> Job:
        target = folder / out
        if base:
            shutil.copytree(base, target)
        return Job(job.files, job.model, job.engine, job.part, str(target), str(folder / f"{out}.log"))

    undisturbed = fresh(f"{name}-undisturbed")
    process, start = undisturbed.start(), time.monotonic()
    finish(process, undisturbed)
    found.seconds = time.monotonic() - start
    wanted = files_of(Path(undisturbed.out))
    found.parts = sum(key.endswith(".parquet") for key in wanted)
    while found.kills < kills:
        killed = fresh(f"{name}-killed-{found.runs}")
        found.runs += 1
        while not kill(killed, rng.uniform(0, 1.2 * found.seconds), found):  # some must live to write a first part
            pass
        got = files_of(Path(killed.out))
        found.differing += [key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key)]
        times = Counter(Path(killed.log).read_text().splitlines())
        found.done_twice += [p for p, n in times.items() if n > 1 and LAST_FILE.search(p)]
        shutil.rmtree(killed.out)
    return found


def kill(job: Job, delay: float, found: Series) -> bool:
    """Start the job and kill it after `delay` seconds; True if it was done before."""
    process = job.start()
    process.join(delay)
    if not process.is_alive():
        finish(process, job)
        return True
    process.kill()
    process.join()
    found.kills += 1
    out = Path(job.out)
    if (out / "prepared").exists():
        found.killed_in["score"] += 1
    else:
        sifting = (out / "prepared.partial/chunks/pool").exists()
        found.killed_in["prepare (writing)" if sifting else "prepare (reading)"] += 1
    return False


def all_series(folder: Path, tokenizer: str, told: argparse.Namespace) -> list[Series]:
    """The series that are given kills; `tokenizer`: a small model folder for the fake engine."""
    rng = random.Random(told.seed)
    (folder / "in").mkdir()
    files = write_corpus(folder / "in", 6, told.rows)
    part = max(4000, 25 * told.rows * len(files))
    done = []
    if told.kills:
        fresh = Job(files, tokenizer, "fake", part)
        done.append(run_series("fresh", fresh, told.kills - told.kills // 3, folder, rng))
        base = Job(files[:3], tokenizer, "fake", part, str(folder / "base"), str(folder / "base.log"))
        finish(base.start(), base)
        done.append(run_series("extension", fresh, told.kills // 3, folder, rng, folder / "base"))
    if told.model_kills:
        (folder / "small").mkdir()
        small = write_corpus(folder / "small", 2, max(20, told.rows // 8), seed=1)
        job = Job(small, "demo", "transformers", 10_000)
        done.append(run_series("embedded model", job, told.model_kills, folder, rng))
    if told.worker_kills:
        prepared = prepared_in_parts(files, tokenizer, part // 2, folder)
        done.append(run_workers(Series("two workers"), prepared, tokenizer, told.worker_kills, folder, rng))
    return done


def store(found: list[Series], path: Path) -> None:
    """Write these rows in place of their older ones."""
    old = json.loads(path.read_text()) if path.exists() else []
    rows = {row["name"]: row for row in [*old, *(vars(s) for s in found)]}
    path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of the first two series together")
    parser.add_argument("--model-kills", type=int, default=6)
    parser.add_argument("--worker-kills", type=int, default=12)
    parser.add_argument("--rows", type=int, default=600, help="of each of six files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = all_series(Path(folder), small_tokenizer(Path(folder) / "tokenizer"), options)
    print("| series | kills | runs | files | undisturbed, s | killed in | files that differ | parts done twice |")
    print("|---|---|---|---|---|---|---|---|")
    for s in found:
        where = ", ".join(f"{k} {n}" for k, n in sorted(s.killed_in.items()))
        print(
            f"| {s.name} | {s.kills} | {s.runs} | {s.parts} | {s.seconds:.1f} | {where} | {len(s.differing)} | "
            f"{len(s.done_twice)} |"
        )
    if options.out:
        store(found, options.out)
    return int(any(s.differing or s.done_twice or s.left_behind for s in found))


if __name__ == "__main__":
    sys.exit(main())
