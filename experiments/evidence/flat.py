"""F8: a world in which perplexity cannot matter. Does the gate of `auto` stay shut?

The log-perplexities of a clean pool are permuted among its chunks, so every regime is a random subset with
another name.
Everything else is real: text, model, pilots, laws, gate. One cell = one permutation with its own pilots.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pplscape as ps
from pplscape.manifest import MANIFEST, read_manifest, write_atomic

from .bench import Bench
from .cells import Cell
from .setting import Setting

WORLDS = 20
"""At a true rate of 10 % more than 4 alarms of 20 have a probability of 4 %."""
PERMUTATION_STREAM = 13_001


def permuted(scores: pa.Table, seed: int) -> pa.Table:
    """The table with log-perplexities [n] dealt out anew; every chunk keeps its tokens."""
    tokens = np.asarray(scores["n_tokens"], dtype=float)
    x = np.asarray(scores["nll_sum"]) / tokens
    dealt = np.random.default_rng([PERMUTATION_STREAM, seed]).permutation(x)
    place = scores.schema.get_field_index("nll_sum")
    return scores.set_column(place, scores.schema.field("nll_sum"), pa.array(dealt * tokens))


def make_world(setting: Setting, pool: Path, out: Path, seed: int) -> Path:
    """A copy of `pool` (a folder of `pools.Builder`) with permuted scores; returns its folder."""
    if not (out / "scores" / MANIFEST).exists():
        shutil.rmtree(out, ignore_errors=True)
        (out / "scores").mkdir(parents=True)
        (out / "prepared").symlink_to((pool / "prepared").resolve())
        parts = sorted((pool / "scores").glob("part-*.parquet"))
        whole = permuted(pa.concat_tables([pq.read_table(p) for p in parts]), seed)
        pq.write_table(whole, out / "scores" / "part-00000.parquet")
        manifest = {**read_manifest(pool / "scores"), "seed": seed, "key": f"permuted-{seed}"}
        write_atomic(out / "scores" / MANIFEST, (json.dumps(manifest) + "\n").encode())
    ps.landscape(out / "scores", budget=f"{100 * setting.budget:g}%", out=out / "landscape", n_bins=setting.bins)
    return out


def gate_in_a_flat_world(setting: Setting, pool: Path, cell: Cell, known: dict[str, Any]) -> dict[str, Any]:
    """A row with the gate's verdict; nothing is trained but the pilots."""
    world = make_world(setting, pool, pool.parent / f"flat-{cell.seed}", cell.seed)
    bench = Bench(replace(setting, seed=cell.seed), world)
    bench.fit_law()
    _, content = bench.draw(Cell("F8", world.name, "auto", cell.seed))
    return {k: content.get(k) for k in ("used", "candidate", "gate", "law", "predicted", "warnings")}


def worlds(pool: str) -> list[Cell]:
    return [Cell("F8", pool, "flat", seed) for seed in range(WORLDS)]
