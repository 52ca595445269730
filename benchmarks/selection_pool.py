"""Synthetic score files for benchmarks/selection.py: the full contract schema, string ids, any number of chunks.

    python benchmarks/selection_pool.py --rows 1e8 --out DIR

Documents hold 8 chunks on average (geometric) and have ids such as `web/part-00012/000000347`; 85 % of the chunks have
512 tokens, the rest 64 to 511; log-perplexity is a mixture of two normals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.scores import Scores, Unit
from pplscape.manifest import StageFolder
from pplscape.schema import SCORES

PART_ROWS = 1 << 21
SOURCES = ("books", "code", "forum", "web")
LONGEST = 512


def part(number: int, rows: int, first: int = 0, names: Sequence[str] = tuple(SCORES.names)) -> pa.RecordBatch:
    """Columns `names` of `rows` chunks of part `number`, from a stream of random numbers that `first` chooses."""
    rng = np.random.default_rng([number, first])
    x = rng.normal(3.0, 0.5, rows).astype(np.float64)
    tail = rng.random(rows, dtype=np.float32) < 0.15
    x[tail] = rng.normal(5.5, 0.8, int(tail.sum()))
    length = np.where(rng.random(rows, dtype=np.float32) < 0.85, LONGEST, rng.integers(64, LONGEST, rows))
    starts = np.flatnonzero(rng.random(rows, dtype=np.float32) < 1 / 8)
    starts = np.unique(np.concatenate([[0], starts]))
    doc = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, rows)))
    chunk_index = np.arange(rows) - starts[doc]
    source = (np.arange(len(starts)) + number) % len(SOURCES)
    char_start = chunk_index * 2200
    columns: dict[str, Callable[[], pa.Array]] = {
        "doc_id": lambda: _ids(number, first + starts, source).take(pa.array(doc)),
        "chunk_index": lambda: pa.array(chunk_index.astype(np.int32)),
        "char_start": lambda: pa.array(char_start),
        "char_end": lambda: pa.array(char_start + length * 4),
        "length": lambda: pa.array(length.astype(np.int32)),
        "n_tokens": lambda: pa.array(length.astype(np.int32)),
        "n_bytes": lambda: pa.array((length * 4).astype(np.int32)),
        "nll_sum": lambda: pa.array(np.maximum(x, 0.05) * length),
        "source": lambda: pa.array(SOURCES).take(pa.array(source[doc])),
    }
    fields = [SCORES.field(name) for name in names]
    return pa.RecordBatch.from_arrays([columns[f.name]() for f in fields], schema=pa.schema(fields))


def _ids(number: int, first_row: np.ndarray, source: np.ndarray) -> pa.Array:
    """`web/part-00012/000000347`: source, part, first row of the document."""
    digits = np.zeros((len(first_row), 9), dtype=np.uint8)
    left = first_row.copy()
    for place in range(8, -1, -1):
        left, digit = np.divmod(left, 10)
        digits[:, place] = digit + ord("0")
    names = [f"{s}/part-{number:05d}/".encode() for s in SOURCES]
    size = np.array([len(n) for n in names])[source] + 9
    offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int32)
    data = np.zeros(int(offsets[-1]), dtype=np.uint8)
    for s, name in enumerate(names):
        at = np.flatnonzero(source == s)
        for i, byte in enumerate(name):
            data[offsets[at] + i] = byte
        for place in range(9):
            data[offsets[at] + len(name) + place] = digits[at, place]
    return pa.StringArray.from_buffers(len(first_row), pa.py_buffer(offsets), pa.py_buffer(data))


@dataclass(frozen=True)
class Generated(Scores):
    """Scores that are made while they are read, for pools larger than the disk."""

    @classmethod
    def of(cls, rows: int, workers: int = 2) -> Generated:
        sizes = [min(PART_ROWS, rows - start) for start in range(0, rows, PART_ROWS)]
        units = tuple(Unit(i, str(n), (), 0) for i, n in enumerate(sizes))
        return cls(units, rows, LONGEST, False, {}, workers)

    def batches(self, unit: Unit, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        for first in range(0, int(unit.file), self.batch_rows):
            size = min(self.batch_rows, int(unit.file) - first)
            yield part(unit.number, size, first, columns), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = int(arguments.rows)
    with StageFolder(arguments.out, stage="score", version=0, config={"rows": rows}, inputs={}) as folder:
        if folder.finished:
            return
        for number, start in enumerate(range(0, rows, PART_ROWS)):
            name = f"part-{number:05d}.parquet"
            if not folder.has(name):
                table = pa.Table.from_batches([part(number, min(PART_ROWS, rows - start))])
                pq.write_table(table, folder.partial / "unfinished", compression="zstd")
                (folder.partial / "unfinished").rename(folder.partial / name)
        folder.finish({"in": rows, "out": rows, "facts": {}})


if __name__ == "__main__":
    main()
