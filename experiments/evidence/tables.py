"""The committed tables of one domain: every cell a row, failures included."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pplscape.engines.base import encode
from pplscape.manifest import write_atomic
from pplscape.text.tokenizer import load_tokenizer

from .bench import Bench
from .cells import LIKENED
from .pools import read_jsonl
from .predictions import predict
from .promises import promised
from .runner import Store
from .setting import Setting

NESTED = ("nll_valid", "nll_test", "bin_tokens", "target", "predicted", "gate", "law", "warnings", "versions")
"""Columns that only runs.jsonl and runs.parquet hold."""


def heldout_documents(setting: Setting, heldout: Path) -> dict[str, dict[str, list[Any]]]:
    """What the per-document columns of a row belong to: ids, sources and scored tokens, in the columns' order."""
    tokenizer = load_tokenizer(setting.model_path)
    found = {}
    for split in ("valid", "test"):
        tokens: Counter[str] = Counter()
        source: dict[str, str] = {}
        for file in sorted((heldout / split).glob("*.jsonl")):
            for row in read_jsonl(file):
                doc_id = row["id"].rpartition("#")[0]
                (ids,) = encode(tokenizer, [row["text"]])
                tokens[doc_id] += len(ids)
                source[doc_id] = file.stem
        found[split] = {"doc_id": list(tokens), "source": list(source.values()), "n_tokens": list(tokens.values())}
    return found


def write_tables(setting: Setting, folder: Path, results: Path) -> None:
    """runs.jsonl (all), runs.parquet (nested values as JSON), runs.csv (flat); heldout.json, facts, pilots, laws."""
    rows = Store(folder / "cells").rows()
    results.mkdir(parents=True, exist_ok=True)
    if rows:
        write_atomic(results / "runs.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
        flat = [{k: v for k, v in r.items() if k not in NESTED} for r in rows]
        pyarrow.csv.write_csv(table_of(flat), results / "runs.csv")
        packed = [{k: json.dumps(v) if k in NESTED else v for k, v in r.items()} for r in rows]
        pq.write_table(table_of(packed), results / "runs.parquet", compression="zstd")
    if (folder / "heldout").exists():
        found = heldout_documents(setting, folder / "heldout")
        write_atomic(results / "heldout.json", (json.dumps(found) + "\n").encode())
    for pool in sorted(folder.glob("pool-*")):
        write_predictions(_predicted(setting, pool, rows), results / pool.name / "predictions.csv")
        said = promised(pool, rows)
        if said:
            pyarrow.csv.write_csv(table_of(said), results / pool.name / "promises.csv")
        _copy(pool / "pool.json", results / pool.name / "pool.json")
        for part in ("", *LIKENED.values()):
            prefix = f"{part}-" if part else ""
            rounds = sorted((pool / part).glob("pilots*/runs.jsonl"))
            if rounds:
                write_atomic(results / pool.name / f"{prefix}pilots.jsonl", b"".join(p.read_bytes() for p in rounds))
            _copy(pool / part / "law" / "summary.md", results / pool.name / f"{prefix}law.md")


def _predicted(setting: Setting, pool: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nothing where the pool is not built here."""
    if not (pool / "landscape" / "landscape.json").exists() or not (pool / "law" / "law.json").exists():
        return []
    return predict(pool, rows, Bench(setting, pool).composition)


def write_predictions(predicted: list[dict[str, Any]], path: Path) -> None:
    """What laws predict of cells; of cells whose draws are not on this machine what the file holds stays."""
    if not predicted:
        return
    known = pyarrow.csv.read_csv(path).to_pylist() if path.exists() else []
    cells = {r["cell"] for r in predicted}
    path.parent.mkdir(exist_ok=True)
    pyarrow.csv.write_csv(table_of([r for r in known if r["cell"] not in cells] + predicted), path)


def _copy(source: Path, target: Path) -> None:
    if source.exists():
        write_atomic(target, source.read_bytes())


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with different keys as one table; a key that a row lacks is null."""
    names = list(dict.fromkeys(k for r in rows for k in r))
    return pa.table({n: [r.get(n) for r in rows] for n in names})
