"""Selection: seconds and memory against pool size, beside DuckDB and Polars; greedy DOS beside a naive one.

    python benchmarks/selection_pool.py --rows 1e8 --out POOLS/1e8      # not timed
    python benchmarks/selection.py ours POOLS/1e8 --strategy maxent     # one process a measurement
    python benchmarks/selection.py duckdb POOLS/1e7                     # low, in an environment that has the peer
    python benchmarks/selection.py polars POOLS/1e7
    python benchmarks/selection.py generated --rows 1e9                 # maxent from a generator, output written
    python benchmarks/selection.py dos
    python benchmarks/selection.py plot                                 # results/selection.json -> .png, table

Every measurement selects 10 % of the pool's tokens and writes what it selects; it appends a line to
results/selection.jsonl. Peers do `low`: order by log-perplexity, running sum of tokens to the budget, ids and places
written as Parquet. Files are read once before the clock starts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARE = 0.1
THREADS = 2
BIN_EDGES = (2.45, 2.65, 2.82, 2.97, 3.12, 3.28, 3.46, 3.75, 4.95)


def measure(
    kind: str, rows: int, run: Callable[[Path], dict[str, Any]], scratch: Path | None = None, threads: int = THREADS
) -> None:
    """Run once, print, and append to the results: seconds, peak resident memory, load of the machine before."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    load, started, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
    try:
        found = run(folder)
    finally:
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        written = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "kind": kind, "rows": rows, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
        "peak_gib": round(peak, 3), "written_mib": round(written / 2**20), "load_before": round(load, 2),
        "threads": threads, **found,
    }  # fmt: skip
    print(json.dumps(row))
    with open(RESULTS / "selection.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def pool_of(folder: Path) -> tuple[str, int]:
    """Glob of the score files and their rows; reads them once, so that they are in the page cache."""
    files = sorted(folder.glob("part-*.parquet"))
    for file in files:
        with open(file, "rb", buffering=0) as handle:
            while handle.read(1 << 24):
                pass
    return str(folder / "part-*.parquet"), int(json.loads((folder / "manifest.json").read_text())["counts"]["in"])


def ours(folder: Path, strategy: str, scratch: Path | None) -> None:
    """`pplscape.select` as users call it; what it imports is imported before the clock starts, as peers are.

    pandas, too: pyarrow imports it with the first array, a third of a second that has nothing to do with the pool.
    """
    import pandas  # noqa: F401

    import pplscape
    import pplscape.stages.select

    if strategy == "allocate":
        import pplscape.laws.law

    _, rows = pool_of(folder)
    told: dict[str, Any] = {"strategy": strategy, "budget": "10%"}
    if strategy == "band":
        told["band"] = (0.2, 0.8)
    if strategy == "maxent":
        told |= {"target_mean": 3.2, "target_std": 0.6, "scale": "nll"}

    def run(out: Path) -> dict[str, Any]:
        if strategy == "allocate":
            told["law"] = _law(out)
        result = pplscape.select(folder, out=out / "selection", workers=THREADS, **told)
        content = json.loads((result / "selection.json").read_text())
        return {"tokens": content["tokens"], "budget": content["budget"], "chunks": content["n_chunks"]}

    measure(strategy, rows, run, scratch)


def _law(folder: Path) -> Path:
    """A utility law over ten bins, the last one harmful."""
    from pplscape.laws.forms.base import Frame
    from pplscape.laws.law import Law

    share, worth = (0.1,) * 10, (0.5, 1, 1.5, 2, 2, 2, 1.5, 1.5, 1, -0.5)
    params = {"E": 2.0, "beta": 0.5, "tau": 0.7, "J": 0.0} | {f"u_{b}": u for b, u in enumerate(worth)}
    bins = {"edges": BIN_EDGES, "share": share, "hash": "benchmark"}
    law = Law("utility", None, "std", params, Frame(1e9, 4.0, share), bins=bins)
    path = folder / "law.json"
    path.write_text(json.dumps(law.to_json()))
    return path


def generated(rows: int, strategy: str, scratch: Path | None, threads: int) -> None:
    """A pool that is made while it is read, twice for the census and once for the draw; making it is timed too."""
    from selection_pool import Generated

    from pplscape.draw.census import take_census
    from pplscape.draw.describe import frame_of
    from pplscape.draw.options import Options, Target
    from pplscape.draw.stream import carry_out

    def run(out: Path) -> dict[str, Any]:
        scores = Generated.of(rows, threads)
        census = take_census(scores)
        budget = int(SHARE * census.total)
        options = Options(scale="nll", target=Target(3.2, 0.6), band=(0.2, 0.8))
        taken = carry_out(scores, census, strategy, budget, 0, options, frame_of(census), out)
        return {"tokens": taken.tally.tokens, "budget": budget, "chunks": taken.tally.chunks}

    measure(f"{strategy}, generated", rows, run, scratch, threads)


def duckdb(folder: Path, scratch: Path | None) -> None:
    import duckdb as db

    files, rows = pool_of(folder)

    def run(out: Path) -> dict[str, Any]:
        connection = db.connect(config={"threads": THREADS, "temp_directory": str(out / "spill")})
        budget = int(connection.execute(f"SELECT sum(length) FROM '{files}'").fetchall()[0][0] * SHARE)
        connection.sql(f"""
            COPY (SELECT doc_id, chunk_index, char_start, char_end, length, nll, source
                  FROM (SELECT *, sum(length) OVER (ORDER BY nll ROWS UNBOUNDED PRECEDING) AS cumulative
                        FROM (SELECT *, nll_sum / n_tokens AS nll FROM '{files}'))
                  WHERE cumulative <= {budget})
            TO '{out}/selected.parquet' (FORMAT parquet, COMPRESSION zstd)""")
        tokens, chunks = connection.execute(f"SELECT sum(length), count(*) FROM '{out}/selected.parquet'").fetchall()[0]
        return {"tokens": int(tokens), "budget": budget, "chunks": chunks, "version": db.__version__}

    measure("duckdb", rows, run, scratch)


def polars(folder: Path, scratch: Path | None) -> None:
    os.environ["POLARS_MAX_THREADS"] = str(THREADS)
    import polars as pl

    files, rows = pool_of(folder)

    def run(out: Path) -> dict[str, Any]:
        pool = pl.scan_parquet(files)
        budget = int(pool.select(pl.col("length").cast(pl.Int64).sum()).collect().item() * SHARE)
        names = ["doc_id", "chunk_index", "char_start", "char_end", "length", "nll", "source"]
        ordered = pool.with_columns(nll=pl.col("nll_sum") / pl.col("n_tokens")).select(names).sort("nll")
        taken = ordered.filter(pl.col("length").cast(pl.Int64).cum_sum() <= budget)
        taken.sink_parquet(out / "selected.parquet", compression="zstd")
        found = pl.scan_parquet(out / "selected.parquet").select(pl.col("length").cast(pl.Int64).sum(), n=pl.len())
        tokens, chunks = found.collect().row(0)
        return {"tokens": tokens, "budget": budget, "chunks": chunks, "version": pl.__version__}

    measure("polars", rows, run, scratch)


def dos(scratch: Path | None) -> None:
    """Exact greedy: 1e6 of 1e7, and 1e4 of 1e5 beside two naive ones that look at every chunk in every step."""
    import numpy as np

    from pplscape.draw.dos import Distance, default_weights, greedy

    def values(n: int) -> Any:
        return np.random.default_rng(0).normal(3, 0.6, n)

    def fast(n: int, k: int) -> dict[str, Any]:
        v = values(n)
        started = time.perf_counter()
        rows, _ = greedy(v, np.ones(n, np.int64), k, Distance(3.2, 0.5, default_weights(v)))
        return {"chosen": len(rows), "greedy_seconds": round(time.perf_counter() - started, 3)}

    measure("dos, 1e4 of 1e5", 10**5, lambda _: fast(10**5, 10**4), scratch)
    measure("dos, 1e6 of 1e7", 10**7, lambda _: fast(10**7, 10**6), scratch)

    def running_sums(_: Path) -> dict[str, Any]:
        """Vectorised: J of every unused chunk from running sums, n operations a step."""
        n, k = 10**5, 10**4
        v = values(n) - 3.2
        distance, s1, s2, free = Distance(0.0, 0.5, default_weights(v)), 0.0, 0.0, np.ones(n, dtype=bool)
        for step in range(k):
            J = np.where(free, distance.after(v, step, s1, s2), np.inf)
            row = int(np.argmin(J))
            free[row], s1, s2 = False, s1 + v[row], s2 + v[row] ** 2
        return {"chosen": k}

    def textbook(_: Path) -> dict[str, Any]:
        """As published: mean and variance of the subset with each chunk added, computed anew; some steps, summed up.

        Step i costs n means of i + 1 numbers. Timed on a hundredth of the candidates at ten sizes of the subset.
        """
        n, k, part = 10**5, 10**4, 100
        v, total = values(n), 0.0
        sizes = np.linspace(k / 20, k * 19 / 20, 10).astype(int)
        for i in sizes:
            subset = v[: i + 1].copy()
            started = time.perf_counter()
            for candidate in v[-n // part :]:
                subset[-1] = candidate
                (subset.mean() - 3.2) ** 2 + (subset.var() - 0.25) ** 2
            total += (time.perf_counter() - started) * part * k / len(sizes)
        return {"chosen": k, "greedy_seconds": round(total, 1), "extrapolated": True}

    measure("naive dos, running sums", 10**5, running_sums, scratch)
    measure("naive dos, textbook (extrapolated)", 10**5, textbook, scratch)


def _crowded(run: dict[str, Any]) -> bool:
    """Whether another process held one of the two cores: two threads that work got hardly more than one core's time."""
    threads = 1 if "dos" in run["kind"] or run["rows"] < 10**7 else run["threads"]
    return threads > 1 and run["cpu_seconds"] < 1.2 * run["seconds"]


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of seconds (dos: of the greedy choice alone), the largest memory, of runs of one kind and size."""
    seconds = [r.get("greedy_seconds", r["seconds"]) for r in runs]
    return runs[-1] | {
        "runs": len(runs), "seconds": statistics.median(seconds), "range": [min(seconds), max(seconds)],
        "cpu_seconds": statistics.median(r["cpu_seconds"] for r in runs), "peak_gib": max(r["peak_gib"] for r in runs),
    }  # fmt: skip


def plot() -> None:
    """selection.jsonl -> selection.json (medians of each kind and size), a table and selection.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = (RESULTS / "selection.jsonl").read_text().splitlines()
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in map(json.loads, lines):
        if not _crowded(r):
            runs.setdefault((r["kind"], r["rows"]), []).append(r)
    rows = [_middle(runs[key]) for key in sorted(runs)]
    machine = {"cores": THREADS, "versions": {n: importlib.metadata.version(n) for n in ("numpy", "pyarrow")}}
    (RESULTS / "selection.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print("| kind | chunks | runs | seconds | from, to | CPU seconds | peak GiB |\n|---|---|---|---|---|---|---|")
    for r in rows:
        low, high = r["range"]
        print(
            f"| {r['kind']} | {r['rows']:.0e} | {r['runs']} | {r['seconds']:,.2f} | {low:,.2f}, {high:,.2f} | "
            f"{r['cpu_seconds']:,.2f} | {r['peak_gib']:.2f} |"
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind in dict.fromkeys(r["kind"] for r in rows if "dos" not in r["kind"]):
        of = [r for r in rows if r["kind"] == kind]
        for axis, value in ((left, "cpu_seconds"), (right, "peak_gib")):
            axis.plot([r["rows"] for r in of], [r[value] for r in of], "o-", label=kind)
    for axis, label in ((left, "CPU seconds"), (right, "peak resident memory (GiB)")):
        axis.set(xscale="log", yscale="log", xlabel="chunks in the pool", ylabel=label)
        axis.grid(alpha=0.3)
    left.legend()
    figure.savefig(RESULTS / "selection.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("ours", "generated", "duckdb", "polars", "dos", "plot"))
    parser.add_argument("pool", type=Path, nargs="?")
    parser.add_argument("--strategy", default="maxent")
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--threads", type=int, default=THREADS, help="of `generated`")
    parser.add_argument("--scratch", type=Path, help="where output is written (and deleted)")
    a = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if a.what == "plot":
        plot()
    elif a.what == "dos":
        dos(a.scratch)
    elif a.what == "generated":
        generated(int(a.rows), a.strategy, a.scratch, a.threads)
    elif a.what == "ours":
        ours(a.pool, a.strategy, a.scratch)
    else:
        {"duckdb": duckdb, "polars": polars}[a.what](a.pool, a.scratch)


if __name__ == "__main__":
    main()
