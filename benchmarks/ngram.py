"""How fast engine ngram scores, and how much of the model's ranking it knows.

Biomedical text as in recipes/biomed-small.yaml (PPLSCAPE_DATA names the data), 256-token chunks. Tokens a second: the
n-gram alone, tokenising alone (word by word, and the library's), and whole `score` stages, files in and files out, of
both engines. Agreement with the embedded 2.6 M model's log-perplexity over the chunks: Spearman's rank correlation, and
which share of the model's lowest and highest tenth is among the n-gram's tenth, and among its lowest or highest three
tenths (what a pre-filter that keeps 30 % would not lose).

    python benchmarks/ngram.py --work WORK      # a folder for the pool and the scores, kept for another run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from pplscape.config import load_config
from pplscape.engines.base import encode
from pplscape.engines.ngram import NgramEngine
from pplscape.flow import model_path
from pplscape.manifest import read_manifest
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.text.prepared import Prepared

ROOT = Path(__file__).parents[1]
GENERAL = ("mixed", "novels", "textbooks", "govweb")
MODEL = model_path("demo")
REPEATS = 3


def pool(work: Path, sample: float) -> Path:
    config = load_config(ROOT / "recipes" / "biomed-small.yaml")
    return prepare(
        config.corpus, model=MODEL, out=work / "prepared", chunk_tokens=config.chunk_tokens, sample=sample,
        valid=config.valid_tokens, test=config.test_tokens,
    )  # fmt: skip


def references(prepared: Path) -> dict[str, list[str]]:
    general = [f"{os.environ['PPLSCAPE_DATA']}/general/{name}.jsonl.gz" for name in GENERAL]
    return {"the pool": [str(prepared)], "general text": general}


def rate(tokens: int, work: Callable[[], Any]) -> float:
    """Tokens a second, the median of REPEATS after one to warm up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return tokens / statistics.median(seconds)


def speed(prepared: Path) -> list[dict[str, Any]]:
    """Of the n-gram in memory, on the first part of the pool."""
    _, texts = Prepared(prepared).part("pool", 0)
    rows: list[dict[str, Any]] = []
    engine = NgramEngine(MODEL, reference=[str(prepared)], order=1)
    ids = engine.encode(texts)
    tokens = sum(len(i) for i in ids)
    for order in (1, 2, 3):
        rows += _order(NgramEngine(MODEL, reference=[str(prepared)], order=order), texts, ids, tokens)
    rows.append({"what": "tokenising alone, word by word", "rate": rate(tokens, lambda: engine.encode(texts))})
    rows.append({"what": "tokenising alone, library", "rate": rate(tokens, lambda: encode(engine.tokenizer, texts))})
    return rows


def _order(engine: NgramEngine, texts: list[str], ids: list[Any], tokens: int) -> list[dict[str, Any]]:
    start = time.perf_counter()
    counted = engine.counts.counted
    seconds = time.perf_counter() - start
    name, facts = f"order {engine.order}", {"counting_seconds": seconds, "ngrams": len(counted.keys)}
    return [
        {"what": f"{name}, tokens given", "rate": rate(tokens, lambda: engine.nll(ids)), **facts},
        {"what": f"{name}, from text", "rate": rate(tokens, lambda: engine.nll(engine.encode(texts)))},
    ]


def stage(prepared: Path, out: Path, **options: Any) -> tuple[Path, float]:
    """The scores, and tokens a second of the whole stage, measured now or when it was run."""
    out = score(prepared, model=MODEL, out=out, **options)
    manifest = read_manifest(out)
    return out, manifest["counts"]["tokens"]["in"] / manifest["run"]["seconds"]


def log_perplexities(scores: Path) -> dict[tuple[str, int], float]:
    table = pq.read_table(sorted(scores.glob("part-*.parquet")))
    x = table["nll_sum"].to_numpy() / table["n_tokens"].to_numpy()
    return dict(zip(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True), x, strict=True))


def agreement(model: Path, ngram: Path) -> dict[str, float]:
    by_model, by_ngram = log_perplexities(model), log_perplexities(ngram)
    names = sorted(by_model.keys() & by_ngram.keys())
    a, b = (np.array([x[n] for n in names]) for x in (by_model, by_ngram))
    found = {"chunks": len(names), "spearman": float(spearmanr(a, b).statistic), "nats": float(b.mean())}
    for end, sign in (("low", 1), ("high", -1)):
        wanted = np.argsort(sign * a)[: len(a) // 10]
        for share in (10, 30):
            kept = np.argsort(sign * b)[: len(b) * share // 100]
            found[f"{end}_in_{share}"] = len(np.intersect1d(wanted, kept)) / len(wanted)
    return found


def measure(work: Path, sample: float) -> dict[str, Any]:
    prepared = pool(work, sample)
    base, base_rate = stage(prepared, work / "transformers")
    found: dict[str, Any] = {"speed": speed(prepared), "stages": [], "agreement": []}
    found["stages"].append({"engine": "transformers, float32", "rate": base_rate})
    for name, reference in references(prepared).items():
        for order in (1, 2, 3):
            out, ngram_rate = stage(
                prepared, work / f"{name}-{order}".replace(" ", "-"), engine="ngram", reference=reference, order=order
            )
            row = {"reference": name, "order": order}
            found["stages"].append({"engine": f"ngram, {name}, order {order}", "rate": ngram_rate})
            found["agreement"].append(row | agreement(base, out))
    return found


def tables(found: dict[str, Any]) -> str:
    base = found["stages"][0]["rate"]
    lines = ["| in memory, one thread | tokens/s | x transformers stage |", "|---|---|---|"]
    lines += [f"| {r['what']} | {r['rate']:,.0f} | {r['rate'] / base:.0f} |" for r in found["speed"]]
    lines += ["", "| whole stage | tokens/s | x transformers |", "|---|---|---|"]
    lines += [f"| {r['engine']} | {r['rate']:,.0f} | {r['rate'] / base:.1f} |" for r in found["stages"]]
    lines += [
        "",
        "| reference | order | nats/token | Spearman | low 10 % in low 10 % | in 30 % | high 10 % in 10 % | in 30 % |",
        "|---" * 8 + "|",
    ]
    for r in found["agreement"]:
        shares = [f"{r[k]:.0%}" for k in ("low_in_10", "low_in_30", "high_in_10", "high_in_30")]
        lines.append(
            f"| {r['reference']} | {r['order']} | {r['nats']:.3f} | {r['spearman']:.3f} | " + " | ".join(shares) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sample", type=float, default=0.06, help="share of the documents")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "ngram.json")
    options = parser.parse_args()
    found = measure(options.work, options.sample)
    found["machine"] = {
        "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "numpy": np.__version__,
    }  # fmt: skip
    print(tables(found))
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
