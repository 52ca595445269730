"""probe: cross-fitted learnability, and what it is good for: text that perplexity cannot tell from noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import WORDS, documents, planted, without_order

from pplscape.draw.pool import Pool
from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_manifest
from pplscape.schema import PROBED
from pplscape.stages.evaluate import evaluate, read_evaluation
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.probe import half_of, probe
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.stages.train import train
from pplscape.text.prepared import Prepared
from pplscape.training.loop import run_steps
from pplscape.training.schedule import Recipe

pytestmark = pytest.mark.usefixtures("figures_never_saved")
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=256)
TOKENS = 3000
"""Of each probe."""


def _ordered(rng: np.random.Generator) -> str:
    """One word follows from the one before: what is worth learning."""
    at, found = int(rng.integers(len(WORDS))), []
    for _ in range(100):
        at = (5 * at + 7 + int(rng.random() < 0.1)) % len(WORDS)
        found.append(WORDS[at])
    return " ".join(found)


def _shuffled(rng: np.random.Generator) -> str:
    """The same words, each on its own: noise, of the same perplexity to a model that knows neither order."""
    return " ".join(rng.choice(WORDS, 100))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> dict[str, Path]:
    """A pool of which two fifths are noise, measured on ordered text; scored and probed."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    pool = documents("good", [_ordered(rng) for _ in range(120)]) + documents(
        "noise", [_shuffled(rng) for _ in range(80)]
    )
    held = documents("held", [_ordered(rng) for _ in range(40)])
    rng.shuffle(pool)
    found = planted(folder, tiny_tokenizer_dir, pool, held, without_order(rng))
    found["probed"] = _probe(found, folder / "probed")
    return found


def _probe(world: dict[str, Path], out: Path, **how: Any) -> Path:
    return probe(
        world["scores"], model=str(world["model"]), corpus=world["prepared"], out=out, engine="fake",
        **{"tokens": TOKENS, "recipe": RECIPE} | how,
    )  # fmt: skip


def _table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("part-*.parquet"))])


def _is_good(table: pa.Table) -> np.ndarray:
    return np.array([d.startswith("good") for d in table["doc_id"].to_pylist()])


def test_scores_keep_their_columns_and_get_one_more(world: dict[str, Path]) -> None:
    before, after = _table(world["scores"]), _table(world["probed"])
    assert after.schema.equals(PROBED)
    assert after.drop_columns(["probe_nll_sum"]).equals(before)
    assert len(sorted(world["scores"].glob("part-*"))) > 1
    counts = read_manifest(world["probed"])["counts"]
    tokens, n = int(np.sum(before["length"])), FakeEngine(str(world["model"])).facts.n_params
    cost = {"trained_tokens": 2 * TOKENS, "scored_tokens": tokens, "flops": float(n * (12 * TOKENS + 2 * tokens))}
    assert counts["facts"]["probe"] == cost


def test_every_chunk_is_judged_by_the_probe_that_did_not_see_its_document(world: dict[str, Path]) -> None:
    """Against a probe trained here, chunk by chunk, on the other half."""
    table, pool = _table(world["probed"]), Pool.read(world["scores"])
    half = half_of(table["doc_id"].combine_chunks(), 0)
    assert 0.3 < half.mean() < 0.7
    texts = Prepared(world["prepared"]).texts("pool", table)
    engine = FakeEngine(str(world["model"]))
    ids = engine.encode(texts)
    place = {k: i for i, k in enumerate(zip(*(table[c].to_pylist() for c in ("doc_id", "chunk_index")), strict=True))}
    h = pool.uniforms(6_002)
    names = list(zip(pool.doc_names.take(pa.array(pool.doc)).to_pylist(), pool.chunk_index.tolist(), strict=True))
    for which in (0, 1):
        engine.reset()
        spent = 0
        order = [i for i in np.argsort(h) if half[place[names[i]]] == which]
        chosen = []
        for i in order:
            spent += int(pool.length[i])
            if spent > TOKENS:
                break
            chosen.append(ids[place[names[i]]])
        for one in run_steps(chosen, RECIPE):
            engine.step(one.chunks, one.learning_rate)
        expected = [float(v.astype(float).sum()) for v in engine.nll(ids)]
        other = half != which
        np.testing.assert_allclose(np.asarray(table["probe_nll_sum"])[other], np.array(expected)[other], rtol=1e-6)


def test_learnability_tells_what_perplexity_does_not(world: dict[str, Path]) -> None:
    """Area under the curve for telling ordered text from shuffled: a half by perplexity, nearly one by learnability."""
    pool = Pool.read(world["probed"])
    good = np.array([n.startswith("good") for n in pool.doc_names.take(pa.array(pool.doc)).to_pylist()])

    def area(values: np.ndarray) -> float:
        rank = np.argsort(np.argsort(values))
        return (rank[good].mean() - (good.sum() - 1) / 2) / (~good).sum()

    assert 0.3 < area(pool.x) < 0.7
    assert area(pool.second) > 0.97


def test_a_killed_run_ends_in_the_same_files(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the second probe scores: neither is trained again."""
    real = StageFolder.write_bytes

    def killed(self: StageFolder, name: str, data: bytes) -> None:
        if name.startswith("spool/half-1"):
            raise KeyboardInterrupt
        real(self, name, data)

    monkeypatch.setattr(StageFolder, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        _probe(world, tmp_path / "p")
    monkeypatch.setattr(StageFolder, "write_bytes", real)
    steps: list[int] = []
    trained = FakeEngine.step
    monkeypatch.setattr(FakeEngine, "step", lambda self, *a: (steps.append(1), trained(self, *a))[1])
    found = _probe(world, tmp_path / "p")
    assert {p.name: p.read_bytes() for p in found.glob("part-*")} == {
        p.name: p.read_bytes() for p in world["probed"].glob("part-*")
    }
    assert not (found / "spool").exists()
    assert not steps, "both probes were found, trained"


def test_refusals(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A half of the pool holds"):
        _probe(world, tmp_path / "p", tokens=10**7)
    other = score(world["prepared"], model=str(world["model"]), engine="fake", out=tmp_path / "s", context=8)
    with pytest.raises(UserError, match="8 tokens of context"):
        _probe({**world, "scores": other}, tmp_path / "q")
    with pytest.raises(UserError, match="pplscape probe"):
        landscape(world["scores"], budget="10%", out=tmp_path / "l", levels=2)
    with pytest.raises(UserError, match="pplscape probe"):
        select(world["scores"], budget="10%", out=tmp_path / "x", strategy="learnable")


def _taken(selection: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted((selection / "selected").glob("part-*.parquet"))])


def test_strategy_learnable_takes_the_top_of_the_band(world: dict[str, Path], tmp_path: Path) -> None:
    """Against a sort of the whole pool."""
    options: Any = {"strategy": "learnable", "band": (0.2, 0.8), "nested": True}  # nested: nothing is skipped
    out = select(world["probed"], budget=4000, out=tmp_path / "s", **options)
    pool = Pool.read(world["probed"])
    order = np.argsort(pool.x, kind="stable")
    rank = np.empty(len(pool))
    rank[order] = np.cumsum(pool.length[order]) / pool.tokens
    names = pool.doc_names.take(pa.array(pool.doc)).to_pylist()
    found = {(d, i) for d, i in zip(*(_taken(out)[c].to_pylist() for c in ("doc_id", "chunk_index")), strict=True)}
    taken = np.array([(d, i) in found for d, i in zip(names, pool.chunk_index.tolist(), strict=True)])
    inside = (rank > 0.21) & (rank < 0.79)
    assert pool.second[taken].min() >= pool.second[inside & ~taken].max()
    assert ((rank[taken] >= 0.19) & (rank[taken] <= 0.81)).all()
    assert 4000 - 64 < pool.length[taken].sum() <= 4000


def test_strategy_learnable_is_nested(world: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for budget in (2000, 4000):
        out = select(world["probed"], budget=budget, out=tmp_path / f"{budget}", strategy="learnable", nested=True)
        table = _taken(out)
        found.append(set(zip(table["doc_id"].to_pylist(), table["chunk_index"].to_pylist(), strict=True)))
    assert found[0] < found[1]


def _law(world: dict[str, Path], out: Path, levels: int) -> tuple[Path, Path]:
    """(landscape, law) of the utility form on bins of perplexity, or those cut by learnability."""
    model: Any = {"model": str(world["model"]), "engine": "fake"}
    seen = landscape(world["probed"], budget="25%", out=out / "landscape", n_bins=3, levels=levels)
    planned = plan(seen, budget="25%", pilot_tokens=60_000, out=out / "plan", designed=9, recipe=RECIPE)
    runs = pilot(planned, **model, scores=world["probed"], corpus=world["prepared"], out=out / "pilots")
    return seen, fit(runs, out=out / "law", forms=["d-only", "utility"], bootstrap=0, landscape=seen)


def test_the_second_axis_finds_what_the_first_cannot(world: dict[str, Path], tmp_path: Path) -> None:
    """Two laws from as many pilots: that on levels of learnability leaves the noise and ends in a lower test loss."""
    losses, shares = {}, {}
    for levels in (1, 3):
        out = tmp_path / f"{levels}"
        _, law = _law(world, out, levels)
        content = json.loads((law / "law.json").read_text())
        entry = next(e for e in [content, *content["alternatives"]] if e["form"] == "utility")
        assert len([k for k in entry["params"] if k.startswith("u_")]) == 3 * levels
        chosen = select(
            world["probed"], budget="25%", out=out / "selection", strategy="allocate", law=law / "law.json",
            resamples=0, form="utility",
        )  # fmt: skip
        shares[levels] = float(np.average(_is_good(_taken(chosen)), weights=_taken(chosen)["length"].to_numpy()))
        arm = train(
            chosen, model=str(world["model"]), corpus=world["prepared"], out=out / "arm", recipe=RECIPE, engine="fake"
        )
        rows = read_evaluation(evaluate(str(arm), heldout=world["prepared"], out=out / "evaluation", engine="fake"))
        test = [r for r in rows if r["split"] == "test"]
        losses[levels] = sum(r["nll_sum"] for r in test) / sum(r["n_tokens"] for r in test)
    assert shares[1] < 0.75
    assert shares[3] > 0.8
    assert losses[3] < losses[1] - 0.02


def test_a_transformer_learns_from_the_other_half(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A random network learns what all documents share; its own checkpoint of a trained probe is found again."""
    rng = np.random.default_rng(0)
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": _ordered(rng)}) + "\n" for i in range(24))
    )
    model = str(tiny_model_dir)
    prepared = prepare(
        [str(tmp_path / "c.jsonl")], model=model, out=tmp_path / "prepared", chunk_tokens=64, min_tokens=16, valid=0,
        test=0, near_duplicates="keep",
    )  # fmt: skip
    scores = score(prepared, model=model, out=tmp_path / "scores", dtype="float32")
    recipe = Recipe(learning_rate=3e-3, warmup_tokens=64, step_tokens=128)
    out = probe(scores, model=model, corpus=prepared, tokens=1000, out=tmp_path / "p", recipe=recipe, dtype="float32")
    learned = Pool.read(out).second
    assert (learned > 0.5).all()
    assert learned.max() < np.log(400)


def test_halves_follow_from_the_names_alone() -> None:
    names = pa.array([f"d{i}" for i in range(2000)])
    found = half_of(names, 0)
    assert (found[::-1] == half_of(names.take(pa.array(np.arange(2000)[::-1])), 0)).all()
    assert abs(found.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert (found != half_of(names, 1)).mean() == pytest.approx(0.5, abs=0.06)
