"""Pools with known dirt. The clean sources go through `prepare`; dirt is injected after cleaning, never removed again.

    OUT/made/         text that is made, not read (made.py)
    OUT/clean/        the clean sources, prepared; the same for every dirt share
    OUT/heldout/      documents.jsonl (what no pool may hold), valid/ and test/ (chunks of them), general.jsonl
    OUT/pool-30/      sources/<origin>.jsonl, prepared/, scores/, landscape/, pool.json

A chunk's `source` is its origin: clean-<file>, or garbled, boilerplate, duplicate, offdomain, learned, noise. No
strategy of the experiments may look at it but the oracle.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

import pplscape as ps
from pplscape.manifest import sha256_file, write_atomic
from pplscape.text.chunk import Chunker
from pplscape.text.prepared import Prepared
from pplscape.text.split import uniform
from pplscape.text.tokenizer import load_tokenizer

from .dirt import BOILERPLATE_SHARE, COPIES, RATES, boilerplate_shares, edited, garble, up_to
from .made import MADE, noise
from .setting import DIRT, Setting, data

__all__ = ["DIRT", "Builder", "Doc", "describe", "name_of", "token_shares"]

HELDOUT_CHUNKS = 4
HELD_OUT_OF_BASE = 100
"""Documents whose sha256(id) is 0 modulo this were never shown to the base model (scripts/train_base_model.py)."""


@dataclass(frozen=True)
class Doc:
    doc_id: str
    text: str
    source: str
    tokens: int
    """In chunks that are long enough to be kept."""


def name_of(dirt: float) -> str:
    return f"pool-{round(100 * dirt):02d}"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as lines:
        yield from map(json.loads, lines)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())


class Builder:
    """Builds the pools of one domain under `out`; every step is skipped where its files are there."""

    def __init__(self, setting: Setting, out: Path):
        self.setting, self.out = setting, out
        self.chunker = Chunker(load_tokenizer(setting.model_path), setting.chunk_tokens, setting.min_tokens)

    def _file(self, name: str) -> Path:
        """Of the data folder, or made here once."""
        if name not in MADE:
            return data(name)
        path = self.out / f"{name}.jsonl"
        if not path.exists():
            write_jsonl(path, ({"id": doc_id, "text": text} for doc_id, text in MADE[name]()))
        return path

    # ---- clean text ------------------------------------------------------------------------------------------------

    @cached_property
    def clean(self) -> Prepared:
        s = self.setting
        ps.prepare(
            [str(self._file(c)) for c in s.clean], model=s.model_path, out=self.out / "clean", sample=s.sample,
            seed=s.seed, chunk_tokens=s.chunk_tokens, min_tokens=s.min_tokens, valid=0, test=0,
        )  # fmt: skip
        return Prepared(self.out / "clean")

    def shuffled(self, docs: list[Doc], stream: str) -> list[Doc]:
        return sorted(docs, key=lambda d: uniform(self.setting.seed, f"{stream}/{d.doc_id}"))

    @cached_property
    def documents(self) -> list[Doc]:
        """All clean documents in the order of their hash."""
        chunks = self.clean.chunks("pool")
        per_doc = chunks.group_by("doc_id").aggregate([("length", "sum")])
        tokens = dict(zip(per_doc["doc_id"].to_pylist(), per_doc["length_sum"].to_pylist(), strict=True))
        rows = [r for k in self.clean.parts("pool") for r in self.clean.documents("pool", k).to_pylist()]
        found = [Doc(r["doc_id"], r["text"], f"clean-{r['source']}", tokens[r["doc_id"]]) for r in rows]
        return self.shuffled(found, "order")

    @cached_property
    def heldout(self) -> dict[str, list[Doc]]:
        """Documents of test and valid: each source its share of what is left for pools, four chunks of a document."""
        s, ordered = self.setting, self.shuffled(self.documents, "heldout")
        most = HELDOUT_CHUNKS * s.chunk_tokens
        taken: dict[str, list[Doc]] = {"test": [], "valid": []}
        for _ in range(3):  # what is held out changes the shares a little
            used = {d.doc_id for docs in taken.values() for d in docs}
            shares = token_shares([d for d in self.documents if d.doc_id not in used])
            taken = {"test": [], "valid": []}
            for source, share in shares.items():
                mine = [d for d in ordered if d.source == source]
                for split, target in (("test", s.test_tokens), ("valid", s.valid_tokens)):
                    first = [d for d, _ in up_to(((d, min(d.tokens, most)) for d in mine), share * target)]
                    taken[split] += first
                    mine = [d for d in mine if d not in first]
        return taken

    @cached_property
    def ordered(self) -> list[Doc]:
        """What is left for pools."""
        used = {d.doc_id for docs in self.heldout.values() for d in docs}
        return [d for d in self.documents if d.doc_id not in used]

    @cached_property
    def reserve(self) -> list[Doc]:
        """Clean documents beyond the largest clean pool: what is garbled."""
        used = {d.doc_id for d in self.clean_part(0.0)}
        return [d for d in self.ordered if d.doc_id not in used]

    def clean_part(self, dirt: float) -> list[Doc]:
        """The clean documents of a pool: the first of one order, so that dirtier pools hold a part of cleaner ones."""
        target = (1 - dirt) * self.setting.pool_tokens
        return [d for d, _ in up_to(((d, d.tokens) for d in self.ordered), target)]

    def write_heldout(self) -> Path:
        """Files that pilots, evaluation and decontamination read; a line of valid/ and test/ is one chunk."""
        folder = self.out / "heldout"
        everything = [d for docs in self.heldout.values() for d in docs]
        write_jsonl(folder / "documents.jsonl", ({"id": d.doc_id, "text": d.text} for d in everything))
        for split, docs in self.heldout.items():
            for source in sorted({d.source for d in docs}):
                rows = (row for d in docs if d.source == source for row in self._spread(d))
                write_jsonl(folder / split / f"{source}.jsonl", rows)
        write_jsonl(folder / "general.jsonl", self._general())
        return folder

    def _spread(self, doc: Doc) -> Iterator[dict[str, Any]]:
        """At most four chunks of a document, evenly spaced."""
        chunks = [c for c in self.chunker.cut([doc.text])[0] if c.length >= self.setting.min_tokens]
        for i in np.unique(np.linspace(0, len(chunks) - 1, min(HELDOUT_CHUNKS, len(chunks))).round().astype(int)):
            c = chunks[i]
            yield {"id": f"{doc.doc_id}#{c.chunk_index}", "text": doc.text[c.char_start : c.char_end]}

    def _general(self) -> Iterator[dict[str, Any]]:
        """The first chunk of documents that the base model never saw, files in turn."""
        files = sorted((data("general/x").parent).glob("*.jsonl.gz"))
        piles = [[r for r in read_jsonl(f) if _never_seen(r["id"])] for f in files]
        left = self.setting.general_tokens
        for row in (r for turn in zip_longest(*piles) for r in turn if r):
            chunk = self.chunker.cut([row["text"]])[0][0]
            if left > 0 and chunk.length >= self.setting.min_tokens:
                left -= chunk.length
                yield {"id": row["id"], "text": row["text"][: chunk.char_end]}

    # ---- dirt ------------------------------------------------------------------------------------------------------

    def _counted(self, items: Iterable[tuple[str, str]], source: str) -> Iterator[Doc]:
        """Documents of (id, text) with the tokens that `prepare` will keep: no short chunks, no repeated ones."""
        seen: set[str] = set()
        for doc_id, text in items:
            chunks = [c for c in self.chunker.cut([text])[0] if c.length >= self.setting.min_tokens]
            texts = [" ".join(text[c.char_start : c.char_end].split()) for c in chunks]
            kept = sum(c.length for c, t in zip(chunks, texts, strict=True) if t not in seen)
            seen.update(texts)
            if kept:
                yield Doc(f"{source}/{doc_id}", text, source, kept)

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.setting.seed, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)])

    def garbled(self, tokens: float) -> Iterator[Doc]:
        """Documents of the reserve, a third of the tokens at each rate."""
        for k, rate in enumerate(RATES):
            mine = self.reserve[k :: len(RATES)]
            items = ((f"{rate:.2f}/{d.doc_id}", garble(d.text, rate, self._rng(d.doc_id))) for d in mine)
            yield from _first(self._counted(items, "garbled"), tokens / len(RATES), f"garbled at {rate}")

    def boilerplate(self, tokens: float) -> Iterator[Doc]:
        rows = list(read_jsonl(data(self.setting.boilerplate)))
        shares = boilerplate_shares([(r["text"], r.get("focus") or "") for r in rows])
        kept = [(r["id"], r["text"]) for r, s in zip(rows, shares, strict=True) if s >= BOILERPLATE_SHARE]
        kept.sort(key=lambda row: uniform(self.setting.seed, f"order/{row[0]}"))
        yield from _first(self._counted(kept, "boilerplate"), tokens, "boilerplate")

    def duplicate(self, tokens: float, clean: list[Doc]) -> Iterator[Doc]:
        """Edited copies of documents that are in the pool once; short documents only, so that many are copied."""
        short = [d for d in self.shuffled(clean, "copies") if d.tokens <= 4 * self.setting.chunk_tokens]
        items = (
            (f"{k}/{d.doc_id}", edited(d.text, self._rng(f"{k}/{d.doc_id}"))) for d in short for k in range(COPIES)
        )
        yield from _first(self._counted(items, "duplicate"), tokens, "duplicate")

    def offdomain(self, tokens: float) -> Iterator[Doc]:
        """Equal tokens of every other domain."""
        folders = sorted({name.split("/")[0] for name in self.setting.offdomain})
        for folder in folders:
            names = [n for n in self.setting.offdomain if n.split("/")[0] == folder]
            items = ((r["id"], r["text"]) for n in names for r in read_jsonl(data(n)))
            shuffled = sorted(items, key=lambda row: uniform(self.setting.seed, f"order/{row[0]}"))
            yield from _first(self._counted(shuffled, "offdomain"), tokens / len(folders), folder)

    def learned(self, tokens: float) -> Iterator[Doc]:
        """Text of the files that the base model was trained on."""
        files = sorted((data("general/x").parent).glob("*.jsonl.gz"))
        rows = ((r["id"], r["text"]) for f in files for r in read_jsonl(f) if not _never_seen(r["id"]))
        shuffled = sorted(rows, key=lambda row: uniform(self.setting.seed, f"order/{row[0]}"))
        yield from _first(self._counted(shuffled, "learned"), tokens, "learned")

    def noise(self, tokens: float) -> Iterator[Doc]:
        yield from _first(self._counted(noise(), "noise"), tokens, "noise")

    # ---- pools -----------------------------------------------------------------------------------------------------

    def build(self, dirt: float) -> Path:
        """Sources, prepared, scores and landscape of one pool."""
        s, folder = self.setting, self.out / name_of(dirt)
        heldout = self.out / "heldout"
        if not (heldout / "general.jsonl").exists():
            self.write_heldout()
        if not (folder / "sources.json").exists():
            self._write_sources(folder, dirt)
        cut: dict[str, Any] = {"chunk_tokens": s.chunk_tokens, "min_tokens": s.min_tokens}
        ps.prepare(
            [str(p) for p in sorted((folder / "sources").glob("*.jsonl"))], model=s.model_path, out=folder / "prepared",
            eval=[str(heldout / "documents.jsonl")], valid=0, test=0, near_duplicates="keep", seed=s.seed, **cut,
        )  # fmt: skip
        ps.score(folder / "prepared", model=s.model_path, out=folder / "scores", engine=s.engine)
        ps.landscape(
            folder / "scores", budget=f"{100 * s.budget:g}%", out=folder / "landscape", n_bins=s.bins,
            corpus=folder / "prepared",
        )  # fmt: skip
        if not (folder / "pool.json").exists():
            write_atomic(folder / "pool.json", (json.dumps(describe(folder), indent=1) + "\n").encode())
        return folder

    def _write_sources(self, folder: Path, dirt: float) -> None:
        clean = self.clean_part(dirt)
        each = dirt * self.setting.pool_tokens / len(self.setting.dirt)
        found: dict[str, list[Doc]] = defaultdict(list)
        for d in clean:
            found[d.source].append(replace(d, doc_id=f"clean/{d.doc_id}"))
        makers: dict[str, Callable[[float], Iterator[Doc]]] = {
            "garbled": self.garbled, "boilerplate": self.boilerplate, "offdomain": self.offdomain,
            "duplicate": lambda tokens: self.duplicate(tokens, clean), "learned": self.learned, "noise": self.noise,
        }  # fmt: skip
        for name in self.setting.dirt if dirt else ():
            found[name] = list(makers[name](each))
        for name, docs in found.items():
            rows = ({"id": d.doc_id, "text": d.text} for d in docs)
            write_jsonl(folder / "sources" / f"{name}.jsonl", rows)
        planned = {name: sum(d.tokens for d in docs) for name, docs in sorted(found.items())}
        write_atomic(folder / "sources.json", (json.dumps(planned, indent=1) + "\n").encode())


def token_shares(docs: list[Doc]) -> dict[str, float]:
    """Share of the tokens by source."""
    total = sum(d.tokens for d in docs)
    names = sorted({d.source for d in docs})
    return {name: sum(d.tokens for d in docs if d.source == name) / total for name in names}


def _first(docs: Iterator[Doc], tokens: float, what: str) -> Iterator[Doc]:
    """Documents until `tokens` are reached; ValueError if there are too few."""
    done = largest = 0

    def seen() -> Iterator[tuple[Doc, int]]:
        nonlocal largest
        for d in docs:
            largest = max(largest, d.tokens)
            yield d, d.tokens

    for d, n in up_to(seen(), tokens):
        done += n
        yield d
    if tokens - done > largest / 2:
        raise ValueError(f"only {done} of {tokens:.0f} tokens of {what}; give more text or a smaller pool")


def _never_seen(doc_id: str) -> bool:
    return int(hashlib.sha256(doc_id.encode()).hexdigest()[:8], 16) % HELD_OUT_OF_BASE == 0


def describe(folder: Path) -> dict[str, Any]:
    """What a pool turned out to be: tokens, chunks, documents and shares by origin, sha256 of everything it is of."""
    prepared = Prepared(folder / "prepared")
    chunks = prepared.chunks("pool")
    table = chunks.group_by("source").aggregate([("length", "sum"), ("length", "count"), ("doc_id", "count_distinct")])
    total = int(pc.sum(chunks["length"]).as_py())
    origins = {
        r["source"]: {
            "tokens": r["length_sum"], "share": r["length_sum"] / total, "chunks": r["length_count"],
            "documents": r["doc_id_count_distinct"],
        }
        for r in sorted(table.to_pylist(), key=lambda r: str(r["source"]))
    }  # fmt: skip
    return {
        "pool": folder.name,
        "tokens": total,
        "chunks": chunks.num_rows,
        "origins": origins,
        "rejected_tokens": prepared.manifest["counts"]["tokens"]["rejected"],
        "sha256": {p.name: sha256_file(p) for p in sorted((folder / "sources").glob("*.jsonl"))},
        "chunks_sha256": {k: v for k, v in prepared.manifest["files"].items() if k.startswith("chunks/pool/")},
        "scores_sha256": {
            name: sha256_file(folder / "scores" / name)
            for name in sorted(p.name for p in (folder / "scores").glob("part-*.parquet"))
        },
    }
