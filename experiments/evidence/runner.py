"""The runner: cells in the protocol's order, one file a finished cell, so that a kill costs one cell at most.

    PPLSCAPE_DATA=... python -m evidence run OUT [--domain biomed] [--pool 0.3] [--cells 10] [--arms random auto]
    PPLSCAPE_DATA=... python -m evidence flat OUT     F8: does the gate stay shut where nothing can be gained
    PPLSCAPE_DATA=... python -m evidence larger OUT --model FOLDER     F6: the same draws, trained with a larger model
    python -m evidence restore OUT         cells and pilots from the committed tables, to go on on another machine
    python -m evidence tables OUT          the committed tables from the finished cells
    python -m evidence analyse             summaries, figures and docs/results.md from the committed tables

run from `experiments/`. The same command resumes. Failed cells are kept as rows and are not tried again until their
file is deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.manifest import library_versions, write_atomic

from . import cells as plans
from . import flat
from .bench import RESTORED, Bench
from .cells import LIKENED, Cell
from .pools import Builder, name_of
from .setting import Setting

Run = Callable[[Cell, dict[str, dict[str, Any]]], dict[str, Any]]


def revision() -> str:
    """The commit that the code is of, with `+` if it was changed since."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


class Store:
    """Finished cells: one JSON file each, written whole."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, cell: Cell) -> bool:
        return (self.folder / cell.file).exists()

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the order they were finished."""
        found = [json.loads(p.read_text()) for p in self.folder.glob("*.json")]
        return sorted(found, key=lambda r: (r["finished"], r["cell"]))

    def add(self, cell: Cell, row: dict[str, Any]) -> None:
        write_atomic(self.folder / cell.file, (json.dumps(row) + "\n").encode())

    def restore(self, table: Path) -> int:
        """Cells of a committed runs.jsonl that are not here yet: to go on where another machine stopped."""
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        cells = [Cell(*(r[k] for k in ("experiment", "pool", "method", "seed", "size"))) for r in rows]
        missing = [(c, r) for c, r in zip(cells, rows, strict=True) if not self.has(c)]
        for cell, row in missing:
            self.add(cell, row)
        return len(missing)

    def trained(self) -> dict[str, dict[str, Any]]:
        """Rows by what was trained."""
        return {r["trained_as"]: r for r in self.rows() if r["status"] == "ok" and "trained_as" in r}


def restore_pilots(results: Path, folder: Path) -> int:
    """The committed pilots of pools and laws that have none here, to where `Bench.fit_law` looks; how many laws'."""
    found = [
        (table, here)
        for pool in sorted(results.glob("pool-*"))
        for part in ("", *LIKENED.values())
        if (table := pool / f"{part}-pilots.jsonl".removeprefix("-")).exists()
        and not list((here := folder / pool.name / part).glob("pilots*/runs.jsonl"))
    ]
    for table, here in found:
        write_atomic(here / RESTORED, table.read_bytes())
    return len(found)


class Locked:
    """One runner a store: the second is told so at once."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.handle = open(folder / ".lock", "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"Another runner is at work in {folder}.") from None


def run_cells(wanted: Iterable[Cell], run: Run, store: Store, most: int | None = None) -> int:
    """Run what is not there yet, in order; the number of cells that were run."""
    always = {"versions": library_versions(), "revision": revision(), "threads": os.environ.get("OMP_NUM_THREADS")}
    done = 0
    for cell in wanted:
        if store.has(cell):
            continue
        if most is not None and done >= most:
            break
        started = time.time()
        try:
            row = {"status": "ok", "reason": None, **run(cell, store.trained())}
        except (UserError, ArithmeticError, RuntimeError, MemoryError, ValueError) as error:
            traceback.print_exc()
            row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        row = {"cell": cell.name, **asdict(cell), **row, **always, "seconds": round(time.time() - started, 1)}
        store.add(cell, row | {"finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
        done += 1
        tell(row)
    return done


def tell(row: dict[str, Any]) -> None:
    """One plain line a cell."""
    losses = " ".join(f"{k} {row[f'loss_{k}']:.4f}" for k in ("valid", "test", "general") if f"loss_{k}" in row)
    print(f"{row['cell']}: {row['status']} {losses} {row.get('reason') or ''} ({row['seconds']:.0f} s)", flush=True)


def choose_band(bench_run: Run, store: Store, pool: str) -> str:
    """Run the cells that choose the band, and read their valid losses."""
    run_cells(plans.choosing(pool), bench_run, store)
    rows = [r for r in store.rows() if r["experiment"] == "choose" and r["pool"] == pool and r["status"] == "ok"]
    losses = {m: float(np.mean([r["loss_valid"] for r in rows if r["method"] == m])) for m in plans.BANDS}
    return plans.chosen_band(losses)


def run(out: Path, domain: str, dirt: float, most: int | None = None, arms: list[str] | None = None) -> None:
    """Build the pool, choose the band, then the cells (of some `arms` only); laws when the first arm asks for them.

    Skips whatever is there.
    """
    setting, folder = Setting.read(domain), out / domain
    lock = Locked(folder)
    pool = Builder(setting, folder).build(dirt)
    bench, store = Bench(setting, pool), Store(folder / "cells")
    band = choose_band(bench.run, store, name_of(dirt))
    print(f"band: {band}", flush=True)
    cells = [c for c in plans.plan(name_of(dirt), band) if arms is None or c.method in arms]
    run_cells(cells, bench.run, store, most)
    lock.handle.close()


def run_flat(out: Path, domain: str, most: int | None = None) -> None:
    """F8 on the clean pool: one cell a flat world."""
    setting, folder = Setting.read(domain), out / domain
    lock = Locked(folder)
    pool = Builder(setting, folder).build(0.0)
    run_cells(flat.worlds(pool.name), partial(flat.gate_in_a_flat_world, setting, pool), Store(folder / "cells"), most)
    lock.handle.close()


def run_larger(out: Path, domain: str, dirt: float, model: Path, most: int | None = None) -> None:
    """F6 on a pool whose band was chosen and whose laws' pilots are there."""
    from .larger import LargerBench, choose_rate

    setting, folder = Setting.read(domain), out / domain
    lock = Locked(folder)
    pool, store = Builder(setting, folder).build(dirt), Store(folder / "cells")
    band = choose_band(Bench(setting, pool).run, store, name_of(dirt))
    bench = LargerBench(setting, pool, model)
    bench.set_rate(choose_rate(bench, store, name_of(dirt)))
    run_cells(plans.larger(name_of(dirt), band), bench.run, store, most)
    lock.handle.close()


def main(words: list[str] | None = None) -> None:
    import argparse

    from .analysis import analyse
    from .tables import write_tables

    parser = argparse.ArgumentParser(prog="python -m evidence", description=__doc__)
    parser.add_argument("verb", choices=["run", "flat", "larger", "restore", "tables", "analyse"])
    parser.add_argument("out", type=Path, nargs="?", help="folder of pools and cells; kept, so that runs resume")
    parser.add_argument("--domain", default="biomed")
    parser.add_argument("--pool", type=float, default=0.3, help="share of dirt")
    parser.add_argument("--cells", type=int, default=None, help="stop after so many new cells")
    parser.add_argument("--arms", nargs="+", default=None, help="only cells of these methods")
    parser.add_argument("--model", type=Path, help="of `larger`: folder of the larger model")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(sys.argv[1:] if words is None else words)
    if given.verb == "run":
        run(given.out, given.domain, given.pool, given.cells, given.arms)
    if given.verb == "flat":
        run_flat(given.out, given.domain, given.cells)
    if given.verb == "larger":
        if given.model is None:
            parser.error("larger needs --model")
        run_larger(given.out, given.domain, given.pool, given.model, given.cells)
    if given.verb == "restore":
        results, folder = given.results / given.domain, given.out / given.domain
        done = Store(folder / "cells").restore(results / "runs.jsonl")
        print(f"{done} cells restored, pilots of {restore_pilots(results, folder)} laws")
    if given.verb == "tables":
        write_tables(Setting.read(given.domain), given.out / given.domain, given.results / given.domain)
    if given.verb == "analyse":
        analyse(given.results, given.domain)
