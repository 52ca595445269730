"""train: continual pre-training of the base model on a subset, with the recipe the pilots used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.permanent import uniforms
from pplscape.engines import load_learner
from pplscape.engines.base import Ids, Learner
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, cannot_write
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared
from pplscape.training.checkpoint import CHECKPOINT_SECONDS, Checkpoints
from pplscape.training.loop import Progressed
from pplscape.training.ranks import agree, is_first
from pplscape.training.run import Run
from pplscape.training.schedule import Recipe
from pplscape.training.texts import chunk_ids, heldout_from_files, read_general, with_repeats
from pplscape.training.tracker import open_tracker

VERSION = 3
ORDER_STREAM = 9_001
"""Seed offset of the uniforms that order the training chunks."""


def train(
    subset: Path | str, *, model: str, out: Path | str, corpus: Path | str | None = None, tokens: int | None = None,
    recipe: Recipe | None = None, general: Sequence[str] | None = None, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", chunk_tokens: int = 512, seed: int = 0,
    tracker: str = "none", gradient_checkpointing: bool = False, checkpoint_seconds: float = CHECKPOINT_SECONDS,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/model/ (safetensors + tokenizer) and OUT/train.jsonl (one line a step).

    `subset`: a selection folder (then `corpus`, the prepared folder, gives the text) or any text input, cut every
    `chunk_tokens` tokens; `tokens` stops early; `seed` orders the chunks. A killed run goes on after its last
    checkpoint (one every `checkpoint_seconds`) and ends in the weights of an undisturbed one. `tracker`: see
    `training.tracker`. Started by torchrun, all its processes train one model, and the first writes.
    UserError: the loss or a gradient is not finite; the last good weights are then kept in OUT.partial/last-good.
    """
    recipe = recipe or Recipe()
    learner = load_learner(
        engine, model, recipe, dtype=dtype, revision=revision, bos=bos, gradient_checkpointing=gradient_checkpointing
    )
    config = {**learner.facts.as_dict(), "recipe": asdict(recipe), "tokens": tokens, "chunk_tokens": chunk_tokens}
    selection = (Path(subset) / "selection.json").exists()
    inputs: dict[str, Path | str] = {"subset": Path(subset)} if selection else {}
    inputs |= identities("subset", None if selection else [str(subset)])
    inputs |= {"corpus": Path(corpus)} if corpus else {}
    inputs |= identities("general", general)
    folder = StageFolder(
        Path(out), stage="train", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    )
    with folder if is_first() else nullcontext():
        if not agree(folder.finished):
            if selection:
                chunks, rejected = _selected_chunks(Path(subset), corpus, learner, seed), Counter[str]()
            else:
                text = heldout_from_files([str(subset)], learner, chunk_tokens)
                chunks, rejected = text.chunks, text.rejected
            _, replayed = read_general(general if recipe.replay_share else None, learner, chunk_tokens, recipe)
            facts = {**_facts(Path(subset), seed), "rejected": dict(rejected)}
            keep = Checkpoints(folder.partial / "checkpoints", checkpoint_seconds)
            kind, settings = tracker if is_first() else "none", {**asdict(recipe), **facts}
            logged = open_tracker(kind, Path(out).name, settings, Path(out).parent)
            run = Run(learner, _up_to(chunks, tokens), recipe, replayed, keep, logged, folder.partial / "train.jsonl")
            done = _train(run, folder)
            _finish(learner, folder, done, len(run.chunks), facts)
    return Path(out)


def _train(run: Run, folder: StageFolder) -> Progressed:
    try:
        return run.train()
    except FloatingPointError as error:
        good = folder.partial / "last-good"
        _save(run.learner, good)
        raise UserError(
            f"Training diverged ({error}); the weights before that step are in {good}. Give a lower --learning-rate "
            "and --overwrite."
        ) from None


def _save(learner: Learner, path: Path) -> None:
    try:
        learner.save(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _finish(learner: Learner, folder: StageFolder, done: Progressed, chunks: int, facts: dict[str, Any]) -> None:
    _save(learner, folder.partial / "model")
    if not is_first():
        return
    Checkpoints(folder.partial / "checkpoints").clear()
    folder.finish(
        {
            "in": chunks, "out": chunks, "rejected": facts.pop("rejected"), "tokens": done.tokens,
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
