"""Keys for the strategies that look at text: the pool read once, part by part, then worked on as arrays in files.

The first pass turns every part into its features (token ids, or buckets of n-grams) and spools them; a killed run finds
the parts that were done. What follows reads the spool only. Memory: one part of text and its features.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplscape.draw import dsir, prior
from pplscape.draw.keys import Keys, names_of
from pplscape.draw.permanent import hash_documents
from pplscape.errors import UserError
from pplscape.manifest import write_atomic
from pplscape.progress import Progress
from pplscape.statistics import Floats
from pplscape.text.inputs import resolve_inputs
from pplscape.text.prepared import Prepared
from pplscape.text.read import Document, read_documents
from pplscape.text.tokenizer import load_tokenizer, tokenizer_hash
from pplscape.text.words import WordEncoder, encode_by_words

FOLDER = "text"
"""Where `select` spools, until the selection is written."""
Featurise = Callable[[Sequence[str]], list[NDArray[Any]]]


@dataclass(frozen=True)
class Spool:
    """The features of a pool's parts in a folder."""

    corpus: Prepared
    folder: Path
    dtype: Any

    def fill(self, featurise: Featurise) -> None:
        """Read the text of the parts that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        total = self.corpus.manifest["counts"]["splits"]["pool"]["tokens"]
        with Progress("text", total) as progress:
            for k in self.corpus.parts("pool"):
                if not self._path(k, "features").exists():
                    chunks, texts = self.corpus.part("pool", k)
                    found = featurise(texts)
                    length = chunks["length"].to_numpy()
                    name = names_of(hash_documents(chunks["doc_id"].combine_chunks()), chunks["chunk_index"].to_numpy())
                    sizes = np.array([len(f) for f in found], dtype=np.uint64)
                    self.write(k, "names", np.stack([name, length.astype(np.uint64), sizes]))
                    self.write(k, "features", np.concatenate([np.empty(0, self.dtype), *found]).astype(self.dtype))
                    progress.add(int(length.sum()))

    def names(self, k: int) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each chunk of part k: bits of its name, tokens, features."""
        name, length, sizes = self.read(k, "names")
        return name, length.astype(np.int64), sizes.astype(np.int64)

    def features(self, k: int) -> NDArray[Any]:
        """All features of part k, chunk after chunk."""
        return self.read(k, "features")

    def write(self, k: int, what: str, array: NDArray[Any]) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomic(self._path(k, what), buffer.getvalue())

    def read(self, k: int, what: str) -> NDArray[Any]:
        found: NDArray[Any] = np.load(self._path(k, what), allow_pickle=False)
        return found

    def keys(self, key: Callable[[int], Floats]) -> Keys:
        """`key(k)` [n] of every part, to be found by name."""
        parts = self.corpus.parts("pool")
        n = self.corpus.manifest["counts"]["splits"]["pool"]["chunks"]
        return Keys.write(self.folder, n, ((self.names(k)[0], key(k)) for k in parts))

    def _path(self, k: int, what: str) -> Path:
        return self.folder / f"{what}-{k:05d}.npy"


def keys_for(
    strategy: str, corpus: Prepared, folder: Path, model: str | None = None, target: Sequence[str] = ()
) -> tuple[Keys, dict[str, Any]]:
    """Keys of a strategy that looks at text, and facts for selection.json.

    `model`: whose tokenizer unigram counts with, by default the one that the corpus names. `target`: text files that
    dsir draws towards, by default the corpus' valid split. UserError: another tokenizer than the corpus was cut with.
    """
    if strategy == "dsir":
        return importance_keys(corpus, folder, _file_texts(target) if target else _valid(corpus))
    name = model or corpus.facts["model"]
    tokenizer = load_tokenizer(name)
    corpus.check_tokenizer(tokenizer_hash(tokenizer), name)
    words, vocabulary = WordEncoder.of(tokenizer), max(tokenizer.get_vocab().values()) + 1
    return prior_keys(corpus, folder, lambda texts: encode_by_words(tokenizer, words, texts), vocabulary)


def _file_texts(files: Sequence[str]) -> Iterator[str]:
    return (row.text for row in read_documents(resolve_inputs(files)) if isinstance(row, Document))


def _valid(corpus: Prepared) -> Iterator[str]:
    for k in corpus.parts("valid"):
        yield from corpus.part("valid", k)[1]


def prior_keys(corpus: Prepared, folder: Path, encode: Featurise, vocabulary: int) -> tuple[Keys, dict[str, Any]]:
    """Keys of strategy unigram and facts about them; see `prior`. `encode`: texts -> token ids below `vocabulary`."""
    spool, parts = Spool(corpus, folder, np.int32), corpus.parts("pool")
    spool.fill(encode)
    tf, df = np.zeros(vocabulary, dtype=np.int64), np.zeros(vocabulary, dtype=np.int64)
    for k in parts:
        flat, sizes = spool.features(k), spool.names(k)[2]
        tf += np.bincount(flat, minlength=vocabulary)
        held = np.unique(np.repeat(np.arange(len(sizes)), sizes) * vocabulary + flat)
        df += np.bincount(held % vocabulary, minlength=vocabulary)
    token_prior = prior.token_prior(tf, df)
    ends = []
    for k in parts:
        values = np.stack(prior.mean_and_spread(token_prior, spool.features(k), spool.names(k)[2]))
        spool.write(k, "values", values)
        ends.append((values.min(axis=1, initial=np.inf), values.max(axis=1, initial=-np.inf)))
    low, high = np.min([e[0] for e in ends], axis=0), np.max([e[1] for e in ends], axis=0)
    ranks = [prior.Ranks.of((spool.read(k, "values")[i] for k in parts), low[i], high[i]) for i in (0, 1)]

    def key(k: int) -> Floats:
        mean, spread = spool.read(k, "values")
        return prior.key(ranks[0](mean), ranks[1](spread))

    return spool.keys(key), {"tokens": int(tf.sum()), "distinct_tokens": int((tf > 0).sum())}


def importance_keys(corpus: Prepared, folder: Path, target: Iterable[str]) -> tuple[Keys, dict[str, Any]]:
    """Keys of strategy dsir and facts about them; see `dsir`. UserError for a target without words."""
    spool, wanted, pool, facts = _towards(corpus, folder, target, dsir.words)
    ratio = dsir.log_ratio(wanted, pool)
    chunk_tokens, least, short = corpus.facts["chunk_tokens"], np.inf, 0
    for k in corpus.parts("pool"):
        _, length, sizes = spool.names(k)
        weight = dsir.log_weights(ratio, spool.features(k), sizes)
        spool.write(k, "values", weight)
        is_short = length < dsir.SHORT_SHARE * chunk_tokens
        least, short = min(least, float(weight[~is_short].min(initial=np.inf))), short + int(is_short.sum())
    least = least if np.isfinite(least) else 0.0
    facts |= {"short_chunks": short, "short_below": dsir.SHORT_SHARE * chunk_tokens}
    return spool.keys(lambda k: dsir.short_last(spool.read(k, "values"), spool.names(k)[1], chunk_tokens, least)), facts


def likeness_keys(corpus: Prepared, folder: Path, target: Sequence[str] = ()) -> tuple[Keys, dict[str, Any]]:
    """Likeness of every chunk to the target text (`dsir.likeness`), nats per n-gram, and facts about it.

    `target`: text files, by default the corpus' valid split. UserError for a target without words.
    """
    texts = _file_texts(target) if target else _valid(corpus)
    spool, wanted, pool, facts = _towards(corpus, folder, texts, dsir.words_and_signs)
    ratio = dsir.smoothed_log_ratio(wanted, pool)
    return spool.keys(lambda k: dsir.likeness(ratio, spool.features(k), spool.names(k)[2])), facts


def _towards(
    corpus: Prepared, folder: Path, target: Iterable[str], split: dsir.Split
) -> tuple[Spool, NDArray[np.int64], NDArray[np.int64], dict[str, Any]]:
    """The pool's n-grams, their counts [BUCKETS] in target and pool, and facts about both."""
    wanted = dsir.count(target, split)
    if not wanted.any():
        raise UserError("The target text holds no word: pass --target, or a corpus with held-out valid text.")
    spool = Spool(corpus, folder, np.uint16)
    spool.fill(lambda texts: [dsir.buckets(t, split) for t in texts])
    pool = np.zeros(dsir.BUCKETS, np.int64)
    for k in corpus.parts("pool"):
        pool += np.bincount(spool.features(k), minlength=dsir.BUCKETS)
    facts = {"target_ngrams": int(wanted.sum()), "pool_ngrams": int(pool.sum()), "buckets": dsir.BUCKETS}
    return spool, wanted, pool, facts
