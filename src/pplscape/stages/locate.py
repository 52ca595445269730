"""locate: likeness for the scored chunks of a target text, so that `select` knows where on the landscape they lie.

The target's perplexity needs no more than `score`. Its likeness to itself is told by documents that it is not made of
(`draw/crossfit.py`), against a random sample of the pool.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.draw import dsir
from pplscape.draw.columns import LIKENESS, axis_of_files
from pplscape.draw.crossfit import likeness_across
from pplscape.draw.permanent import hash_documents, uniforms_of_hashes
from pplscape.draw.scores import score_files
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_manifest
from pplscape.schema import LIKENED
from pplscape.text.prepared import Prepared, check_corpus

VERSION = 2
SAMPLE = 20_000
"""Chunks of the pool that likeness is compared on."""
SAMPLE_STREAM = 7_001


def locate(
    target: Path | str, *, text: Path | str, scores: Path | str, corpus: Path | str, out: Path | str,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/part-00000.parquet (`schema.LIKENED`): the target's scores with cross-fitted `likeness`.

    `target`: the folder of `score` for the target text, of the prepared folder `text`; `scores`: the pool's, with the
    likeness that `liken` found to that same target; `corpus`: the pool's prepared folder. UserError: scores without
    likeness, a target of one document, text that is not what was scored.
    """
    files, scored = score_files(Path(scores)), read_manifest(Path(target))
    if scored["stage"] != "score":
        raise UserError(f"{target} is the output of {scored['stage']}: give what `pplscape score` wrote of the target.")
    if axis_of_files(files) != "likeness":
        raise UserError(f"{scores} holds no likeness: give what `pplscape liken` wrote, or do without `locate`.")
    inputs: dict[str, Path | str] = {
        "target": Path(target), "text": Path(text), "scores": Path(scores), "corpus": Path(corpus),
    }  # fmt: skip
    with StageFolder(
        Path(out), stage="locate", version=VERSION, config={}, inputs=inputs, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            check_corpus(scored, folder.inputs["text"], Path(text))
            check_corpus(read_manifest(Path(scores)), folder.inputs["corpus"], Path(corpus))
            table = pa.concat_tables([pq.read_table(file) for file in score_files(Path(target))])
            rows = read_manifest(Path(scores))["counts"]["out"]
            known = _sample(files, rows)
            found = likeness_across(
                _buckets(Prepared(text), scored["config"]["split"], table),
                hash_documents(table["doc_id"].combine_chunks()),
                _buckets(Prepared(corpus), "pool", known), known[LIKENESS].to_numpy(), len(known) / rows,
            )  # fmt: skip
            columns = {name: table[name] for name in table.column_names} | {LIKENESS: pa.array(found)}
            folder.write_table("part-00000.parquet", pa.table([columns[f.name] for f in LIKENED], schema=LIKENED))
            counts = {**scored["counts"], "out": len(table)}
            folder.finish({**counts, "facts": {**counts["facts"], "locate": {"pool_chunks": len(known)}}})
    return Path(out)


def _sample(files: list[Path], rows: int) -> pa.Table:
    """About SAMPLE chunks of the pool, by permanent uniforms; all of a smaller one."""
    kept = []
    for file in files:
        table = pq.read_table(file)
        h = uniforms_of_hashes(
            SAMPLE_STREAM, hash_documents(table["doc_id"].combine_chunks()), table["chunk_index"].to_numpy()
        )
        kept.append(table.filter(pa.array(h * rows < SAMPLE)))
    return pa.concat_tables(kept)


def _buckets(corpus: Prepared, split: str, chunks: pa.Table) -> list[NDArray[np.uint16]]:
    return [dsir.buckets(text, dsir.words_and_signs) for text in corpus.texts(split, chunks)]


def summary(folder: Path) -> str:
    """Spread of likeness, for the terminal."""
    values = pq.read_table(folder / "part-00000.parquet", columns=[LIKENESS])[LIKENESS].to_numpy()
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return (
        f"{len(values):,} chunks of the target, likeness {middle:.3f} nats/n-gram to its other documents "
        f"(5 % below {low:.3f}, 5 % above {high:.3f})."
    )
