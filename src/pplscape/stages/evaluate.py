"""evaluate: loss per document of a model on held-out domain text and on general text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.engines import load_engine
from pplscape.engines.base import Engine
from pplscape.errors import UserError
from pplscape.manifest import MANIFEST, StageFolder, read_manifest
from pplscape.tasks.choice import answer_questions, read_questions
from pplscape.tasks.harness import run_harness
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared
from pplscape.training.schedule import Recipe
from pplscape.training.texts import HeldOut, heldout_from_files, heldout_of, read_general

VERSION = 3


def evaluate(
    model: str, *, heldout: Path | str, out: Path | str, general: Sequence[str] | None = None,
    engine: str = "transformers", revision: str | None = None, dtype: str = "auto", bos: str = "auto",
    chunk_tokens: int = 512, tasks: Sequence[str] = (), overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/eval.jsonl, one line a document: split (valid, test or general), n_tokens, n_bytes, nll_sum (nats).

    `heldout`: a prepared folder (its test split) or a text input. `model` may be the output folder of `train`.
    `tasks`: files of questions (see `tasks.choice`), names of lm-evaluation-harness, and a folder of the user's own
    task files for it; their answers go to OUT/tasks.jsonl, one line a question.
    """
    trained = Path(model) / "model"
    facts = _arm(Path(model))
    source = str(trained if trained.exists() else model)
    scorer = load_engine(engine, source, dtype=dtype, revision=revision, bos=bos)
    config = {**scorer.facts.as_dict(), "arm": facts, "chunk_tokens": chunk_tokens}
    files, folder_of_tasks, named = _sorted_out(tasks)
    config |= {"tasks": named} if named else {}
    inputs: dict[str, Path | str] = {"heldout": Path(heldout)} if _is_stage(heldout) else {}
    inputs |= identities("heldout", None if _is_stage(heldout) else [str(heldout)])
    inputs |= {"model": Path(model)} if _is_stage(model) else {}
    inputs |= identities("general", general) | identities("tasks", files)
    inputs |= {"task files": folder_of_tasks} if folder_of_tasks else {}
    with StageFolder(
        Path(out), stage="evaluate", version=VERSION, config=config, inputs=inputs, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            measured, _ = read_general(general, scorer, chunk_tokens, Recipe())
            texts = _heldout(heldout, scorer, chunk_tokens) + ([("general", measured)] if measured else [])
            rows = [row for split, text in texts for row in _rows(scorer, text, split)]
            folder.write_jsonl("eval.jsonl", rows)
            if tasks:
                folder.write_jsonl("tasks.jsonl", _answers(scorer, source, files, named, folder_of_tasks, revision))
            rejected = sum((text.rejected for _, text in texts), Counter[str]())
            folder.finish(
                {"in": len(rows) + rejected.total(), "out": len(rows), "rejected": dict(rejected), "facts": facts}
            )
    return Path(out)


def _sorted_out(tasks: Sequence[str]) -> tuple[list[str], Path | None, list[str]]:
    """Local files of questions, the folder of the harness' task files if there is one, and its tasks by name."""
    folders = [t for t in tasks if Path(t).is_dir()]
    if len(folders) > 1:
        raise UserError(f"--tasks takes one folder of task files, not {len(folders)}: {', '.join(folders)}.")
    files = [t for t in tasks if t not in folders and (Path(t).exists() or ".jsonl" in t)]
    named = [t for t in tasks if t not in files and t not in folders]
    if folders and not named:
        raise UserError(f"--tasks {folders[0]} is a folder of task files: name the tasks to run as well.")
    return files, Path(folders[0]) if folders else None, named


def _answers(
    scorer: Engine, model: str, files: Sequence[str], named: Sequence[str], include: Path | None, revision: str | None
) -> list[dict[str, Any]]:
    rows = [row for path in files for row in answer_questions(scorer, read_questions(path))]
    if named:
        rows += run_harness(model, named, revision=revision, dtype=scorer.facts.dtype, include=include)
    return rows


def _is_stage(path: Path | str) -> bool:
    return (Path(path) / MANIFEST).exists()


def _arm(model: Path) -> dict[str, Any]:
    """Strategy, seed and tokens of a trained model; a model that `train` did not write is the base."""
    if _is_stage(model):
        return read_manifest(model)["counts"]["facts"]
    return {"strategy": "base", "seed": 0, "tokens": 0}


def _heldout(path: Path | str, engine: Engine, chunk_tokens: int) -> list[tuple[str, HeldOut]]:
    """Test text; of a prepared folder also the valid text, on which laws predict."""
    if _is_stage(path):
        corpus = Prepared(path)
        corpus.check_tokenizer(engine.facts.tokenizer, engine.facts.model)
        return [(split, heldout_of(corpus, split, engine)) for split in ("valid", "test")]
    return [("test", heldout_from_files([str(path)], engine, chunk_tokens))]


def _rows(engine: Engine, text: HeldOut, split: str) -> list[dict[str, Any]]:
    measured = text.loss(engine)
    if not np.isfinite(measured.nll_sum).all():
        raise UserError(f"The loss of {engine.facts.model} on the {split} text is not finite; try --dtype float32.")
    source = dict(zip(text.doc_id, text.source, strict=True))
    return [
        {
            "doc_id": d, "source": source[d], "split": split, "n_tokens": int(measured.n_tokens[i]),
            "n_bytes": int(measured.n_bytes[i]), "nll_sum": float(measured.nll_sum[i]),
        }
        for i, d in enumerate(measured.doc_id)
    ]  # fmt: skip


def read_evaluation(folder: Path) -> list[dict[str, Any]]:
    """The rows of eval.jsonl."""
    try:
        return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{folder} has no eval.jsonl; make it with: pplscape evaluate MODEL --out {folder}") from None


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The rows of tasks.jsonl; none where no task was asked."""
    path = folder / "tasks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
