"""Work as any worker does it: load the engine, say what it is, choose a dtype, score a part. See `executors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pplscape.engines import load_engine, load_learner
from pplscape.engines.base import EngineFacts
from pplscape.errors import UserError
from pplscape.executors import Tell, TwoStep, Where
from pplscape.manifest import table_bytes
from pplscape.scoring import score_part
from pplscape.text.prepared import Prepared
from pplscape.training.schedule import Recipe


@dataclass(frozen=True)
class EngineSpec:
    """How any process loads the engine."""

    name: str
    model: str
    revision: str | None
    dtype: str
    bos: str
    reference: tuple[str, ...] = ()
    order: int | None = None
    recipe: Recipe | None = None
    """What it is trained with; None: it only scores."""

    def load(self) -> Any:
        options: dict[str, Any] = {"revision": self.revision, "dtype": self.dtype, "bos": self.bos}
        if self.recipe:
            return load_learner(self.name, self.model, self.recipe, **options)
        if self.reference:
            options |= {"reference": self.reference, "order": self.order}
        return load_engine(self.name, self.model, **options)

    def loaded_as(self, facts: EngineFacts | None) -> Any:
        """This process' engine. UserError if it is another than elsewhere."""
        engine = loaded(self)
        if facts and engine.facts != facts:
            here, there = engine.facts.as_dict(), facts.as_dict()
            differing = ", ".join(k for k in here if here[k] != there[k])
            raise UserError(f"{self.model} is another model on {Where.here()} than elsewhere: {differing} differ.")
        return engine

    def described(self, tell: Tell) -> Callable[[None], tuple[EngineFacts, int | None, str | None]]:
        """Job: facts, tokens of a batch and device of the engine, as a worker has them."""
        engine = loaded(self)
        return lambda _: (engine.facts, getattr(engine, "batch_tokens", None), getattr(engine, "device", None))


@lru_cache(maxsize=1)
def loaded(spec: EngineSpec) -> Any:
    """The engine of this process: described first, then used, loaded once."""
    return spec.load()


@contextmanager
def engine_forgotten() -> Iterator[None]:
    """Afterwards this process holds no model."""
    try:
        yield
    finally:
        loaded.cache_clear()


@dataclass(frozen=True)
class Scoring:
    """Job: one part of a prepared corpus -> (Parquet of its scores, of its rejected rows)."""

    prepared: Path
    split: str
    engine: EngineSpec
    context: int
    facts: EngineFacts | None = None
    """What the engine must be, wherever it is loaded."""

    def __call__(self, tell: Tell) -> Callable[[int], tuple[bytes, bytes]]:
        engine, corpus = self.engine.loaded_as(self.facts), Prepared(self.prepared)

        def read(number: int) -> tuple[Any, ...]:
            chunks, texts = corpus.part(self.split, number)
            if not self.context:
                return chunks, texts, None
            return chunks, texts, corpus.contexts(self.split, number, chunks, self.context, engine.encode)

        def compute(part: tuple[Any, ...]) -> tuple[bytes, bytes]:
            chunks, texts, before = part
            scores, rejected = score_part(engine, chunks, texts, before, tell)
            return table_bytes(scores), table_bytes(rejected)

        return TwoStep(read, compute)

    def dtype_chosen(self, tell: Tell) -> Callable[[None], dict[str, str]]:
        """Job: what dtype `auto` means here, and why: tried on some chunks of the corpus."""
        from pplscape.engines.dtype import candidates, choose_dtype

        engine = loaded(self.engine)
        dtypes = candidates(engine.device, engine.facts.n_params)
        chunks = engine.encode(calibration_texts(Prepared(self.prepared), self.split)) if len(dtypes) > 1 else []
        return lambda _: choose_dtype(lambda d: replace(self.engine, dtype=d).load(), dtypes, chunks).as_dict()


def calibration_texts(corpus: Prepared, split: str) -> list[str]:
    """Some chunks of the first, middle and last part."""
    from pplscape.engines.dtype import calibration_rows

    parts = corpus.parts(split)
    found = []
    for number in dict.fromkeys([*parts[:1], *parts[len(parts) // 2 :][:1], *parts[-1:]]):
        chunks, texts = corpus.part(split, number)
        found += [(texts[i], chunks["length"][i].as_py()) for i in calibration_rows(chunks["length"].to_pylist())]
    return [found[i][0] for i in calibration_rows([length for _, length in found])]
