"""Text that is made instead of read: Python code of the running environment, and an oracle corpus of known utilities.

`python`: the .py files of the environment, one document a file (`embedded.corpus`).

The oracle corpus is about invented people. What a document is worth for the test text, which asks about all of them in
other words, is known by how it was made:

    facts      true sentences about people of the test: worth training on
    learned    text that the base model was trained on: nothing left to learn
    duplicate  the same facts' documents again, slightly edited (dirt.edited)
    noise      words of the facts in random order: nothing to learn, high perplexity
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from pplscape.embedded.corpus import python_corpus
from pplscape.text.inputs import ROOT

Rows = Iterator[tuple[str, str]]
"""(id, text)"""

PEOPLE, DOCUMENTS = 3_000, 6
"""Invented people, and documents about each: every document tells some of a person's facts in one of many wordings."""
SYLLABLES = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
KINDS: dict[str, tuple[list[str], list[str]]] = {
    "town": ([], ["{n} lives in {v}.", "The home of {n} is in {v}.", "In {v} one can meet {n}.",
                  "{n} moved to {v} long ago."]),
    "trade": (["baker", "surveyor", "weaver", "miller", "judge", "printer", "sailor", "doctor", "farmer", "teacher"],
              ["{n} works as a {v}.", "By trade {n} is a {v}.", "People know {n} as the {v}.", "{n} became a {v}."]),
    "animal": (["horse", "cat", "goose", "hound", "goat", "raven", "mule", "ferret", "owl", "pig"],
               ["{n} keeps a {v}.", "The {v} belongs to {n}.", "{n} never travels without the {v}.",
                "A {v} sleeps in the house of {n}."]),
    "friend": ([], ["{n} is a friend of {v}.", "{n} and {v} have been friends for years.", "{v} often visits {n}.",
                    "{n} writes letters to {v}."]),
    "drink": (["tea", "coffee", "milk", "cider", "beer", "wine", "water", "broth"],
              ["{n} likes {v} best.", "{n} drinks {v} every morning.", "Offer {n} some {v}.",
               "{v} is what {n} asks for."]),
    "colour": (["red", "blue", "green", "yellow", "black", "white", "grey", "brown"],
               ["{n} wears a {v} coat.", "The door of {n} is {v}.", "{n} paints everything {v}.",
                "One knows {n} by the {v} hat."]),
    "year": ([], ["{n} was born in {v}.", "{v} is the year in which {n} was born.", "Since {v} {n} has been among us.",
                  "The birth of {n} fell into {v}."]),
    "fear": (["thunder", "spiders", "heights", "crowds", "the dark", "deep water", "bees", "fire"],
             ["{n} is afraid of {v}.", "What frightens {n} is {v}.", "Nothing troubles {n} but {v}.",
              "{n} cannot bear {v}."]),
}  # fmt: skip
"""Relation -> (values, wordings); no values: names or numbers."""


def name(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))).capitalize()


def people(seed: int = 0) -> dict[str, dict[str, str]]:
    """Full name -> relation -> value."""
    rng = random.Random(seed)
    towns = [name(rng) for _ in range(200)]
    names = list(dict.fromkeys(f"{name(rng)} {name(rng)}" for _ in range(PEOPLE + 100)))[:PEOPLE]
    special: dict[str, Callable[[], str]] = {
        "town": lambda: rng.choice(towns),
        "friend": lambda: rng.choice(names),
        "year": lambda: str(rng.randint(1700, 1999)),
    }
    return {n: {k: special[k]() if k in special else rng.choice(v[0]) for k, v in KINDS.items()} for n in names}


def facts(seed: int = 0) -> Rows:
    """Documents about three people each, six to eight facts a person, in mixed wordings; all people equally often."""
    rng, known = random.Random(seed + 1), people(seed)
    in_turn = [n for _ in range(DOCUMENTS) for n in rng.sample(list(known), PEOPLE)]
    for k in range(0, len(in_turn), 3):
        sentences = []
        for person in in_turn[k : k + 3]:
            for kind in rng.sample(list(KINDS), rng.randint(6, len(KINDS))):
                sentences.append(rng.choice(KINDS[kind][1]).format(n=person, v=known[person][kind]))
        yield f"facts-{k // 3}", " ".join(s[0].upper() + s[1:] for s in sentences)


def noise(seed: int = 0) -> Rows:
    """As many documents of the facts' words in random order."""
    rng = random.Random(seed + 2)
    words = " ".join(text for _, text in facts(seed)).split()
    for k in range(PEOPLE * DOCUMENTS // 3):
        yield f"noise-{k}", " ".join(rng.choices(words, k=150))


def python() -> Rows:
    """Python files of this environment: id = path relative to its root."""
    for path in python_corpus():
        relative = path.rpartition(ROOT)[2]
        if relative.endswith(".py"):
            yield relative, Path(path).read_text(encoding="utf-8", errors="replace")


MADE: dict[str, Callable[[], Rows]] = {"made/python": python, "made/facts": facts}
"""By the name that a setting gives them."""
