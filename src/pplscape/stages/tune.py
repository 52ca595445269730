"""tune: the learning rate of one model, found once by short runs on random chunks, and recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.draw.permanent import uniforms
from pplscape.engines import load_learner
from pplscape.engines.base import Ids, Learner
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_json
from pplscape.progress import Progress
from pplscape.text.prepared import Prepared
from pplscape.training.loop import Progressed, Report, run_steps, train_steps
from pplscape.training.schedule import Recipe
from pplscape.training.texts import HeldOut, chunk_ids, heldout_of

VERSION = 1
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
ORDER_STREAM = 5_001
"""Seed offset of the uniforms that choose and order the chunks."""


def tune(
    corpus: Path | str, *, model: str, tokens: int, out: Path | str, rates: Sequence[float] = RATES,
    recipe: Recipe | None = None, engine: str = "transformers", revision: str | None = None, dtype: str = "auto",
    bos: str = "auto", seed: int = 0, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/tune.json: valid loss (nats/token) after `tokens` random tokens at each rate, and the best rate.

    `corpus`: the prepared folder. Every run takes the same chunks in the same order; a rate that diverges has no loss.
    UserError: every rate diverges, or the pool has too few tokens.
    """
    if not rates or min(rates) <= 0:
        raise UserError("--rates needs learning rates above 0, e.g. 3e-4,1e-3,3e-3.")
    recipe, prepared = recipe or Recipe(), Prepared(corpus)
    learner = load_learner(engine, model, recipe, dtype=dtype, revision=revision, bos=bos)
    prepared.check_tokenizer(learner.facts.tokenizer, learner.facts.model)
    held = {k: v for k, v in asdict(recipe).items() if k != "learning_rate"}
    config = {**learner.facts.as_dict(), "recipe": held, "rates": sorted(rates), "tokens": tokens}
    with StageFolder(
        Path(out), stage="tune", version=VERSION, config=config, inputs={"corpus": Path(corpus)}, seed=seed,
        overwrite=overwrite,
    ) as folder:  # fmt: skip
        if not folder.finished:
            chunks, valid = _random_chunks(prepared, learner, tokens, seed), heldout_of(prepared, "valid", learner)
            found = _sweep(learner, chunks, valid, recipe, sorted(rates))
            folder.write_json("tune.json", found)
            failed = sum(run["loss"] is None for run in found["runs"])
            folder.finish({"in": len(rates), "out": len(rates) - failed, "rejected": {"diverged": failed}})
    return Path(out)


def _random_chunks(prepared: Prepared, learner: Learner, tokens: int, seed: int) -> list[Ids]:
    """Whole random chunks of at most `tokens` tokens."""
    pool = prepared.chunks("pool")
    order = np.argsort(uniforms(ORDER_STREAM + seed, pool["doc_id"].to_pylist(), np.asarray(pool["chunk_index"])))
    total = np.cumsum(np.asarray(pool["length"])[order])
    if not len(total) or tokens > total[-1] or tokens < total[0]:
        raise UserError(
            f"--tokens {tokens} must lie between one chunk and the pool's {total[-1] if len(total) else 0}."
        )
    return chunk_ids(prepared, pool.take(order[: int(np.searchsorted(total, tokens, side="right"))]), learner)


def _sweep(
    learner: Learner, chunks: list[Ids], valid: HeldOut, recipe: Recipe, rates: Sequence[float]
) -> dict[str, Any]:
    learner.reset()
    base = valid.loss(learner).loss
    with Progress("tune", len(rates) * sum(len(c) for c in chunks)) as progress:
        runs = [_run(learner, chunks, valid, replace(recipe, learning_rate=rate), progress.add) for rate in rates]
    ok = [run for run in runs if run["loss"] is not None]
    if not ok:
        raise UserError(f"Training diverged at every rate ({', '.join(map(str, rates))}); give smaller --rates.")
    best = min(ok, key=lambda run: run["loss"])
    edge = best["learning_rate"] in (rates[0], rates[-1]) and len(rates) > 1
    note = "The best rate is at the edge of those tried; try further ones." if edge else None
    return {
        "learning_rate": best["learning_rate"], "tokens": sum(len(c) for c in chunks), "base_loss": base, "runs": runs,
        "note": note,
    }  # fmt: skip


def _run(learner: Learner, chunks: list[Ids], valid: HeldOut, recipe: Recipe, report: Report) -> dict[str, Any]:
    """The loss after one run; None, with the reason, where it diverged."""
    learner.reset()
    loss, reason = None, None
    try:
        train_steps(learner, run_steps(chunks, recipe), recipe, Progressed(), report=report)
        loss = valid.loss(learner).loss
    except FloatingPointError as error:
        reason = str(error)
    if loss is not None and not np.isfinite(loss):
        loss, reason = None, "the valid loss is not finite"
    return {"learning_rate": recipe.learning_rate, "loss": loss, "reason": reason}


def read_learning_rate(folder: Path) -> float:
    """The rate that `tune` found best."""
    return float(read_json(folder / "tune.json", f"tune CORPUS --model M --tokens T --out {folder}")["learning_rate"])
