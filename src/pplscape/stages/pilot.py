"""pilot: train the planned trunks and branches, and record what came out, failures included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplscape.design import Regime
from pplscape.engines.base import EngineFacts
from pplscape.errors import UserError
from pplscape.executors import Executor, open_executor
from pplscape.jobs import EngineSpec, engine_forgotten
from pplscape.manifest import StageFolder, read_json, read_manifest
from pplscape.pilots import Asked, Piloting
from pplscape.progress import Progress
from pplscape.text.inputs import identities
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.schedule import Recipe

VERSION = 2
STATES = "checkpoints"
"""Folder of the states of unfinished trunks."""


def pilot(
    plan: Path | str, *, model: str, scores: Path | str, corpus: Path | str, out: Path | str,
    heldout: Sequence[str] | None = None, general: Sequence[str] | None = None, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", executor: str = "local",
    workers: int | None = None, threads: int | None = None, address: str | None = None, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/runs.jsonl (`schema.RUN_FIELDS`), one line a run. A finished trunk survives a kill, and so does a
    finished size of an unfinished one.

    `corpus`: the prepared folder; `heldout`: input files to measure the loss on instead of its valid text; `general`:
    input files whose loss shows forgetting (and that replay draws from).
    `executor`, `workers`, `threads`, `address`: see `open_executor`; a worker runs one trunk at a time, and results
    differ by their threads only. A trunk whose workers died twice is recorded as failed.
    """
    content = read_json(Path(plan) / "plan.json", f"plan LANDSCAPE --budget T --pilot-tokens N --out {plan}")
    spec = EngineSpec(engine, model, revision, dtype, bos, recipe=Recipe(**content["recipe"]))
    with open_executor(executor, workers, threads, address) as pool, engine_forgotten():
        (answer,) = pool.map(spec.described, [None], name=lambda _: f"Loading {model}")
        facts: EngineFacts = answer.value[0]
        check_scores(Path(scores), facts)
        inputs: dict[str, Path | str] = {"plan": Path(plan), "scores": Path(scores), "corpus": Path(corpus)}
        inputs |= identities("general", general) | identities("heldout", heldout)
        with StageFolder(
            Path(out), stage="pilot", version=VERSION, config=facts.as_dict(), inputs=inputs, seed=seed,
            overwrite=overwrite,
        ) as folder:  # fmt: skip
            if not folder.finished:
                states = folder.partial / STATES
                job = Piloting(content, spec, Path(scores), Path(corpus), heldout, general, seed, states, facts)
                _run_all(pool, job, folder)
    return Path(out)


def check_scores(scores: Path, found: EngineFacts) -> None:
    """UserError if the scores are those of another base model or BOS policy: the law would mix two landscapes."""
    facts = read_manifest(scores)["counts"]["facts"]
    for name, words in (
        ("tokenizer", "another tokenizer"),
        ("weights", "other weights"),
        ("bos", "another BOS policy"),
    ):
        mine = getattr(found, name)
        if facts.get(name, mine) != mine:
            raise UserError(
                f"{scores} was scored with {words} ({facts['model']}: {facts[name]}) than {found.model} has "
                f"({mine}): give the model and --bos of `pplscape score`, or score again."
            )


def _run_all(pool: Executor, job: Piloting, folder: StageFolder) -> None:
    """The trunks that are not there yet; those that cost two workers their life are recorded as failed."""
    regimes = [regime_of(r) for r in job.plan["regimes"]]
    left = [Asked(r) for r in regimes if not folder.has(_file(r))]
    done_by: dict[str, list[str]] = {}
    with Progress("pilot", job.plan["cost"]["tokens"]) as progress:
        while left:
            left = _run(pool, job, left, folder, progress, done_by)
    shutil.rmtree(job.states, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for regime in regimes:
        rows += [json.loads(line) for line in (folder.path / _file(regime)).read_text().splitlines()]
    folder.write_jsonl("runs.jsonl", rows)
    failed = sum(r["status"] != "ok" for r in rows)
    counts = {"in": len(rows), "out": len(rows) - failed, "rejected": {"failed": failed} if failed else {}}
    folder.finish(counts, run={"trunks": done_by})


def _run(
    pool: Executor, job: Piloting, trunks: list[Asked], folder: StageFolder, progress: Progress,
    done_by: dict[str, list[str]],
) -> list[Asked]:  # fmt: skip
    """Write the rows of these trunks; returns those whose workers died, with the reason."""
    lost: list[Asked] = []
    for done in pool.map(
        job, trunks, tell=progress.add, name=lambda asked: f"Pilot {asked.regime.group}",
        lost=lambda asked, how: Asked(asked.regime, f"its worker died twice: {how}"),
    ):  # fmt: skip
        if isinstance(done.value, Asked):
            lost.append(done.value)
            continue
        group = done.item.regime.group
        folder.write_jsonl(_file(done.item.regime), done.value)
        Checkpoints(job.states / group).clear()
        done_by.setdefault(str(done.where), []).append(group)
    return lost


def _file(regime: Regime) -> str:
    return f"trunks/{regime.group}.jsonl"


def regime_of(row: dict[str, Any]) -> Regime:
    """A regime from its entry in plan.json."""
    shares = tuple(row["shares"]) if row["shares"] is not None else None
    return Regime(row["name"], row["kind"], row["seed"], shares, row["target_mean"], row["target_std"])
