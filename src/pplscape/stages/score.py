"""score: every pool chunk's negative log-likelihood under the frozen base model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pplscape.engines import load_engine
from pplscape.engines.base import Engine
from pplscape.errors import UserError
from pplscape.manifest import MANIFEST, StageFolder, read_json, read_manifest
from pplscape.progress import Progress
from pplscape.scoring import score_part
from pplscape.stages.prepare import prepare
from pplscape.text.prepared import Prepared

VERSION = 4
DTYPE = "dtype.json"
"""What `--dtype auto` chose, and why."""


def score(
    inputs: Path | str | Sequence[str], *, model: str, out: Path | str, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", context: int = 0, chunk_tokens: int = 512,
    min_tokens: int = 64, limit: int | None = None, limit_tokens: int | None = None, split: str = "pool",
    reference: Sequence[str] = (), order: int | None = None, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/part-*.parquet (`schema.SCORES`), one part per prepared part, and OUT/rejected/.

    `inputs`: a prepared folder, or what `prepare` reads: it is then prepared without held-out text into a folder beside
    OUT (`OUT-prepared`), in chunks of `chunk_tokens`, at most `limit` documents or `limit_tokens` tokens. Each finished
    part survives a kill. `context`: a chunk is scored after up to so many tokens of its document that stand before it,
    which are not scored themselves. If files were added to the corpus, only its new parts are scored. `reference`,
    `order`: the text whose n-grams engine ngram counts (default: the prepared pool, of which single tokens), and the
    longest of them; OUT/ngram.parquet holds the counts. Rows that cannot be scored are rejected with a reason, never
    dropped.
    UserError: the model's tokenizer is not the one the chunks were cut with; a limit for what is prepared already.
    """
    if context < 0:
        raise UserError(f"--context {context} must be 0 or more tokens.")
    cut: dict[str, Any] = {
        "chunk_tokens": chunk_tokens, "min_tokens": min_tokens, "limit": limit, "limit_tokens": limit_tokens,
    }  # fmt: skip
    prepared = _prepared(inputs, model, Path(out), revision, cut, overwrite)
    corpus = Prepared(prepared)
    if (reference or order) and engine != "ngram":
        raise UserError(f"--reference and --order belong to --engine ngram, not to {engine}.")
    counted: dict[str, Any] = {}
    if engine == "ngram":
        order = 1 if order is None and not reference else order  # longer n-grams of its own text know it by heart
        counted = {"reference": reference or [str(prepared)], "order": order}
    load = partial(load_engine, engine, model, revision=revision, bos=bos, **counted)
    scorer = load(dtype=dtype)
    corpus.check_tokenizer(scorer.facts.tokenizer, scorer.facts.model)
    config = {
        **scorer.facts.as_dict(),
        "dtype": dtype,  # as asked for: what `auto` chose is found on the chunks, and stored in the folder
        "split": split,
        "context": context,
        "batch_tokens": getattr(scorer, "batch_tokens", None),
    }
    with StageFolder(
        Path(out),
        stage="score",
        version=VERSION,
        config=config,
        inputs={"prepared": prepared, **corpus.part_keys(split)},
        overwrite=overwrite,
        extends=partial(_parts_stay, corpus.part_keys(split)),
    ) as folder:
        if not folder.finished:
            choice = _choose_dtype(folder, corpus, split, scorer, load, dtype)
            if choice["dtype"] != scorer.facts.dtype:
                scorer = load(dtype=choice["dtype"])
            if engine == "ngram":
                scorer.keep(folder)
            counts = _score_parts(corpus, split, scorer, context, folder)
            facts = {**scorer.facts.as_dict(), "dtype_reason": choice["reason"]}
            facts |= {"chunk_tokens": corpus.facts["chunk_tokens"], "context": context}
            folder.finish({**counts, "facts": facts}, run=_batches(scorer))
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
    overwrite: bool,
) -> Path:  # fmt: skip
    patterns = [str(inputs)] if isinstance(inputs, Path | str) else [str(i) for i in inputs]
    if len(patterns) == 1 and (Path(patterns[0]) / MANIFEST).exists():
        if cut["limit"] or cut["limit_tokens"]:
            raise UserError(f"{patterns[0]} is prepared already; give the limits to `pplscape prepare`.")
        return Path(patterns[0])
    return prepare(
        patterns, model=model, out=out.with_name(f"{out.name}-prepared"), valid=0, test=0, revision=revision,
        overwrite=overwrite, **cut,
    )  # fmt: skip


def _choose_dtype(
    folder: StageFolder, corpus: Prepared, split: str, scorer: Any, load: Callable[..., Any], asked: str
) -> dict[str, str]:
    """`dtype` and `reason`; what `auto` found is kept in the folder, so that everything in it is scored alike."""
    device = getattr(scorer, "device", None)
    if asked != "auto" or device is None:
        return {"dtype": scorer.facts.dtype, "reason": "asked for" if device else "the engine's only one"}
    if not folder.has(DTYPE):
        from pplscape.engines.dtype import candidates, choose_dtype

        dtypes = candidates(device, scorer.facts.n_params)
        chunks = scorer.encode(_calibration_texts(corpus, split)) if len(dtypes) > 1 else []
        folder.write_json(DTYPE, choose_dtype(lambda dtype: load(dtype=dtype), dtypes, chunks).as_dict())
    return read_json(folder.path / DTYPE, "score")


def _calibration_texts(corpus: Prepared, split: str) -> list[str]:
    """Some chunks of the first, middle and last part."""
    from pplscape.engines.dtype import calibration_rows

    parts = corpus.parts(split)
    found = []
    for number in dict.fromkeys([*parts[:1], *parts[len(parts) // 2 :][:1], *parts[-1:]]):
        chunks, texts = corpus.part(split, number)
        found += [(texts[i], chunks["length"][i].as_py()) for i in calibration_rows(chunks["length"].to_pylist())]
    return [found[i][0] for i in calibration_rows([length for _, length in found])]


def _score_parts(
    corpus: Prepared, split: str, engine: Engine, context: int, folder: StageFolder
) -> dict[str, Any]:  # fmt: skip
    total = int(pc.sum(corpus.chunks(split)["length"]).as_py() or 0)
    with Progress("score", total) as progress:
        for number in corpus.parts(split):
            name = f"part-{number:05d}.parquet"
            if not folder.has(name):
                chunks, texts = corpus.part(split, number)
                before = corpus.contexts(split, number, chunks, context, engine.encode) if context else None
                scores, rejected = score_part(engine, chunks, texts, before, progress.add)
                folder.write_table(f"rejected/{name}", rejected)
                folder.write_table(name, scores)
    return _ledger(folder, corpus.parts(split), total)


def _ledger(folder: StageFolder, parts: list[int], total: int) -> dict[str, Any]:
    """Rows and tokens in = scored + rejected."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(folder.path / f"part-{p:05d}.parquet") for p in parts]
    rejects = [pq.read_table(folder.path / f"rejected/part-{p:05d}.parquet") for p in parts]
    out, lost = sum(t.num_rows for t in tables), sum(t.num_rows for t in rejects)
    tokens_out = sum(pc.sum(t["length"]).as_py() or 0 for t in tables)
    reasons: dict[str, int] = {}
    for table in rejects:
        for reason in table["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "in": out + lost, "out": out, "rejected": reasons,
        "tokens": {"in": total, "out": tokens_out, "rejected": total - tokens_out},
    }  # fmt: skip


def read_facts(scores: Path) -> dict[str, Any]:
    """Model, tokenizer, BOS policy, dtype and chunk length that the scores were made with."""
    return read_manifest(scores)["counts"]["facts"]
