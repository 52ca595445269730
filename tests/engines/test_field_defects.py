"""Defects that perplexity tools are known for: each is committed here in a line or two, and ours is right beside it.

docs/scoring.md lists them all with their tests; those on BOS, windows, bytes and dtypes are in the files next to this.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import tomllib
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from architectures import Reference, build, chunks_of
from spawned import score_and_hash

from pplscape import schema
from pplscape.engines.base import Ids, Nll
from pplscape.engines.fake import FakeEngine
from pplscape.engines.transformers import TransformersEngine
from pplscape.scoring import score_part
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build("llama-untied", tiny_tokenizer_dir, tmp_path_factory.mktemp("defects"))


@pytest.fixture(scope="module")
def engine(folder: str) -> TransformersEngine:
    return TransformersEngine(folder, dtype="float32")


@pytest.fixture(scope="module")
def reference(folder: str) -> Reference:
    return Reference(folder)


def test_targets_are_the_next_tokens(engine: TransformersEngine, reference: Reference) -> None:
    """lighteval #1252: logits compared with the token they were computed from, not with the one that follows."""
    (chunk,) = chunks_of(300, lengths=(64,))
    ids = torch.tensor([*engine.prefix, *chunk.tolist()])
    log_p = reference.log_p(ids.tolist())
    unshifted = -log_p[1:].gather(1, ids[1:, None])[:, 0].numpy()
    shifted = -log_p[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    (found,) = engine.nll([chunk])
    np.testing.assert_allclose(found, shifted, atol=1e-4)
    assert abs(unshifted.mean() - found.mean()) > 0.1


def test_padding_is_not_scored(engine: TransformersEngine, reference: Reference) -> None:
    """axolotl #3988: the pads of a batch enter its mean."""
    chunks = chunks_of(300, lengths=(64, 5, 9))
    found = engine.nll(chunks)
    assert [len(f) for f in found] == [64, 5, 9]
    pad = engine.tokenizer.eos_token_id
    rows = [[*engine.prefix, *c.tolist(), *[pad] * (64 - len(c))] for c in chunks]
    padded = [reference.nll(row).mean() for row in rows]
    right = [reference.nll([*engine.prefix, *c.tolist()]).mean() for c in chunks]
    np.testing.assert_allclose([f.mean() for f in found], right, atol=1e-4)
    assert max(abs(np.subtract(padded, right))) > 0.1


def test_the_corpus_mean_does_not_depend_on_batches(engine: TransformersEngine) -> None:
    """mlx-lm #1855, lm-eval #704: a mean of the batches' means weighs short batches too much. We store sums."""
    chunks = chunks_of(300, lengths=(64, 3, 40, 5, 17, 2))
    found = engine.nll(chunks)
    tokens = sum(len(f) for f in found)
    means = set()
    for size in (1, 2, 3):
        batches = [engine.nll(chunks[i : i + size]) for i in range(0, len(chunks), size)]
        total = sum(float(f.sum(dtype=np.float64)) for batch in batches for f in batch)
        assert total / tokens == pytest.approx(np.concatenate(found).mean(dtype=np.float64), abs=1e-5)
        means.add(round(float(np.mean([np.concatenate(batch).mean() for batch in batches])), 3))
    assert len(means) == 3, "the mean of means depends on the batch size"


def test_losses_are_divided_by_what_was_scored(engine: TransformersEngine, reference: Reference) -> None:
    """perplexity-correlations: a sum over T - 1 targets divided by T. Ours is stored with its own count."""
    texts = ["The quick brown fox"]
    for bos, missing in (("auto", 0), ("none", 1)):
        one = TransformersEngine(reference.model.name_or_path, dtype="float32", bos=bos)
        (ids,) = one.encode(texts)
        row = {"doc_id": "0", "chunk_index": 0, "char_start": 0, "char_end": 19, "length": len(ids), "n_bytes": 19,
               "source": "s"}  # fmt: skip
        (scored,) = score_part(one, pa.Table.from_pylist([row], schema=schema.CHUNKS), texts)[0].to_pylist()
        expected = reference.nll([*one.prefix, *ids.tolist()])
        assert scored["n_tokens"] == len(expected) == len(ids) - missing
        assert scored["nll_sum"] / scored["n_tokens"] == pytest.approx(expected.mean(), abs=1e-4)
    slip = expected.sum() / len(ids)
    assert abs(slip - expected.mean()) > 0.01


def test_long_texts_are_not_cut(engine: TransformersEngine, reference: Reference) -> None:
    """HF evaluate #332: texts cut to a default length. (A truncating tokenizer.json: test_bos_windows_bytes.py)"""
    text = "Patients with heart failure were treated with a beta blocker. " * 8
    (ids,) = engine.encode([text])
    assert len(ids) > 60
    (found,) = engine.nll([ids])
    expected = reference.nll([*engine.prefix, *ids.tolist()])
    assert found.mean(dtype=np.float64) == pytest.approx(expected.mean(), abs=1e-4)
    assert abs(expected[:20].mean() - expected.mean()) > 0.01


def test_left_padding_without_a_mask_would_change_scores(engine: TransformersEngine, reference: Reference) -> None:
    """HF evaluate #636: pads before a text are read as text."""
    (chunk,) = chunks_of(300, lengths=(16,))
    (found,) = engine.nll([chunk, chunks_of(300, seed=1, lengths=(64,))[0]])[:1]
    right = reference.nll([*engine.prefix, *chunk.tolist()])
    pads = [engine.tokenizer.eos_token_id] * 48
    left = reference.nll([*pads, *engine.prefix, *chunk.tolist()])[len(pads) :]
    np.testing.assert_allclose(found, right, atol=1e-4)
    assert abs(left - right).mean() > 0.01


class Failing(FakeEngine):
    """Cannot score every second chunk."""

    def nll(self, chunks: list[Ids], contexts: list[Ids] | None = None) -> list[Nll]:  # type: ignore[override]
        found = super().nll(chunks, contexts)
        return [np.full_like(f, np.inf) if i % 2 else f for i, f in enumerate(found)]


def test_a_failure_is_not_a_loss_of_zero(tiny_tokenizer_dir: Path) -> None:
    """Superfiltering: `except: return 0`, and what failed looks like the best text. Ours is rejected and counted."""
    engine = Failing(str(tiny_tokenizer_dir))
    texts = ["the dog", "the fox", "the court", "the loss"]
    rows = [
        {"doc_id": t, "chunk_index": 0, "char_start": 0, "char_end": len(t), "length": len(ids), "n_bytes": len(t),
         "source": "s"}
        for t, ids in zip(texts, engine.encode(texts), strict=True)
    ]  # fmt: skip
    scores, rejected = score_part(engine, pa.Table.from_pylist(rows, schema=schema.CHUNKS), texts)
    naive = [np.nan_to_num(f.sum(), posinf=0) for f in engine.nll(engine.encode(texts))]
    assert texts[int(np.argmin(naive))] in rejected["doc_id"].to_pylist()
    assert min(scores["nll_sum"].to_pylist()) > 0
    assert rejected["reason"].to_pylist() == ["not_finite"] * 2
    assert scores.num_rows + rejected.num_rows == len(texts)


def test_cross_entropy_is_taken_in_float32(folder: str, reference: Reference) -> None:
    """verl #6280: log-probabilities rounded to bfloat16 are off by 2^-8 of themselves, whatever the forward pass."""
    ours = TransformersEngine(folder, dtype="bfloat16")
    chunks = chunks_of(300, lengths=(64,) * 4)
    expected = np.concatenate([reference.nll([*ours.prefix, *c.tolist()]) for c in chunks])
    found = np.concatenate(ours.nll(chunks))
    rounded = torch.from_numpy(found).bfloat16().float().numpy()
    assert len(np.unique(found)) > 0.95 * len(found) > len(np.unique(rounded))
    assert abs(found - expected).mean() < abs(rounded - expected).mean()


def test_new_positions_alone_do_not_isolate_packed_documents(engine: TransformersEngine, reference: Reference) -> None:
    """Position ids that start again, an attention that does not: the second document reads the first."""
    first, second = chunks_of(300, lengths=(20, 20))
    rows = [[*engine.prefix, *c.tolist()] for c in (first, second)]
    positions = torch.tensor([[*range(21), *range(21)]])
    with torch.inference_mode():
        logits = reference.model(
            input_ids=torch.tensor([rows[0] + rows[1]]), position_ids=positions,
            attention_mask=torch.ones(1, 42, dtype=torch.long),
        ).logits[0, 21:]  # fmt: skip
    leaking = -torch.log_softmax(logits.double(), -1)[:-1].gather(1, torch.tensor(rows[1])[1:, None])[:, 0].numpy()
    alone = reference.nll(rows[1])
    np.testing.assert_allclose(engine.nll([first, second])[1], alone, atol=1e-4)
    assert abs(leaking - alone).mean() > 0.01


def test_nothing_is_kept_for_a_backward_pass(engine: TransformersEngine) -> None:
    """perplexity-correlations: no `no_grad`, so that every activation stays in memory."""
    kept: list[bool] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda m, i, o: kept.append(o.requires_grad))
    engine.nll(chunks_of(300, lengths=(8,)))
    hook.remove()
    assert kept == [False]


def test_short_documents_do_not_win(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    """dsir PR #3: ranked by a document's likelihood, the shortest are the best. Ours has a least length and a mean."""
    words = ["patients", "court", "fox", "the", "treated", "dog", "loss"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, n)) for n in (2, 3, 60, 80, 100, 120)]
    rows = [json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)]
    (tmp_path / "in.jsonl").write_text("".join(rows))
    prepared = prepare(
        [str(tmp_path / "in.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "prepared", chunk_tokens=512,
        min_tokens=16, valid=0, test=0, near_duplicates="keep",
    )  # fmt: skip
    out = score(prepared, model=str(tiny_tokenizer_dir), engine="fake", out=tmp_path / "scores")
    table = pq.read_table(out / "part-00000.parquet").to_pylist()
    assert {r["doc_id"] for r in table} == {"2", "3", "4", "5"}
    engine = FakeEngine(str(tiny_tokenizer_dir))
    sums = [float(f.sum()) for f in engine.nll(engine.encode(texts))]
    assert sorted(np.argsort(sums)[:2]) == [0, 1], "by their sums the shortest would win"


def test_dependencies_can_be_installed_beside_others() -> None:
    """Data-Juicer #656, #726: exact and upper bounds that no solver can satisfy. Ours are lower bounds only; the tested
    versions stand in constraints.txt, for those who want them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    bound = re.compile(r"[\w.-]+(\[[\w,-]+\])?(>=[\d.]+)?( *;.*)?")
    assert [w for w in wanted if not bound.fullmatch(w)] == []
    assert not bound.fullmatch("torch==2.13.0")
    assert not bound.fullmatch("numpy>=1.26,<2.2")


def test_processes_need_not_be_forked(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    """Tools that only work where a process is forked fail on macOS, on Windows and with CUDA."""
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "' + "the quick brown fox " * 20 + '"}\n')
    prepared = prepare(
        [str(tmp_path / "in.jsonl")], model=str(tiny_tokenizer_dir), out=tmp_path / "prepared", chunk_tokens=64,
        min_tokens=16, valid=0, test=0,
    )  # fmt: skip
    arguments = [(str(prepared), str(tiny_tokenizer_dir), str(tmp_path / name)) for name in ("here", "there")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(score_and_hash, arguments[1]) == score_and_hash(*arguments[0])
