"""Cut documents into chunks of at most T tokens that are encoded again, alone, with at most T tokens.

Chunks of a document tile it: each begins at the code point where the one before ended. Boundaries lie between
characters and between pre-tokens (words), so that cutting hardly changes how the text is tokenised; a pre-token longer
than half a chunk is cut inside. Each chunk's `length` is the count of `encode(text[char_start:char_end])` without
special tokens, which is what is scored and trained on.

Where the counts of words add up (`words`), nothing is encoded twice, or even once. Otherwise each chunk is counted
again, and shortened until it is within the limit.

Long documents are worked on in pieces: a piece gives all its full chunks, and the next piece begins where the last of
them ended, so that time and memory stay linear and no boundary is forced by a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.text.words import WordCounter, Words

PIECE_CHARS_PER_TOKEN = 64
"""Characters encoded at a time, per token of a chunk: about a dozen chunks of English."""
WORDS_PIECE_CHARS = 200_000
"""Characters split into words at a time: bounds the memory of the list of words."""


@dataclass(frozen=True, slots=True)
class Chunk:
    chunk_index: int
    char_start: int
    char_end: int
    length: int
    """Tokens without special tokens."""
    n_bytes: int
    """UTF-8 bytes."""


@dataclass(slots=True)
class _Progress:
    """A document on its way: all before `start` is cut, the next piece has `piece` characters, aimed `slack` lower."""

    text: str
    piece: int
    start: int = 0
    slack: int = 0
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.start >= len(self.text)

    def add(self, end: int, length: int) -> None:
        text = self.text[self.start : end]
        n_bytes = len(text) if text.isascii() else len(text.encode())
        self.chunks.append(Chunk(len(self.chunks), self.start, end, length, n_bytes))
        self.start = end


class Chunker:
    """Cuts documents with one tokenizer; `cut` is a pure function of each text."""

    def __init__(self, tokenizer: Any, chunk_tokens: int, min_tokens: int):
        """UserError unless 1 <= min_tokens <= chunk_tokens / 2 (a snapped chunk may have half of chunk_tokens)."""
        if chunk_tokens < 8:
            raise UserError(f"chunk_tokens = {chunk_tokens} is too small: give at least 8, better 256 or more.")
        if not 1 <= min_tokens <= chunk_tokens // 2:
            raise UserError(
                f"min_tokens = {min_tokens} must lie between 1 and half of chunk_tokens ({chunk_tokens // 2})."
            )
        self.tokenizer, self.chunk_tokens, self.min_tokens = tokenizer, chunk_tokens, min_tokens
        self._backend = tokenizer.backend_tokenizer
        self._words = WordCounter.of(tokenizer)

    def cut(self, texts: Sequence[str]) -> list[list[Chunk]]:
        """For each text, chunks that tile it; short ones are not left out."""
        piece = PIECE_CHARS_PER_TOKEN * self.chunk_tokens
        work = [_Progress(text, piece) for text in texts]
        active = [w for w in work if not w.done and not self._cut_by_words(w)]
        while active:
            self._advance(active)
            active = [w for w in active if not w.done]
        return [w.chunks for w in work]

    def _cut_by_words(self, w: _Progress) -> bool:
        """Cut a document at its words, without encoding it. False, and nothing done, if that cannot be."""
        if self._words is None:
            return False
        cut = _Progress(w.text, WORDS_PIECE_CHARS)
        while not cut.done:
            piece = w.text[cut.start : cut.start + cut.piece]
            words = self._words.split(piece)
            if words is None:
                return False
            found = self._word_ends(words, last=cut.start + len(piece) >= len(w.text))
            if found is None:
                return False
            first = 0
            for stop in found:
                cut.add(cut.start + words.chars(first, stop), self._words.alone(words, first, stop))
                first = stop
            if not found:
                cut.piece *= 2
        w.start, w.chunks = cut.start, cut.chunks
        return True

    def _word_ends(self, words: Words, last: bool) -> list[int] | None:
        """The words after the chunks of a piece; None if a word of half a chunk would have to be cut."""
        found: list[int] = []
        tokens = words.tokens
        done, total = 0, int(tokens[-1])
        while total - done > self.chunk_tokens:
            word = int(np.searchsorted(tokens, done + self.chunk_tokens, side="right")) - 1
            length = int(tokens[word]) - done if word >= 0 else 0
            if length <= self.chunk_tokens - self.chunk_tokens // 2:
                return None
            found.append(word + 1)
            done += length
        return [*found, len(tokens)] if last else found

    def _advance(self, active: list[_Progress]) -> None:
        """Encode one piece of every document and take the chunks it gives."""
        pieces = [w.text[w.start : w.start + w.piece] for w in active]
        encodings = self._backend.encode_batch(pieces, add_special_tokens=False)
        ends = [self._ends(e, p, w) for e, p, w in zip(encodings, pieces, active, strict=True)]
        counts = iter(self._count([p[a:b] for p, found in zip(pieces, ends, strict=True) for a, b in _spans(found)]))
        for w, encoding, found in zip(active, encodings, ends, strict=True):
            lengths = [next(counts) for _ in found]
            if not found:
                w.piece *= 2  # a piece of few tokens, for example a long run of white space
            elif w.start == 0 and found == [len(w.text)]:
                w.add(len(w.text), len(encoding))
            else:
                self._take(w, found, lengths)

    def _take(self, w: _Progress, ends: list[int], lengths: list[int]) -> None:
        """Accept chunks up to the first that counts more tokens alone than in its piece; shorten that one."""
        base = w.start
        for end, length in zip(ends, lengths, strict=True):
            if length <= self.chunk_tokens:
                w.add(base + end, length)
                continue
            w.slack = max(w.slack, min(length - self.chunk_tokens, self.chunk_tokens // 4))
            w.add(*self._shorten(w, base + end))
            return

    def _shorten(self, w: _Progress, end: int) -> tuple[int, int]:
        """(end, length) of the longest chunk found from `w.start` that is within T when encoded alone."""
        text = w.text[w.start : end]
        encoding = self._backend.encode(text, add_special_tokens=False)
        near = range(self.chunk_tokens, max(1, self.chunk_tokens - 8), -1)
        for aim in (*near, *range(self.chunk_tokens // 2, 0, -1)):
            cut = _cut(encoding, encoding.word_ids, text, 0, 0, min(aim, len(encoding) - 1))
            if cut is None:
                continue
            length = self._count([text[: cut[1]]])[0]
            if length <= self.chunk_tokens:
                return w.start + cut[1], length
        raise UserError(
            f"chunk_tokens = {self.chunk_tokens} is too small for this tokenizer: the single character "
            f"U+{ord(text[0]):04X} already has more tokens."
        )

    def _ends(self, encoding: Any, piece: str, w: _Progress) -> list[int]:
        """Ends, in characters of the piece, of the chunks it gives."""
        words, n, aim = encoding.word_ids, len(encoding), self.chunk_tokens - w.slack
        last = w.start + len(piece) >= len(w.text)
        ends: list[int] = []
        token, char = 0, 0
        while n - token > aim:
            cut = _cut(encoding, words, piece, token, char, token + aim)
            if cut is None:
                break
            token, char = cut
            ends.append(char)
        if last and (not ends or n - token <= aim) and char < len(piece):
            ends.append(len(piece))
        return ends

    def _count(self, texts: list[str]) -> list[int]:
        return [len(e) for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def _spans(ends: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _cut(encoding: Any, words: list[Any], text: str, first: int, char: int, limit: int) -> tuple[int, int] | None:
    """(token, character) of the last good boundary after token `first` and character `char`, up to token `limit`.

    Good, in this order: between two pre-tokens, in the upper half; before white space, in the upper half; between
    two characters. None if there is no boundary between characters.
    """
    upper = range(limit, first + (limit - first) // 2, -1)
    for token in upper:
        if words[token] != words[token - 1] and (end := _boundary(encoding, token, char)):
            return token, end
    for token in upper:
        if (end := _boundary(encoding, token, char)) and text[end].isspace():
            return token, end
    for token in range(limit, first, -1):
        if end := _boundary(encoding, token, char):
            return token, end
    return None


def _boundary(encoding: Any, token: int, char: int) -> int:
    """Where the character before `token` ends, if the token begins a new character after `char`; else 0."""
    before, after = encoding.token_to_chars(token - 1), encoding.token_to_chars(token)
    if before is None or after is None or after[0] < before[1] or before[1] <= char:
        return 0
    return int(before[1])


def chunk_document(text: str, tokenizer: Any, chunk_tokens: int, min_tokens: int) -> list[Chunk]:
    """The chunks of one document with at least `min_tokens` tokens; `chunk_index` counts the short ones too."""
    return [c for c in Chunker(tokenizer, chunk_tokens, min_tokens).cut([text])[0] if c.length >= min_tokens]
