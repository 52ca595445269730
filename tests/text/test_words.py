"""Counting by words gives exactly what encoding gives."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pplscape.text.chunk import Chunker
from pplscape.text.words import DIGITS, GPT2, LLAMA3, QWEN2, WordCounter, pattern_of

SPLITTERS = ("gpt2", "digits", "llama3", "qwen2")
PATTERNS = {"gpt2": GPT2, "digits": DIGITS, "llama3": LLAMA3, "qwen2": QWEN2}
ATOMS = st.sampled_from(
    [
        *(
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "a",
            "fox",
            " dog",
            "'s",
            "'LL",
            "'ſ",
            "1",
            "12",
            "١",
            "½",
            "Ⅷ",
            "²",
            "é",
            "e\u0301",
        ),
        *(
            ".",
            "...",
            "(",
            "_",
            "\u00a0",
            "\u2003",
            "\x85",
            "\x1c",
            "\x0b",
            "心",
            "ไทย",
            "🫀",
            "\u200d",
            "\u0558",
            "<|endoftext|>",
        ),
    ]
)
TEXTS = st.one_of(st.lists(ATOMS, max_size=60).map("".join), st.text(max_size=80))


@cache
def trained(splitter: str) -> Any:
    """A small byte-level BPE behind one of the splitting patterns."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    p = pre_tokenizers
    steps = {
        "gpt2": [],
        "digits": [p.Digits(individual_digits=True)],
        "llama3": [p.Split(Regex(LLAMA3), "isolated")],
        "qwen2": [p.Split(Regex(QWEN2), "isolated")],
    }[splitter]
    backend = Tokenizer(models.BPE())
    level = p.ByteLevel(add_prefix_space=False, use_regex=splitter in ("gpt2", "digits"))
    backend.pre_tokenizer = p.Sequence([*steps, level]) if steps else level
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(p.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["the fox and the dog  saw 12 of 345 (then 67)...\n\n\n don't we'll"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@cache
def counter(splitter: str) -> WordCounter:
    found = WordCounter.of(trained(splitter))
    assert found is not None
    return found


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_the_pattern_is_recognised(splitter: str) -> None:
    assert pattern_of(json.loads(trained(splitter).backend_tokenizer.to_str())) == PATTERNS[splitter]


@pytest.mark.parametrize("splitter", SPLITTERS)
@settings(max_examples=60)
@given(TEXTS)
@example("a  1 \n\n b\r\n  c")
@example("\n\na")
@example("the  1\n\n  2\t\t3")
def test_counts_at_every_boundary_are_those_of_the_text_alone(splitter: str, text: str) -> None:
    """The property that chunks rest on: any run of pre-tokens, alone, has the difference of the counts."""
    counted = counter(splitter).split(text)
    if counted is None:
        return
    tokenizer = trained(splitter)
    ends = [counted.chars(0, i) for i in range(len(counted.words) + 1)]
    assert ends[-1] == len(text)
    some = range(0, len(ends), max(1, len(ends) // 8))
    for i in some:
        for j in some:
            if i < j:
                alone = tokenizer.encode(text[ends[i] : ends[j]], add_special_tokens=False)
                assert len(alone) == counter(splitter).alone(counted, i, j)


@pytest.mark.parametrize("splitter", SPLITTERS)
@settings(max_examples=25)
@given(st.lists(ATOMS, max_size=200).map("".join))
@example("the" + "\n\na" * 50)
def test_chunks_by_words_are_the_chunks_by_encoding(splitter: str, text: str) -> None:
    by_words, by_encoding = Chunker(trained(splitter), 24, 4), Chunker(trained(splitter), 24, 4)
    by_encoding._words = None
    assert by_words.cut([text]) == by_encoding.cut([text])


def test_texts_that_words_cannot_count_are_left_to_the_tokenizer() -> None:
    words = counter("gpt2")
    assert words.split("plain text") is not None
    assert words.split("with an <|endoftext|> inside") is None
    assert words.split("less < than") is not None
    words._disputed.add("\u0558")
    assert words.split("a disputed \u0558 character") is None


def test_other_tokenizers_are_not_counted_by_words() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cases = [
        Tokenizer(models.Unigram([("a", 0.0)], 0)),
        Tokenizer(models.BPE(dropout=0.1)),
        Tokenizer(models.BPE()),
        Tokenizer(models.BPE()),
        Tokenizer(models.BPE()),
        Tokenizer(models.BPE()),
    ]
    for tokenizer in cases:
        tokenizer.pre_tokenizer = level
    cases[2].normalizer = normalizers.NFC()
    cases[3].pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    cases[4].pre_tokenizer = pre_tokenizers.Metaspace()
    cases[5].pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("x", "isolated"), level])
    assert [pattern_of(json.loads(t.to_str())) for t in cases] == [None] * 6
    tokenizer = Tokenizer(models.BPE())
    assert pattern_of(json.loads(tokenizer.to_str())) is None


def test_long_documents_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The fox, 12 dogs and   spaces.\n\n" * 50 + " " * 300 + "end"
    whole = Chunker(trained("llama3"), 24, 4).cut([text])
    monkeypatch.setattr("pplscape.text.chunk.WORDS_PIECE_CHARS", 97)
    pieces = Chunker(trained("llama3"), 24, 4).cut([text])
    assert "".join(text[c.char_start : c.char_end] for c in pieces[0]) == text
    for c in pieces[0]:
        alone = trained("llama3").encode(text[c.char_start : c.char_end], add_special_tokens=False)
        assert len(alone) == c.length <= 24
    assert len(pieces[0]) <= len(whole[0]) + 2
