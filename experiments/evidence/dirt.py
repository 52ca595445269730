"""Dirt with known shares: garbled text, near-duplicates, real boilerplate. Pure functions of text and a generator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

RATES = (0.05, 0.10, 0.20)
"""Shares of garbled characters, an equal number of tokens each."""
COPIES = 10
"""Near-duplicates of every document that is copied."""
WORDS_PER_EDIT = 50
"""A near-duplicate differs in one word in so many: 5-word shingles overlap by about 0.82."""
TEMPLATE_DOCUMENTS = 5
"""A sentence in so many documents is boilerplate."""
BOILERPLATE_SHARE = 0.5
"""A document is boilerplate if so much of its text is."""

LOOK_ALIKE = {
    "l": "1I|", "1": "lI", "I": "l1", "i": "jl", "o": "0c", "0": "oO", "O": "0Q", "e": "co", "c": "eo", "a": "os",
    "s": "5a", "S": "58", "5": "S", "B": "8", "8": "B", "n": "ru", "u": "nv", "v": "yu", "h": "bn", "b": "hl",
    "g": "q9", "q": "g", "t": "fl", "f": "t", "r": "n", "m": "rn", "w": "vv", "d": "cl", "z": "2", "2": "z", ".": ",",
    ",": ".", "-": "~",
}  # fmt: skip
"""What a scanner mistakes characters for."""
SPECKS = ".,'`-|:;"


def garble(text: str, rate: float, rng: np.random.Generator) -> str:
    """Each character is hit with probability `rate`: mistaken (70 %), lost (15 %) or followed by a speck or a space."""
    hit, kind = rng.random(len(text)) < rate, rng.random(len(text))
    found = list(text)
    for i in np.flatnonzero(hit):
        c = text[i]
        if c == "\n":
            continue
        if kind[i] < 0.70:
            options = LOOK_ALIKE.get(c, SPECKS if c.isspace() else "aeinorst")
            found[i] = options[int(rng.integers(len(options)))]
        elif kind[i] < 0.85:
            found[i] = ""
        else:
            found[i] = c + (" " if kind[i] < 0.95 else SPECKS[int(rng.integers(len(SPECKS)))])
    return "".join(found)


def edited(text: str, rng: np.random.Generator) -> str:
    """A near-duplicate: in every 50 words one is dropped, doubled, or swapped with the next."""
    words = re.split(r"(\s+)", text)  # words stand at even places
    for start in range(0, (len(words) + 1) // 2, WORDS_PER_EDIT):
        here = min(WORDS_PER_EDIT, (len(words) + 1) // 2 - start)
        i = 2 * (start + int(rng.integers(here)))
        kind = int(rng.integers(3))
        if kind == 0:
            words[i] = ""
        elif kind == 1 or i + 2 >= len(words):
            words[i] = f"{words[i]} {words[i]}"
        else:
            words[i], words[i + 2] = words[i + 2], words[i]
    return "".join(words)


def sentences(text: str, topic: str = "") -> list[str]:
    """Sentences with the page's topic, numbers and punctuation levelled, so that filled-in templates are equal."""
    if topic:
        text = re.sub(re.escape(topic), "@", text, flags=re.IGNORECASE)
    parts = re.split(r"(?<=[.?!:])\s+|\n+| - ", text.lower())
    return [p for s in parts if (p := re.sub(r"\d+", "0", re.sub(r"[^\w@]+", " ", s)).strip())]


def boilerplate_shares(documents: Sequence[tuple[str, str]]) -> list[float]:
    """Share of each (text, topic)'s characters in sentences that at least 5 of the documents have."""
    levelled = [sentences(text, topic) for text, topic in documents]
    count = Counter(s for document in levelled for s in set(document))
    return [
        sum(len(s) for s in d if count[s] >= TEMPLATE_DOCUMENTS) / max(1, sum(map(len, d))) for d in levelled
    ]  # fmt: skip


def up_to(items: Iterable[tuple[T, int]], tokens: float) -> Iterator[tuple[T, int]]:
    """(item, its tokens) until `tokens` are reached; an item that would exceed them by more than half is left out."""
    done = 0
    for item, n in items:
        if done >= tokens:
            return
        if done + n / 2 <= tokens:
            done += n
            yield item, n
