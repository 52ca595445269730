"""Stage `landscape`: what a scored corpus looks like, and what a budget could reach in it.

Reads the score files (and, if given, the prepared corpus for sample texts), writes landscape.json, summary.md and
the histogram as PNG and SVG. All losses in nats per token, sizes in tokens; see `pplscape.statistics` for the moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplscape.draw.columns import AXES, axis_of_files, second, whole
from pplscape.draw.scores import check_columns, score_files, usable
from pplscape.errors import UserError
from pplscape.landscape_facts import HISTOGRAM_CELLS, ScoredPool, describe, describe_fewer
from pplscape.manifest import MANIFEST, StageFolder, read_manifest
from pplscape.statistics import (
    Bins,
)

VERSION = 1
SAMPLES_PER_BIN, SAMPLE_CHARACTERS = 3, 300
_NUMBERS = ("length", "n_tokens", "n_bytes", "nll_sum")
_PLACE = ("doc_id", "chunk_index", "char_start", "char_end")


def landscape(
    scores: Path | str,
    *,
    budget: int | str,
    out: Path | str,
    n_bins: int = 10,
    levels: int = 1,
    fewer: bool = False,
    corpus: Path | str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Describe the scored pool `scores` and what `budget` tokens (`2e6`, `2M`, `10%`) of it can reach.

    `n_bins` equal-token bins are cut, and a finer nested set for the design of pilots; scores of `liken` or `probe` may
    be cut a second time, each bin into `levels` of likeness or learnability; `fewer`: where that axis has too few
    different values for so many, into fewer or none, with a warning that landscape.json keeps. With `corpus`, a
    prepared folder, three sample texts per bin are kept. Returns the output folder.
    """
    from pplscape.draw.budget import parse_budget

    files = score_files(Path(scores))
    if n_bins < 1:
        raise UserError(f"--n-bins must be at least 1, not {n_bins}.")
    if levels < 1 or (levels > 1 and axis_of_files(files) is None):
        raise UserError(f"--levels {levels} needs the scores that `pplscape liken` or `pplscape probe` wrote.")
    available = pool_tokens(files)
    tokens = parse_budget(budget, available)
    if tokens > available:
        raise UserError(f"The budget of {tokens:,} tokens is larger than the pool ({available:,} tokens).")
    inputs = {"scores": Path(scores)} | ({"corpus": Path(corpus)} if corpus is not None else {})
    config = {"budget": tokens, "n_bins": n_bins, "histogram_cells": HISTOGRAM_CELLS}
    config |= {"levels": levels} if levels > 1 else {}
    config |= {"fewer": True} if levels > 1 and fewer else {}
    with StageFolder(
        Path(out), stage="landscape", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if folder.finished:
            return folder.path
        pool = read_scores(files, with_place=corpus is not None)
        facts = (describe_fewer if fewer else describe)(pool, tokens, n_bins, levels)
        facts["scoring"], facts["counts"] = _scoring(Path(scores)), _counts(Path(scores), corpus)
        facts["samples"] = _samples(pool, facts["bins"], Path(corpus), seed) if corpus is not None else None
        folder.write_json("landscape.json", facts)
        folder.write_text("summary.md", summary(facts))
        _write_histogram(folder, facts)
        n = len(pool.length)
        folder.finish({"in": n + sum(pool.rejected.values()), "out": n, "rejected": pool.rejected})
    return Path(out)


def pool_tokens(files: list[Path]) -> int:
    """Tokens of all scored chunks."""
    return sum(int(whole(_read(f, ("length",)), "length").sum()) for f in files)


def _read(file: Path, columns: tuple[str, ...]) -> pa.Table:
    check_columns(file, columns)
    try:
        return pq.read_table(file, columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet: {error}") from error


def read_scores(files: list[Path], with_place: bool = False) -> ScoredPool:
    """Read the score table; rows without a usable score are left out and counted by reason."""
    axis = axis_of_files(files)
    more = (AXES[axis],) if axis else ()
    columns = (*_NUMBERS, "source", *more, *(_PLACE if with_place else ()))
    table, _, bad = usable(pa.concat_tables([_read(f, columns) for f in files]))
    rejected = {} if bad is None else Counter(bad[bad != ""].tolist())
    if not table.num_rows:
        raise UserError(f"{files[0].parent} holds no chunk with a finite score ({dict(rejected)}).")
    source = table["source"].cast(pa.string()).combine_chunks().dictionary_encode()
    length, n_tokens, n_bytes = (whole(table, c) for c in _NUMBERS[:3])
    return ScoredPool(
        length=length,
        n_tokens=n_tokens,
        n_bytes=n_bytes,
        nll_sum=table["nll_sum"].to_numpy().astype(np.float64),
        source=source.indices.to_numpy(),
        sources=tuple(source.dictionary.to_pylist()),
        place=table.select(_PLACE if with_place else []),
        rejected=dict(rejected),
        second=second(table),
        axis=axis or "learnability",
    )


def _scoring(scores: Path) -> dict[str, Any]:
    """Model, tokenizer and chunk length the scores were made with; empty for a user's own table."""
    return read_manifest(scores)["counts"].get("facts", {}) if (scores / MANIFEST).exists() else {}


def _counts(scores: Path, corpus: Path | str | None) -> dict[str, Any]:
    """What went in, came out and was left out, by stage and reason."""
    folders = {"score": scores} | ({"prepare": Path(corpus)} if corpus is not None else {})
    return {stage: read_manifest(p)["counts"] for stage, p in folders.items() if (p / MANIFEST).exists()}


def _samples(pool: ScoredPool, bins: Mapping[str, Any], corpus: Path, seed: int) -> list[list[dict[str, Any]]]:
    """Up to three random chunks of each bin with the start of their text; the same for the same pool and seed."""
    from pplscape.text.prepared import Prepared

    x = pool.x
    cut = Bins.from_json(bins).coarse
    bin_of = cut.of(x)
    chosen: list[int] = []
    for b in range(cut.n):
        members = np.flatnonzero(bin_of == b)
        take = np.random.default_rng([seed, b]).choice(members, min(SAMPLES_PER_BIN, len(members)), replace=False)
        chosen += sorted(take.tolist(), key=lambda i: x[i])
    texts = Prepared(corpus).texts("pool", pool.place.take(chosen))
    samples: list[list[dict[str, Any]]] = [[] for _ in range(cut.n)]
    for i, text in zip(chosen, texts, strict=True):
        place = {"doc_id": pool.place["doc_id"][i].as_py(), "chunk_index": pool.place["chunk_index"][i].as_py()}
        sample = {"source": pool.sources[pool.source[i]], "nll": float(x[i]), "text": text[:SAMPLE_CHARACTERS]}
        samples[bin_of[i]].append(place | sample)
    return samples


def summary(facts: Mapping[str, Any]) -> str:
    """The landscape as a page of Markdown."""
    nll, ppl = facts["scale"]["nll"], facts["scale"]["ppl"]
    lines = [
        "# Perplexity landscape",
        "",
        f"{facts['n_chunks']:,} chunks, {facts['tokens']:,} tokens, {facts['n_bytes']:,} bytes; "
        f"budget {facts['budget']:,} tokens ({facts['budget'] / facts['tokens']:.1%} of the pool).",
        f"Corpus perplexity {facts['corpus_ppl']:.4g} ({facts['corpus_nll']:.4f} nats/token); "
        f"mean of the chunks' perplexities {facts['mean_chunk_ppl']:.4g}; {facts['bits_per_byte']:.4f} bits/byte.",
        "",
        "| scale | mean | std | mean, raw | std, raw | 1 % | median | 99 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in (("log-perplexity (nats/token)", nll), ("perplexity", ppl)):
        q = s["quantiles"]
        values = (s["mean"], s["std"], s["raw"]["mean"], s["raw"]["std"], q["0.01"], q["0.5"], q["0.99"])
        lines.append(f"| {name} | " + " | ".join(f"{v:.4g}" for v in values) + " |")
    lines += ["", "| bin | nats/token | perplexity | chunks | tokens | share |", "|---|---|---|---|---|---|"]
    for row in facts["bins"]["by_bin"]:
        lines.append(
            f"| {row['bin'] + 1} | {row['low']:.3f} to {row['high']:.3f} | {np.exp(row['low']):.4g} to "
            f"{np.exp(row['high']):.4g} | {row['n_chunks']:,} | {row['tokens']:,} | {row['share']:.1%} |"
        )
    cut = Bins.from_json(facts["bins"])
    if cut.levels:
        lines += ["", f"Every bin is cut again into {cut.n_levels} levels of {cut.axis} of equal tokens."]
    if fewer := facts.get("second_axis"):
        lines += ["", fewer["sentence"]]
    lines += ["", "| source | chunks | tokens | share | nats/token | bits/byte |", "|---|---|---|---|---|---|"]
    for row in facts["by_source"]:
        name = str(row["source"]).replace("|", "\\|")
        lines.append(
            f"| {name} | {row['n_chunks']:,} | {row['tokens']:,} | {row['share']:.1%} | {row['nll']:.4f} | "
            f"{row['bits_per_byte']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def _write_histogram(folder: StageFolder, facts: Mapping[str, Any]) -> None:
    from pplscape.reporting.figures import landscape_histogram

    figure = landscape_histogram(facts)
    folder.write_bytes("landscape.png", figure.png())
    folder.write_bytes("landscape.svg", figure.svg_file())
