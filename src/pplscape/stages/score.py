"""score: every pool chunk's negative log-likelihood under the frozen base model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pplscape.engines.base import EngineFacts
from pplscape.errors import UserError
from pplscape.executors import Executor, InProcess, open_executor
from pplscape.executors.ranks import Rank, RankFolder, rank_of
from pplscape.jobs import EngineSpec, Scoring, engine_forgotten, loaded
from pplscape.manifest import MANIFEST, StageFolder, read_json, read_manifest
from pplscape.progress import Progress
from pplscape.stages.prepare import prepare
from pplscape.text.prepared import Prepared

VERSION = 4
DTYPE = "dtype.json"
"""What `--dtype auto` chose, and why."""


def score(
    inputs: Path | str | Sequence[str], *, model: str, out: Path | str, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", context: int = 0, chunk_tokens: int = 512,
    min_tokens: int = 64, limit: int | None = None, limit_tokens: int | None = None, split: str = "pool",
    reference: Sequence[str] = (), order: int | None = None,
    executor: str = "local", workers: int | None = None, threads: int | None = None, address: str | None = None,
    rank: int | None = None, ranks: int | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/part-*.parquet (`schema.SCORES`), one part per prepared part, and OUT/rejected/.

    `inputs`: a prepared folder, or what `prepare` reads: it is then prepared without held-out text into a folder beside
    OUT (`OUT-prepared`), in chunks of `chunk_tokens`, at most `limit` documents or `limit_tokens` tokens. Each finished
    part survives a kill. `context`: a chunk is scored after up to so many tokens of its document that stand before it,
    which are not scored themselves. If files were added to the corpus, only its new parts are scored. `reference`,
    `order`: the text whose n-grams engine ngram counts (default: the prepared pool, of which single tokens), and the
    longest of them; OUT/ngram.parquet holds the counts. Rows that cannot be scored are rejected with a reason, never
    dropped.
    `executor`, `workers`, `threads`, `address`: see `open_executor`; they change no score. `rank` of `ranks`: do only
    this process' share (see `executors.ranks`); returns OUT also where other shares are missing still.
    UserError: the model's tokenizer is not the one the chunks were cut with; a limit for what is prepared already;
    ranks for what is not prepared yet.
    """
    if context < 0:
        raise UserError(f"--context {context} must be 0 or more tokens.")
    share = rank_of(rank, ranks)
    cut: dict[str, Any] = {
        "chunk_tokens": chunk_tokens, "min_tokens": min_tokens, "limit": limit, "limit_tokens": limit_tokens,
    }  # fmt: skip
    prepared = _prepared(inputs, model, Path(out), revision, cut, overwrite, share)
    corpus = Prepared(prepared)
    spec = EngineSpec(engine, model, revision, dtype, bos, tuple(reference), order)
    if engine == "ngram":
        spec = _counting(spec, prepared, alone=executor == "local" and (workers or 1) == 1 and not share)
    elif reference or order:
        raise UserError(f"--reference and --order belong to --engine ngram, not to {engine}.")
    job = Scoring(prepared, split, spec, context)
    with open_executor(executor, workers, threads, address) as pool, engine_forgotten():
        (answer,) = pool.map(job.engine.described, [None], name=lambda _: f"Loading {model}")
        facts, batch_tokens, device = answer.value
        corpus.check_tokenizer(facts.tokenizer, facts.model)
        # "dtype" as asked for: what `auto` chose is found on the chunks, and stored in the folder.
        config = {**facts.as_dict(), "dtype": dtype, "split": split, "context": context, "batch_tokens": batch_tokens}
        identity: dict[str, Any] = {
            "stage": "score", "version": VERSION, "config": config, "overwrite": overwrite,
            "inputs": {"prepared": prepared, **corpus.part_keys(split)},
            "extends": partial(_parts_stay, corpus.part_keys(split)),
        }  # fmt: skip
        stage = RankFolder(share, Path(out), **identity) if share else StageFolder(Path(out), **identity)
        with stage as folder:
            if not folder.finished:
                choice = _choose_dtype(pool, job, folder, dtype, facts, device)
                if choice["dtype"] != facts.dtype:
                    spec, facts = replace(spec, dtype=choice["dtype"]), replace(facts, dtype=choice["dtype"])
                if engine == "ngram":
                    loaded(spec).keep(folder)
                told = {**facts.as_dict(), "dtype_reason": choice["reason"]}
                told |= {"chunk_tokens": corpus.facts["chunk_tokens"], "context": context}
                _score_parts(pool, replace(job, engine=spec, facts=facts), corpus, folder, told, share)
    return Path(out)


def _batches(engine: Any) -> dict[str, Any]:
    """Positions computed in this run, and the batch size that memory allowed; nothing of engines without batches."""
    work = getattr(engine, "work", None)
    return {"batches": {**asdict(work), "batch_tokens": engine.batch_tokens}} if work else {}


def _parts_stay(parts: dict[str, str], manifest: dict[str, Any]) -> bool:
    """Whether files were added to the corpus since: the parts scored then are parts of it still."""
    return all(parts.get(name) == key for name, key in manifest["inputs"].items() if name != "prepared")


def _prepared(
    inputs: Path | str | Sequence[str], model: str, out: Path, revision: str | None, cut: dict[str, Any],
    overwrite: bool, rank: Rank | None,
) -> Path:  # fmt: skip
    patterns = [str(inputs)] if isinstance(inputs, Path | str) else [str(i) for i in inputs]
    if len(patterns) == 1 and (Path(patterns[0]) / MANIFEST).exists():
        if cut["limit"] or cut["limit_tokens"]:
            raise UserError(f"{patterns[0]} is prepared already; give the limits to `pplscape prepare`.")
        return Path(patterns[0])
    if rank:
        raise UserError("Ranks share a prepared folder: run `pplscape prepare` once, then score its folder.")
    return prepare(
        patterns, model=model, out=out.with_name(f"{out.name}-prepared"), valid=0, test=0, revision=revision,
        overwrite=overwrite, **cut,
    )  # fmt: skip


def _counting(spec: EngineSpec, prepared: Path, alone: bool) -> EngineSpec:
    """Engine ngram counts the pool's tokens unless told otherwise: longer n-grams of its own text know it by heart."""
    if not alone:
        raise UserError(
            "--engine ngram runs in one process, which took two seconds for a pool of 1.1 M tokens when measured, "
            "counting included: drop the workers and ranks."
        )
    order = 1 if spec.order is None and not spec.reference else spec.order
    return replace(spec, reference=spec.reference or (str(prepared),), order=order)


def _choose_dtype(
    pool: Executor, job: Scoring, folder: StageFolder, asked: str, facts: EngineFacts, device: str | None
) -> dict[str, str]:
    """`dtype` and `reason`; what `auto` found is kept in the folder, so that everything in it is scored alike."""
    if asked != "auto" or device is None:
        return {"dtype": facts.dtype, "reason": "asked for" if device else "the engine's only one"}
    with folder.in_turn() if isinstance(folder, RankFolder) else nullcontext():
        if not folder.has(DTYPE):
            (answer,) = pool.map(job.dtype_chosen, [None], name=lambda _: "Choosing a dtype")
            folder.write_json(DTYPE, answer.value)
    return read_json(folder.path / DTYPE, "score")


def _score_parts(
    pool: Executor, job: Scoring, corpus: Prepared, folder: StageFolder, facts: dict[str, Any], rank: Rank | None
) -> None:
    """Score the parts that are not there yet and finish the folder; a rank its share, and the last one finishes."""
    parts = corpus.parts(job.split)
    share = rank.share(parts) if rank else parts
    left = [k for k in share if not folder.has(_file(k))]
    done_by: dict[str, list[int]] = {}
    with Progress(
        "score" + (f" {rank.number}/{rank.of}" if rank else ""), _tokens(corpus, job.split, left)
    ) as progress:
        for done in pool.map(job, left, tell=progress.add, name=lambda k: f"Scoring part {k}"):
            scores, rejected = done.value
            folder.write_bytes(f"rejected/{_file(done.item)}", rejected)
            folder.write_bytes(_file(done.item), scores)
            done_by.setdefault(str(done.where), []).append(done.item)

    def finish() -> None:
        batches = _batches(loaded(job.engine)) if isinstance(pool, InProcess) else {}
        folder.finish({**_ledger(folder, corpus, job.split), "facts": facts}, run={"parts": done_by, **batches})

    if not isinstance(folder, RankFolder):
        return finish()
    missing = folder.leave(lambda: sum(not folder.has(_file(k)) for k in parts), finish)
    if missing:
        print(f"{missing} of {len(parts)} parts are left to other ranks, or to a run without --rank.", file=sys.stderr)


def _file(part: int) -> str:
    return f"part-{part:05d}.parquet"


def _tokens(corpus: Prepared, split: str, parts: Sequence[int]) -> int:
    """Tokens of these parts, one table of lengths at a time."""
    return sum(_sum(corpus.file("chunks", split, k)) for k in parts)


def _sum(file: Path) -> int:
    """Sum of a table's lengths, tokens."""
    return int(pc.sum(pq.read_table(file, columns=["length"])["length"]).as_py() or 0)


def _ledger(folder: StageFolder, corpus: Prepared, split: str) -> dict[str, Any]:
    """Rows and tokens in = scored + rejected, part by part; nothing is held."""
    rows, tokens, reasons = Counter[str](), Counter[str](), Counter[str]()
    for k in corpus.parts(split):
        files = {
            "in": corpus.file("chunks", split, k), "out": folder.path / _file(k),
            "rejected": folder.path / f"rejected/{_file(k)}",
        }  # fmt: skip
        for name, file in files.items():
            rows[name] += pq.read_metadata(file).num_rows
            tokens[name] += _sum(file)
        reasons.update(pq.read_table(files["rejected"], columns=["reason"])["reason"].to_pylist())
    for counted in (rows, tokens):
        assert counted["in"] == counted["out"] + counted["rejected"], f"the ledger does not add up: {counted}"
    return {"in": rows["in"], "out": rows["out"], "rejected": dict(reasons), "tokens": dict(tokens)}


def read_facts(scores: Path) -> dict[str, Any]:
    """Model, tokenizer, BOS policy, dtype and chunk length that the scores were made with."""
    return read_manifest(scores)["counts"]["facts"]
