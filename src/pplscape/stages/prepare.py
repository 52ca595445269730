"""prepare: input files -> documents and chunks, split by document, cleaned, everything counted by reason.

Two passes. `text.ingest` reads, chunks and hashes each document once and spools it; then the split is fixed, and
`text.sift` decides what stays. Texts are streamed. In memory are ids and hashes: some 300 bytes a document, 0.6 kB more
for each that may be a near-duplicate, 8 bytes a chunk. A killed run cuts and hashes no text twice, save the part it was
at; the second pass is repeated, without writing what is there.

Given the inputs of a finished folder and more of them, the folder is extended (`text.extend`): its parts stay byte for
byte, the new documents are compared with all that is there, and those that stay go to the pool in parts of their own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.manifest import StageFolder, fingerprint
from pplscape.progress import Progress
from pplscape.text.chunk import Chunker
from pplscape.text.clean import NearDuplicates, Overlap, hash_words, shingles, signatures
from pplscape.text.extend import Given, known_ids, only_added, read_inputs, spool_known, write_inputs
from pplscape.text.ingest import Ids, Index, ingest, read_facts, read_index, read_part, read_signatures
from pplscape.text.inputs import content_keys, form_of, name_of, resolve_inputs, size_of, summed_up
from pplscape.text.prepared import Prepared
from pplscape.text.read import MAX_ROW_BYTES, Columns, Document, Rejected, read_documents
from pplscape.text.sift import Keep, Sieve, kept_of_a_kind, positions
from pplscape.text.split import POOL, SPLITS, assign, halves, token_target, uniform
from pplscape.text.tokenizer import load_tokenizer, model_name, tokenizer_hash
from pplscape.text.write import RejectedWriter, SplitWriter

VERSION = 4
HELDOUT_CAP = 100_000
"""Tokens of valid and of test when they are given as shares."""
MOST_SOURCES, MOST_NAMES = 1000, 20
"""Listed in the manifest; more are summed up."""
COMPRESSION_RATIO, BYTES_PER_TOKEN = 3.0, 4.0
"""Rough figures for the dry run."""


def prepare(
    inputs: Sequence[str],
    *,
    model: str,
    out: Path | str,
    heldout: Sequence[str] | None = None,
    eval: Sequence[str] | None = None,
    columns: Columns = Columns(),
    eval_columns: Columns | None = None,
    chunk_tokens: int = 512,
    min_tokens: int = 64,
    valid: float = 0.02,
    test: float = 0.02,
    heldout_cap: int = HELDOUT_CAP,
    heldout_chunks: int = 4,
    near_duplicates: Keep = "remove",
    overlap_share: float = 0.2,
    sample: float = 1.0,
    limit: int | None = None,
    limit_tokens: int | None = None,
    max_row_bytes: int = MAX_ROW_BYTES,
    seed: int = 0,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Path:
    """Prepare a corpus for scoring, pilots and selection; returns the folder, to be read with `text.prepared.Prepared`.

    inputs       files, folders, globs, fsspec URLs or `hf:DATASET`; `heldout`: files to take valid and test from
                 (halves), instead of from the inputs; `eval`: text the pool must not hold, such as benchmarks,
                 in `eval_columns` if not in the same columns
    valid, test  a share of the tokens (below 1; at most `heldout_cap` tokens) or a number of tokens
    heldout_chunks  most chunks kept of a held-out document, evenly spaced: many documents in few tokens
    near_duplicates  "remove", "keep", or how many of a kind stay
    sample       read this share of the input's documents, chosen by hash: a smaller corpus with the same make-up
    limit, limit_tokens  stop reading after so many rows, or before so many tokens of usable chunks are exceeded
    max_row_bytes  longer JSON lines and texts are rejected, without being held
    dry_run      print what would be read and write nothing
    """
    paths = resolve_inputs(inputs)
    heldout_paths = resolve_inputs(heldout) if heldout else []
    eval_paths = resolve_inputs(eval) if eval else []
    if dry_run:
        print(describe(survey(paths + heldout_paths + eval_paths)))
        return Path(out)
    tokenizer = load_tokenizer(model, revision)
    config: dict[str, Any] = {
        "tokenizer": tokenizer_hash(tokenizer),
        "columns": asdict(columns),
        "eval_columns": asdict(eval_columns or columns),
        "chunk_tokens": chunk_tokens,
        "min_tokens": min_tokens,
        "valid": valid,
        "test": test,
        "heldout_cap": heldout_cap,
        "heldout_chunks": heldout_chunks,
        "near_duplicates": near_duplicates,
        "overlap_share": overlap_share,
        "sample": sample,
        "limit": limit,
        "limit_tokens": limit_tokens,
        "max_row_bytes": max_row_bytes,
    }
    _check(config)
    chunker = Chunker(tokenizer, chunk_tokens, min_tokens)
    roles = {"input": paths, "heldout": heldout_paths, "eval": eval_paths}
    keys = {role: content_keys(files) for role, files in roles.items()}
    given = [(role, name, key) for role, found in keys.items() for name, key in found.items()]
    summed = {f"{role}/{name}": key for role, found in keys.items() for name, key in summed_up(found).items()}
    with StageFolder(
        Path(out),
        stage="prepare",
        version=VERSION,
        config=config,
        inputs={**summed, "order": fingerprint([name for _, name, _ in given])},
        seed=seed,
        overwrite=overwrite,
        extends=only_added(Path(out), given),
    ) as folder:
        if not folder.finished:
            _Run(folder, chunker, config, seed).all(paths, heldout_paths, eval_paths, model, given)
    return Path(out)


def _check(config: dict[str, Any]) -> None:
    kept = config["near_duplicates"]
    if kept not in ("remove", "keep") and not (isinstance(kept, int) and kept >= 1):
        raise UserError(f"near_duplicates = {kept!r}: give 'remove', 'keep' or a number of at least 1.")
    if not 0 < config["overlap_share"] <= 1:
        raise UserError(f"overlap_share = {config['overlap_share']}: give a share above 0, at most 1.")
    if not 0 < config["sample"] <= 1:
        raise UserError(f"sample = {config['sample']}: give a share of the documents above 0, at most 1.")
    for name in ("limit", "limit_tokens", "max_row_bytes"):
        if config[name] is not None and config[name] < 1:
            raise UserError(f"{name} = {config[name]}: give at least 1.")


def survey(paths: Sequence[str]) -> dict[str, Any]:
    """What would be read: files, stored bytes, roughly how many tokens. Reads nothing but sizes."""
    tokens = 0.0
    for path in paths:
        form = form_of(path)
        packed = bool(form.compression) or form.kind == "parquet"
        tokens += size_of(path) * (COMPRESSION_RATIO if packed else 1.0) / BYTES_PER_TOKEN
    return {"files": len(paths), "bytes": sum(map(size_of, paths)), "tokens": int(tokens)}


def describe(found: dict[str, Any]) -> str:
    megabytes, millions = found["bytes"] / 1e6, found["tokens"] / 1e6
    return f"prepare would read {found['files']} files, {megabytes:.1f} MB, about {millions:.1f} M tokens"


class _Run:
    """One run of the stage in an open folder."""

    def __init__(self, folder: StageFolder, chunker: Chunker, config: dict[str, Any], seed: int):
        self.folder, self.chunker, self.config, self.seed = folder, chunker, config, seed
        self.columns = Columns(**config["columns"])
        self.base = Prepared(folder.out) if folder.base else None
        """What is added to."""
        self.rejected = RejectedWriter(folder, len(list((folder.out / "rejected").iterdir())) if self.base else 0)
        self.eval_rejected: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        """Rows and tokens read."""
        self.not_sampled = self.n_eval = 0
        self.writers = [SplitWriter(folder, name, len(self.base.parts(name)) if self.base else 0) for name in SPLITS]

    def all(self, paths: list[str], heldout_paths: list[str], eval_paths: list[str], model: str, given: Given) -> None:
        ids, known, known_split = Ids(), list[str](), list[int]()
        if self.base:
            old = {(role, name) for role, name, _ in read_inputs(self.base.path)}
            paths, heldout_paths = [p for p in paths if ("input", name_of(p)) not in old], []
            print(f"prepare: {self.base.path} stays, {len(paths)} files are added to it", file=sys.stderr)
            for doc_id in known_ids(self.base):
                ids.add(doc_id)
            known, known_split = spool_known(self.folder, self.base, self.chunker)
        names, n_heldout = self._ingest(paths, heldout_paths, ids)
        for name in names:
            self.rejected.add(_read_rejected(self.folder, name))
            self.read.update(read_facts(self.folder, name))
        index = read_index(self.folder, known + names, self.seed)
        n_known, n_given = (sum(index.part_sizes[:n]) for n in (len(known), len(known) + n_heldout))
        if self.base:
            parts = index.part_sizes[: len(known)]
            split = np.concatenate([np.repeat(known_split, parts), np.full(len(index.tokens) - n_known, POOL)])
        elif len(index.tokens) > n_given:
            split = self._split(index, n_given)
        else:
            raise UserError(f"No usable document in {', '.join(paths[:3])}: {_listed(self.rejected.documents)}.")
        self._sift(known + names, index, split.astype(np.int8), self._protected(eval_paths), n_known)
        self._finish(model, given, paths)

    def _protected(self, eval_paths: list[str]) -> list[Document]:
        """The evaluation documents."""
        found: list[Document] = []
        for row in read_documents(eval_paths, Columns(**self.config["eval_columns"]), self.config["max_row_bytes"]):
            if isinstance(row, Document):
                found.append(row)
            else:
                self.eval_rejected[row.reason] += 1
        self.n_eval = len(found)
        return found

    def _ingest(self, paths: list[str], heldout_paths: list[str], ids: Ids) -> tuple[list[str], int]:
        """(spooled parts, those of held-out files first; how many these are)."""
        limits = {name: self.config[name] for name in ("limit", "limit_tokens")}
        total = survey(paths)["tokens"]
        with Progress("prepare", min(total, limits["limit_tokens"] or total)) as progress:

            def count(tokens: int) -> None:
                progress.total = max(progress.total, progress.done + tokens)  # the total was a guess
                progress.add(tokens)

            shared: dict[str, Any] = {"ids": ids, "on_tokens": count}
            heldout = ingest(self.folder, "heldout", self._read(heldout_paths), self.chunker, **shared)
            corpus = ingest(self.folder, "corpus", self._sampled(paths), self.chunker, **shared, **limits)
        return heldout + corpus, len(heldout)

    def _read(self, paths: list[str]) -> Iterator[Document | Rejected]:
        return read_documents(paths, self.columns, self.config["max_row_bytes"])

    def _sampled(self, paths: list[str]) -> Iterator[Document | Rejected]:
        """The rows of the corpus, documents outside the sample counted and left out."""
        share = self.config["sample"]
        for row in self._read(paths):
            if share < 1 and isinstance(row, Document) and uniform(-1 - self.seed, row.doc_id) >= share:
                self.not_sampled += 1
            else:
                yield row

    def _check_splits(self, split: NDArray[np.int8]) -> None:
        """UserError if nothing is left of a split that had documents."""
        for which, writer in enumerate(self.writers):
            if (split == which).any() and not writer.counts["documents"]:
                raise UserError(
                    f"Nothing is left in {SPLITS[which]}: {_listed(self.rejected.documents)}. Give more or other text, "
                    "or loosen overlap_share and near_duplicates."
                )

    def _split(self, index: Index, n_given: int) -> NDArray[np.int8]:
        if n_given:
            rest = np.full(len(index.tokens) - n_given, POOL, np.int8)
            return np.concatenate([halves(index.hashes[:n_given], index.tokens[:n_given]), rest])
        total, cap = int(index.tokens.sum()), self.config["heldout_cap"]
        targets = (token_target(self.config["valid"], total, cap), token_target(self.config["test"], total, cap))
        most = self.config["heldout_chunks"] * self.config["chunk_tokens"]
        return assign(index.hashes, np.minimum(index.tokens, most), targets, index.source)

    def _sift(
        self, names: list[str], index: Index, split: NDArray[np.int8], protected: list[Document], n_known: int
    ) -> None:
        eval_words = [hash_words(d.text) for d in protected]
        eval_signature = signatures([shingles(w, d.text) for w, d in zip(eval_words, protected, strict=True)])
        sieve = Sieve(
            split=np.concatenate([split, np.full(len(protected), POOL, np.int8)]),
            doc_ids=index.doc_id,
            near=NearDuplicates(lambda: chain(read_signatures(self.folder, names), [eval_signature])),
            n_documents=len(split),
            min_tokens=self.config["min_tokens"],
            kept_of_a_kind=kept_of_a_kind(self.config["near_duplicates"]),
            overlap_share=self.config["overlap_share"],
            heldout_chunks=self.config["heldout_chunks"],
        )
        sieve.heldout = Overlap(self._pass(names, index, sieve, split != POOL, n_known))
        sieve.eval = Overlap(eval_words)
        sieve.protect_eval()
        self._pass(names, index, sieve, split == POOL, n_known)
        if not self.base:
            self._check_splits(split)

    def _pass(
        self, names: list[str], index: Index, sieve: Sieve, wanted: NDArray[np.bool_], n_known: int
    ) -> list[NDArray[np.uint32]]:
        """Sift the wanted documents and write them; the words of those that stay, if they are held out.

        The first `n_known` documents stay and are written already.
        """
        words: list[NDArray[np.uint32]] = []
        for k, first, here in positions(index.part_sizes, wanted):
            for i, spooled in read_part(self.folder, names[k], here):
                which = int(sieve.split[first + i])
                if first + i < n_known:
                    sieve.recall(first + i, spooled)
                else:
                    kept, rejected = sieve.sift(first + i, spooled)
                    self.rejected.add(rejected)
                    if not kept:
                        continue
                    self.writers[which].add(spooled.document, kept)
                if which != POOL:
                    words.append(spooled.words)
        return words

    def _finish(self, model: str, given: Given, paths: list[str]) -> None:
        for writer in self.writers:
            writer.flush()
        self.rejected.flush()
        write_inputs(self.folder, given)
        counts = self._counts()
        for what, account in (("rows", counts["documents"]), ("tokens", counts["tokens"])):
            assert self.read[what] == account["in"], f"the ledger does not add up: {self.read} read, {counts}"
        if self.base:
            before = self.base.manifest["counts"]
            names = [name_of(p) for p in paths]
            added = {
                "files": names if len(names) <= MOST_NAMES else f"{len(names)} files",
                "documents": counts["documents"],
                "tokens": counts["tokens"],
                "first_part": len(self.base.parts("pool")),
            }
            counts = {**add_counts({k: before[k] for k in counts}, counts), "eval": counts["eval"]}
            counts["added"] = [*before.get("added", []), added]
        self.folder.finish({**counts, "facts": self._facts(model)})

    def _counts(self) -> dict[str, Any]:
        out: Counter[str] = sum((w.counts for w in self.writers), Counter())
        rejected = self.rejected
        return {
            "documents": _account(out["documents"], rejected.documents),
            "tokens": _account(out["tokens"], rejected.tokens),
            "not_sampled": self.not_sampled,
            "chunks": {"out": out["chunks"], "rejected": dict(sorted(rejected.chunks.items()))},
            "splits": {
                name: {**w.counts, "sources": _few(w.sources)} for name, w in zip(SPLITS, self.writers, strict=True)
            },
            "eval": {"documents": self.n_eval, "rejected": dict(sorted(self.eval_rejected.items()))},
        }

    def _facts(self, model: str) -> dict[str, Any]:
        return {
            "model": model_name(model),
            "tokenizer_hash": self.config["tokenizer"],
            "vocabulary": len(self.chunker.tokenizer),
            **{k: self.config[k] for k in ("chunk_tokens", "min_tokens", "columns", "max_row_bytes")},
        }


def add_counts(one: Any, other: Any) -> Any:
    """Sums of nested counts."""
    if not isinstance(one, dict):
        return one + other
    only_one = {k: v for k, v in one.items() if k not in other}
    return only_one | {k: add_counts(one[k], v) if k in one else v for k, v in other.items()}


def _few(sources: Counter[str]) -> dict[str, int]:
    """Tokens by source, or of all of them where they are too many to list."""
    if len(sources) > MOST_SOURCES:
        return {f"{len(sources)} sources": sources.total()}
    return dict(sorted(sources.items()))


def _account(out: int, rejected: Counter[str]) -> dict[str, Any]:
    """`in` = `out` + all rejected."""
    return {"in": out + rejected.total(), "out": out, "rejected": dict(sorted(rejected.items()))}


def _read_rejected(folder: StageFolder, name: str) -> list[Rejected]:
    rows = pq.read_table(folder.path / f"{name}.rejected.parquet").to_pylist()
    return [Rejected(**row) for row in rows]


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "no rows"
