"""What stands before a chunk, what is counted, and how many bytes that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from architectures import CONFIGURATIONS, Reference, spread
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, processors

from pplscape import schema
from pplscape.engines.fake import FakeEngine
from pplscape.engines.transformers import TransformersEngine
from pplscape.flow import DEMO_MODEL, model_path
from pplscape.scoring import score_part
from pplscape.text.chunk import Chunker
from pplscape.text.context import left_contexts
from pplscape.text.tokenizer import first_token_bytes, load_tokenizer

TEXT = "Patients with heart failure were treated; the court decided 12 of 345 cases. "
HARD = "naïve e\u0301te\u0301 日本語の文章 👩‍🚀🇩🇪 ﷽ 𝔘𝔫𝔦 \u200bzero ж ا"


def with_bos_and_eos(raw: Tokenizer) -> Any:
    """A template of the tokenizer's own that puts <s> before and </s> after every text."""
    raw.add_special_tokens(["<s>", "</s>"])
    ids = [(t, raw.token_to_id(t)) for t in ("<s>", "</s>")]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def llama_style(raw: Tokenizer) -> Any:
    """Llama's class with add_bos_token: spaces as U+2581, byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"aehopt"]
    merges = [("t", "h"), ("\u2581", "th"), ("th", "e"), ("\u2581", "the"), ("a", "t"), ("p", "at")]
    vocabulary = dict.fromkeys([*pieces, *("".join(m) for m in merges)])
    return transformers.LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=merges, add_bos_token=True
    )


def truncating(raw: Tokenizer) -> Any:
    """A tokenizer.json saved with what some training script had set: 20 tokens, padded on the left."""
    raw.enable_truncation(20)
    raw.enable_padding(direction="left", length=20)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )


KINDS: dict[str, Callable[[Tokenizer], Any]] = {
    "template": with_bos_and_eos,
    "llama": llama_style,
    "truncating": truncating,
}


@pytest.fixture(scope="module")
def folders(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model and a tokenizer of each kind."""
    found = {}
    for kind, make in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = make(Tokenizer.from_file(str(tiny_tokenizer_dir / "tokenizer.json")))
        tokenizer.save_pretrained(folder)
        config = CONFIGURATIONS["llama"](vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id)
        model = transformers.AutoModelForCausalLM.from_config(config)
        spread(model, seed=0)
        model.save_pretrained(folder)
        found[kind] = str(folder)
    return found


def table_of(texts: list[str], engine: TransformersEngine) -> pa.Table:
    """One chunk a text, as `prepare` would write them."""
    rows = [
        {
            "doc_id": str(i), "chunk_index": 0, "char_start": 0, "char_end": len(t), "length": len(ids),
            "n_bytes": len(t.encode()), "source": "s",
        }
        for i, (t, ids) in enumerate(zip(texts, engine.encode(texts), strict=True))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.CHUNKS)


# ---- BOS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_bos_whatever_the_tokenizer_adds(kind: str, folders: dict[str, str]) -> None:
    engine = TransformersEngine(folders[kind], dtype="float32")
    bos = engine.tokenizer.bos_token_id
    (ids,) = engine.encode([TEXT])
    assert len(ids) > 20
    assert not {bos, engine.tokenizer.eos_token_id} & set(ids.tolist())
    if kind != "truncating":
        assert transformers.AutoTokenizer.from_pretrained(folders[kind])(TEXT)["input_ids"][0] == bos, (
            "it would add one"
        )
    reference = Reference(folders[kind])
    (found,) = engine.nll([ids])
    np.testing.assert_allclose(found, reference.nll([bos, *ids.tolist()]), rtol=0, atol=1e-4)
    doubled = reference.nll([bos, bos, *ids.tolist()])[1:]
    assert abs(doubled - found).mean() > 0.01, "the defect would be seen"


def test_policies_choose_the_token(folders: dict[str, str]) -> None:
    """`auto` is BOS even where there is an EOS (lm-eval #1586 took EOS for BOS)."""
    reference = Reference(folders["template"])
    for bos, token in (("auto", "<s>"), ("bos", "<s>"), ("eos", "</s>"), ("none", None)):
        engine = TransformersEngine(folders["template"], dtype="float32", bos=bos)
        assert engine.facts.bos == (token or "none")
        (ids,) = engine.encode([TEXT])
        prefix = [engine.tokenizer.convert_tokens_to_ids(token)] if token else []
        (found,) = engine.nll([ids])
        assert len(found) == len(ids) - (not prefix)
        np.testing.assert_allclose(found, reference.nll([*prefix, *ids.tolist()]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("bos", "begins"), [("auto", "<s>"), ("eos", "</s>")])
def test_a_text_that_begins_with_the_token_gets_no_second(bos: str, begins: str, folders: dict[str, str]) -> None:
    """It is read, not scored, and its bytes are not counted."""
    engine = TransformersEngine(folders["template"], dtype="float32", bos=bos)
    texts = [begins + TEXT, TEXT]
    scores, rejected = score_part(engine, table_of(texts, engine), texts)
    assert rejected.num_rows == 0
    first, second = scores.to_pylist()
    assert first["nll_sum"] == pytest.approx(second["nll_sum"], abs=1e-3)
    assert first["n_tokens"] == second["n_tokens"] == first["length"] - 1 == second["length"]
    assert first["n_bytes"] == second["n_bytes"] == len(TEXT.encode())


@pytest.mark.parametrize("bos", ["auto", "none"])
def test_a_chunk_of_which_nothing_can_be_scored_is_rejected(bos: str, folders: dict[str, str]) -> None:
    engine = TransformersEngine(folders["template"], dtype="float32", bos=bos)
    texts = ["<s>", "the"] if bos == "auto" else ["d", "the dog"]
    scores, rejected = score_part(engine, table_of(texts, engine), texts)
    assert (scores["doc_id"].to_pylist(), rejected["reason"].to_pylist()) == (["1"], ["nothing_scored"])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_count_what_is_scored(kind: str, folders: dict[str, str]) -> None:
    """Lengths from chunking are those of `encode`: a truncating tokenizer.json would have cut documents short."""
    tokenizer = load_tokenizer(folders[kind])
    text = 5 * TEXT
    chunks = Chunker(tokenizer, chunk_tokens=64, min_tokens=8).cut([text])[0]
    assert chunks[-1].char_end == len(text)
    engine = TransformersEngine(folders[kind])
    encoded = engine.encode([text[c.char_start : c.char_end] for c in chunks])
    assert [len(e) for e in encoded] == [c.length for c in chunks]


def test_the_tokenizers_padding_side_has_no_effect(folders: dict[str, str]) -> None:
    found = []
    for side in ("left", "right"):
        engine = TransformersEngine(folders["template"], dtype="float32")
        engine.tokenizer.padding_side = side
        found.append(np.concatenate(engine.nll(engine.encode([TEXT, TEXT[:9], 3 * TEXT]))))
    np.testing.assert_array_equal(*found)


# ---- windows -----------------------------------------------------------------------------------------------------


def windows(engine: TransformersEngine, text: str, chunk_tokens: int, context: int) -> tuple[list[Any], list[Any]]:
    """(ids, NLL) of the chunks of a text, each after BOS and up to `context` tokens of the text before it."""
    chunks = Chunker(engine.tokenizer, chunk_tokens, 1).cut([text])[0]
    ids = engine.encode([text[c.char_start : c.char_end] for c in chunks])
    before = left_contexts([(text, c.char_start) for c in chunks], context, engine.encode)
    return ids, engine.nll(ids, before)


@pytest.mark.parametrize("context", [0, 5, 1000])
def test_every_target_is_scored_once_in_a_window_that_begins_with_bos(context: int, folders: dict[str, str]) -> None:
    """BOS stands in every window (lm-eval #2382: only in the first), context is never scored again."""
    engine, reference = TransformersEngine(folders["template"], dtype="float32"), Reference(folders["template"])
    (whole,) = engine.encode([4 * TEXT])
    ids, found = windows(engine, 4 * TEXT, 24, context)
    assert np.concatenate(ids).tolist() == whole.tolist()
    assert [len(f) for f in found] == [len(i) for i in ids]
    start, without_bos = 0, []
    for chunk, nll in zip(ids, found, strict=True):
        before = whole[max(0, start - context) : start].tolist()
        expected = reference.nll([*engine.prefix, *before, *chunk.tolist()])[len(before) :]
        np.testing.assert_allclose(nll, expected, rtol=0, atol=1e-4)
        if start and context:
            without_bos.append(abs(reference.nll([*before, *chunk.tolist()])[len(before) - 1 :] - nll).mean())
        start += len(chunk)
    assert not context or min(without_bos) > 0.01, "a window without BOS would be seen"


def test_with_all_context_the_window_length_does_not_matter(folders: dict[str, str]) -> None:
    """The sum over a document is its likelihood as one text, however it is cut (lm-eval #2467)."""
    engine, reference = TransformersEngine(folders["template"], dtype="float32"), Reference(folders["template"])
    (whole,) = engine.encode([4 * TEXT])
    expected = reference.nll([*engine.prefix, *whole.tolist()]).sum()
    short = 0.0
    for chunk_tokens in (16, 40, 1000):
        total = sum(float(f.sum(dtype=np.float64)) for f in windows(engine, 4 * TEXT, chunk_tokens, 1000)[1])
        assert total == pytest.approx(expected, abs=1e-4 * len(whole))
        short = short or sum(float(f.sum(dtype=np.float64)) for f in windows(engine, 4 * TEXT, chunk_tokens, 0)[1])
    assert abs(short - expected) > 1, "without context it would matter"


# ---- bytes -------------------------------------------------------------------------------------------------------


def token_bytes(tokenizer: Any, token_id: int) -> int:
    """Bytes of one token, from its written form."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        return len(token)  # one sign a byte
    return 1 if token.startswith("<0x") else len(token.replace("\u2581", " ").encode())


@pytest.mark.parametrize("kind", ["template", "llama"])
@pytest.mark.parametrize("bos", ["auto", "none"])
def test_bytes_are_those_of_the_scored_span(kind: str, bos: str, folders: dict[str, str]) -> None:
    """Emoji, combining marks, right-to-left text, characters of several tokens."""
    engine = TransformersEngine(folders[kind], dtype="float32", bos=bos)
    texts = [HARD[i:] for i in range(len(HARD) - 1)]
    scores, rejected = score_part(engine, table_of(texts, engine), texts)
    assert rejected.num_rows == 0
    for row, text, ids in zip(scores.to_pylist(), texts, engine.encode(texts), strict=True):
        each = [token_bytes(engine.tokenizer, int(i)) for i in ids]
        put_before = sum(each) - len(text.encode())  # a sign that the tokenizer puts before some texts
        assert put_before in ((0, 1) if kind == "llama" else (0,))
        unscored = each[0] - put_before if bos == "none" else 0
        assert row["n_bytes"] == len(text.encode()) - unscored
        assert row["n_tokens"] == len(ids) - (bos == "none")
    wrong = [len(t) for t in texts]
    assert scores["n_bytes"].to_pylist() != wrong, "counting characters would be seen"


def test_first_tokens_by_hand(folders: dict[str, str]) -> None:
    byte_level, llama = (load_tokenizer(folders[kind]) for kind in ("template", "llama"))
    assert first_token_bytes(byte_level, ["👩x", "é", "", "<s>é", "x"]) == [1, 1, 0, 3, 1]
    assert first_token_bytes(llama, ["the", "👩", "pat"]) == [2, 0, 0]
    bare = Tokenizer.from_str(llama.backend_tokenizer.to_str())
    bare.normalizer = bare.pre_tokenizer = None  # puts nothing before a text
    fallback = transformers.PreTrainedTokenizerFast(tokenizer_object=bare)
    assert first_token_bytes(fallback, ["👩", "pat", "é"]) == [1, 3, 1]


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=40))
def test_a_documents_bytes_are_the_sum_over_its_chunks(text: str) -> None:
    tokenizer = load_tokenizer(model_path(DEMO_MODEL))
    chunks = Chunker(tokenizer, chunk_tokens=8, min_tokens=1).cut([text])[0]
    assert sum(c.n_bytes for c in chunks) == len(text.encode())
    for c in chunks:
        piece = text[c.char_start : c.char_end]
        ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        assert c.n_bytes == len(piece.encode()) == sum(token_bytes(tokenizer, i) for i in ids)
        assert first_token_bytes(tokenizer, [piece]) == [token_bytes(tokenizer, ids[0])]


def test_bits_per_byte_of_a_known_model(tiny_tokenizer_dir: Path) -> None:
    """A uniform model over V tokens has log2(V) bits a token, so n log2(V) / bytes a byte."""
    engine: Any = FakeEngine(str(tiny_tokenizer_dir))
    scores, _ = score_part(engine, table_of([HARD], engine), [HARD])
    (row,) = scores.to_pylist()
    bits = row["nll_sum"] / np.log(2) / row["n_bytes"]
    assert bits == pytest.approx(len(engine.encode([HARD])[0]) * np.log2(400) / len(HARD.encode()), rel=1e-6)
