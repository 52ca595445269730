"""probe: how much of every chunk a short training on other documents teaches: what is new, told from what is noise.

    learnability of a chunk = its loss under the base model - its loss under a probe, nats/token

Two probes are trained on random text, one on each half of the documents, and score the half that they did not see
(cross-fitting, as in RHO-LOSS, arXiv 2206.07137, without its held-out set). Low perplexity and low learnability: known
already. High and high: new. High perplexity, low learnability: noise.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pplscape.cost import SCORE_FLOPS, TRAIN_FLOPS
from pplscape.draw.columns import PROBE, axis_of_files
from pplscape.draw.permanent import bits_of_hashes, hash_documents, uniforms_of_bits
from pplscape.draw.pool import Pool
from pplscape.draw.scores import score_files
from pplscape.engines import load_learner
from pplscape.engines.base import Ids, Learner
from pplscape.errors import UserError
from pplscape.manifest import SCRATCH, StageFolder, read_manifest
from pplscape.progress import Progress
from pplscape.schema import PROBED
from pplscape.stages.pilot import check_scores
from pplscape.statistics import Floats
from pplscape.text.prepared import Prepared
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.loop import Progressed, run_steps, train_steps
from pplscape.training.schedule import Recipe
from pplscape.training.texts import chunk_ids

VERSION = 1
HALVES_STREAM, ORDER_STREAM = 6_001, 6_002
"""Seed offsets of the uniforms that halve the documents, and that choose and order a probe's chunks."""


def probe(
    scores: Path | str, *, model: str, corpus: Path | str, tokens: int, out: Path | str, recipe: Recipe | None = None,
    engine: str = "transformers", revision: str | None = None, dtype: str = "auto", bos: str = "auto", seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/part-*.parquet (`schema.PROBED`): the scores with `probe_nll_sum`; every stage takes them as scores.

    `model`, `bos`: those of the scores; `corpus`: the prepared folder; `tokens`: what each of the two probes is trained
    on; `dtype`: of their training and losses. The cost is `cost_of`. A killed run finds its trained probes and the
    parts they scored.
    UserError: scores of another model or with context; less than `tokens` in a half; a loss that is not finite.
    """
    scores, prepared, recipe = Path(scores), Prepared(Path(corpus)), recipe or Recipe()
    learner = load_learner(engine, model, recipe, dtype=dtype, revision=revision, bos=bos)
    check_scores(scores, learner.facts)
    if axis_of_files(score_files(scores)) is not None:
        raise UserError(f"{scores} holds a second axis already, and bins have one: give the scores of `score`.")
    prepared.check_tokenizer(learner.facts.tokenizer, learner.facts.model)
    facts = read_manifest(scores)["counts"]["facts"]
    if facts.get("context"):
        raise UserError(f"{scores} was scored after {facts['context']} tokens of context; probe scores without.")
    config = {**learner.facts.as_dict(), "recipe": asdict(recipe), "tokens": tokens}
    with StageFolder(
        Path(out), stage="probe", version=VERSION, config=config, inputs={"scores": scores, "prepared": Path(corpus)},
        seed=seed, overwrite=overwrite,
    ) as folder:  # fmt: skip
        if not folder.finished:
            pool = Pool.read(scores)
            cost = cost_of(pool.tokens, tokens, learner.facts.n_params)
            with Progress("probe", cost["trained_tokens"] + cost["scored_tokens"]) as progress:
                for half in (0, 1):
                    _probe_half(learner, prepared, pool, half, tokens, recipe, seed, scores, folder, progress)
            rows = sum(_join(folder, file) for file in sorted(scores.glob("part-*.parquet")))
            counts = read_manifest(scores)["counts"]  # what scoring left out stays in the ledger
            folder.finish({**counts, "out": rows, "facts": {**facts, "probe": cost}})
    return Path(out)


def cost_of(pool_tokens: int, tokens: int, n_params: int) -> dict[str, Any]:
    """Tokens trained on (two probes) and scored (every chunk by one of them), and FLOPs of both."""
    flops = n_params * (TRAIN_FLOPS * 2 * tokens + SCORE_FLOPS * pool_tokens)
    return {"trained_tokens": 2 * tokens, "scored_tokens": pool_tokens, "flops": float(flops)}


def half_of(documents: pa.Array, seed: int) -> np.ndarray:
    """Half (0 or 1) of each document [n], by permanent uniforms: whole documents, whatever the files."""
    hashes = hash_documents(documents)
    bits = bits_of_hashes(seed + HALVES_STREAM, hashes, np.zeros(len(hashes), np.int64))
    return (uniforms_of_bits(bits) >= 0.5).astype(np.int64)


def _probe_half(
    learner: Learner, corpus: Prepared, pool: Pool, half: int, tokens: int, recipe: Recipe, seed: int, scores: Path,
    folder: StageFolder, progress: Progress,
) -> None:  # fmt: skip
    """Train on `half`, score the other one, part by part."""
    files = sorted(scores.glob("part-*.parquet"))
    left = [file for file in files if not folder.has(_scratch(half, file))]
    if not left:
        return
    keep = Checkpoints(folder.partial / SCRATCH / f"half-{half}")
    if keep.load(learner) is None:
        chunks = chunk_ids(corpus, pool.spans(_training(pool, half, tokens, seed)), learner)
        learner.reset()
        try:
            train_steps(learner, run_steps(chunks, recipe), recipe, Progressed(), report=progress.add)
        except FloatingPointError as error:
            raise UserError(f"A probe diverged ({error}); give a lower --learning-rate.") from None
        keep.save(learner, 1, {})
    for file in left:
        table = pq.read_table(file)
        other = np.flatnonzero(half_of(table["doc_id"].combine_chunks(), seed) != half)
        found = np.full(len(table), np.nan)
        found[other] = _nll_sums(learner, chunk_ids(corpus, table.take(pa.array(other)), learner))
        buffer = io.BytesIO()
        np.save(buffer, found)
        folder.write_bytes(_scratch(half, file), buffer.getvalue())
        progress.add(int(np.asarray(table["length"])[other].sum()))


def _training(pool: Pool, half: int, tokens: int, seed: int) -> np.ndarray:
    """Random chunks of a half, at most `tokens` tokens, in random order."""
    members = np.flatnonzero(half_of(pool.doc_names, seed)[pool.doc] == half)
    members = members[np.argsort(pool.uniforms(seed + ORDER_STREAM)[members], kind="stable")]
    total = np.cumsum(pool.length[members])
    if not len(total) or total[-1] < tokens:
        held = int(total[-1]) if len(total) else 0
        raise UserError(f"A half of the pool holds {held:,} tokens, less than --tokens {tokens:,} for its probe.")
    return members[: int(np.searchsorted(total, tokens, side="right"))]


def _nll_sums(learner: Learner, chunks: list[Ids]) -> Floats:
    """Total NLL [n] of chunks, nats."""
    return np.array([float(v.astype(np.float64).sum()) for v in learner.nll(chunks)]) if chunks else np.empty(0)


def _scratch(half: int, file: Path) -> str:
    return f"{SCRATCH}/half-{half}-{file.stem}.npy"


def _join(folder: StageFolder, file: Path) -> int:
    """Write one part of the scores with the probes' losses; its rows."""
    table = pq.read_table(file)
    halves = [np.load(folder.partial / _scratch(half, file)) for half in (0, 1)]
    probed = np.where(np.isnan(halves[0]), halves[1], halves[0])
    if not np.isfinite(probed).all():
        odd = int((~np.isfinite(probed)).sum())
        raise UserError(f"A probe's loss on {odd} chunks of {file.name} is not finite; try --dtype float32.")
    columns = {name: table[name] for name in table.column_names} | {PROBE: pa.array(probed)}
    folder.write_table(file.name, pa.table([columns[f.name] for f in PROBED], schema=PROBED))
    return len(table)


def summary(folder: Path) -> str:
    """Cost and spread of learnability, for the terminal."""
    tables = [pq.read_table(f, columns=["nll_sum", "n_tokens", PROBE]) for f in sorted(folder.glob("part-*.parquet"))]
    table = pa.concat_tables(tables)
    learned = pc.divide(pc.subtract(table["nll_sum"], table[PROBE]), table["n_tokens"].cast(pa.float64())).to_numpy()
    low, middle, high = np.quantile(learned, [0.05, 0.5, 0.95])
    cost = read_manifest(folder)["counts"]["facts"]["probe"]
    return (
        f"Learnability {middle:.3f} nats/token (5 % below {low:.3f}, 5 % above {high:.3f}). Trained on "
        f"{cost['trained_tokens']:,} tokens, scored {cost['scored_tokens']:,}: {cost['flops']:.2e} FLOPs."
    )
