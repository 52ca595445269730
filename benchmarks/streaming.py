"""Memory and time of reading and preparing, one process a measurement, so that each has its own peak.

    python benchmarks/streaming.py text --mb 1000               # all of prepare on one text file, no paragraph twice
    python benchmarks/streaming.py reader --mb 5000             # one text file: read, cut into documents, not tokenised
    python benchmarks/streaming.py reader --mb 1000 --giant     # the same without a line end: one paragraph
    python benchmarks/streaming.py prepare --mb 20              # all of prepare on documents of 2 kB in one JSONL file
    python benchmarks/streaming.py files --n 100000             # all of prepare on so many tiny files
    python benchmarks/streaming.py row --mb 250                 # all of prepare on one JSON line of this size

Files are made in a temporary folder of --tmp, by another process, and removed. Prints one line of JSON (seconds, peak
resident memory) and adds it to benchmarks/results/streaming.jsonl.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.flow import model_path
from pplscape.stages.prepare import prepare
from pplscape.text.read import Document, read_documents, resolve_inputs

RESULTS = Path(__file__).parent / "results" / "streaming.jsonl"
HELDOUT = {"row": 0, "text": 20_000}
"""Valid tokens, where 2,000 do not suit: one document; documents of more than 2,000."""
SYLLABLES = [f"{a}{b}" for a in "bcdfglmnprstvw" for b in ("a", "e", "in", "or", "ul", "ant")]


def vocabulary(n: int = 20_000) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(n)]


def write_text(path: Path, megabytes: int, end: str) -> None:
    """Paragraphs of 60 to 200 words; 32 MB of them again and again."""
    rng, words, block = random.Random(1), vocabulary(), ""
    paragraphs = []
    while len(block) < 32_000_000:
        paragraphs = [" ".join(rng.choices(words, k=rng.randint(60, 200))) for _ in range(2000)]
        block += end.join(paragraphs) + end
    data = block.encode()
    with open(path, "wb") as file:
        while file.tell() < megabytes * 1_000_000:
            file.write(data)


def write_new_text(path: Path, megabytes: int) -> None:
    """Paragraphs of 60 to 200 words, none of them twice."""
    rng, words = np.random.default_rng(1), vocabulary()
    with open(path, "w") as file:
        while file.tell() < megabytes * 1_000_000:
            for n in rng.integers(60, 200, 2000):
                file.write(" ".join(map(words.__getitem__, rng.integers(len(words), size=n).tolist())) + "\n\n")


def write_rows(path: Path, megabytes: int) -> None:
    rng, words = random.Random(2), vocabulary()
    with open(path, "w") as file:
        while file.tell() < megabytes * 1_000_000:
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=300))}) + "\n")


def write_files(folder: Path, n: int) -> None:
    rng, words = random.Random(3), vocabulary()
    for i in range(n):
        path = folder / f"{i // 1000:04d}" / f"{i:06d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(rng.choices(words, k=20)))


def source_of(what: str, folder: Path) -> Path:
    return folder / {"reader": "in.txt", "text": "in.txt", "files": "files"}.get(what, "in.jsonl")


def make(what: str, megabytes: int, n: int, giant: bool, folder: Path) -> None:
    source = source_of(what, folder)
    if what == "reader":
        write_text(source, megabytes, " " if giant else "\n\n")
    elif what == "text":
        write_new_text(source, megabytes)
    elif what == "prepare":
        write_rows(source, megabytes)
    elif what == "row":
        long = "quick brown fox " * (megabytes * 1_000_000 // 16)
        source.write_text(json.dumps({"text": long}) + "\n" + json.dumps({"text": "short row " * 90}) + "\n")
    else:
        source.mkdir()
        write_files(source, n)


def measure(what: str, n: int, giant: bool, folder: Path) -> dict[str, Any]:
    source, before = source_of(what, folder), peak()
    start = time.monotonic()
    if what == "reader":
        documents = sum(isinstance(d, Document) for d in read_documents(resolve_inputs([str(source)])))
        found: dict[str, Any] = {"documents": documents}
    else:
        out = prepare(
            [str(source)], model=model_path("demo"), out=folder / "out", valid=HELDOUT.get(what, 2000), test=0,
            min_tokens=4 if what == "files" else 64,
        )  # fmt: skip
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        found = {k: counts[k] for k in ("documents", "tokens")}
        found["manifest_kb"] = round((out / "manifest.json").stat().st_size / 1000, 1)
    seconds = time.monotonic() - start
    size = source.stat().st_size / 1e6 if source.is_file() else None
    return {
        "what": what, "giant": giant, "mb": size, "files": n if what == "files" else 1, "seconds": round(seconds, 1),
        "mb_per_second": size and round(size / seconds, 1), "peak_mb": peak(), "peak_before_mb": before, **found,
    }  # fmt: skip


def peak() -> int:
    """Largest resident memory of this process so far, MB (10^6)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("text", "reader", "prepare", "files", "row"))
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--giant", action="store_true")
    parser.add_argument("--tmp", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.tmp) as folder:
        told = (options.what, options.mb, options.n, options.giant, Path(folder))
        maker = multiprocessing.get_context("spawn").Process(target=make, args=told)
        maker.start()
        maker.join()
        if maker.exitcode:
            return maker.exitcode
        line = json.dumps(measure(options.what, options.n, options.giant, Path(folder)))
        with open(RESULTS, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
