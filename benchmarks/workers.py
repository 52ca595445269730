"""Scoring with one and with several workers: tokens/s and what they cost before the first token.

The embedded model scores a corpus of equal parts (text of this environment, repeated until there is enough), in fp32:
one process with two threads (two lanes of one), two processes with one, both here and as Ray actors, one process with
one thread for the scaling. Scores must be the same bytes in all ways. Rates are taken twice: of the whole command, and
after every worker has finished its first part, which leaves out starting.

    python benchmarks/workers.py [--parts 12]

writes results/workers.json and docs/results/scaling.md; --page writes the page from the stored figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from pplscape.embedded.corpus import python_corpus
from pplscape.flow import model_path
from pplscape.manifest import StageFolder, read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.prepared import Prepared

WAYS: dict[str, dict[str, Any]] = {
    "1 process, 2 threads": {"workers": 1, "threads": 2},
    "1 process, 1 thread": {"workers": 1, "threads": 1},
    "2 processes, 1 thread": {"workers": 2, "threads": 1},
    "Ray, 1 actor, 1 thread": {"executor": "ray", "workers": 1, "threads": 1},
    "Ray, 2 actors, 1 thread": {"executor": "ray", "workers": 2, "threads": 1},
}
HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "workers.json", HERE.parent / "docs" / "results" / "scaling.md"

TEXT = """# Scoring with several workers

    python benchmarks/workers.py

Embedded model (2.6 M parameters), fp32, {tokens} tokens in {parts} parts, one machine with {cores} cores, run once.
*Steady*: after every worker has finished its first part. *Load*: average of the machine's last minute at the end of the
way, its own work included.

| way | tokens/s, whole command | tokens/s, steady | first part after, s | load |
|---|---|---|---|---|
{table}

{bytes} One measurement each: differences of a fifth mean nothing.

Two processes of one thread are {processes} times as fast as one, two Ray actors {actors} times as fast as one; one
process that computes two batches at a time reaches {lanes}.

The first part is there after {soonest}-{latest} s, which a job of hours does not notice.
"""


def corpus(folder: Path, parts: int, part_bytes: int) -> Path:
    """A prepared corpus of about `parts` parts."""
    with patch("pplscape.text.write.PART_BYTES", part_bytes):
        files = python_corpus(max_bytes=parts * part_bytes, max_file_bytes=30_000)
        return prepare(
            files, model=model_path("demo"), out=folder / "prepared", chunk_tokens=256, valid=0, test=0,
            near_duplicates="keep",
        )  # fmt: skip


@contextmanager
def arrivals() -> Iterator[list[tuple[float, str]]]:
    """When each file of a stage was written."""
    seen: list[tuple[float, str]] = []
    write = StageFolder.write_bytes

    def noted(self: StageFolder, name: str, data: bytes) -> None:
        write(self, name, data)
        seen.append((time.perf_counter(), name))

    with patch.object(StageFolder, "write_bytes", noted):
        yield seen


def measure(prepared: Path, out: Path, way: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    with arrivals() as seen:
        score(prepared, model=model_path("demo"), out=out, dtype="float32", **way)
    seconds = time.perf_counter() - start
    when = [t for t, name in seen if name.startswith("part-")]
    begun = when[way["workers"] - 1]
    tokens = {n: sum(pq.read_table(out / n, columns=["length"])["length"].to_pylist()) for t, n in seen if "/" not in n}
    first = {name for t, name in seen if t <= begun}
    steady = sum(v for n, v in tokens.items() if n not in first) / (when[-1] - begun)
    return {
        "seconds": round(seconds, 2), "first_part": round(when[0] - start, 2), "tokens": sum(tokens.values()),
        "whole_rate": round(sum(tokens.values()) / seconds), "steady_rate": round(steady),
        "processes": len(read_manifest(out)["run"]["parts"]), "data": _digest(read_manifest(out)["files"]),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]


def measured(n_parts: int, part_bytes: int) -> dict[str, Any]:
    """All ways once."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as scratch:
        prepared = corpus(Path(scratch), n_parts, part_bytes)
        parts = len(Prepared(prepared).parts("pool"))
        found = {}
        for name, way in WAYS.items():
            found[name] = measure(prepared, Path(scratch) / name.replace(" ", ""), way)
            print(name, found[name], flush=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor()}
    same = len({row.get("data") for row in found.values()}) == 1
    return {"ways": found, "parts": parts, "same_bytes": same, **machine}


def page(found: dict[str, Any]) -> str:
    """docs/results/scaling.md"""
    ways = found["ways"]
    lines = [
        f"| {name} | {row['whole_rate']:,} | {row['steady_rate']:,} | {row['first_part']:.1f} | {row['load']} |"
        for name, row in ways.items()
    ]
    first = [row["first_part"] for row in ways.values()]
    (tokens,) = {row["tokens"] for row in ways.values()}
    alone, on_ray = "1 process, 1 thread", "Ray, 1 actor, 1 thread"

    def times(one: str, other: str) -> str:
        return f"{ways[one]['steady_rate'] / ways[other]['steady_rate']:.1f}"

    return TEXT.format(
        tokens=f"{tokens:,}", parts=found["parts"], cores=found["cores"], table="\n".join(lines),
        bytes="All data files are the same bytes." if found["same_bytes"] else "**The data files differ.**",
        processes=times("2 processes, 1 thread", alone), actors=times("Ray, 2 actors, 1 thread", on_ray),
        lanes=times("1 process, 2 threads", alone), soonest=f"{min(first):.0f}", latest=f"{max(first):.0f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", type=int, default=12, help="about so many")
    parser.add_argument("--part-bytes", type=int, default=60_000)
    parser.add_argument("--page", action="store_true", help="write the page from the stored figures")
    given = parser.parse_args()
    if not given.page:
        RESULT.write_text(json.dumps(measured(given.parts, given.part_bytes), indent=1) + "\n")
    PAGE.write_text(page(json.loads(RESULT.read_text())))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
