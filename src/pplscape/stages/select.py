"""select: from scores, a budget and (optionally) a law to the chunks to train on, and what to expect of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pplscape.draw.auto import challenger
from pplscape.draw.budget import parse_budget
from pplscape.draw.census import Census, take_census
from pplscape.draw.documents import write_documents
from pplscape.draw.mix import Located
from pplscape.draw.options import Options, Target
from pplscape.draw.replay import draw_replay, replay_tokens
from pplscape.draw.scores import Scores, check_whole
from pplscape.draw.selection import Selection, edges_of, judge_of
from pplscape.draw.strategies import BY_TEXT, STRATEGIES
from pplscape.draw.stream import Taken, read_contained
from pplscape.draw.textual import FOLDER as TEXT_FOLDER
from pplscape.draw.textual import keys_for
from pplscape.errors import UserError
from pplscape.executors import Executor, open_executor
from pplscape.manifest import StageFolder, read_json, read_manifest
from pplscape.reporting.selection_summary import summary
from pplscape.statistics import Bins, Scale
from pplscape.text.cutback import write_subset
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared, check_corpus
from pplscape.text.read import Columns

if TYPE_CHECKING:
    from pplscape.laws.law import Law
    from pplscape.runs import RunTable
    from pplscape.stages.fit import Tables

VERSION = 10
EXPORT = "export"
"""Folder of an export that is made at once; a stage folder of its own."""


def select(
    scores: Path | str, *, budget: str | float | None = None, out: Path | str, strategy: str = "auto",
    law: Path | str | None = None, form: str | None = None, transfer: Path | str | None = None,
    runs: Tables | None = None,
    columns: Mapping[str, str] | None = None, target_mean: float | None = None, target_std: float | None = None,
    scale: Scale = "ppl", band: tuple[float, float] | None = None, temperature: float = 1.0, max_epochs: float = 1.0,
    hedge: float | None = None,
    dos_spread: Literal["var", "std"] = "var", dos_weights: tuple[float, float] | None = None,
    dos_stop: float | None = None, whole_documents: bool = False, nested: bool = False,
    contains: Path | str | None = None, quotas: Mapping[str, float] | None = None, forced: Sequence[str] = (),
    forbidden: Sequence[str] = (), replay: Path | str | None = None, replay_share: float = 0.0,
    corpus: Path | str | None = None, text_columns: Columns | None = None, model: str | None = None,
    target: Sequence[str] = (), toward: Path | str | None = None, landscape: Path | str | None = None,
    formats: Sequence[str] = (), resamples: int = 200,
    seed: int = 0, executor: str = "local", workers: int | None = None, address: str | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/selection.json, OUT/summary.md, OUT/selected/part-*.parquet (`schema.SELECTED`) and with `corpus`
    OUT/subset/.

    `budget`: tokens (`2000000`, `2e6`, `2M`) or a share of the pool (`10%`); only `full` needs none. `law`: law.json;
    `form`: use that entry of it; `transfer`: output of that stage, which a law of a proxy's runs needs. `runs`,
    `columns`: the pilots, one table or several, for the gate and paired intervals. Targets are on `scale`; a missing
    `target_std` leaves the spread free. `corpus`: the prepared folder, to cut the text back.
    `toward`: scores of a target text (of `score`, or `locate` where the pool's hold likeness), whose mix allocate then
    keeps to instead of the pool's, matched draws in, and auto falls back to. `hedge`: how much allocate keeps to it;
    0 is the law's own optimum, None 0.4 (0.6 towards a target), or as much more as the law's refits ask for
    (`draw/hedge.py`).
    `landscape`: landscape.json or its folder, whose bins matched takes where there is no law.
    `dos_spread`, `dos_weights`, `dos_stop`: what distance dos minimises, and at which it stops (`draw/dos.py`).
    `whole_documents`: take documents whole or not at all. `nested`: a larger budget holds what a smaller one took, for
    strategies that follow one order; `contains`: an earlier selection whose chunks are taken again, for all.
    `quotas`: share of the budget by source; `forced`, `forbidden`: ids of documents taken whole, or never.
    `replay`: a prepared folder of general text, of which OUT/replay/ gets so many random chunks that they are
    `replay_share` of all that is trained; the budget counts domain tokens only.
    `model`, `target`: for strategies that look at text, see `draw.textual.keys_for`; they need `corpus`.
    `formats`: what `export` then writes from `corpus` to OUT/export/; token formats need `model`.
    `resamples`: how often the choice of the law is redone for the gate; 0 asks no gate. `workers`: threads that read
    score files, by default one a core; they change nothing but the time. With `executor` ray they are actors on the
    cluster at `address`, which must find scores and OUT under the same paths. Scores are streamed: memory does not grow
    with the pool, except for `dos`.
    """
    options = Options(
        scale=scale, target=None if target_mean is None else Target(target_mean, target_std), band=band,
        temperature=temperature, max_epochs=max_epochs, hedge=hedge, quotas=dict(quotas or {}),
        forced=frozenset(forced), forbidden=frozenset(forbidden), nested=nested,
        spread=dos_spread, weights=dos_weights, stop=dos_stop,
    )  # fmt: skip
    _check_names(strategy, form, law, target_mean, target_std, scale)
    if (replay is None) != (replay_share == 0):
        raise UserError("--replay names the general text and --replay-share how much of it: give both or neither.")
    exporting = _exporting(formats, corpus, model, replay)
    given = {
        "scores": scores,
        "law": law,
        "transfer": transfer,
        "corpus": corpus,
        "contains": contains,
        "replay": replay,
        "toward": toward,
        "landscape": landscape,
    }
    tables = _tables(runs)
    inputs: dict[str, Path | str] = {k: _existing(k, Path(v)) for k, v in given.items() if v is not None}
    inputs |= tables
    config = {
        "strategy": strategy, "budget": str(budget), "form": form, "scale": scale, "band": band, "resamples": resamples,
        "target": asdict(options.target) if options.target else None, "temperature": temperature,
        "max_epochs": max_epochs, "hedge": hedge, "columns": dict(columns or {}),
        "dos": [dos_spread, dos_weights, dos_stop],
        "text_columns": asdict(text_columns) if text_columns else None, "quotas": dict(options.quotas),
        "forced": sorted(options.forced), "forbidden": sorted(options.forbidden), "nested": nested,
        "whole_documents": whole_documents, "replay_share": replay_share,
    }  # fmt: skip
    if strategy == "matched" and whole_documents:
        raise UserError("Strategy matched keeps to a target's mix of chunks; it cannot take whole documents.")
    if strategy == "learnable" and whole_documents:
        raise UserError("Strategy learnable ranks chunks by their learnability; it cannot take whole documents.")
    if strategy in BY_TEXT:
        if corpus is None:
            raise UserError(f"Strategy {strategy} reads the text: pass --corpus, the prepared folder that was scored.")
        inputs |= identities("target", target)
    stage = StageFolder(
        Path(out), stage="select", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    )
    with stage as folder, ExitStack() as running:
        if not folder.finished:
            readers = running.enter_context(_readers(executor, workers, address))
            fitted, pilots = _law_and_pilots(law, form, tables, columns)
            if whole_documents and fitted is not None and (fitted.bins or {}).get("levels"):
                raise UserError("A law on levels of a second axis judges chunks; it cannot draw whole documents.")
            table = replace(Scores.read(scores, workers), executor=readers)
            check_whole(table)
            if strategy == "learnable" and table.axis != "learnability":
                raise UserError("Strategy learnable needs the scores that `pplscape probe` wrote.")
            said = _of_a_proxy(fitted, table, transfer)
            prepared = None if corpus is None else Prepared(Path(corpus))
            if prepared is not None:
                check_corpus(table.manifest, folder.inputs["corpus"], Path(corpus or ""))
            if replay is not None:
                _check_general(table, Prepared(replay))
            if contains is not None:
                options = replace(options, contained=read_contained(Path(contains), whole_documents))
            if options.grouped:
                table = replace(table, reads_ids=True)
            seen: dict[str, Any] | None = None
            if strategy in BY_TEXT:
                keys, seen = keys_for(strategy, Prepared(str(corpus)), folder.partial / TEXT_FOLDER, model, target)
                table = table.keyed(keys)
            bins = None if landscape is None or fitted is not None else _bins(Path(landscape))
            edges = bins.edges if bins else edges_of(fitted)
            census = take_census(table, edges)
            tokens = _budget_of(census, strategy, budget, max_epochs)
            if strategy == "auto" and fitted and not form:
                form = challenger(fitted).form
            judge = judge_of(table, census, fitted, pilots, form, resamples, seed, bins)
            judge = replace(judge, warnings=[*said, *judge.warnings])
            documents = _documents(table, edges, folder) if whole_documents else None
            goal = None if toward is None else _target(Path(toward), table, folder.inputs["scores"])
            selection = Selection(table, census, tokens, seed, options, judge, folder.partial, documents, goal)
            content, taken = selection.run(strategy)
            shutil.rmtree(folder.partial / Selection.SCRATCH, ignore_errors=True)
            if seen is not None:
                content["draw"] |= {"text": seen}
                shutil.rmtree(folder.partial / TEXT_FOLDER)
            if replay is not None:
                content["replay"] = _write_replay(folder, Path(replay), content["tokens"], replay_share, seed, corpus)
            _finish(folder, content, taken, prepared, text_columns)
    exporting(Path(out), overwrite)
    return Path(out)


def _exporting(
    formats: Sequence[str], corpus: Path | str | None, model: str | None, replay: Path | str | None
) -> Callable[[Path, bool], None]:
    """What exports the finished folder; nothing without formats. UserError, before any work, for unknown ones."""
    if not formats:
        return lambda out, overwrite: None
    if corpus is None:
        raise UserError("An export writes text or its token ids: pass the prepared folder as --corpus.")
    from pplscape.formats import formats_of
    from pplscape.stages.export import export

    needing = [f.name for f in formats_of(list(formats)) if f.has_tokens]
    if needing and model is None:
        raise UserError(f"{', '.join(needing)} hold token ids: pass --model, whose tokenizer makes them.")

    def write(out: Path, overwrite: bool) -> None:
        export(out, corpus=corpus, out=out / EXPORT, formats=formats, model=model, replay=replay, overwrite=overwrite)

    return write


def _documents(table: Scores, edges: tuple[float, ...], folder: StageFolder) -> tuple[Scores, Census]:
    documents = write_documents(table, folder.partial / Selection.SCRATCH)
    return documents, take_census(documents, edges)


def _bins(landscape: Path) -> Bins:
    """The bins of a landscape.json, given itself or its folder."""
    file = landscape / "landscape.json" if landscape.is_dir() else landscape
    return Bins.from_json(read_json(file, "landscape")["bins"])


def _target(folder: Path, table: Scores, scores: str) -> Located:
    """Scored text of the target; UserError if another model scored it, or in chunks of another length, or if its
    likeness was told for other scores than those with the fingerprint `scores`."""
    manifest = read_manifest(folder)
    ours, theirs = (m.get("counts", {}).get("facts", {}) for m in (table.manifest, manifest))
    if manifest["stage"] == "locate" and manifest["inputs"]["scores"] != scores:
        raise UserError(f"{folder} was located among other scores than these: run `pplscape locate` with these.")
    for name in ("weights", "tokenizer", "bos", "chunk_tokens", "context"):
        if name in ours and ours[name] != theirs.get(name):
            raise UserError(
                f"{folder} was scored with another {name} ({theirs.get(name)}) than the pool ({ours[name]}): score the "
                "target text as the pool was scored."
            )
    return Located.read(folder)


def _check_general(table: Scores, general: Prepared) -> None:
    """UserError if the tokens to replay were counted by another tokenizer than those of the scores."""
    scored = table.manifest.get("counts", {}).get("facts", {}).get("tokenizer")
    if scored is not None and scored != general.facts["tokenizer_hash"]:
        raise UserError(
            f"{general.path} was cut with the tokenizer of {general.facts['model']}, the scored chunks with another: "
            "prepare the general text again with the scores' model."
        )


def _write_replay(
    folder: StageFolder, general: Path, tokens: int, share: float, seed: int, corpus: Path | str | None
) -> dict[str, Any]:
    """OUT/replay/selected/ and, where text is cut back at all, OUT/replay/subset/; what selection.json says of it."""
    prepared = Prepared(general)
    wanted = replay_tokens(tokens, share)
    table, held = draw_replay(prepared, wanted, seed)
    folder.write_table("replay/selected/part-00000.parquet", table)
    found = {
        "share": share, "budget": wanted, "tokens": int(pc.sum(table["length"]).as_py() or 0), "n_chunks": len(table),
        "pool_tokens": held,
    }  # fmt: skip
    if corpus is None:
        return found
    return {**found, "subset": write_subset(prepared, folder.partial / "replay", folder.partial / "replay/subset")}


def _tables(runs: Tables | None) -> dict[str, Path]:
    if runs is None:
        return {}
    from pplscape.stages.fit import tables_of

    return tables_of(runs)


def _law_and_pilots(
    law: Path | str | None, form: str | None, tables: Mapping[str, Path], columns: Mapping[str, str] | None
) -> tuple[Law | None, RunTable | None]:
    """Both as read, None where not given; laws are imported here, because a draw without one needs none of them."""
    if law is None:
        return None, None
    from pplscape.laws.forms import get_form
    from pplscape.laws.law import Law
    from pplscape.laws.read import read_runs

    if form and ".py:" in form:
        get_form(form)  # asked for by name: a user's own file may be run
    pilots = read_runs(list(tables.values()), dict(columns or {})) if tables else None
    found = Law.from_json(Path(law))
    of, ran = found.trained, pilots.meta["trained"] if pilots else None
    if of and ran and of["weights"] != ran["weights"]:
        raise UserError(
            f"The law is of runs of {of['model']}, --runs are of {ran['model']}: give the runs that it was fitted on."
        )
    return found, pilots


def _of_a_proxy(law: Law | None, table: Scores, transfer: Path | str | None) -> list[str]:
    """What must be said of a proxy's law; UserError for one that nothing says may be trusted."""
    if law is None or law.trained is None:
        return []
    from pplscape.stages.transfer import may_stand_in

    facts = table.manifest.get("counts", {}).get("facts", {})
    said = may_stand_in(law, facts, None if transfer is None else Path(transfer))
    return [said] if said else []


def _readers(executor: str, workers: int | None, address: str | None) -> AbstractContextManager[Executor | None]:
    """None locally: threads of this process read the scores."""
    if executor == "local" and address is None:
        return nullcontext()
    return open_executor(executor, workers, threads=1, address=address, gpus=False)


def _check_names(
    strategy: str, form: str | None, law: object, mean: float | None, std: float | None, scale: str
) -> None:
    if strategy not in ("auto", *STRATEGIES):
        raise UserError(f"Unknown strategy {strategy!r}; there are {', '.join(['auto', *STRATEGIES])}.")
    if form and law is None:
        raise UserError("--form names an entry of law.json: pass --law as well.")
    if std is not None and mean is None:
        raise UserError("--target-std needs --target-mean.")
    if scale not in ("ppl", "nll"):
        raise UserError(f"--scale is ppl or nll, not {scale!r}.")
    numbers = [v for v in (mean, std) if v is not None]
    if not np.isfinite(numbers).all() or (std is not None and std < 0):
        raise UserError(f"The target must be finite, its spread not negative: mean {mean}, std {std}.")


def _existing(name: str, path: Path) -> Path:
    if not path.exists():
        raise UserError(f"--{name} {path} does not exist.")
    return path


def _budget_of(census: Census, strategy: str, budget: str | float | None, max_epochs: float) -> int:
    if budget is None:
        if strategy != "full":
            raise UserError("Pass --budget: tokens as 2e6 or 2M, or a share of the pool as 10%.")
        return census.total
    tokens = parse_budget(budget, census.total)
    most = census.total * max(max_epochs if strategy == "allocate" else 1.0, 1.0)
    if tokens > most:
        raise UserError(f"The budget of {tokens} tokens is above the {census.total} tokens of the pool.")
    return tokens


def _finish(
    folder: StageFolder, content: dict[str, Any], taken: Taken, prepared: Prepared | None, text_columns: Columns | None
) -> None:
    if prepared is not None:
        content = _with_text(folder, prepared, content, text_columns)
    folder.write_json("selection.json", content)
    folder.write_text("summary.md", summary(content))
    chunks, out = content["pool_chunks"], taken.tally.unique_chunks
    folder.finish(
        {
            "in": chunks + taken.rejected.total(),
            "out": out,
            "left": chunks - out,
            "rejected": dict(taken.rejected),
            "tokens": content["tokens"],
            "facts": {"used": content["used"], "budget": content["budget"]},
        }
    )


def _with_text(
    folder: StageFolder, prepared: Prepared, content: dict[str, Any], columns: Columns | None
) -> dict[str, Any]:
    """Write subset/ and give the samples their text. UserError if what is written is not what was selected."""
    if not content["n_chunks"]:
        return content
    subset = write_subset(prepared, folder.partial, folder.partial / "subset", columns)
    if subset["tokens"] != content["tokens"]:
        raise UserError(
            f"{subset['tokens']} tokens were cut back of {content['tokens']} selected: {folder.partial}/selected has "
            "changed meanwhile; select again."
        )
    rows = content["samples"]
    spans = pa.table({k: [r[k] for r in rows] for k in ("doc_id", "chunk_index", "char_start", "char_end")})
    texts = prepared.texts("pool", spans) if rows else []
    return {**content, "subset": subset, "samples": [{**r, "text": t} for r, t in zip(rows, texts, strict=True)]}
