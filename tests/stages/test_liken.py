"""liken: what the words say that perplexity does not, and laws on levels of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import WORDS, documents, planted, without_order

from pplscape.draw.pool import Pool
from pplscape.errors import UserError
from pplscape.manifest import read_json, read_manifest
from pplscape.schema import LIKENED
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.liken import liken, summary
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.probe import probe
from pplscape.stages.select import select
from pplscape.text.prepared import Prepared
from pplscape.training.schedule import Recipe

pytestmark = pytest.mark.usefixtures("figures_never_saved")
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=64, step_tokens=256)


def _text(step: int, rng: np.random.Generator) -> str:
    """Each word `step` after the one before, nine times in ten: the same words in either direction, other pairs."""
    at, found = int(rng.integers(len(WORDS))), []
    for _ in range(100):
        at = (at + step * (1 + int(rng.random() < 0.1))) % len(WORDS)
        found.append(WORDS[at])
    return " ".join(found)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> dict[str, Path]:
    """A pool of which two fifths are of another domain, as predictable as ours; measured on ours."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    read = without_order(rng)
    pool = documents("ours", [_text(1, rng) for _ in range(120)]) + documents(
        "theirs", [_text(-1, rng) for _ in range(80)]
    )
    rng.shuffle(pool)
    held = documents("held", [_text(1, rng) for _ in range(40)])
    (folder / "theirs.txt").write_text(_text(-1, rng))
    found = planted(folder, tiny_tokenizer_dir, pool, held, read)
    found["likened"] = liken(found["scores"], corpus=found["prepared"], out=folder / "likened")
    return found


def _table(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(f) for f in sorted(folder.glob("part-*.parquet"))])


def _is_ours(table: pa.Table) -> np.ndarray:
    return np.array([d.startswith("ours") for d in table["doc_id"].to_pylist()])


def _ngrams(text: str) -> list[int]:
    """Buckets, written again: SHA-256 of words and pairs of words, modulo 10,000."""
    words = text.split()
    return [int(sha256(n.encode()).hexdigest(), 16) % 10_000 for n in [*words, *map(" ".join, pairwise(words))]]


def _share(texts: list[str]) -> Callable[[int], float]:
    """Of a bucket, from counts with half a count more in each of the 10,000."""
    counts = Counter(b for t in texts for b in _ngrams(t))
    return lambda b: (counts[b] + 0.5) / (counts.total() + 5000)


def test_likeness_is_the_mean_log_ratio_of_ngrams(world: dict[str, Path]) -> None:
    """Against counts made here, n-gram by n-gram; the target is the corpus' valid text."""
    before, after = _table(world["scores"]), _table(world["likened"])
    assert after.schema.equals(LIKENED)
    assert after.drop_columns(["likeness"]).equals(before)
    assert len(sorted(world["scores"].glob("part-*"))) > 1
    corpus = Prepared(world["prepared"])
    texts = corpus.texts("pool", after)
    target = _share([t for k in corpus.parts("valid") for t in corpus.part("valid", k)[1]])
    pool = _share(texts)
    expected = [np.mean([log(target(b)) - log(pool(b)) for b in _ngrams(text)]) for text in texts]
    np.testing.assert_allclose(after["likeness"].to_numpy(), expected, rtol=1e-9)
    assert "Likeness" in summary(world["likened"])
    counts = read_manifest(world["likened"])["counts"]
    assert counts["in"] == counts["out"] == len(before)


def test_words_tell_what_perplexity_does_not(world: dict[str, Path]) -> None:
    table, pool = _table(world["likened"]), Pool.read(world["likened"])
    ours = _is_ours(table)
    x = table["nll_sum"].to_numpy() / table["n_tokens"].to_numpy()
    rank = np.argsort(np.argsort(x))
    assert 0.3 < (rank[ours].mean() - (ours.sum() - 1) / 2) / (~ours).sum() < 0.7
    likeness = table["likeness"].to_numpy()
    assert likeness[ours].min() > likeness[~ours].max()
    assert (pool.axis, len(pool.second)) == ("likeness", len(table))


def test_another_target_turns_it_round(world: dict[str, Path], tmp_path: Path) -> None:
    out = liken(
        world["scores"], corpus=world["prepared"], out=tmp_path / "l", target=[str(world["folder"] / "theirs.txt")]
    )
    table = _table(out)
    likeness, ours = table["likeness"].to_numpy(), _is_ours(table)
    assert likeness[ours].max() < likeness[~ours].min()


def _law(world: dict[str, Path], out: Path, levels: int) -> Path:
    """The law of the utility form on bins of perplexity, or those cut by likeness."""
    model: Any = {"model": str(world["model"]), "engine": "fake"}
    seen = landscape(world["likened"], budget="25%", out=out / "landscape", n_bins=3, levels=levels)
    planned = plan(seen, budget="25%", pilot_tokens=60_000, out=out / "plan", designed=9, recipe=RECIPE)
    runs = pilot(planned, **model, scores=world["likened"], corpus=world["prepared"], out=out / "pilots")
    return fit(runs, out=out / "law", forms=["d-only", "utility"], bootstrap=0, landscape=seen) / "law.json"


def test_a_law_on_levels_takes_the_right_domain(world: dict[str, Path], tmp_path: Path) -> None:
    shares = {}
    for levels in (1, 3):
        law = _law(world, tmp_path / f"{levels}", levels)
        chosen = select(
            world["likened"], budget="25%", out=tmp_path / f"{levels}" / "selection", strategy="allocate", law=law,
            resamples=0, form="utility",
        )  # fmt: skip
        taken = _table(chosen / "selected")
        shares[levels] = float(np.average(_is_ours(taken), weights=taken["length"].to_numpy()))
    assert shares[1] < 0.75
    assert shares[3] > 0.8
    assert read_json(law, "fit")["bins"]["axis"] == "likeness"
    assert "likeness 3 of 3" in (tmp_path / "3" / "selection" / "summary.md").read_text()
    probed = probe(
        world["scores"], model=str(world["model"]), corpus=world["prepared"], out=tmp_path / "probed", engine="fake",
        tokens=3000, recipe=RECIPE,
    )  # fmt: skip
    for scores, held in ((probed, "hold learnability"), (world["scores"], "hold no second axis")):
        with pytest.raises(UserError, match=f"cut by likeness too, the scores {held}"):
            select(scores, budget="25%", out=tmp_path / "x", strategy="allocate", law=law, resamples=0, form="utility")
    with pytest.raises(UserError, match="second axis already"):
        liken(probed, corpus=world["prepared"], out=tmp_path / "y")
    with pytest.raises(UserError, match="second axis already"):
        probe(
            world["likened"],
            model=str(world["model"]),
            corpus=world["prepared"],
            out=tmp_path / "z",
            engine="fake",
            tokens=9,
        )


def test_refusals(world: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(UserError, match="target text holds no word"):
        liken(world["scores"], corpus=world["prepared"], out=tmp_path / "a", target=[str(tmp_path / "empty.txt")])
    with pytest.raises(UserError, match=r"pplscape liken. or .pplscape probe"):
        landscape(world["scores"], budget="10%", out=tmp_path / "l", levels=2)
    with pytest.raises(UserError, match="Strategy learnable needs the scores that `pplscape probe`"):
        select(world["likened"], budget="10%", out=tmp_path / "x", strategy="learnable")
    some = prepare(
        [str(world["folder"] / "held.jsonl")], model=str(world["model"]), out=tmp_path / "other", chunk_tokens=64,
        min_tokens=16, valid=500, test=0, near_duplicates="keep", overlap_share=1.0,
    )  # fmt: skip
    for scores in (world["scores"], world["likened"]):
        with pytest.raises(UserError, match="not the corpus these scores were made of"):
            select(scores, budget="10%", out=tmp_path / "x", strategy="random", corpus=some)
    with pytest.raises(UserError, match="not the corpus these scores were made of"):
        liken(world["scores"], corpus=some, out=tmp_path / "b")
    with pytest.raises(UserError, match="not the output of a finished stage"):
        liken(next(world["scores"].glob("part-*")), corpus=world["prepared"], out=tmp_path / "b")
    assert not (tmp_path / "b.partial").exists()
