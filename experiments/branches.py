"""Branches of one trunk against separate runs, on the embedded model and biomedical text.

A branch that cools down at size D_i is, step by step, the run of that length on the same chunks: warm-up and decay go
by tokens. So the first question is whether that holds bit by bit (`check`), and the second what sharing a trunk costs:
how strongly the losses of its sizes vary together over seeds (`run`, `table`). Random chunks, a seed draws and orders
them; valid text is the same for all.

    PPLSCAPE_DATA=... python experiments/branches.py prepare --out DIR
    python experiments/branches.py run   --out DIR [--seeds 0 1 2 ...] [--seconds 480]
    python experiments/branches.py check --out DIR [--seconds 480]
    python experiments/branches.py table

One cell is a trunk (or a separate run); results are kept as they come (results/branches.jsonl): run again to go on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pplscape as ps
from pplscape.draw.permanent import uniforms
from pplscape.engines import load_learner
from pplscape.engines.base import Ids
from pplscape.flow import model_path
from pplscape.text.prepared import Prepared
from pplscape.training.loop import Progressed, constant_steps, cooldown_steps, train_steps
from pplscape.training.schedule import Recipe
from pplscape.training.texts import HeldOut, chunk_ids, heldout_of

RESULTS = Path(__file__).parent / "results" / "branches.jsonl"
MODEL = "demo"
SIZES = (16_384, 32_768, 65_536, 131_072)
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=4096, step_tokens=2048)
STREAM = 12_001


def prepare(out: Path) -> None:
    """A pool of 0.6 M tokens of abstracts and 12 k valid tokens."""
    ps.prepare(
        [str(Path(os.environ["PPLSCAPE_DATA"]) / "biomed" / "abstracts.jsonl.gz")], model=model_path(MODEL), out=out,
        chunk_tokens=256, valid=12_000, test=2_000, limit_tokens=700_000,
    )  # fmt: skip


class Seed:
    """The chunks of one seed, as segments of a trunk and cooldowns of its branches."""

    def __init__(self, corpus: Prepared, learner: Any, seed: int):
        table = pa.concat_tables([pq.read_table(corpus.file("chunks", "pool", k)) for k in corpus.parts("pool")])
        h = uniforms(STREAM + seed, table["doc_id"].to_pylist(), np.asarray(table["chunk_index"]))
        order, self.length = np.argsort(h, kind="stable"), np.asarray(table["length"])
        self.corpus, self.learner, self.table, self.order = corpus, learner, table, order
        self.ends = np.cumsum(self.length[order])

    def ids(self, first: int, last: int) -> list[Ids]:
        """Chunks from `first` to `last` tokens of the order."""
        at = self.order[np.searchsorted(self.ends, first, "right") : np.searchsorted(self.ends, last, "right")]
        return chunk_ids(self.corpus, self.table.take(pa.array(at)), self.learner)


def cooled(size: int) -> int:
    """Where the cooldown of this size begins, tokens."""
    return round(size * (1 - RECIPE.cooldown_share))


def trunk(seed: Seed, valid: HeldOut) -> list[float]:
    """Valid loss of each size, nats/token, by branches."""
    learner, at, losses, done = seed.learner, Progressed(), [], 0
    learner.reset()
    for size in SIZES:
        train_steps(learner, constant_steps(seed.ids(done, cooled(size)), RECIPE, at.tokens), RECIPE, at)
        done = cooled(size)
        kept, branch = learner.snapshot(), at.copy()
        train_steps(learner, cooldown_steps(seed.ids(done, size), RECIPE, branch.tokens), RECIPE, branch)
        losses.append(valid.loss(learner).loss)
        learner.restore(kept)
    return losses


def alone(seed: Seed, valid: HeldOut, size: int) -> float:
    """Valid loss of one separate run. Its constant part is cut where the trunk's segments end, as steps are."""
    learner, at, done = seed.learner, Progressed(), 0
    learner.reset()
    for end in [cooled(s) for s in SIZES if s <= size]:
        train_steps(learner, constant_steps(seed.ids(done, end), RECIPE, at.tokens), RECIPE, at)
        done = end
    train_steps(learner, cooldown_steps(seed.ids(done, size), RECIPE, at.tokens), RECIPE, at)
    return valid.loss(learner).loss


def straight(seed: Seed, valid: HeldOut, size: int) -> float:
    """Valid loss of a separate run as `train` makes it: its steps are not cut at other sizes."""
    learner, at = seed.learner, Progressed()
    learner.reset()
    train_steps(learner, constant_steps(seed.ids(0, cooled(size)), RECIPE, 0), RECIPE, at)
    train_steps(learner, cooldown_steps(seed.ids(cooled(size), size), RECIPE, at.tokens), RECIPE, at)
    return valid.loss(learner).loss


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def add(row: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as handle:
        handle.write(json.dumps(row) + "\n")


def work(out: Path, what: str, seeds: list[int], seconds: float) -> None:
    begun, corpus = time.monotonic(), Prepared(out)
    learner = load_learner("transformers", model_path(MODEL), RECIPE, dtype="float32")
    valid = heldout_of(corpus, "valid", learner)
    done, slowest = {(r["what"], r["seed"], r.get("size")) for r in rows()}, 0.0
    kinds = {"alone": alone, "straight": straight}
    if what == "run":
        cells: list[tuple[str, int, int | None]] = [("trunk", s, None) for s in seeds]
    else:
        cells = [(kind, s, size) for s in seeds[:1] for size in SIZES[:3] for kind in kinds]
    for kind, number, size in cells:
        if (kind, number, size) in done:
            continue
        if time.monotonic() - begun + slowest > seconds:
            print("time is up: run again to go on")
            return
        started, seed = time.monotonic(), Seed(corpus, learner, number)
        if size is None:
            add({"what": kind, "seed": number, "sizes": SIZES, "losses": trunk(seed, valid)})
        else:
            add({"what": kind, "seed": number, "size": size, "loss": kinds[kind](seed, valid, size)})
        slowest = max(slowest, time.monotonic() - started)
        print(f"{kind} {number} {size or ''}: {time.monotonic() - started:.0f} s", flush=True)
    print("complete")


def table() -> None:
    found = rows()
    trunks = np.array([r["losses"] for r in found if r["what"] == "trunk"])
    print(f"{len(trunks)} seeds, sizes {', '.join(f'{s:,}' for s in SIZES)} tokens\n")
    if len(trunks) > 2:
        print("| size | mean loss | sd over seeds |\n|---|---|---|")
        for size, losses in zip(SIZES, trunks.T, strict=True):
            print(f"| {size:,} | {losses.mean():.4f} | {losses.std(ddof=1):.4f} |")
        correlation = np.corrcoef(trunks.T)
        pairs = correlation[np.triu_indices(len(SIZES), 1)]
        print(f"\nCorrelation of a trunk's sizes over seeds: mean {pairs.mean():+.2f} ({np.round(pairs, 2).tolist()})")
    by_seed = {r["seed"]: r["losses"] for r in found if r["what"] == "trunk"}
    for r in found:
        if r["what"] != "trunk" and r["seed"] in by_seed:
            branch = by_seed[r["seed"]][SIZES.index(r["size"])]
            print(
                f"seed {r['seed']}, {r['size']:,} tokens, {r['what']}: {r['loss'] - branch:+.2e} nats/token to branch"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "run", "check", "table"))
    parser.add_argument("--out", type=Path, default=Path("branches"), help="folder of the prepared pool")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(12)))
    parser.add_argument("--seconds", type=float, default=480.0)
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.out)
    elif options.what == "table":
        table()
    else:
        work(options.out, options.what, options.seeds, options.seconds)


if __name__ == "__main__":
    main()
