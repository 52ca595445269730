"""Keys from text: the definitions by hand on a prepared corpus, resume, any number of parts; and `select` with them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pplscape.draw import dsir, textual
from pplscape.draw.permanent import hash_documents
from pplscape.draw.stream import read_selected
from pplscape.engines.base import encode
from pplscape.errors import UserError
from pplscape.manifest import StageFolder
from pplscape.schema import SCORES
from pplscape.stages.prepare import prepare
from pplscape.stages.select import select
from pplscape.text.prepared import Prepared
from pplscape.text.tokenizer import load_tokenizer

TOPICS = {
    "m": "patients heart failure beta blocker treated weeks the of with were",
    "l": "court appeal dismissed the of cases decided judge law with",
}


def make(folder: Path, tokenizer: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two topics in equal parts, told apart by id; a tenth of the documents is one word again and again."""
    rng, topics = np.random.default_rng(0), list(TOPICS.items())
    rows = []
    for i in range(90):
        topic, words = topics[i % 2]
        again = i % 10 == 9
        text = " ".join(["loss"] * 150 if again else rng.choice(words.split(), rng.integers(60, 150)))
        rows.append({"id": f"{'x' if again else topic}{i}", "text": text})
    folder.mkdir()
    (folder / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "target.txt").write_text(" ".join(rng.choice(TOPICS["m"].split(), 2000)))
    monkeypatch.setattr("pplscape.text.write.PART_BYTES", part_bytes)
    return prepare(
        [str(folder / "c.jsonl")], model=str(tokenizer), out=folder / "prepared", chunk_tokens=64, min_tokens=16,
        valid=0.1, test=0.1, near_duplicates="keep",
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> tuple[Path, Path]:
    """The same corpus in one part and in many."""
    base = tmp_path_factory.mktemp("corpora")
    with pytest.MonkeyPatch.context() as patch:
        one = make(base / "one", tiny_tokenizer_dir, 10**7, patch)
        many = make(base / "many", tiny_tokenizer_dir, 4000, patch)
    assert len(Prepared(one).parts("pool")) == 1
    assert len(Prepared(many).parts("pool")) > 5
    return one, many


def pool_of(corpus: Path) -> tuple[pa.Table, list[str]]:
    prepared = Prepared(corpus)
    found = [prepared.part("pool", k) for k in prepared.parts("pool")]
    return pa.concat_tables([c for c, _ in found]), [t for _, texts in found for t in texts]


def keys(strategy: str, corpus: Path, folder: Path, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Keys in corpus order, and facts."""
    chunks, _ = pool_of(corpus)
    found, facts = textual.keys_for(strategy, Prepared(corpus), folder, **options)
    doc = hash_documents(chunks["doc_id"].combine_chunks())
    return found.of(doc, chunks["chunk_index"].to_numpy()), facts


def test_prior_keys_by_definition(corpora: tuple[Path, Path], tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    _, texts = pool_of(corpora[0])
    chunks = [i.tolist() for i in encode(load_tokenizer(str(tiny_tokenizer_dir)), texts)]
    tf, df = Counter(t for c in chunks for t in c), Counter(t for c in chunks for t in set(c))
    total = sum(tf[t] * df[t] for t in tf)
    mean = np.array([np.mean([np.log(tf[t] * df[t] / total) for t in c]) for c in chunks])
    spread = np.array([np.std([tf[t] * df[t] / total for t in c], ddof=1) for c in chunks])
    found, facts = keys("unigram", corpora[0], tmp_path / "t", model=str(tiny_tokenizer_dir))
    exact = np.maximum(*(np.abs((np.searchsorted(np.sort(v), v) + 0.5) / len(v) - 0.5) for v in (mean, spread)))
    np.testing.assert_allclose(found, exact, atol=0.02)  # ranks are straight lines inside a cell of the histogram
    assert facts == {"tokens": sum(tf.values()), "distinct_tokens": len(tf)}


def test_importance_keys_by_definition(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    chunks, texts = pool_of(corpora[0])
    target = [str(corpora[0].parent / "target.txt")]
    ratio = dsir.log_ratio(dsir.count([Path(target[0]).read_text()]), dsir.count(texts))
    weight = np.array([ratio[dsir.buckets(t)].sum() for t in texts])
    short = chunks["length"].to_numpy() < 32
    assert short.any()
    weight[short] = weight[~short].min() - dsir.BEHIND
    found, facts = keys("dsir", corpora[0], tmp_path / "t", target=target)
    np.testing.assert_allclose(found, weight, rtol=1e-12)
    assert facts["short_chunks"] == short.sum()


@pytest.mark.parametrize("strategy", ["unigram", "dsir"])
def test_parts_and_kills_change_nothing(
    strategy: str, corpora: tuple[Path, Path], tiny_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(tiny_tokenizer_dir)
    one, facts = keys(strategy, corpora[0], tmp_path / "one", model=model)
    part, read = Prepared.part, []

    def dies(self: Prepared, split: str, k: int) -> Any:
        if split == "pool":
            if len(read) == 3:
                raise KeyboardInterrupt
            read.append(k)
        return part(self, split, k)

    monkeypatch.setattr(Prepared, "part", dies)
    with pytest.raises(KeyboardInterrupt):
        textual.keys_for(strategy, Prepared(corpora[1]), tmp_path / "many", model)

    def counts(self: Prepared, split: str, k: int) -> Any:
        assert split != "pool" or k not in read, "a part that was done is not read again"
        return part(self, split, k)

    monkeypatch.setattr(Prepared, "part", counts)
    textual.keys_for(strategy, Prepared(corpora[1]), tmp_path / "many", model)
    monkeypatch.setattr(Prepared, "part", part)
    many, again = keys(strategy, corpora[1], tmp_path / "many", model=model)
    np.testing.assert_allclose(many, one, rtol=1e-12)
    assert again == facts


def scores_of(corpus: Path, folder: Path, parts: int = 1) -> Path:
    chunks, _ = pool_of(corpus)
    rng = np.random.default_rng(0)
    extra = {"n_tokens": chunks["length"], "nll_sum": pa.array(rng.normal(200, 30, len(chunks)))}
    table = pa.table({f.name: extra[f.name] if f.name in extra else chunks[f.name] for f in SCORES}).cast(SCORES)
    table = table.take(rng.permutation(len(table))) if parts > 1 else table
    size = -(-len(table) // parts)
    with StageFolder(folder, stage="score", version=1, config={}, inputs={}) as stage:
        for i in range(parts):
            stage.write_table(f"part-{i:05d}.parquet", table.slice(i * size, size))
        stage.finish({"in": len(table), "out": len(table), "facts": {}})
    return folder


def test_select_unigram(corpora: tuple[Path, Path], tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = {"strategy": "unigram", "budget": "50%", "model": str(tiny_tokenizer_dir)}
    first = select(scores_of(corpora[0], tmp_path / "s1"), corpus=corpora[0], out=tmp_path / "o1", **told)
    second = select(scores_of(corpora[1], tmp_path / "s2", 4), corpus=corpora[1], out=tmp_path / "o2", **told)
    taken = read_selected(first)
    assert taken.drop_columns(["nll"]).equals(read_selected(second).drop_columns(["nll"]))
    assert not any(d.startswith("x") for d in taken["doc_id"].to_pylist()), "repetitions are not ordinary"
    content = json.loads((first / "selection.json").read_text())
    assert 0 <= content["budget"] - content["tokens"] < 64
    assert content["draw"]["text"]["tokens"] == sum(pool_of(corpora[0])[0]["length"].to_pylist())
    assert set(taken["reason"].to_pylist()) == {"unigram"}
    assert not (first / textual.FOLDER).exists()
    assert list((first / "subset").iterdir())
    whole = select(
        tmp_path / "s1", corpus=corpora[0], out=tmp_path / "w", whole_documents=True, **told | {"budget": "70%"}
    )
    names = read_selected(whole)["doc_id"].to_pylist()
    assert Counter(names) == {
        d: n for d, n in Counter(pool_of(corpora[0])[0]["doc_id"].to_pylist()).items() if d in names
    }


def test_select_dsir_draws_towards_the_target(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    scores, target = scores_of(corpora[0], tmp_path / "s"), [str(corpora[0].parent / "target.txt")]
    out = select(scores, strategy="dsir", budget="30%", corpus=corpora[0], target=target, out=tmp_path / "o")
    ids = read_selected(out)["doc_id"].to_pylist()
    assert {d[0] for d in ids} == {"m"}
    other = select(scores, strategy="dsir", budget="30%", corpus=corpora[0], out=tmp_path / "v")  # valid: both topics
    assert {d[0] for d in read_selected(other)["doc_id"].to_pylist()} >= {"m", "l"}
    manifests = [json.loads((o / "manifest.json").read_text()) for o in (out, other)]
    assert manifests[0]["inputs"].keys() - manifests[1]["inputs"].keys() == {"target/target.txt"}


def test_bad_requests(corpora: tuple[Path, Path], tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    scores = scores_of(corpora[0], tmp_path / "s")
    with pytest.raises(UserError, match="Strategy dsir reads the text: pass --corpus"):
        select(scores, strategy="dsir", budget="30%", out=tmp_path / "o")
    with pytest.raises(UserError, match="Cannot load the tokenizer"):
        select(scores, strategy="unigram", budget="30%", corpus=corpora[0], out=tmp_path / "o")
    (tmp_path / "blank.jsonl").write_text(json.dumps({"text": " "}) + "\n")
    with pytest.raises(UserError, match="holds no word"):
        select(
            scores, strategy="dsir", budget="30%", corpus=corpora[0], target=[str(tmp_path / "blank.jsonl")],
            out=tmp_path / "o",
        )  # fmt: skip
    assert pq.read_table(scores / "part-00000.parquet").num_rows


def test_likeness_reads_scripts_without_spaces() -> None:
    """Two topics with signs of their own, no clause twice: whole clauses as words tell nothing, signs everything."""
    assert dsir.words_and_signs("Gene BRCA1，基因突變。") == ["gene", "brca1", "，", *"基因突變", "。"]
    assert dsir.words_and_signs("naïve café: TP53!") == dsir.words("naïve café: TP53!")
    rng = np.random.default_rng(0)

    def text(first: int) -> str:
        return "，".join("".join(map(chr, rng.integers(first, first + 300, rng.integers(5, 15)))) for _ in range(20))

    pool = [text(0x4E00) for _ in range(40)] + [text(0x5E00) for _ in range(40)]
    target, found = [text(0x4E00) for _ in range(40)], {}
    for split in (dsir.words, dsir.words_and_signs):
        ratio = dsir.smoothed_log_ratio(dsir.count(target, split), dsir.count(pool, split))
        flat = [dsir.buckets(t, split) for t in pool]
        likeness = dsir.likeness(ratio, np.concatenate(flat), np.array([len(f) for f in flat]))
        found[split] = float((likeness[:40, None] > likeness[40:]).mean())
    assert found[dsir.words_and_signs] > 0.99
    assert found[dsir.words] < 0.8
