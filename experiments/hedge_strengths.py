"""Which strength of the hedge is best? On *development text*: what no pool, target, pilot, valid or test text holds.

    PPLSCAPE_DATA=... python experiments/hedge_strengths.py run OUT --pool 0.6 --arm run --strengths random 0.2 0.5 1
    PPLSCAPE_DATA=... python experiments/hedge_strengths.py run OUT --arm run --mix target --strengths random 0.4 0.6
    python experiments/hedge_strengths.py table                                     # -> docs/selection.md

OUT: the folder of `python -m evidence`, with pools 30 and 60 built and pilots there or restored. A row is one training
on D tokens, as the arms are trained; `--mix`: which mix the allocation keeps to. What is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from evidence.analysis import fill
from evidence.bench import Bench, describe
from evidence.cells import LIKENED, TOWARD
from evidence.pools import HELDOUT_CHUNKS, Builder, Doc, name_of, read_jsonl, up_to, write_jsonl
from evidence.setting import Setting

import pplscape as ps
from pplscape.draw.auto import challenger
from pplscape.draw.stream import read_selected
from pplscape.errors import UserError
from pplscape.laws.law import Law

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "experiments" / "results" / "hedge_strengths.jsonl", ROOT / "docs" / "selection.md"
SEEDS, TOKENS, POOLS = (100, 101), 60_000, (0.3, 0.6)
RANDOM, ORACLE = "random", "oracle"
MIXES = ("pool", "target")


def write_development(builder: Builder) -> None:
    """Clean documents that are in no pool, not even garbled; sources in valid's shares, at most four chunks each."""
    garbled = [builder.out / name_of(dirt) / "sources" / "garbled.jsonl" for dirt in POOLS]
    used = {row["id"].split("/", 2)[2] for file in garbled for row in read_jsonl(file)}
    left = [d for d in builder.reserve if d.doc_id not in used]

    def seen(doc: Doc) -> int:
        return min(doc.tokens, HELDOUT_CHUNKS * builder.setting.chunk_tokens)

    tokens: dict[str, int] = defaultdict(int)
    for doc in builder.heldout["valid"]:
        tokens[doc.source] += seen(doc)
    for source, n in tokens.items():
        share = n / sum(tokens.values())
        mine = up_to(((d, seen(d)) for d in left if d.source == source), share * TOKENS)
        chunks = [row for doc, _ in mine for row in builder._spread(doc)]
        write_jsonl(builder.out / "heldout" / "dev" / f"{source}.jsonl", chunks)


def draw(bench: Bench, arm: str, mix: str, strength: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """What `select` takes with this hedge and the law of the arm's pilots, and what it says of it."""
    folder = bench.folder / LIKENED.get(arm, "")
    out, law = folder / "hedge-draw", folder / "law" / "law.json"
    scores = bench._scores_of(strength if strength in (RANDOM, ORACLE) else arm)
    if strength in (RANDOM, ORACLE):
        told: dict[str, Any] = {"strategy": RANDOM}
    else:
        if not law.exists():
            bench.fit_law(arm if arm in LIKENED else "")
        form = challenger(Law.from_json(law)).form
        told = {"strategy": "allocate", "law": law, "form": form, "hedge": float(strength)}
        told["toward"] = bench._toward(arm) if mix == "target" else None
    ps.select(scores, budget=bench.budget, out=out, seed=seed, overwrite=True, **told)
    return read_selected(out), json.loads((out / "selection.json").read_text())


def measure(bench: Bench, arm: str, mix: str, strength: str, seed: int) -> dict[str, Any]:
    """A row of ROWS; losses in nats/token, `kl` over 50 bins of log-perplexity."""
    selected, content = draw(bench, arm, mix, strength, seed)
    facts = describe(selected, content)
    bench.train(selected, seed)
    losses = {name: loss.loss for name, loss in bench.measure(False).items()}
    return {
        "pool": bench.folder.name, "arm": arm, "mix": mix, "seed": seed, "strength": strength,
        "kl": facts["kl_to_pool"],
        "predicted_gain": (facts["predicted"] or {}).get("gain", {}).get("law"), "share_clean": facts["share_clean"],
        "share_duplicate": facts.get("share_duplicate", 0.0),
        "dev": bench._texts("dev").loss(bench.scorer).loss, **losses,
    }  # fmt: skip


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is of: pool, arm, mix, strength, seed. Random and the oracle are no arm's."""
    of = ("", "") if row["strength"] in (RANDOM, ORACLE) else (row["arm"], row["mix"])
    return row["pool"], *of, row["strength"], row["seed"]


def run(out: Path, dirt: float, arm: str, mix: str, strengths: list[str], seeds: list[int]) -> None:
    setting = Setting.read("biomed")
    builder = Builder(setting, out / setting.domain)
    if not (builder.out / "heldout" / "dev").exists():
        write_development(builder)
    if mix == "target" and arm not in TOWARD:
        raise UserError(f"{arm} keeps to the pool's mix: with --mix target give one of {', '.join(TOWARD)}.")
    bench = Bench(setting, builder.out / name_of(dirt))
    done = {key(r) for r in read_rows()}
    for seed in seeds:
        for strength in strengths:
            asked = {"pool": bench.folder.name, "arm": arm, "mix": mix, "strength": strength, "seed": seed}
            if key(asked) not in done:
                row = measure(bench, arm, mix, strength, seed)
                with open(ROWS, "a") as file:
                    file.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: loss minus random's on development text, a line an arm and mix, a column a strength; means over seeds,
    their number in brackets where there are several."""
    told: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        random = [r["dev"] for r in rows if key(r) == (row["pool"], "", "", RANDOM, row["seed"])]
        if row["strength"] != RANDOM and random:
            told[key(row)[:4]].append(row["dev"] - random[0])
    strengths = sorted({s for *_, s in told if s != ORACLE}, key=float)
    lines = [f"| pool, arm, mix | {' | '.join(f'T = {s}' for s in strengths)} | oracle |"]
    lines.append("|---" * (len(strengths) + 2) + "|")
    for pool, arm, mix in sorted({k[:3] for k in told if k[1]}):
        found = [told.get((pool, arm, mix, s), []) for s in strengths] + [told.get((pool, "", "", ORACLE), [])]
        lines.append(f"| {pool}, {arm}, {mix} | {' | '.join(map(_cell, found))} |")
    return "\n".join(lines)


def _cell(gains: list[float]) -> str:
    if not gains:
        return ""
    return f"{sum(gains) / len(gains):+.4f}" + (f" ({len(gains)})" if len(gains) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--pool", type=float, default=0.6, help="share of dirt")
    parser.add_argument("--arm", default="auto+likeness", choices=["auto", *LIKENED])
    parser.add_argument("--mix", default="pool", choices=MIXES, help="that the allocation keeps to")
    parser.add_argument("--strengths", nargs="+", default=[RANDOM, "0.2", "0.4", "0.8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[SEEDS[0]])
    told = parser.parse_args()
    if told.verb == "run":
        run(told.out, told.pool, told.arm, told.mix, told.strengths, told.seeds)
    else:
        PAGE.write_text(fill(PAGE.read_text(), "hedge", table(read_rows())))


if __name__ == "__main__":
    main()
