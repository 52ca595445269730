"""Chunks tile their document, are within T tokens when encoded alone, and begin at characters and words."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplscape.errors import UserError
from pplscape.text.chunk import Chunk, Chunker, chunk_document
from pplscape.text.tokenizer import load_tokenizer, tokenizer_hash

WORDS = st.sampled_from(
    [
        *(
            "fox",
            "dog ",
            "naïve",
            "\n\n",
            "   ",
            "\t",
            " \r\n",
            "心",
            "脏病",
            "🫀",
            "👩\u200d👩\u200d👧",
            "e\u0301",
            "½",
            "٣",
        ),
        *("12345", "don't", "'S", "x" * 40, "<|endoftext|>", "\u2003", "\u0558", "...", "_", "\x1c", "\x85"),
    ]
)
TEXTS = st.one_of(st.text(max_size=400), st.lists(WORDS, max_size=120).map("".join), st.lists(WORDS).map(" ".join))


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(str(tiny_tokenizer_dir))


@pytest.fixture(scope="session")
def metaspace() -> Any:
    """A tokenizer whose count depends on where a text begins: it puts `▁` in front, as Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = [
        *"abcdefghijklmnopqrstuvwxyz.,",
        "▁",
        "▁t",
        "th",
        "▁th",
        "he",
        "▁the",
        *(f"<0x{i:02X}>" for i in range(256)),
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(["<unk>", *letters]))}
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("h", "e"), ("▁th", "e")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.ByteFallback()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def check(tokenizer: Any, text: str, chunks: list[Chunk], limit: int) -> None:
    assert [c.chunk_index for c in chunks] == list(range(len(chunks)))
    assert "".join(text[c.char_start : c.char_end] for c in chunks) == text
    assert all(a.char_end == b.char_start for a, b in itertools.pairwise(chunks))
    for c in chunks:
        piece = text[c.char_start : c.char_end]
        assert piece
        assert c.length == count(tokenizer, piece) <= limit
        assert c.n_bytes == len(piece.encode())


@settings(max_examples=80)
@given(TEXTS)
def test_chunks_tile_the_document_and_are_within_the_limit(tokenizer: Any, text: str) -> None:
    chunker = Chunker(tokenizer, 16, 4)
    chunker._words = None
    check(tokenizer, text, chunker.cut([text])[0], 16)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["the", " the", " ", "th", "zebra", "心", "🫀", "\n"]), max_size=100).map("".join))
def test_chunks_of_a_tokenizer_that_depends_on_the_start_of_the_text(metaspace: Any, text: str) -> None:
    check(metaspace, text, Chunker(metaspace, 16, 4).cut([text])[0], 16)


@settings(max_examples=30)
@given(st.lists(TEXTS, max_size=8))
def test_a_document_is_cut_the_same_alone_and_in_a_batch(tokenizer: Any, texts: list[str]) -> None:
    chunker = Chunker(tokenizer, 16, 4)
    assert chunker.cut(texts) == [chunker.cut([text])[0] for text in texts]


def test_full_chunks_have_exactly_the_limit_where_every_word_is_one_token(tokenizer: Any) -> None:
    text = " the" * 40
    assert count(tokenizer, " the") == 1
    chunks = Chunker(tokenizer, 16, 4).cut([text])[0]
    assert [c.length for c in chunks] == [16, 16, 8]
    assert [(c.char_start, c.char_end) for c in chunks] == [(0, 64), (64, 128), (128, 160)]


def test_boundaries_do_not_split_words(tokenizer: Any) -> None:
    text = "perplexity landscapes " * 60
    for c in Chunker(tokenizer, 32, 8).cut([text])[0][1:]:
        assert text[c.char_start - 1 : c.char_start + 1] in ("y ", "s ")


def test_a_character_of_several_tokens_is_not_split(tokenizer: Any) -> None:
    text = "🫀" * 30
    chunks = Chunker(tokenizer, 18, 4).cut([text])[0]
    check(tokenizer, text, chunks, 18)
    assert {c.length for c in chunks[:-1]} == {16}


def test_short_chunks_are_left_out_and_keep_their_number(tokenizer: Any) -> None:
    text = " the" * 37
    assert [(c.chunk_index, c.length) for c in chunk_document(text, tokenizer, 16, 6)] == [(0, 16), (1, 16)]
    assert [(c.chunk_index, c.length) for c in chunk_document(text, tokenizer, 16, 5)] == [(0, 16), (1, 16), (2, 5)]
    assert chunk_document("", tokenizer, 16, 5) == []
    assert chunk_document(" the", tokenizer, 16, 5) == []


def test_pieces_force_no_boundary(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox jumps over the lazy dog, 12 times. " * 40
    whole = Chunker(tokenizer, 16, 4).cut([text])[0]
    monkeypatch.setattr("pplscape.text.chunk.PIECE_CHARS_PER_TOKEN", 6)
    pieces = Chunker(tokenizer, 16, 4).cut([text])[0]
    check(tokenizer, text, pieces, 16)
    assert pieces == whole


class CountingBackend:
    """Passes encodings on and adds up the characters encoded."""

    def __init__(self, backend: Any):
        self.backend, self.chars = backend, 0

    def __getattr__(self, name: str) -> Any:
        def method(texts: str | list[str], **options: Any) -> Any:
            self.chars += sum(map(len, texts)) if isinstance(texts, list) else len(texts)
            return getattr(self.backend, name)(texts, **options)

        return method


def test_work_is_linear_in_the_length_of_a_document(tokenizer: Any) -> None:
    sentence = "Patients with heart failure were treated with a beta blocker for 12 weeks. "
    for n in (100, 800):
        chunker = Chunker(tokenizer, 32, 8)
        chunker._words = None
        chunker._backend = counting = CountingBackend(chunker._backend)
        assert len(chunker.cut([sentence * n])[0]) > n / 2
        assert counting.chars < 2.5 * n * len(sentence)


def test_limits_are_checked(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="half of chunk_tokens"):
        Chunker(tokenizer, 64, 33)
    with pytest.raises(UserError, match="at least 8"):
        Chunker(tokenizer, 4, 1)


def test_tokenizer_errors_and_hash(tokenizer: Any, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    assert tokenizer_hash(tokenizer) == tokenizer_hash(load_tokenizer(str(tiny_tokenizer_dir)))
    with pytest.raises(UserError, match="Cannot load the tokenizer"):
        load_tokenizer(str(tmp_path))
