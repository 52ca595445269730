"""select: from scores, a budget and (optionally) a law to the chunks to train on, and what to expect of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pplscape.draw.auto import challenger
from pplscape.draw.budget import parse_budget
from pplscape.draw.census import Census, take_census
from pplscape.draw.options import Options, Target
from pplscape.draw.scores import Scores
from pplscape.draw.selection import Selection, edges_of, judge_of
from pplscape.draw.strategies import BY_TEXT, STRATEGIES
from pplscape.draw.stream import Taken, read_selected
from pplscape.draw.textual import FOLDER as TEXT_FOLDER
from pplscape.draw.textual import keys_for
from pplscape.errors import UserError
from pplscape.laws.forms import get_form
from pplscape.laws.law import Law
from pplscape.manifest import StageFolder
from pplscape.stages.fit import Tables, read_runs, tables_of
from pplscape.statistics import Scale
from pplscape.text.cutback import write_subset
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared
from pplscape.text.read import Columns

VERSION = 5


def select(
    scores: Path | str, *, budget: str | float | None = None, out: Path | str, strategy: str = "auto",
    law: Path | str | None = None, form: str | None = None, runs: Tables | None = None,
    columns: Mapping[str, str] | None = None, target_mean: float | None = None, target_std: float | None = None,
    scale: Scale = "ppl", band: tuple[float, float] | None = None, temperature: float = 1.0, max_epochs: float = 1.0,
    corpus: Path | str | None = None, text_columns: Columns | None = None, resamples: int = 200, seed: int = 0,
    quotas: Mapping[str, float] | None = None, forced: Sequence[str] = (), forbidden: Sequence[str] = (),
    model: str | None = None, target: Sequence[str] = (), workers: int | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/selection.json, OUT/selected/part-*.parquet (`schema.SELECTED`) and with `corpus` OUT/subset/.

    `budget`: tokens (`2000000`, `2e6`, `2M`) or a share of the pool (`10%`); only `full` needs none. `law`: law.json;
    `form`: use that entry of it. `runs`, `columns`: the pilots, one table or several, for the gate and paired
    intervals. Targets are on `scale`; a missing `target_std` leaves the spread free. `corpus`: the prepared folder, to
    cut the text back.
    `quotas`: share of the budget by source; `forced`, `forbidden`: ids of documents taken whole, or never.
    `model`, `target`: for strategies that look at text, see `draw.textual.keys_for`; they need `corpus`.
    `resamples`: how often the choice of the law is redone for the gate; 0 asks no gate. `workers`: threads that read
    score files, by default one a core; they change nothing but the time. Scores are streamed: memory does not grow with
    the pool, except for `dos`.
    """
    options = Options(
        scale=scale, target=None if target_mean is None else Target(target_mean, target_std), band=band,
        temperature=temperature, max_epochs=max_epochs, quotas=dict(quotas or {}), forced=frozenset(forced),
        forbidden=frozenset(forbidden),
    )  # fmt: skip
    _check_names(strategy, form, law, target_mean, target_std, scale)
    given = {"scores": scores, "law": law, "corpus": corpus}
    tables = {} if runs is None else tables_of(runs)
    inputs: dict[str, Path | str] = {k: _existing(k, Path(v)) for k, v in given.items() if v is not None}
    inputs |= tables
    config = {
        "strategy": strategy, "budget": str(budget), "form": form, "scale": scale, "band": band, "resamples": resamples,
        "target": asdict(options.target) if options.target else None, "temperature": temperature,
        "max_epochs": max_epochs, "columns": dict(columns or {}),
        "text_columns": asdict(text_columns) if text_columns else None, "quotas": dict(options.quotas),
        "forced": sorted(options.forced), "forbidden": sorted(options.forbidden),
    }  # fmt: skip
    if strategy in BY_TEXT:
        if corpus is None:
            raise UserError(f"Strategy {strategy} reads the text: pass --corpus, the prepared folder that was scored.")
        inputs |= identities("target", target)
    with StageFolder(
        Path(out), stage="select", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            if form and ".py:" in form:
                get_form(form)  # asked for by name: a user's own file may be run
            table, fitted = Scores.read(scores, workers), Law.from_json(Path(law)) if law else None
            if options.forced or options.forbidden:
                table = replace(table, reads_ids=True)
            seen: dict[str, Any] | None = None
            if strategy in BY_TEXT:
                keys, seen = keys_for(strategy, Prepared(str(corpus)), folder.partial / TEXT_FOLDER, model, target)
                table = table.keyed(keys)
            census = take_census(table, edges_of(fitted))
            tokens = _budget_of(census, strategy, budget, max_epochs)
            pilots = read_runs(list(tables.values()), dict(columns or {})) if tables and fitted else None
            if strategy == "auto" and fitted and not form:
                form = challenger(fitted).form
            judge = judge_of(table, census, fitted, pilots, form, resamples, seed)
            selection = Selection(table, census, tokens, seed, options, judge, folder.partial)
            content, taken = selection.run(strategy)
            if seen is not None:
                content["draw"] |= {"text": seen}
                shutil.rmtree(folder.partial / TEXT_FOLDER)
            _finish(folder, content, taken, corpus, text_columns)
    return Path(out)


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
    folder: StageFolder, content: dict[str, Any], taken: Taken, corpus: Path | str | None,
    text_columns: Columns | None,
) -> None:  # fmt: skip
    if corpus is not None:
        selected = read_selected(folder.partial)
        content = _with_text(folder, Prepared(Path(corpus)), selected, content, text_columns)
    folder.write_json("selection.json", content)
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
    folder: StageFolder, prepared: Prepared, selected: pa.Table, content: dict[str, Any], columns: Columns | None
) -> dict[str, Any]:
    """Write subset/ and give the samples their text."""
    subset = write_subset(prepared, selected, folder.partial / "subset", columns)
    rows = content["samples"]
    spans = pa.table({k: [r[k] for r in rows] for k in ("doc_id", "chunk_index", "char_start", "char_end")})
    texts = prepared.texts("pool", spans) if rows else []
    return {**content, "subset": subset, "samples": [{**r, "text": t} for r, t in zip(rows, texts, strict=True)]}
