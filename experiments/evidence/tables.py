"""The committed tables of one domain: every cell a row, failures included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pplscape.manifest import write_atomic

from .runner import Store

NESTED = ("nll_valid", "nll_test", "bin_tokens", "target", "predicted", "gate", "warnings", "versions")
"""Columns that only runs.jsonl and runs.parquet hold."""


def write_tables(folder: Path, results: Path) -> None:
    """runs.jsonl (all), runs.parquet (nested values as JSON), runs.csv (flat); pilots, laws and facts of the pools."""
    rows = Store(folder / "cells").rows()
    results.mkdir(parents=True, exist_ok=True)
    if rows:
        write_atomic(results / "runs.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
        flat = [{k: v for k, v in r.items() if k not in NESTED} for r in rows]
        pyarrow.csv.write_csv(table_of(flat), results / "runs.csv")
        packed = [{k: json.dumps(v) if k in NESTED else v for k, v in r.items()} for r in rows]
        pq.write_table(table_of(packed), results / "runs.parquet", compression="zstd")
    for pool in sorted(folder.glob("pool-*")):
        for name, source in (
            ("pool.json", pool / "pool.json"),
            ("pilots.jsonl", pool / "pilots" / "runs.jsonl"),
            ("law.md", pool / "law" / "summary.md"),
        ):
            if source.exists():
                write_atomic(results / pool.name / name, source.read_bytes())


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with different keys as one table; a key that a row lacks is null."""
    names = list(dict.fromkeys(k for r in rows for k in r))
    return pa.table({n: [r.get(n) for r in rows] for n in names})
