"""Scoring with an n-gram model over the model's own tokens: no network, no torch.

It knows how often tokens follow one another in a reference text (`kneser_ney`), nothing else: a pre-filter and a
baseline. The counts are written beside the scores as ngram.parquet, which can be the reference of other scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.engines.base import EngineFacts, Ids, Nll
from pplscape.engines.kneser_ney import Keys, KneserNey, Tally, most_orders, ngrams, tally
from pplscape.errors import UserError
from pplscape.manifest import MANIFEST, StageFolder, fingerprint, fingerprint_input
from pplscape.text.inputs import content_keys, resolve_inputs
from pplscape.text.prepared import Prepared
from pplscape.text.read import Document, read_documents
from pplscape.text.tokenizer import first_token_bytes, load_tokenizer, model_name, tokenizer_hash
from pplscape.text.words import WordEncoder, encode_by_words

COUNTS = "ngram.parquet"
ORDER = 3
MOST_TOKENS = 20_000_000
"""Reference tokens that are counted: they take up to half a GiB. Of a larger pool every k-th chunk is counted, of
text files the beginning."""
PIECE_TOKENS = 512
"""Text files are counted in pieces of about a chunk, so that what begins a piece is like what begins a chunk."""
_TEXTS = 1024
_META = b"pplscape"


class NgramEngine:
    """`model` names the tokenizer. `reference`: a prepared folder (its pool), text files, or the ngram.parquet of
    other scores.

    `facts.weights` identifies what is counted, not the counts: they are made at their first use.
    UserError: a reference that cannot be read, or was counted with another tokenizer.
    """

    def __init__(
        self, model: str, *, reference: Sequence[str], order: int | None = None, revision: str | None = None
    ):  # fmt: skip
        if not reference:
            raise UserError("Engine ngram needs a reference text: pass --reference.")
        self.tokenizer = load_tokenizer(model, revision)
        self._words = WordEncoder.of(self.tokenizer)
        self._vocabulary = max(self.tokenizer.get_vocab().values()) + 1
        self._reference = [str(r) for r in reference]
        self._known: Tally | None = None
        digest, self.order = tokenizer_hash(self.tokenizer), ORDER if order is None else order
        if Path(self._reference[0]).name == COUNTS and len(self._reference) == 1:
            saved, self._known = _read(Path(self._reference[0]), digest)
            if order not in (None, saved["order"]):
                raise UserError(f"{self._reference[0]} counts {saved['order']}-grams, not {order}-grams: drop --order.")
            self.order, weights = saved["order"], saved["weights"]
        else:
            weights = fingerprint([self.order, _identity(self._reference)])[:16]
        most = most_orders(self._vocabulary)
        if not 1 <= self.order <= most:
            raise UserError(f"--order {self.order} must lie between 1 and {most} with this tokenizer.")
        self.facts = EngineFacts(
            engine="ngram",
            model=model_name(model),
            revision=revision,
            weights=weights,
            tokenizer=digest,
            dtype="float64",
            bos="start",
            n_params=0,
            max_positions=None,
        )

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return encode_by_words(self.tokenizer, self._words, texts)

    def first_bytes(self, texts: Sequence[str]) -> list[int]:
        return first_token_bytes(self.tokenizer, texts)

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        """All ids of a chunk are scored: the first ones after the start symbol, or after the end of their context."""
        values = self.counts.nll(ngrams(chunks, contexts, self._vocabulary, self.order))
        return np.split(values, np.cumsum([len(c) for c in chunks])[:-1]) if len(chunks) else []

    def sample(self, n: int, length: int, seed: int) -> list[str]:
        raise UserError("An n-gram model writes no text that is worth training on: sample with --engine transformers.")

    @cached_property
    def counts(self) -> KneserNey:
        """The model, counted at its first use."""
        counted = self._known or tally(self._keys())
        if not len(counted.keys):
            raise UserError(f"There is no text in the reference {', '.join(self._reference)}.")
        return KneserNey(counted, self._vocabulary, self.order)

    def keep(self, folder: StageFolder) -> None:
        """Have the counts in `folder`: those that a killed run left there are used, else they are written."""
        if folder.has(COUNTS):
            _, self._known = _read(folder.path / COUNTS, self.facts.tokenizer)
            return
        meta = {"order": self.order, "weights": self.facts.weights, "tokenizer": self.facts.tokenizer}
        counted = self.counts.counted
        table = pa.table({"ngram": counted.keys, "count": counted.counts})
        folder.write_table(COUNTS, table.replace_schema_metadata({_META: json.dumps(meta).encode()}))

    def _keys(self) -> Iterator[Keys]:
        """n-grams of the reference, of about MOST_TOKENS."""
        pool = _is_prepared(self._reference[0])
        texts = _pool_texts(Prepared(self._reference[0])) if pool else _file_texts(self._reference)
        left = MOST_TOKENS
        while left > 0 and (some := list(islice(texts, _TEXTS))):
            ids = self.encode(some)
            if not pool:
                ids = [i[at : at + PIECE_TOKENS] for i in ids for at in range(0, len(i), PIECE_TOKENS)]
            yield ngrams(ids, None, self._vocabulary, self.order)
            left -= 0 if pool else sum(len(i) for i in ids)


def _is_prepared(path: str) -> bool:
    return (Path(path) / MANIFEST).exists()


def _file_texts(reference: Sequence[str]) -> Iterator[str]:
    return (row.text for row in read_documents(resolve_inputs(reference)) if isinstance(row, Document))


def _pool_texts(corpus: Prepared) -> Iterator[str]:
    counts = corpus.manifest["counts"]["splits"]["pool"]
    step = max(1, -(-counts["tokens"] // MOST_TOKENS))
    first = 0
    for k in corpus.parts("pool"):
        chunks, texts = corpus.part("pool", k)
        yield from texts[-first % step :: step]
        first += len(chunks)


def _identity(reference: Sequence[str]) -> Any:
    if _is_prepared(reference[0]):
        if len(reference) > 1:
            raise UserError("Give one prepared folder as --reference, or text files.")
        return fingerprint_input(Path(reference[0]))
    return sorted(content_keys(resolve_inputs(reference)).values())


def _read(path: Path, tokenizer: str) -> tuple[dict[str, Any], Tally]:
    try:
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[_META])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{path} cannot be read as counts of n-grams: {error}") from None
    if meta["tokenizer"] != tokenizer:
        raise UserError(f"{path} was counted with another tokenizer: give the text itself as --reference.")
    return meta, Tally(table["ngram"].to_numpy(), table["count"].to_numpy())
