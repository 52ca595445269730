"""locate: where a target text lies on the landscape, told by its other documents; and `select --toward`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import WORDS, documents, planted, without_order
from typer.testing import CliRunner

from pplscape.cli import app
from pplscape.draw import dsir
from pplscape.draw.crossfit import GRID, folds, likeness_across
from pplscape.errors import UserError
from pplscape.manifest import read_json
from pplscape.schema import LIKENED
from pplscape.stages import locate as stage
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.liken import liken
from pplscape.stages.locate import locate
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.text.prepared import Prepared
from pplscape.training.schedule import Recipe

pytestmark = pytest.mark.usefixtures("figures_never_saved")


def _ours(rng: np.random.Generator) -> str:
    """Documents of one domain, each with words of its own that it repeats from chunk to chunk."""
    own = [f"{WORDS[int(rng.integers(len(WORDS)))]}{int(rng.integers(400))}" for _ in range(4)]
    return " ".join(" ".join(rng.permutation([*own, *rng.choice(WORDS[:6], 12)])) for _ in range(8))


def _theirs(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS[6:], 100))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> dict[str, Path]:
    """A pool of which two fifths are another domain; the target is of ours alone."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    read = without_order(rng)
    pool = documents("ours", [_ours(rng) for _ in range(120)])
    pool += documents("theirs", [_theirs(rng) for _ in range(80)])
    rng.shuffle(pool)
    found = planted(folder, tiny_tokenizer_dir, pool, documents("held", [_ours(rng) for _ in range(60)]), read)
    found["likened"] = liken(found["scores"], corpus=found["prepared"], out=folder / "likened")
    found["target"] = score(
        found["prepared"], model=str(found["model"]), engine="fake", out=folder / "target", split="valid"
    )
    found["located"] = locate(
        found["target"], text=found["prepared"], scores=found["likened"], corpus=found["prepared"],
        out=folder / "located",
    )  # fmt: skip
    return found


def _table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("part-*.parquet"))])


def test_the_targets_chunks_keep_their_scores(world: dict[str, Path]) -> None:
    scored, found = _table(world["target"]), _table(world["located"])
    assert found.schema.equals(LIKENED)
    assert found.drop_columns(["likeness"]).equals(scored)
    assert set(scored["source"].to_pylist()) == {"held"}


def test_a_target_is_as_like_itself_as_other_text_of_its_domain(world: dict[str, Path]) -> None:
    """Not more: the chunks' own words are not counted. Against the likeness that counting them would give."""
    pool, target = _table(world["likened"]), _table(world["located"])
    ours = np.array([d.startswith("ours") for d in pool["doc_id"].to_pylist()])
    of_pool = pool["likeness"].to_numpy()[ours]
    rank = np.mean(target["likeness"].to_numpy()[:, None] > of_pool)
    assert 0.35 < rank < 0.65
    texts = _texts(world, "valid", target)
    naive = dsir.smoothed_log_ratio(
        dsir.count(texts, dsir.words_and_signs), dsir.count(_texts(world, "pool", pool), dsir.words_and_signs)
    )
    counted = [dsir.buckets(t, dsir.words_and_signs) for t in texts]
    told = [float(naive[b].mean()) for b in counted]
    assert np.mean(np.array(told)[:, None] > of_pool) > rank + 0.2


def _texts(world: dict[str, Path], split: str, chunks: pa.Table) -> list[str]:
    return Prepared(world["prepared"]).texts(split, chunks)


def test_a_document_is_told_by_the_others() -> None:
    """By hand, for one document: counts of the other folds against the pool with this document, put on the whole
    target's scale by its rank among the pool's chunks."""
    rng = np.random.default_rng(1)
    pool = [rng.integers(0, 40, 30).astype(np.uint16) for _ in range(300)]
    target = [rng.integers(0, 25, 30).astype(np.uint16) for _ in range(20)]
    document = np.repeat(np.arange(10, dtype=np.uint64), 2)

    def count(chunks: list[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate(chunks), minlength=dsir.BUCKETS)

    def mean(ratio: np.ndarray, chunk: np.ndarray) -> float:
        return float(ratio[chunk].mean())

    known = np.array([mean(dsir.smoothed_log_ratio(count(target), count(pool)), c) for c in pool])
    found = likeness_across(target, document, pool, known)
    rest = [t for t, f in zip(target, folds(document), strict=True) if f != folds(document)[6]]
    here = [mean(dsir.smoothed_log_ratio(count(rest), count(pool)), c) for c in pool]
    own = dsir.smoothed_log_ratio(count(rest), count([*pool, target[6], target[7]]))
    for i in (6, 7):
        rank = np.interp(mean(own, target[i]), np.quantile(here, GRID), GRID)
        assert found[i] == pytest.approx(np.quantile(known, rank), abs=1e-3)


def test_documents_are_not_cut_by_folds() -> None:
    document = np.array([7, 7, 3, 3, 3, 9, 1], dtype=np.uint64)
    fold = folds(document)
    assert fold.tolist() == [2, 2, 1, 1, 1, 3, 0]
    with pytest.raises(UserError, match="one document"):
        folds(np.array([7, 7], dtype=np.uint64))


def test_a_sample_of_a_large_pool_says_nearly_as_much(
    world: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SAMPLE", 150)
    out = locate(
        world["target"], text=world["prepared"], scores=world["likened"], corpus=world["prepared"], out=tmp_path / "l"
    )
    told = read_json(out / "manifest.json", "locate")["counts"]["facts"]["locate"]["pool_chunks"]
    assert 100 < told < 200
    pool = _table(world["likened"])
    ours = np.array([d.startswith("ours") for d in pool["doc_id"].to_pylist()])
    rank = np.mean(_table(out)["likeness"].to_numpy()[:, None] > pool["likeness"].to_numpy()[ours])
    assert 0.3 < rank < 0.7


def test_a_selection_keeps_to_the_targets_mix(world: dict[str, Path], tmp_path: Path) -> None:
    """With much hedge the law hardly counts: the pool's mix is two fifths theirs, the target's has little of it."""
    model: Any = {"model": str(world["model"]), "engine": "fake"}
    seen = landscape(world["likened"], budget="25%", out=tmp_path / "landscape", n_bins=3, levels=3)
    recipe = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=256)
    planned = plan(seen, budget="25%", pilot_tokens=60_000, out=tmp_path / "plan", designed=9, recipe=recipe)
    runs = pilot(planned, **model, scores=world["likened"], corpus=world["prepared"], out=tmp_path / "pilots")
    law = fit(runs, out=tmp_path / "law", forms=["utility"], bootstrap=0, landscape=seen) / "law.json"
    shares, told = {}, {}
    for name, toward in (("pool", None), ("target", world["located"]), ("scores", world["target"])):
        chosen = select(
            world["likened"], budget="25%", out=tmp_path / name, strategy="allocate", law=law, resamples=0, hedge=50.0,
            toward=toward,
        )  # fmt: skip
        taken = _table(chosen / "selected")
        theirs = [d.startswith("theirs") for d in taken["doc_id"].to_pylist()]
        shares[name] = float(np.average(theirs, weights=taken["length"].to_numpy()))
        told[name] = read_json(chosen / "selection.json", "select")["draw"]["toward"]
        mix = "the pool's mix" if toward is None else "the target text's mix"
        assert f"hedged with strength 50 towards {mix}" in (chosen / "summary.md").read_text()
    free = select(
        world["likened"],
        budget="25%",
        out=tmp_path / "free",
        strategy="matched",
        landscape=seen,
        toward=world["located"],
    )  # fmt: skip - bins of the landscape: no pilots, no law
    by_law = select(
        world["likened"], budget="25%", out=tmp_path / "by-law", strategy="matched", law=law, toward=world["located"]
    )
    assert _table(free / "selected").equals(_table(by_law / "selected"))
    with pytest.raises(UserError, match="--landscape or --law"):
        select(world["likened"], budget="25%", out=tmp_path / "none", strategy="matched", toward=world["located"])
    with pytest.raises(UserError, match="cut by likeness too, the scores hold no second axis"):
        select(
            world["scores"], budget="25%", out=tmp_path / "plain", strategy="matched", landscape=seen,
            toward=world["target"],
        )  # fmt: skip
    shut = select(
        world["likened"], budget="25%", out=tmp_path / "auto", law=law, resamples=0, toward=world["located"]
    )  # no resamples, no gate: the law's choice is not taken
    assert read_json(shut / "selection.json", "select")["used"] == "matched"
    theirs = [d.startswith("theirs") for d in _table(shut / "selected")["doc_id"].to_pylist()]
    assert np.mean(theirs) < shares["pool"] / 2
    assert shares["pool"] > 0.2
    assert shares["target"] < shares["pool"] / 2
    assert told["pool"] is None
    assert sum(told["target"]) == pytest.approx(1)
    by_level = np.array(told["scores"]).reshape(3, 3)
    assert np.allclose(by_level, by_level[:, :1], rtol=0.1)  # without likeness a target tells bins alone
    said = {n: read_json(tmp_path / n / "selection.json", "select")["warnings"] for n in told}
    assert any("hold no likeness" in w and "pplscape locate" in w for w in said["scores"])
    assert not any("likeness" in w for w in said["pool"] + said["target"])


def test_refusals(world: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no likeness"):
        locate(
            world["target"], text=world["prepared"], scores=world["scores"], corpus=world["prepared"],
            out=tmp_path / "a",
        )  # fmt: skip
    other = prepare(
        [str(world["folder"] / "held.jsonl")], model=str(world["model"]), out=tmp_path / "other", chunk_tokens=32,
        min_tokens=16, valid=0, test=0, near_duplicates="keep",
    )  # fmt: skip
    with pytest.raises(UserError, match="not the corpus these scores were made of"):
        locate(world["target"], text=other, scores=world["likened"], corpus=world["prepared"], out=tmp_path / "b")
    with pytest.raises(UserError, match="is the output of liken"):
        locate(world["likened"], text=other, scores=world["likened"], corpus=world["prepared"], out=tmp_path / "b")
    with pytest.raises(UserError, match="located among other scores"):
        select(world["scores"], budget="25%", out=tmp_path / "c", strategy="random", toward=world["located"])
    shorter = score(other, model=str(world["model"]), engine="fake", out=tmp_path / "shorter")
    with pytest.raises(UserError, match="scored with another chunk_tokens"):
        select(world["likened"], budget="25%", out=tmp_path / "c", strategy="random", toward=shorter)


def test_the_command(world: dict[str, Path], tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        app,
        ["locate", str(world["target"]), "--text", str(world["prepared"]), "--scores", str(world["likened"]),
         "--corpus", str(world["prepared"]), "--out", str(tmp_path / "l")],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert "chunks of the target" in ran.output
    assert _table(tmp_path / "l").equals(_table(world["located"]))
