"""train: continual pre-training of the base model on a subset, with the recipe the pilots used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.permanent import uniforms
from pplscape.engines import load_engine
from pplscape.engines.base import Ids, Learner
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, cannot_write
from pplscape.progress import Progress
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared
from pplscape.training.loop import Replay, train_run
from pplscape.training.schedule import Recipe
from pplscape.training.texts import chunk_ids, heldout_from_files, read_general, with_repeats

VERSION = 1
ORDER_STREAM = 9_001
"""Seed offset of the uniforms that order the training chunks."""


def train(
    subset: Path | str, *, model: str, out: Path | str, corpus: Path | str | None = None, tokens: int | None = None,
    recipe: Recipe | None = None, general: Sequence[str] | None = None, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", chunk_tokens: int = 512, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/model/ (safetensors + tokenizer) and OUT/train.jsonl (one line a step).

    `subset`: a selection folder (then `corpus`, the prepared folder, gives the text) or any text input, cut every
    `chunk_tokens` tokens; `tokens` stops early; `seed` orders the chunks.
    """
    recipe = recipe or Recipe()
    learner = load_engine(engine, model, train=True, dtype=dtype, revision=revision, bos=bos)
    config = {**learner.facts.as_dict(), "recipe": asdict(recipe), "tokens": tokens, "chunk_tokens": chunk_tokens}
    selection = (Path(subset) / "selection.json").exists()
    inputs: dict[str, Path | str] = {"subset": Path(subset)} if selection else {}
    inputs |= identities("subset", None if selection else [str(subset)])
    inputs |= {"corpus": Path(corpus)} if corpus else {}
    inputs |= identities("general", general)
    with StageFolder(
        Path(out), stage="train", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            if selection:
                chunks, rejected = _selected_chunks(Path(subset), corpus, learner, seed), Counter[str]()
            else:
                text = heldout_from_files([str(subset)], learner, chunk_tokens)
                chunks, rejected = text.chunks, text.rejected
            _, replayed = read_general(general if recipe.replay_share else None, learner, chunk_tokens, recipe)
            facts = {**_facts(Path(subset), seed), "rejected": dict(rejected)}
            _train(learner, _up_to(chunks, tokens), recipe, replayed, folder, facts)
    return Path(out)


def _train(
    learner: Learner, chunks: list[Ids], recipe: Recipe, replayed: list[Ids], folder: StageFolder, facts: dict[str, Any]
) -> None:
    total = sum(len(c) for c in chunks)
    with Progress("train", total) as progress:
        try:
            done = train_run(learner, chunks, recipe, Replay(replayed) if replayed else None, progress.add)
        except FloatingPointError as error:
            raise UserError(f"Training diverged ({error}); give a lower --learning-rate.") from None
    try:
        learner.save(folder.partial / "model")
    except OSError as error:
        raise cannot_write(folder.partial / "model", error) from error
    folder.write_jsonl("train.jsonl", done.steps)
    folder.finish(
        {
            "in": len(chunks), "out": len(chunks), "rejected": facts.pop("rejected"), "tokens": done.tokens,
            "replay_tokens": done.replay_tokens, "facts": {**facts, "tokens": done.tokens},
        }
    )  # fmt: skip


def _selected_chunks(subset: Path, corpus: Path | str | None, engine: Learner, seed: int) -> list[Ids]:
    """The chunks of a selection folder in the order of this seed."""
    if corpus is None:
        raise UserError(f"{subset} is a selection without text; pass the prepared folder with --corpus.")
    prepared = Prepared(Path(corpus))
    prepared.check_tokenizer(engine.facts.tokenizer, engine.facts.model)
    selected = pa.concat_tables([pq.read_table(p) for p in sorted((subset / "selected").glob("part-*.parquet"))])
    order = uniforms(ORDER_STREAM + seed, selected["doc_id"].to_pylist(), np.asarray(selected["chunk_index"]))
    return chunk_ids(prepared, selected.take(pa.array(with_repeats(selected, order))), engine)


def _up_to(chunks: list[Ids], tokens: int | None) -> list[Ids]:
    """Whole chunks, at most `tokens` tokens. UserError when there is nothing to train on."""
    if tokens is not None:
        total = np.cumsum([len(c) for c in chunks])
        chunks = chunks[: int(np.searchsorted(total, tokens, side="right"))]
    if not chunks:
        raise UserError("There is nothing to train on: the subset is empty, or --tokens is less than one chunk.")
    return chunks


def _facts(subset: Path, seed: int) -> dict[str, Any]:
    """Strategy and seed of the subset, so that `compare` can pair arms."""
    if not (subset / "selection.json").exists():
        return {"strategy": subset.name, "seed": seed}
    selection = json.loads((subset / "selection.json").read_text())
    return {"strategy": selection["used"], "seed": seed}
