"""Does a model of a quarter of its size rank regimes as the embedded base does? Real text, both models' pilots.

A pool of about 0.8 M tokens: biomedical abstracts, a fifth of them garbled as a scanner would, and law off the domain;
valid text: other abstracts. Eight regimes (random and seven of the planner's), two sizes, three seeds each, on both
models with the same chunks in the same order; then `pplscape transfer`.

    PPLSCAPE_DATA=... python scripts/train_base_model.py --work work/small --size 0.7m --tokens 8.43M
    PPLSCAPE_DATA=... python experiments/proxy.py prepare --out DIR
    python experiments/proxy.py run --out DIR --proxy work/small/model
    python experiments/proxy.py table --out DIR [--write]
    python experiments/proxy.py worlds

A cell is a model's pilots of one seed, and each goes on where it was stopped; `table` takes the seeds that both models
have finished. `--write` keeps the runs and the page under experiments/results.

`worlds`: how often each verdict falls in simulated worlds, and how often it is right: ten regimes, true losses normal
(sd 0.05 nats) with a given correlation between the models, seed noise 0.01 nats of which half the variance is shared,
random with three seeds and the others with one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pplscape as ps
from pplscape.flow import model_path
from pplscape.proxy import DISTRUST, TOO_FEW, TRUST, compare
from pplscape.runs import RunTable
from pplscape.training.schedule import Recipe

sys.path.insert(0, str(Path(__file__).parent))
from evidence.dirt import garble

RESULTS = Path(__file__).parent / "results"
BASE, SEEDS, SIZES, DESIGNED = "demo", (0, 1, 2), (16_384, 65_536), 7
CHARACTERS = {"clean": 1_500_000, "garbled": 550_000, "law": 550_000, "heldout": 120_000}
GARBLED = 0.1
SPREAD, NOISE = 0.05, 0.01
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=4096, step_tokens=2048)
KEPT = (
    "group", "regime", "seed", "tokens", "pool_tokens", "unique_tokens", "ppl_mean", "ppl_std", "nll_mean", "nll_std",
    "bin_tokens", "bins_hash", "replay_share", "loss", "base_loss", "model", "weights", "proxy_of", "n_params", "lr",
    "schedule", "status", "run_id",
)  # fmt: skip
"""Columns of the committed table."""


def documents(name: str) -> Iterator[str]:
    with gzip.open(Path(os.environ["PPLSCAPE_DATA"]) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def take(texts: Iterator[str], characters: int) -> list[str]:
    found, n = [], 0
    for text in texts:
        if n >= characters:
            break
        found.append(text)
        n += len(text)
    return found


def prepare(out: Path, scale: float) -> None:
    """Corpus, scores, landscape, and a plan a seed. `scale` of the text, for dry runs."""
    out.mkdir(parents=True, exist_ok=True)
    abstracts, law, rng = documents("biomed/abstracts"), documents("legal/dc_law"), np.random.default_rng(0)
    parts = {k: take(law if k == "law" else abstracts, round(n * scale)) for k, n in CHARACTERS.items()}
    parts["garbled"] = [garble(t, GARBLED, rng) for t in parts["garbled"]]
    for name, texts in parts.items():
        rows = (json.dumps({"id": f"{name}-{i}", "text": t}) + "\n" for i, t in enumerate(texts))
        (out / f"{name}.jsonl").write_text("".join(rows))
    model, pool = model_path(BASE), [str(out / f"{k}.jsonl") for k in ("clean", "garbled", "law")]
    prepared = ps.prepare(
        pool, heldout=[str(out / "heldout.jsonl")], model=model, out=out / "prepared", chunk_tokens=256,
        valid=round(14_000 * scale), test=round(2000 * scale),
    )  # fmt: skip
    scores = ps.score(prepared, model=model, out=out / "scores")
    sizes = [round(s * scale) for s in SIZES]
    landscape = ps.landscape(scores, budget=2 * sizes[-1], out=out / "landscape", n_bins=5)
    plan = ps.plan(
        landscape, budget=2 * sizes[-1], pilot_tokens=10**9, out=out / "plan", designed=DESIGNED, random_seeds=1,
        recipe=RECIPE,
    )  # fmt: skip
    content = json.loads((plan / "plan.json").read_text()) | {"sizes": sizes}
    for seed in SEEDS:
        regimes = [r | {"seed": seed} for r in content["regimes"]]
        (out / f"plan-{seed}").mkdir(exist_ok=True)
        (out / f"plan-{seed}/plan.json").write_text(json.dumps(content | {"regimes": regimes}))


def run(out: Path, proxy: str) -> None:
    for seed in SEEDS:
        for name, model in (("proxy", proxy), ("base", model_path(BASE))):
            ps.pilot(
                out / f"plan-{seed}", model=model, scores=out / "scores", corpus=out / "prepared",
                out=out / f"{name}-{seed}", proxy=name == "proxy",
            )  # fmt: skip


def rows(out: Path, name: str, seeds: list[int]) -> list[dict[str, Any]]:
    files = [out / f"{name}-{seed}/runs.jsonl" for seed in seeds]
    return [{k: r[k] for k in KEPT} for f in files for r in map(json.loads, f.read_text().splitlines())]


def apart(proxy: list[dict[str, Any]], base: list[dict[str, Any]], size: int) -> str:
    """Chosen by one seed's proxy pilots, measured on the base's other seeds: no luck is shared."""
    seeds = sorted({r["seed"] for r in base})
    loss = [
        {(r["regime"], r["seed"]): r["loss"] for r in of if abs(np.log(r["tokens"] / size)) < 0.2}
        for of in (proxy, base)
    ]
    gains, shares = [], []
    for seed in seeds:
        first = min((regime for regime, s in loss[0] if s == seed), key=lambda r: loss[0][r, seed])
        other = {r: np.mean([loss[1][r, s] for s in seeds if s != seed]) for r, _ in loss[1]}
        gains.append(other["random"] - other[first])
        shares.append((other["random"] - other[first]) / (other["random"] - min(other.values()) or np.nan))
    each = ", ".join(f"{g:+.4f}" for g in gains)
    return (
        f"Chosen by the proxy's pilots of one seed, measured on the base's other seeds at {size:,} tokens: gains of "
        f"{each} nats/token over random, {np.mean(shares):.0%} of the best regime's there on average."
    )


def table(out: Path, write: bool) -> None:
    seeds = [s for s in SEEDS if all((out / f"{n}-{s}/runs.jsonl").exists() for n in ("proxy", "base"))]
    found = {name: rows(out, name, seeds) for name in ("proxy", "base")}
    for name, these in found.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in these))
    shutil.rmtree(out / "transfer", ignore_errors=True)
    ps.transfer(out / "proxy.jsonl", out / "base.jsonl", out=out / "transfer", landscape=out / "landscape")
    page = (out / "transfer/summary.md").read_text().replace("![gains over random](gains.png)\n\n", "")
    sizes = json.loads((out / "plan-0/plan.json").read_text())["sizes"]
    if len(seeds) > 1:
        page += "\n## Seeds apart\n\n" + "\n\n".join(apart(found["proxy"], found["base"], s) for s in sizes) + "\n"
    print(page)
    if write:
        (RESULTS / "proxy.md").write_text(page)
        (RESULTS / "proxy.jsonl").write_text((out / "proxy.jsonl").read_text() + (out / "base.jsonl").read_text())


def world(correlation: float, rng: np.random.Generator, k: int = 10) -> tuple[str, bool]:
    """(verdict, whether the proxy's first regime truly keeps over half of the target's achievable gain)."""
    true = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], k).T * SPREAD
    names = ["random"] * 3 + [f"regime-{i}" for i in range(k - 1)]
    at = np.array([0, 0, 0, *range(1, k)])
    noise = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], len(at)).T * NOISE
    tables = [
        RunTable(
            np.full(len(at), 1e5), loss=4 + true[m, at] + noise[m], regime=np.array(names),
            group=np.array([f"{n}-{i}" for i, n in enumerate(names)]),
        )
        for m in (0, 1)
    ]  # fmt: skip
    found = compare(tables[0], tables[1], ("proxy", "target"))
    choice = found["sizes"][-1]["choice"]["choice"]
    gain = true[1, 0] - true[1, at[names.index(choice)]]
    return found["verdict"]["light"], bool(gain > 0.5 * (true[1, 0] - true[1].min()))


def worlds(repetitions: int = 300) -> None:
    print("| correlation of true losses | verdict | worlds | the choice keeps over half |\n|---|---|---|---|")
    for correlation in (-0.5, 0.0, 0.5, 0.9, 1.0):
        rng = np.random.default_rng(0)
        told = [world(correlation, rng) for _ in range(repetitions)]
        for light in (TRUST, TOO_FEW, DISTRUST):
            right = [kept for found, kept in told if found == light]
            kept = f"{np.mean(right):.0%}" if right else "–"
            print(f"| {correlation:g} | {light} | {len(right)} of {repetitions} | {kept} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run", "table", "worlds"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--proxy", help="folder of the small model")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes, for a dry run")
    parser.add_argument("--write", action="store_true", help="keep the table under experiments/results")
    given = parser.parse_args()
    if given.what == "prepare":
        prepare(given.out, given.scale)
    elif given.what == "worlds":
        worlds()
    elif given.what == "run":
        run(given.out, given.proxy)
    else:
        table(given.out, given.write)


if __name__ == "__main__":
    main()
