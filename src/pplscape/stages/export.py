"""export: a selection as files that training programs read, with their configurations and a data card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
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
from pplscape.formats.source import Source, Unit
from pplscape.formats.trainers import TrainingRun, configurations
from pplscape.manifest import StageFolder, read_json
from pplscape.progress import Progress
from pplscape.text.chosen import selected_files
from pplscape.text.prepared import Prepared
from pplscape.text.tokenizer import load_tokenizer, model_name, tokenizer_hash
from pplscape.training.schedule import Recipe

VERSION = 1
SHARD_TOKENS = 1 << 24
"""Tokens of a shard: 32 to 64 MB in every format."""
LARGEST_SHARD = 1 << 29
"""Tokens whose bytes surely fit the 32-bit offsets of MDS and LitData."""
ENCODED_AT_ONCE = 1000
SPOOL, SHARDS = "spool", "shards"


def export(
    selection: Path | str, *, corpus: Path | str, out: Path | str, formats: Sequence[str] = ("parquet",),
    model: str | None = None, revision: str | None = None, landscape: Path | str | None = None,
    recipe: Recipe | None = None, sequence_length: int | None = None, shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False, dry_run: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/FORMAT/, OUT/configs/ (LLaMA-Factory, axolotl, litgpt), OUT/README.md with a picture, OUT/shards.jsonl.

    `selection`: the folder of `select`; `corpus`: the prepared folder it was drawn from. `formats`: parquet, jsonl, hf,
    megatron, mds, litdata; the last three hold token ids and need `model`, whose tokenizer must be the corpus' own.
    `landscape`: landscape.json, for the picture. `recipe`, `sequence_length` (default: the chunk length) go into the
    configurations. A shard ends as soon as it holds `shard_tokens` tokens. Killed and run again, finished shards stay.
    UserError: another tokenizer or corpus, a chunk selected twice, nothing selected.
    """
    chosen, prepared = formats_of(list(formats)), Prepared(corpus)
    names = [f.name for f in chosen]
    facts = read_json(Path(selection) / "selection.json", f"select SCORES --out {selection}")
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
    inputs |= {"landscape": Path(landscape)} if landscape is not None else {}
    with StageFolder(
        Path(out), stage="export", version=VERSION, config=config, inputs=inputs, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            source = Source(Path(selection), prepared, folder.partial / SPOOL)
            if (found := int(source.tokens.sum())) != facts["tokens"]:
                raise UserError(
                    f"{selection}/selected holds {found:,} tokens, its selection.json says {facts['tokens']:,}."
                )
            shards = _write_shards(folder, source, chosen, tokenizer, shard_tokens)
            run = TrainingRun(model or prepared.facts["model"], facts["tokens"], length, recipe)
            for name, data in configurations(run, names).items():
                folder.write_bytes(f"configs/{name}", data)
            _write_card(folder, facts, prepared.facts, model_name(run.model), names, shards)
            folder.write_bytes("landscape.png", _picture(Path(selection), facts, landscape))
            _finish(folder, shards)
    return Path(out)


def _describe(facts: Mapping[str, Any], formats: Sequence[Format], shard_tokens: int) -> str:
    shards = max(1, -(-facts["tokens"] // shard_tokens))
    listed = ", ".join(f.name for f in formats)
    return f"export would write {facts['tokens']:,} tokens as {listed}, in about {shards:,} shards each"


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
    folder: StageFolder, source: Source, formats: Sequence[Format], tokenizer: Any, shard_tokens: int
) -> list[dict[str, Any]]:
    """Write every shard that is not there yet, and the files over all of them; the facts of each shard."""
    plan = source.shards(shard_tokens)
    dtype = id_dtype(1 + max(tokenizer.get_vocab().values())) if tokenizer else np.dtype("<i4")
    shards = []
    with Progress("export", int(source.tokens.sum())) as progress:
        for i, units in enumerate(plan):
            name = f"{SHARDS}/{i:05d}.json"
            if not folder.has(name):
                folder.write_json(name, _write_shard(folder, source, units, formats, tokenizer, (i, len(plan)), dtype))
            shards.append(json.loads((folder.partial / name).read_text()))
            progress.add(shards[-1]["tokens"])
    for form in formats:
        of_form = [s | {"files": s["files"][form.name]} for s in shards]
        for name, data in form.index(of_form, dtype).items():
            folder.write_bytes(f"{form.name}/{name}", data)
    return shards


def _write_shard(
    folder: StageFolder, source: Source, units: Sequence[Unit], formats: Sequence[Format], tokenizer: Any,
    place: tuple[int, int], dtype: np.dtype[Any],
) -> dict[str, Any]:  # fmt: skip
    rows = [row for unit in units for row in source.rows(unit)]
    shard = Shard(*place, rows, _encode(tokenizer, rows) if tokenizer else (), dtype)
    files: dict[str, dict[str, int]] = {}
    for form in formats:
        written = form.shard(shard)
        for name, data in written.items():
            folder.write_bytes(f"{form.name}/{name}", data)
        files[form.name] = {name: len(data) for name, data in written.items()}
    return {
        "shard": shard.index, "rows": len(rows), "chunks": sum(len(r.cuts) for r in rows),
        "tokens": sum(r.tokens for r in rows), "text_sum": text_sum(t for r in rows for t in r.chunks),
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
    for scratch in (SPOOL, SHARDS):
        shutil.rmtree(folder.partial / scratch)
    chunks, rows, tokens = (sum(s[name] for s in shards) for name in ("chunks", "rows", "tokens"))
    sums = {name: _total(shards, name) for name in ("text_sum", "token_sum")}
    counts = {"in": chunks, "out": chunks, "rejected": {}, "rows": rows, "tokens": tokens, "shards": len(shards)}
    folder.finish(counts | {"facts": sums})
