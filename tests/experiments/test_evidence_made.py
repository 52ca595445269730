"""The oracle corpus: its facts are true, its noise has the same words, its pool has the shares that were asked for."""

from __future__ import annotations

import re
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from evidence import made
from evidence.setting import Setting


def patterns() -> list[tuple[str, re.Pattern[str]]]:
    """(relation, what its sentences look like)"""
    names = {"n": r"(?P<n>[A-Z]\w+ [A-Z]\w+)", "v": r"(?P<v>[\w ]+)"}
    return [
        (kind, re.compile(re.escape(w).replace(r"\{n\}", names["n"]).replace(r"\{v\}", names["v"]), re.IGNORECASE))
        for kind, (_, wordings) in made.KINDS.items()
        for w in wordings
    ]


def test_every_fact_is_true_and_every_person_is_told_of_often() -> None:
    known, forms = made.people(), patterns()
    told: Counter[str] = Counter()
    for _, text in islice(made.facts(), 200):
        for sentence in re.split(r"(?<=\.) ", text):
            fits = [(k, m["n"], m["v"]) for k, p in forms if (m := p.fullmatch(sentence))]
            assert any(known.get(n.title(), {}).get(k, "").lower() == v.lower() for k, n, v in fits), sentence
    for _, text in made.facts():
        words = re.findall(r"\w+", text)
        told.update(n for n in map(" ".join, pairwise(words)) if n in known)
    assert len(told) == made.PEOPLE
    assert min(told.values()) >= 6 * made.DOCUMENTS


def test_text_is_the_same_every_time_and_noise_is_its_words() -> None:
    assert list(islice(made.facts(), 5)) == list(islice(made.facts(), 5))
    words = set(" ".join(t for _, t in made.facts()).split())
    noise = list(islice(made.noise(), 50))
    assert {w for _, t in noise for w in t.split()} <= words
    assert len({t for _, t in noise}) == 50


@pytest.mark.parametrize("domain", ["biomed", "legal", "python", "oracle"])
def test_settings_are_whole(domain: str) -> None:
    setting = Setting.read(domain)
    assert setting.domain == domain
    smallest = setting.budget * setting.pool_tokens / 32
    assert setting.train_recipe.warmup_tokens <= smallest / 3 + 100
    assert all(name in made.MADE for name in setting.clean if name.startswith("made/"))


def test_python_files_have_names_of_their_own() -> None:
    found = list(islice(made.python(), 20))
    assert len({name for name, _ in found}) == 20
    assert all(name.endswith(".py") and not name.startswith("/") for name, _ in found)
