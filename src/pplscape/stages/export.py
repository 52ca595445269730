"""export: a selection as files that training programs read, with their configurations and a data card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pplscape.engines.base import Ids, encode
from pplscape.errors import UserError
from pplscape.formats import formats_of
from pplscape.formats.card import Card
from pplscape.formats.content import ContentSum, Format, Row, Shard, id_dtype, text_sum, token_sum
from pplscape.formats.source import Source, until
from pplscape.formats.trainers import TrainingRun, configurations
from pplscape.manifest import StageFolder, read_json
from pplscape.progress import Progress
from pplscape.text.chosen import selected_files
from pplscape.text.prepared import Prepared
from pplscape.text.tokenizer import load_tokenizer, model_name, tokenizer_hash
from pplscape.training.schedule import Recipe

VERSION = 2
SHARD_TOKENS = 1 << 24
"""Tokens of a shard: 32 to 64 MB in every format."""
LARGEST_SHARD = 1 << 29
"""Tokens whose bytes surely fit the 32-bit offsets of MDS and LitData."""
ENCODED_AT_ONCE = 1000
SPOOL, REPLAY_SPOOL, SHARDS = "spool", "spool-replay", "shards"


def export(
    selection: Path | str, *, corpus: Path | str, out: Path | str, formats: Sequence[str] = ("parquet",),
    model: str | None = None, revision: str | None = None, landscape: Path | str | None = None,
    replay: Path | str | None = None, recipe: Recipe | None = None, sequence_length: int | None = None,
    shard_tokens: int = SHARD_TOKENS, overwrite: bool = False, dry_run: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/FORMAT/, OUT/configs/ (LLaMA-Factory, axolotl, litgpt), OUT/README.md with a picture, OUT/shards.jsonl.

    `selection`: the folder of `select`; `corpus`: the prepared folder it was drawn from. `formats`: parquet, jsonl, hf,
    megatron, mds, litdata; the last three hold token ids and need `model`, whose tokenizer must be the corpus' own.
    `landscape`: landscape.json, for the picture. `replay`: the prepared folder of general text that the selection's
    replay/ was drawn from; it then stands in the same files, marked as such, in the same share in every shard.
    `recipe`, `sequence_length` (default: the chunk length) go into the configurations. A shard ends as soon as it holds
    `shard_tokens` selected tokens. Killed and run again, finished shards stay.
    UserError: another tokenizer or corpus, a chunk selected twice, nothing selected; replay on one side only.
    """
    chosen, prepared = formats_of(list(formats)), Prepared(corpus)
    names = [f.name for f in chosen]
    facts = read_json(Path(selection) / "selection.json", f"select SCORES --out {selection}")
    general = _general(Path(selection), facts, prepared, replay)
    if not 1 <= shard_tokens <= LARGEST_SHARD:
        raise UserError(f"shard_tokens = {shard_tokens}: give at least 1, at most {LARGEST_SHARD}.")
    if dry_run:
        print(_describe(facts, chosen, shard_tokens))
        return Path(out)
    tokenizer = _tokenizer(prepared, chosen, model, revision)
    recipe, length = recipe or Recipe(), sequence_length or prepared.facts["chunk_tokens"]
    config = {
        "formats": names, "model": model, "revision": revision, "recipe": asdict(recipe),
        "sequence_length": length, "shard_tokens": shard_tokens,
    }  # fmt: skip
    inputs: dict[str, Path | str] = {"selection": Path(selection), "corpus": Path(corpus)}
    more = {"landscape": landscape, "replay": replay}
    inputs |= {name: Path(path) for name, path in more.items() if path is not None}
    with StageFolder(
        Path(out), stage="export", version=VERSION, config=config, inputs=inputs, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            source = _source(Path(selection), prepared, folder.partial / SPOOL, facts["tokens"])
            beside = None
            if general is not None and facts["replay"]["tokens"]:
                spool = folder.partial / REPLAY_SPOOL
                beside = _source(Path(selection) / "replay", general, spool, facts["replay"]["tokens"])
            shards = _write_shards(folder, source, beside, chosen, tokenizer, shard_tokens)
            replayed = beside.total if beside else 0
            run = TrainingRun(model or prepared.facts["model"], source.total + replayed, length, recipe, replayed)
            for name, data in configurations(run, names).items():
                folder.write_bytes(f"configs/{name}", data)
            _write_card(folder, facts, prepared.facts, model_name(run.model), names, shards)
            folder.write_bytes("landscape.png", _picture(Path(selection), facts, landscape))
            _finish(folder, shards)
    return Path(out)


def _general(
    selection: Path, facts: Mapping[str, Any], prepared: Prepared, replay: Path | str | None
) -> Prepared | None:
    """The text to replay. UserError if only one of selection and caller has any, or it has another tokenizer."""
    if replay is None and facts.get("replay"):
        raise UserError(
            f"{selection} holds {facts['replay']['tokens']:,} tokens to replay: pass --replay, the prepared general "
            "text they were drawn from, or select without them."
        )
    if replay is None:
        return None
    if not facts.get("replay"):
        raise UserError(f"{selection} holds nothing to replay: select with --replay and --replay-share.")
    general = Prepared(replay)
    prepared.check_tokenizer(general.facts["tokenizer_hash"], f"{general.path} ({general.facts['model']})")
    return general


def _source(selection: Path, prepared: Prepared, spool: Path, tokens: int) -> Source:
    source = Source(selection, prepared, spool)
    if source.total != tokens:
        raise UserError(f"{selection}/selected holds {source.total:,} tokens, its selection.json says {tokens:,}.")
    return source


def _describe(facts: Mapping[str, Any], formats: Sequence[Format], shard_tokens: int) -> str:
    shards = max(1, -(-facts["tokens"] // shard_tokens))
    listed = ", ".join(f.name for f in formats)
    beside = f" and {facts['replay']['tokens']:,} to replay" if facts.get("replay") else ""
    return f"export would write {facts['tokens']:,} tokens{beside} as {listed}, in about {shards:,} shards each"


def _tokenizer(prepared: Prepared, formats: Sequence[Format], model: str | None, revision: str | None) -> Any:
    """The tokenizer, or None where no format needs it; UserError if it is not the corpus'."""
    needing = [f.name for f in formats if f.has_tokens]
    if model is None:
        if needing:
            raise UserError(f"{', '.join(needing)} hold token ids: pass --model, whose tokenizer makes them.")
        return None
    tokenizer = load_tokenizer(model, revision)
    prepared.check_tokenizer(tokenizer_hash(tokenizer), model)
    return tokenizer if needing else None


def _write_shards(
    folder: StageFolder, source: Source, beside: Source | None, formats: Sequence[Format], tokenizer: Any,
    shard_tokens: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write every shard that is not there yet, and the files over all of them; the facts of each shard."""
    plan = source.shards(shard_tokens)
    dtype = id_dtype(1 + max(tokenizer.get_vocab().values())) if tokenizer else np.dtype("<i4")
    shards: list[dict[str, Any]] = []
    general: Iterator[Row] | None = None
    total, selected = source.total + (beside.total if beside else 0), 0
    with Progress("export", total) as progress:
        for i, units in enumerate(plan):
            name = f"{SHARDS}/{i:05d}.json"
            selected += source.tokens_of(units)
            if not folder.has(name):
                rows = [row for unit in units for row in source.rows(unit)]
                if beside is not None:
                    done_rows, done = (sum(s[k] for s in shards) for k in ("replay_rows", "replay_tokens"))
                    general = general or beside.replayed(done_rows)
                    rows += until(general, beside.total * selected // source.total - done)
                folder.write_json(name, _write_shard(folder, rows, formats, tokenizer, (i, len(plan)), dtype))
            shards.append(json.loads((folder.partial / name).read_text()))
            progress.add(shards[-1]["tokens"])
    for form in formats:
        of_form = [s | {"files": s["files"][form.name]} for s in shards]
        for name, data in form.index(of_form, dtype).items():
            folder.write_bytes(f"{form.name}/{name}", data)
    return shards


def _write_shard(
    folder: StageFolder, rows: Sequence[Row], formats: Sequence[Format], tokenizer: Any, place: tuple[int, int],
    dtype: np.dtype[Any],
) -> dict[str, Any]:  # fmt: skip
    shard = Shard(*place, rows, _encode(tokenizer, rows) if tokenizer else (), dtype)
    files: dict[str, dict[str, int]] = {}
    for form in formats:
        written = form.shard(shard)
        for name, data in written.items():
            folder.write_bytes(f"{form.name}/{name}", data)
        files[form.name] = {name: len(data) for name, data in written.items()}
    return {
        "shard": shard.index, "rows": len(rows), "chunks": sum(len(r.cuts) for r in rows),
        "tokens": sum(r.tokens for r in rows), "replay_rows": sum(r.replay for r in rows),
        "replay_tokens": sum(r.tokens for r in rows if r.replay),
        "text_sum": text_sum(t for r in rows for t in r.chunks),
        "token_sum": token_sum(shard.ids) if tokenizer else None, "files": files,
        "input_files": sorted({r.file for r in rows}),
    }  # fmt: skip


def _encode(tokenizer: Any, rows: Sequence[Row]) -> list[Ids]:
    """Token ids of all chunks, each alone; UserError where their number is not the one that was selected."""
    texts = [text for row in rows for text in row.chunks]
    ids: list[Ids] = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        ids += encode(tokenizer, texts[start : start + ENCODED_AT_ONCE])
    at = 0
    for row in rows:
        for n, found in zip(row.lengths, ids[at:], strict=False):
            if len(found) != n:
                raise UserError(
                    f"A chunk of {row.id!r} was selected with {n} tokens and is encoded to {len(found)}: score and "
                    "select again with this version of the tokenizer."
                )
        at += len(row.lengths)
    return ids


def _write_card(
    folder: StageFolder, facts: Mapping[str, Any], corpus: Mapping[str, Any], model: str, formats: Sequence[str],
    shards: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    card = Card(
        selection=facts, corpus=corpus, model=model, formats=formats, selection_hash=folder.inputs["selection"],
        rows=sum(s["rows"] for s in shards), chunks=sum(s["chunks"] for s in shards),
        text_sum=_total(shards, "text_sum") or "", token_sum=_total(shards, "token_sum"),
        replay_tokens=sum(s["replay_tokens"] for s in shards),
    )  # fmt: skip
    folder.write_text("README.md", card.text())


def _total(shards: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The sum over all shards, None where nothing was tokenised."""
    total = ContentSum()
    for shard in shards:
        if shard[name] is None:
            return None
        total.merge(shard[name])
    return total.hex


def _picture(selection: Path, facts: Mapping[str, Any], landscape: Path | str | None) -> bytes:
    """The selection over the pool's histogram, or without a landscape over its bins."""
    from pplscape.reporting.figures import bin_shares
    from pplscape.reporting.figures_selection import selection_on_landscape

    if landscape is None:
        return bin_shares(facts).png()
    histogram = read_json(Path(landscape), "landscape SCORES --budget T --out DIR")["histogram"]
    edges = np.asarray(histogram["edges"])
    taken = np.zeros(len(edges) - 1)
    for file in selected_files(selection):
        for batch in pq.ParquetFile(file).iter_batches(columns=["nll", "repeats"]):
            inside = np.clip(batch["nll"].to_numpy(), edges[0], edges[-1])
            taken += np.histogram(inside, edges, weights=batch["repeats"].to_numpy())[0]
    return selection_on_landscape(histogram, taken).png()


def _finish(folder: StageFolder, shards: Sequence[Mapping[str, Any]]) -> None:
    folder.write_jsonl("shards.jsonl", shards)
    for scratch in (SPOOL, REPLAY_SPOOL, SHARDS):
        shutil.rmtree(folder.partial / scratch, ignore_errors=True)
    totals = {name: sum(s[name] for s in shards) for name in ("rows", "tokens", "replay_rows", "replay_tokens")}
    chunks, sums = sum(s["chunks"] for s in shards), {name: _total(shards, name) for name in ("text_sum", "token_sum")}
    counts = {"in": chunks, "out": chunks, "rejected": {}, **totals, "shards": len(shards)}
    folder.finish(counts | {"facts": sums})
