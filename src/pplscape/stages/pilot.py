"""pilot: train the planned trunks and branches, and record what came out, failures included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from pplscape.design import Regime, trunk_tokens
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

VERSION = 4
STATES = "checkpoints"
"""Folder of the states of unfinished trunks."""


def pilot(
    plan: Path | str, *, model: str, scores: Path | str, corpus: Path | str, out: Path | str,
    heldout: Sequence[str] | None = None, general: Sequence[str] | None = None, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", executor: str = "local",
    workers: int | None = None, threads: int | None = None, address: str | None = None, proxy: bool = False,
    regimes: Sequence[str] | None = None, repeats: int = 1, largest: int | None = None, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/runs.jsonl (`schema.RUN_FIELDS`), one line a run. A finished trunk survives a kill, and so does a
    finished size of an unfinished one.

    `proxy`: `model` stands in for the one that made the scores, whose tokenizer it must have; pools, regimes, chunks
    and their order are the plan's all the same. `regimes`, `largest`: only these regimes and no size above so many
    tokens; `repeats`: seeds of every regime, at least (`part_of`).

    `corpus`: the prepared folder; `heldout`: input files to measure the loss on instead of its valid text; `general`:
    input files whose loss shows forgetting (and that replay draws from).
    `executor`, `workers`, `threads`, `address`: see `open_executor`; a worker runs one trunk at a time, and results
    differ by their threads only. A trunk whose workers died twice is recorded as failed.
    """
    content = part_of(read_plan(plan), regimes, repeats, largest)
    spec = EngineSpec(engine, model, revision, dtype, bos, recipe=Recipe(**content["recipe"]))
    with open_executor(executor, workers, threads, address) as pool, engine_forgotten():
        (answer,) = pool.map(spec.described, [None], name=lambda _: f"Loading {model}")
        facts: EngineFacts = answer.value[0]
        proxy_of = check_scores(Path(scores), facts, proxy)
        inputs: dict[str, Path | str] = {"plan": Path(plan), "scores": Path(scores), "corpus": Path(corpus)}
        inputs |= identities("general", general) | identities("heldout", heldout)
        with StageFolder(
            Path(out), stage="pilot", version=VERSION, inputs=inputs, seed=seed, overwrite=overwrite,
            config=facts.as_dict() | {"groups": [r["name"] + f"-{r['seed']}" for r in content["regimes"]],
                                      "sizes": content["sizes"]},
        ) as folder:  # fmt: skip
            if not folder.finished:
                states = folder.partial / STATES
                job = Piloting(
                    content, spec, Path(scores), Path(corpus), heldout, general, seed, states, facts, proxy_of
                )
                _run_all(pool, job, folder)
    return Path(out)


def read_plan(plan: Path | str) -> dict[str, Any]:
    """Content of plan.json; UserError if there is none."""
    return read_json(Path(plan) / "plan.json", f"plan LANDSCAPE --budget T --pilot-tokens N --out {plan}")


def part_of(
    plan: dict[str, Any], regimes: Sequence[str] | None = None, repeats: int = 1, largest: int | None = None
) -> dict[str, Any]:
    """The plan (content of plan.json) with only these regimes, by name, and no size above `largest` tokens.

    `repeats`: a regime with fewer seeds gets more, so that it has so many. UserError where nothing is left.
    """
    known = list(dict.fromkeys(r["name"] for r in plan["regimes"]))
    unknown = sorted(set(regimes or ()) - set(known))
    if unknown:
        raise UserError(f"The plan has no regime {', '.join(unknown)}; it has {', '.join(known)}.")
    sizes = [s for s in plan["sizes"] if largest is None or s <= largest]
    if not sizes:
        raise UserError(f"No size of the plan is within {largest:,} tokens; the smallest is {plan['sizes'][0]:,}.")
    kept = [r for r in plan["regimes"] if regimes is None or r["name"] in regimes]
    for name in [n for n in known if regimes is None or n in regimes]:
        mine = [r for r in kept if r["name"] == name]
        free = (s for s in count() if s not in {r["seed"] for r in mine})
        kept += [mine[0] | {"seed": s} for s in islice(free, max(0, repeats - len(mine)))]
    cost = plan["cost"] | {"tokens": len(kept) * trunk_tokens(sizes, plan["recipe"]["cooldown_share"])}
    return plan | {"regimes": kept, "sizes": sizes, "cost": cost}


def check_scores(scores: Path, found: EngineFacts, proxy: bool = False) -> str | None:
    """The model that made the scores, if `found` may stand in for it; None if it is the same.

    UserError for scores of another tokenizer or BOS policy, and, unless `proxy` says so, of another base model: the
    law would mix two landscapes.
    """
    facts = read_manifest(scores)["counts"]["facts"]
    same = "give a proxy of the same family," if proxy else "give the model and --bos of `pplscape score`,"
    for name, words in (("tokenizer", "another tokenizer"), ("bos", "another BOS policy")):
        mine = getattr(found, name)
        if facts.get(name, mine) != mine:
            raise UserError(
                f"{scores} was scored with {words} ({facts['model']}: {facts[name]}) than {found.model} has "
                f"({mine}): {same} or score again."
            )
    same_weights = facts.get("weights", found.weights) == found.weights
    if proxy and same_weights:
        raise UserError(f"{found.model} made the scores in {scores}, so it is no proxy: leave --proxy out.")
    if not proxy and not same_weights:
        raise UserError(
            f"{scores} was scored with other weights ({facts['model']}: {facts['weights']}) than {found.model} has "
            f"({found.weights}): give the model of `pplscape score`, score again, or say --proxy if a smaller model of "
            "the same tokenizer is to stand in for it."
        )
    return str(facts["model"]) if proxy else None


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
