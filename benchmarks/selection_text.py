"""Strategies that look at text: tokens a second and memory of `unigram` and `dsir`, beside the others' `random`.

    python benchmarks/selection_text.py prepare WORK              # not timed; PPLSCAPE_DATA names the data
    python benchmarks/selection_text.py unigram WORK              # and dsir, random: one process a measurement
    python benchmarks/selection_text.py table

Pool: the biomedical text of recipes/biomed-small.yaml in chunks of its length, tokenizer of the embedded model; scores
are random numbers, which these strategies do not look at. A tenth is selected, dsir's target are the textbooks. Every
measurement is a whole `select`, scores and text in, the selected text out, and appends a line to
results/selection-text.jsonl; `random` is what the rest costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

RESULTS = Path(__file__).parent / "results" / "selection-text.jsonl"
TARGET = "biomed/textbooks.jsonl.gz"


def make(work: Path) -> None:
    from pplscape.config import load_config
    from pplscape.flow import model_path
    from pplscape.manifest import StageFolder
    from pplscape.schema import SCORES
    from pplscape.stages.prepare import prepare
    from pplscape.text.prepared import Prepared

    config = load_config(Path(__file__).parents[1] / "recipes" / "biomed-small.yaml")
    corpus = prepare(config.corpus, model=model_path("demo"), out=work / "prepared", chunk_tokens=config.chunk_tokens)
    prepared, rng = Prepared(corpus), np.random.default_rng(0)
    with StageFolder(work / "scores", stage="score", version=0, config={}, inputs={"prepared": corpus}) as folder:
        if not folder.finished:
            rows = 0
            for k in prepared.parts("pool"):
                chunks, _ = prepared.part("pool", k)
                nll = rng.normal(4.0, 0.6, len(chunks)) * chunks["length"].to_numpy()
                more = {"n_tokens": chunks["length"], "nll_sum": pa.array(nll)}
                columns = [(more[f.name] if f.name in more else chunks[f.name]).cast(f.type) for f in SCORES]
                folder.write_table(f"part-{k:05d}.parquet", pa.table(columns, schema=SCORES))
                rows += len(chunks)
            folder.finish({"in": rows, "out": rows, "rejected": {}, "facts": {}})


def measure(strategy: str, work: Path) -> None:
    import pplscape
    from pplscape.flow import model_path

    told: dict[str, Any] = {"corpus": work / "prepared"}
    if strategy == "unigram":
        told["model"] = model_path("demo")
    if strategy == "dsir":
        told["target"] = [f"{os.environ['PPLSCAPE_DATA']}/{TARGET}"]
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    load, started, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    pplscape.select(work / "scores", strategy=strategy, budget="10%", out=out, workers=1, **told)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    facts = json.loads((out / "selection.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "strategy": strategy, "tokens": facts["pool_tokens"], "chunks": facts["pool_chunks"],
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
        "tokens_per_cpu_second": round(facts["pool_tokens"] / cpu),
        "peak_gib": round(peak, 3), "load_before": round(load, 2),
    }  # fmt: skip
    print(json.dumps(row))
    with open(RESULTS, "a") as file:
        file.write(json.dumps(row) + "\n")


def table() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print("| strategy | runs | seconds | CPU seconds | tokens a CPU second | peak GiB |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(r["strategy"] for r in rows):
        of = [r for r in rows if r["strategy"] == name]
        middle = {k: statistics.median(r[k] for r in of) for k in ("seconds", "cpu_seconds", "tokens_per_cpu_second")}
        print(
            f"| `{name}` | {len(of)} | {middle['seconds']:.1f} | {middle['cpu_seconds']:.1f} | "
            f"{middle['tokens_per_cpu_second']:,.0f} | {max(r['peak_gib'] for r in of):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "unigram", "dsir", "random", "table"))
    parser.add_argument("work", type=Path, nargs="?")
    a = parser.parse_args()
    if a.what == "table":
        table()
    elif a.what == "prepare":
        make(a.work)
    else:
        measure(a.what, a.work)


if __name__ == "__main__":
    main()
