"""A real but tiny learner without torch: an interpolated bigram model over the model folder's tokenizer.

It scores, learns, forgets and saves like a language model, in microseconds, so that whole flows can be tested:
`p(b | a) = (count[a, b] + PRIOR * unigram[b]) / (count[a] + PRIOR)`; a training step adds counts in proportion to
the learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.engines.base import EngineFacts, Ids, Nll, encode
from pplscape.manifest import sha256_file
from pplscape.text.tokenizer import first_token_bytes, load_tokenizer, model_name, tokenizer_hash

PRIOR, COUNTS_PER_LEARNING_RATE = 20.0, 1000.0


class FakeEngine:
    """`model` is a folder with tokenizer.json and, if it was trained, counts.npy."""

    def __init__(self, model: str):
        self._folder = Path(model)
        self._tokenizer = load_tokenizer(model)
        n = len(self._tokenizer)
        stored = self._folder / "counts.npy"
        self._base = np.load(stored) if stored.exists() else np.full((n, n), 1.0 / n)
        self.counts = self._base.copy()
        self.facts = EngineFacts(
            engine="fake",
            model=model_name(model),
            revision=None,
            weights=sha256_file(stored)[:16] if stored.exists() else None,
            tokenizer=tokenizer_hash(self._tokenizer),
            dtype="float64",
            bos="0",
            n_params=n * n,
            max_positions=None,
        )

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        return encode(self._tokenizer, texts)

    def first_bytes(self, texts: Sequence[str]) -> list[int]:
        return first_token_bytes(self._tokenizer, texts)

    def nll(self, chunks: Sequence[Ids], contexts: Sequence[Ids] | None = None) -> list[Nll]:
        unigram = self.counts.sum(0) / self.counts.sum()
        table = -np.log((self.counts + PRIOR * unigram) / (self.counts.sum(1, keepdims=True) + PRIOR))
        before = [int(c[-1]) if len(c) else 0 for c in contexts] if contexts else [0] * len(chunks)
        return [table[np.concatenate([[b], c[:-1]]), c].astype(np.float32) for b, c in zip(before, chunks, strict=True)]

    def sample(self, n: int, length: int, seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        unigram = self.counts.sum(0) / self.counts.sum()
        return [self._tokenizer.decode(rng.choice(len(unigram), length, p=unigram).tolist()) for _ in range(n)]

    def reset(self) -> None:
        self.counts = self._base.copy()

    def step(self, chunks: Sequence[Ids], learning_rate: float) -> dict[str, float]:
        loss = float(np.concatenate(self.nll(chunks)).mean())
        for chunk in chunks:
            np.add.at(self.counts, (np.concatenate([[0], chunk[:-1]]), chunk), COUNTS_PER_LEARNING_RATE * learning_rate)
        return {"loss": loss}

    def snapshot(self) -> Any:
        return self.counts.copy()

    def restore(self, snapshot: Any) -> None:
        self.counts = snapshot.copy()

    def save_state(self, folder: Path) -> None:
        np.save(folder / "counts.npy", self.counts)

    def load_state(self, folder: Path) -> None:
        self.counts = np.load(folder / "counts.npy")

    def save(self, folder: Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.save(Path(folder) / "counts.npy", self.counts)
        self._tokenizer.save_pretrained(folder)
