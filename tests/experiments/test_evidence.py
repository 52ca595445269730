"""The evidence experiments on a fake engine: dirt with known shares, cells as the stages give them, resumption."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

from evidence import dirt, flat  # noqa: E402
from evidence.bench import Bench, overlap, whole_table  # noqa: E402
from evidence.cells import CHOOSING_SEEDS, MATCHED, RATES, Cell, arguments, choosing, plan  # noqa: E402
from evidence.cells import larger as larger_cells  # noqa: E402
from evidence.larger import LargerBench, choose_rate  # noqa: E402
from evidence.pools import DIRT, Builder, describe, read_jsonl, token_shares  # noqa: E402
from evidence.predictions import composition, parted, predict  # noqa: E402
from evidence.promises import promised  # noqa: E402
from evidence.runner import Store, restore_pilots, run_cells  # noqa: E402
from evidence.setting import Setting  # noqa: E402
from evidence.tables import heldout_documents, write_predictions  # noqa: E402

import pplscape as ps  # noqa: E402
from pplscape.draw.stream import read_selected  # noqa: E402
from pplscape.engines import load_engine  # noqa: E402
from pplscape.manifest import read_json  # noqa: E402

pytestmark = pytest.mark.usefixtures("figures_never_saved")
WORDS = [f"{a}{b}{c}" for a in ("car", "neu", "gas", "hep", "der") for b in "aeiou" for c in ("lis", "tor", "min", "x")]


def text(rng: random.Random, words: int, vocabulary: list[str] = WORDS) -> str:
    lines = [" ".join(rng.choices(vocabulary, k=12)).capitalize() + "." for _ in range(words // 12)]
    return "\n".join(lines)


def test_garble_hits_the_rate() -> None:
    plain = text(random.Random(0), 1500)
    for rate in dirt.RATES:
        got = dirt.garble(plain, rate, np.random.default_rng(1))
        assert got == dirt.garble(plain, rate, np.random.default_rng(1))
        assert got.count("\n") == plain.count("\n")
        edits = sum(_edits(a, b) for a, b in zip(plain.split("\n"), got.split("\n"), strict=True))
        n = len(plain)
        assert abs(edits - rate * n) < 4 * np.sqrt(rate * n) + 0.02 * rate * n  # a look-alike may be two characters


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_near_duplicates_are_found_by_the_products_own_measure() -> None:
    from pplscape.text.clean import SIMILARITY, hash_words, shingles, signatures

    rng = random.Random(1)
    similar = []
    for k in range(20):
        plain = text(rng, 600)
        copy = dirt.edited(plain, np.random.default_rng(k))
        assert copy != plain
        pair = signatures([shingles(hash_words(t), t) for t in (plain, copy)])
        similar.append(float((pair[0] == pair[1]).mean()))
    assert np.mean(similar) > SIMILARITY


def test_boilerplate_is_what_many_pages_share() -> None:
    filled = [(f"What is {t} ? See the list of resources for {t}. Ask 3 people.", t) for t in ("gout", "flu", "mumps")]
    filled += [(f"What is {t} ? See the list of resources for {t}. Ask 41 people.", t) for t in ("rabies", "lupus")]
    own = [(text(random.Random(9), 60), "")]
    assert dirt.boilerplate_shares(filled + own) == [1.0] * 5 + [0.0]


def test_up_to_stops_nearest() -> None:
    items = [("a", 5), ("b", 100), ("c", 5), ("d", 2)]
    assert [i for i, _ in dirt.up_to(items, 11)] == ["a", "c", "d"]
    assert [i for i, _ in dirt.up_to(items, 10)] == ["a", "c"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> tuple[Setting, Path, Path]:
    """A tiny domain: (setting, data folder, output folder with a pool of 40 % dirt)."""
    folder = tmp_path_factory.mktemp("evidence")
    rng = random.Random(0)
    law = [w[::-1] for w in WORDS]
    files = {
        "biomed/abstracts": [text(rng, 60) for _ in range(300)],
        "biomed/fulltext": [text(rng, 900) for _ in range(20)],
        "biomed/medquad": [
            f"{text(random.Random(k % 7), 24)}\n{text(random.Random(99), 36)} {text(rng, 12)}" for k in range(200)
        ],
        "legal/law": [text(rng, 120, law) for _ in range(120)],
        "general/novels": [text(rng, 120) for _ in range(400)],
    }
    for name, texts in files.items():
        path = folder / "data" / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as lines:
            lines.writelines(json.dumps({"id": f"{name}-{i}", "text": t}) + "\n" for i, t in enumerate(texts))
    base = load_engine("fake", str(tiny_tokenizer_dir), train=True)
    base.reset()
    base.step(base.encode(files["general/novels"][:4]), 1e-3)
    base.save(folder / "model")
    setting = Setting(
        domain="biomed", model=str(folder / "model"), clean=["biomed/abstracts", "biomed/fulltext"], sample=1.0,
        boilerplate="biomed/medquad", offdomain=["legal/law"], chunk_tokens=128, min_tokens=16, pool_tokens=40_000,
        valid_tokens=3000, test_tokens=6000, general_tokens=300, budget=0.1, bins=5, engine="fake",
        recipe={"learning_rate": 1e-3, "warmup_tokens": 128, "step_tokens": 128},
        pilots={"tokens": 40_000, "designed": 5, "random_seeds": 3}, bootstrap=8, resamples=4,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLSCAPE_DATA", str(folder / "data"))
        Builder(setting, folder / "out").build(0.4)
    return setting, folder / "data", folder / "out"


def test_a_pool_has_the_dirt_that_was_asked_for(world: tuple[Setting, Path, Path]) -> None:
    setting, _, out = world
    found = describe(out / "pool-40")
    assert found["tokens"] == pytest.approx(setting.pool_tokens, rel=0.06)
    for name in DIRT:
        assert found["origins"][name]["share"] == pytest.approx(0.1, abs=0.02)


def test_pools_are_the_same_when_built_again(
    world: tuple[Setting, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, data, out = world
    monkeypatch.setenv("PPLSCAPE_DATA", str(data))
    again = Builder(setting, tmp_path)
    assert describe(again.build(0.4)) == describe(out / "pool-40")
    dirty, clean = again.clean_part(0.4), again.clean_part(0.0)
    assert {d.doc_id for d in dirty} < {d.doc_id for d in clean}
    held = [d.doc_id for docs in again.heldout.values() for d in docs]
    assert len(set(held)) == len(held) > 10
    assert not set(held) & {d.doc_id for d in again.ordered}
    shares = token_shares(again.ordered)
    for split, target in (("test", setting.test_tokens), ("valid", setting.valid_tokens)):
        per = {s: sum(min(d.tokens, 512) for d in again.heldout[split] if d.source == s) for s in shares}
        assert {s: n / target for s, n in per.items()} == pytest.approx(shares, abs=0.08)


def test_a_cell_is_what_the_stages_give(world: tuple[Setting, Path, Path], tmp_path: Path) -> None:
    """Draw, training and losses of a cell equal those of select, train and evaluate."""
    setting, _, out = world
    bench = Bench(setting, out / "pool-40")
    row = bench.run(Cell("primary", "pool-40", "band:0.2,0.7", 3), {})
    pool, heldout = out / "pool-40", out / "heldout"
    drawn = ps.select(
        pool / "scores", budget=bench.budget, strategy="band", band=(0.2, 0.7), seed=3, out=tmp_path / "s"
    )
    trained = ps.train(
        drawn, model=setting.model, corpus=pool / "prepared", out=tmp_path / "t", recipe=setting.train_recipe,
        engine="fake", seed=3,
    )  # fmt: skip
    losses = []
    for file in sorted((heldout / "test").glob("*.jsonl")):
        done = ps.evaluate(
            str(trained), heldout=file, out=tmp_path / file.stem, engine="fake", chunk_tokens=setting.chunk_tokens
        )
        losses += [json.loads(line) for line in (done / "eval.jsonl").read_text().splitlines()]
    direct = sum(r["nll_sum"] for r in losses) / sum(r["n_tokens"] for r in losses)
    assert row["loss_test"] == pytest.approx(direct, rel=1e-9)
    assert row["tokens"] == json.loads((drawn / "selection.json").read_text())["tokens"]
    columns = heldout_documents(setting, heldout)["test"]
    assert columns["n_tokens"] == [r["n_tokens"] for r in losses_by_document(losses)]
    assert len(row["nll_test"]) == len(columns["doc_id"])
    assert sum(row["nll_test"]) == pytest.approx(sum(r["nll_sum"] for r in losses), rel=1e-4)


def test_losses_are_those_of_the_trained_weights(world: tuple[Setting, Path, Path], tiny_model_dir: Path) -> None:
    setting, _, out = world
    bench = Bench(replace(setting, engine="transformers", model=str(tiny_model_dir)), out / "pool-40")
    bench.learner.reset()
    before = bench.measure(False)["valid"].loss
    bench.learner.step(bench.learner.encode(["the fox the dog the fox the dog"] * 4), 1e-2)
    after = bench.measure(False)["valid"].loss
    bench.learner.reset()
    assert before != pytest.approx(after, abs=1e-4)
    assert bench.measure(False)["valid"].loss == pytest.approx(before, abs=1e-6)


def losses_by_document(rows: list[dict]) -> list[dict]:
    """Rows of chunks added up by document, in their order."""
    found: dict[str, dict] = {}
    for r in rows:
        at = found.setdefault(r["doc_id"].rpartition("#")[0], {"n_tokens": 0})
        at["n_tokens"] += r["n_tokens"]
    return list(found.values())


def test_replay_adds_text_of_the_base_beside_the_budget(
    world: tuple[Setting, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draw, a fifth of what is trained from the files of the base, none of it measured; it forgets less."""
    setting, data, out = world
    monkeypatch.setenv("PPLSCAPE_DATA", str(data))
    bench = Bench(setting, out / "pool-40")
    plain, mixed = (bench.run(Cell("replay", "pool-40", m, 0), {}) for m in ("random", "random+replay:0.2"))
    assert mixed["bin_tokens"] == plain["bin_tokens"]
    assert mixed["trained_as"] != plain["trained_as"]
    assert plain["replay_tokens"] == 0
    assert mixed["replay_tokens"] / (mixed["tokens"] + mixed["replay_tokens"]) == pytest.approx(0.2, abs=0.05)
    replayed = {row["id"] for row in read_jsonl(out / "replay.jsonl")}
    assert replayed
    assert not replayed & {row["id"] for row in read_jsonl(out / "heldout" / "general.jsonl")}
    assert mixed["loss_general"] < plain["loss_general"]


def test_a_larger_model_is_trained_on_the_draws_of_the_base(
    world: tuple[Setting, Path, Path], tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    """Same chunks, other weights: no row of the base may stand for one of the larger model. The rate is valid's."""
    setting, _, out = world
    other = load_engine("fake", str(tiny_tokenizer_dir), train=True)  # never saw general text, unlike the base
    other.reset()
    other.save(tmp_path / "model")
    base, larger = Bench(setting, out / "pool-40"), LargerBench(setting, out / "pool-40", tmp_path / "model")
    cell, store = Cell("F6", "pool-40", "random", 0), Store(tmp_path / "cells")
    before = base.run(cell, {})
    assert choose_rate(larger, store, "pool-40") in RATES
    told = {r["learning_rate"]: r for r in store.rows() if r["seed"] == CHOOSING_SEEDS[0]}
    assert set(told) == set(RATES)
    assert not any("loss_test" in r or "same_as" in r for r in store.rows())
    larger.set_rate(5e-4)
    row = larger.run(cell, {before["trained_as"]: before | {"cell": "of the base"}})
    assert (row["bin_tokens"], row["chunks"], row["learning_rate"]) == (before["bin_tokens"], before["chunks"], 5e-4)
    assert "same_as" not in row
    assert row["loss_general"] > before["loss_general"]
    assert {c.method for c in larger_cells("pool-40", "band:0.2,0.7")} >= {"random", "run", "band:0.2,0.7"}


def test_a_band_by_byte_is_a_band_of_the_loss_per_byte(world: tuple[Setting, Path, Path]) -> None:
    """Every chunk drawn lies in the band of nll/byte; what it shares with the arm per token is counted by tokens."""
    setting, _, out = world
    bench = Bench(setting, out / "pool-40")
    cell = Cell("F7", "pool-40", "by-byte:0.2,0.7", 0)
    drawn, _ = bench.draw(cell)
    table = whole_table(out / "pool-40" / "scores")
    per_byte = np.asarray(table["nll_sum"]) / np.asarray(table["n_bytes"])
    of = dict(zip(zip(*(table[c].to_pylist() for c in ("doc_id", "chunk_index")), strict=True), per_byte, strict=True))
    order, length = np.argsort(per_byte), np.asarray(table["length"], float)
    low, high = np.interp([0.2, 0.7], np.cumsum(length[order]) / length.sum(), per_byte[order])
    got = [of[key] for key in zip(*(drawn[c].to_pylist() for c in ("doc_id", "chunk_index")), strict=True)]
    width = np.ptp(per_byte) * 0.02
    assert low - width < min(got) <= max(got) < high + width
    assert bench.overlaps(cell, drawn)["overlap"] < 1
    own, _ = bench.draw(Cell("primary", "pool-40", "band:0.2,0.7", 0))
    assert overlap(own, own) == 1
    assert overlap(own, own.slice(0, 0)) == 0


def test_the_oracle_draws_clean_text_only(world: tuple[Setting, Path, Path]) -> None:
    setting, _, out = world
    bench = Bench(setting, out / "pool-40")
    oracle, random_ = (bench.draw(Cell("primary", "pool-40", m, 1)) for m in ("oracle", "random"))
    assert all(s.startswith("clean-") for s in oracle[0]["source"].to_pylist())
    both = set(zip(oracle[0]["doc_id"].to_pylist(), oracle[0]["chunk_index"].to_pylist(), strict=True))
    clean = {
        (d, k)
        for d, k, s in zip(*(random_[0][c].to_pylist() for c in ("doc_id", "chunk_index", "source")), strict=True)
        if s.startswith("clean-")
    }
    assert clean <= both  # the same uniforms: a paired draw


def test_every_method_of_the_plan_runs(
    world: tuple[Setting, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed of everything on the fake engine; equal training is not done twice."""
    setting, data, out = world
    monkeypatch.setenv("PPLSCAPE_DATA", str(data))
    bench, store = Bench(setting, out / "pool-40"), Store(tmp_path)
    bench.fit_law()
    wanted = [c for c in plan("pool-40", "band:0.2,0.7") if c.seed == 0 and c.method not in _MANY]
    wanted += [replace(wanted[1], experiment="again"), choosing("pool-40")[0]]
    run_cells(wanted, bench.run, store)
    rows = {r["cell"]: r for r in store.rows()}
    assert len(rows) == len({c.name for c in wanted})
    failed = {r["method"]: r["reason"] for r in rows.values() if r["status"] != "ok"}
    assert all("law" in why or "optimum" in why for why in failed.values()), failed
    assert not {"matched+likeness", "run-matched", "by-byte:0.2,0.7", "corner:0.3,0.15"} & set(failed), failed
    random_ = rows[Cell("primary", "pool-40", "random", 0).name]
    assert rows[replace(wanted[1], experiment="again").name]["same_as"] == random_["cell"]
    assert "loss_test" not in rows[choosing("pool-40")[0].name]
    assert random_["loss_test"] < rows[Cell("primary", "pool-40", "base", 0).name]["loss_test"]
    predicted = predict(out / "pool-40", list(rows.values()), bench.composition)
    told = {(p["cell"], p["form"]): p["predicted"] for p in predicted}
    assert told[random_["cell"], "constant"] == pytest.approx(told[rows[wanted[2].name]["cell"], "constant"])
    arms, drawn = parted(predicted)
    assert {p["method"] for p in drawn} == {"composition:0", "random"}
    assert "composition:0" not in {p["method"] for p in arms}
    mixed = rows[Cell("compositions", "pool-40", "composition:0", 0).name]
    again = bench.composition(0, mixed["budget"], 0)  # what was trained on, drawn again
    assert composition(again, bench.facts, 1.0).tokens[0] == mixed["tokens"]
    assert composition(again, bench.facts, 1.0).moments("nll")[0][0] == pytest.approx(mixed["nll_mean"])
    chosen = rows[Cell("primary", "pool-40", "utility+allocate", 0).name]
    if chosen["status"] == "ok":  # as `select` predicts it, by the chosen law
        draw = read_selected(out / "pool-40" / "draws" / "primary_pool-40_utility+allocate_0_1")
        assert composition(draw, bench.facts, 1.0).bin_tokens[0].tolist() == chosen["bin_tokens"]
        (form,) = {p["form"] for p in predicted if p["chosen"]}
        assert told[chosen["cell"], form] == pytest.approx(chosen["predicted"]["selection"]["loss"], rel=1e-6)
    said = {(r["law"], r["method"]): r for r in promised(out / "pool-40", list(rows.values()))}
    for method, law in (
        ("auto+likeness", "levels"),
        ("matched+likeness", "levels"),
        ("run-matched", "run"),
    ):
        row = rows[Cell("primary", "pool-40", method, 0).name]
        if method in MATCHED or row["used"] == row["candidate"]:  # else what is predicted is what was not drawn
            assert said[law, method]["predicted"] == pytest.approx(row["predicted"]["selection"]["loss"], rel=1e-6)
    assert said["run", "random"]["gain"] == 0
    assert "oracle" not in {method for _, method in said}
    box = rows[Cell("F1", "pool-40", "shape:box", 0).name]
    assert box["nll_mean"] == pytest.approx(np.median(bench.pool.x), abs=0.03)


_MANY = {f"composition:{k}" for k in range(1, 100)} | {f"tilt:{q}" for q in (0.25, 0.4, 0.55, 0.85, 0.95)}
_MANY |= {"random+replay:0.05", "random+replay:0.2", "run+replay:0.2"}
_MANY |= {"corner:0.3,0.35", "corner:0.7,0.15", "corner:0.7,0.35"}
"""Methods of a kind: one or two will do here."""


def test_a_flat_world_is_a_permutation(world: tuple[Setting, Path, Path], tmp_path: Path) -> None:
    setting, _, out = world
    cell = flat.worlds("pool-40")[0]
    pool = tmp_path / "pool-40"
    pool.symlink_to(out / "pool-40")
    (tmp_path / "heldout").symlink_to(out / "heldout")
    row = flat.gate_in_a_flat_world(setting, pool, cell, {})
    before, after = (Bench(setting, tmp_path / name).pool for name in ("pool-40", "flat-0"))
    assert np.sort(after.x) == pytest.approx(np.sort(before.x))
    assert abs(np.corrcoef(before.x, after.x)[0, 1]) < 0.2
    assert (after.length == before.length).all()
    assert row["gate"] is None or row["gate"]["passes"] in (True, False)


def test_names_of_methods() -> None:
    assert arguments("paper+dos") == {"strategy": "dos", "form": "paper", "law": True}
    assert arguments("band:0.2,0.7") == {"strategy": "band", "band": (0.2, 0.7)}
    assert arguments("oracle") == {"strategy": "random"}
    assert arguments("matched+likeness") == arguments("run-matched") == {"strategy": "matched", "law": True}
    files = [c.file for c in plan("pool-30", "band:0.2,0.7")]
    assert len(files) == len(set(files))


def test_cells_are_restored_from_a_committed_table(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    wanted = [Cell("x", "pool", "random", seed) for seed in range(3)]
    run_cells(wanted, lambda cell, known: {"loss_test": float(cell.seed)}, first)
    table = tmp_path / "runs.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in first.rows()))
    assert second.restore(table) == 3
    assert second.restore(table) == 0
    assert second.rows() == first.rows()
    assert run_cells(wanted, lambda cell, known: {}, second) == 0


def test_restored_pilots_give_the_law_again(world: tuple[Setting, Path, Path], tmp_path: Path) -> None:
    """Nothing is trained for it, and pilots that are there are not replaced."""
    setting, _, out = world
    law = Bench(setting, out / "pool-40").fit_law()
    table = tmp_path / "results" / "pool-40" / "pilots.jsonl"
    table.parent.mkdir(parents=True)
    shutil.copy(out / "pool-40" / "pilots" / "runs.jsonl", table)
    there = tmp_path / "out" / "pool-40"
    shutil.copytree(out / "pool-40", there, ignore=shutil.ignore_patterns("pilots*", "plan*", "law"))
    assert restore_pilots(table.parent.parent, there.parent) == 1
    assert restore_pilots(table.parent.parent, there.parent) == 0
    again = Bench(setting, there).fit_law()
    assert read_json(again / "law.json", "fit")["params"] == read_json(law / "law.json", "fit")["params"]
    assert not list(there.glob("plan*"))


def test_predictions_of_cells_that_were_drawn_elsewhere_stay(tmp_path: Path) -> None:
    path, row = tmp_path / "predictions.csv", {"form": "paper", "predicted": 3.5}
    write_predictions([{"cell": "a", **row}, {"cell": "b", **row}], path)
    write_predictions([{"cell": "b", **row, "predicted": 3.0}], path)
    write_predictions([], path)
    assert path.read_text().splitlines()[1:] == ['"a","paper",3.5', '"b","paper",3']


KILLED = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from evidence.cells import Cell
from evidence.predictions import composition, predict  # noqa: E402
from evidence.runner import Locked, Store, run_cells

def slow(cell, known):
    with open(sys.argv[3], "a") as log: log.write(f"{cell.seed}\\n")
    time.sleep(0.15)
    if cell.seed == 2: raise ValueError("two is wrong")
    return {"loss_test": float(cell.seed), "trained_as": str(cell.seed)}

lock = Locked(Path(sys.argv[2]))
run_cells([Cell("x", "pool", "random", seed) for seed in range(6)], slow, Store(Path(sys.argv[2]) / "cells"))
"""


def test_a_killed_run_goes_on_and_repeats_nothing_finished(tmp_path: Path) -> None:
    log, words = tmp_path / "log", [sys.executable, "-c", KILLED, str(EXPERIMENTS), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    killed = 0
    for _ in range(2):
        before = len(log.read_text().split()) if log.exists() else 0
        process = subprocess.Popen([*words, str(log)], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(log.read_text().split() if log.exists() else []) < before + 2:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed == 2
    subprocess.run([*words, str(log)], env=environment, check=True, stderr=subprocess.DEVNULL)
    rows = Store(tmp_path / "out" / "cells").rows()
    assert sorted(r["seed"] for r in rows) == list(range(6))
    assert [r["status"] for r in rows if r["seed"] == 2] == ["failed"]
    started = log.read_text().split()
    assert len(started) <= 6 + killed  # at most the cell at work is lost in a kill
