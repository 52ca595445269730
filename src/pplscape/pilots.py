"""Pilots as any worker runs them: a trunk with its branches, and what came out, failures included. See `executors`."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pplscape.design import Regime, Trunk, draw_trunk
from pplscape.draw.columns import check_axis
from pplscape.draw.pool import Pool
from pplscape.engines.base import EngineFacts, Learner
from pplscape.errors import UserError
from pplscape.executors import Tell
from pplscape.jobs import EngineSpec
from pplscape.statistics import Bins, moments, on_scale
from pplscape.text.prepared import Prepared
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.evaluate import TextLoss
from pplscape.training.loop import Progressed, Replay, constant_steps, cooldown_steps, train_steps
from pplscape.training.schedule import Recipe
from pplscape.training.texts import chunk_ids, heldout_from_files, heldout_of, read_general

MEMBERSHIP_STREAM = 7_001
"""Seed offset of the uniforms that decide which sub-pools a chunk belongs to."""
Rows = list[dict[str, Any]]
"""Lines of runs.jsonl."""


class Asked(NamedTuple):
    """One trunk to run or, with the reason, to record as failed."""

    regime: Regime
    failed: str | None = None


@dataclass(frozen=True)
class Piloting:
    """Job: `Asked` -> one row a size."""

    plan: dict[str, Any]
    engine: EngineSpec
    scores: Path
    corpus: Path
    heldout: Sequence[str] | None
    general: Sequence[str] | None
    seed: int
    states: Path
    """Where trunks keep their checkpoints; a worker that does not see OUT.partial keeps its own, which end with it."""
    facts: EngineFacts
    """What the model must be, wherever it is loaded."""
    proxy_of: str | None = None
    """The model that made the scores, where another one stands in for it."""

    def __call__(self, tell: Tell) -> Callable[[Asked], Rows]:
        bench = Bench(self, self.engine.loaded_as(self.facts))

        def run(asked: Asked) -> Rows:
            checkpoints = Checkpoints(bench.states / asked.regime.group)
            if asked.failed:
                return _rest_failed(bench, asked.regime, checkpoints, asked.failed)
            return run_trunk(bench, asked.regime, checkpoints, tell)

        return run


class Bench:
    """Everything the trunks of one plan share, in one process."""

    def __init__(self, job: Piloting, learner: Learner):
        corpus = Prepared(job.corpus)
        corpus.check_tokenizer(learner.facts.tokenizer, learner.facts.model)
        self._own = None if job.states.parent.is_dir() else tempfile.TemporaryDirectory(prefix="pplscape-")
        self.states = Path(self._own.name) if self._own else job.states
        self.plan, self.learner, self.corpus, self.seed = job.plan, learner, corpus, job.seed
        self.proxy_of = job.proxy_of
        self.recipe = Recipe(**self.plan["recipe"])
        self.pool = Pool.read(job.scores)
        self.bins = Bins.from_json(self.plan["bins"])
        check_axis(self.bins, self.pool.axis)
        self.fine_bin = Bins.from_json(self.plan["fine_bins"]).of(self.pool.x, self.pool.second)
        chunk_tokens = corpus.facts["chunk_tokens"]
        self.valid = (
            heldout_from_files(job.heldout, learner, chunk_tokens)
            if job.heldout
            else heldout_of(corpus, "valid", learner)
        )
        self.general, self.replayed = read_general(job.general, learner, chunk_tokens, self.recipe)
        learner.reset()
        self.base, self.base_general = self.measure()
        if not np.isfinite([self.base.loss, self.base_general.loss if self.base_general else 0.0]).all():
            raise UserError(f"The loss of {learner.facts.model} before training is not finite; try --dtype float32.")

    def measure(self) -> tuple[TextLoss, TextLoss | None]:
        """Domain and general loss of the learner as it is now."""
        return self.valid.loss(self.learner), self.general.loss(self.learner) if self.general else None

    def replay(self) -> Replay | None:
        """A fresh pass over the replayed general text, if the recipe asks for any."""
        return Replay(self.replayed) if self.replayed else None

    def draw(self, regime: Regime) -> Trunk:
        pool = self.pool
        return draw_trunk(
            regime, self.fine_bin, pool.length,
            pool.uniforms(self.seed + regime.seed), pool.uniforms(self.seed + MEMBERSHIP_STREAM),
            self.plan["sizes"], self.recipe.cooldown_share, self.plan["depletion"],
        )  # fmt: skip


def run_trunk(bench: Bench, regime: Regime, checkpoints: Checkpoints, tell: Tell) -> list[dict[str, Any]]:
    """One row per size. What fails is tried once more, from the last size that went well, unless it must fail again;
    then the sizes that are left are recorded as failed, with the reason."""
    try:
        return _sizes(bench, regime, checkpoints, tell)
    except (MemoryError, RuntimeError) as error:
        warnings.warn(f"Pilot {regime.group} failed ({error}); it is tried once more.", stacklevel=2)
    except FloatingPointError as error:  # the same numbers would come again
        return _rest_failed(bench, regime, checkpoints, f"{type(error).__name__}: {error}")
    try:
        return _sizes(bench, regime, checkpoints, tell)
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        return _rest_failed(bench, regime, checkpoints, f"{type(error).__name__}: {error}")


def _sizes(bench: Bench, regime: Regime, checkpoints: Checkpoints, tell: Tell) -> list[dict[str, Any]]:
    """The trunk at a constant rate, a cooldown branch at each size; goes on after the last size stored."""
    trunk, replay = bench.draw(regime), bench.replay()
    found = checkpoints.load(bench.learner)
    if found is None:
        bench.learner.reset()
    first, stored = found or (0, {"rows": [], "tokens": 0, "replay_tokens": 0, "position": 0})
    at, rows = Progressed(stored["tokens"], stored["replay_tokens"]), list(stored["rows"])
    if replay:
        replay.position = stored["position"]
    for size in range(first, len(bench.plan["sizes"])):
        measured = _train_size(bench, trunk, size, at, replay, tell)
        rows.append(describe(bench, regime, trunk, size) | measured)
        progressed = {"rows": rows, "tokens": at.tokens, "replay_tokens": at.replay_tokens}
        checkpoints.save(bench.learner, size + 1, {**progressed, "position": replay.position if replay else 0})
    return rows


def _rest_failed(bench: Bench, regime: Regime, checkpoints: Checkpoints, reason: str) -> list[dict[str, Any]]:
    found = checkpoints.progress()
    rows = list(found["rows"]) if found else []
    trunk = bench.draw(regime)
    failed = {"status": "failed", "reason": reason}
    sizes = range(len(rows), len(bench.plan["sizes"]))
    return rows + [describe(bench, regime, trunk, size) | failed for size in sizes]


def _train_size(
    bench: Bench, trunk: Trunk, size: int, at: Progressed, replay: Replay | None, tell: Tell
) -> dict[str, Any]:
    learner, recipe = bench.learner, bench.recipe
    segment, cooldown = _ids(bench, trunk.segments[size]), _ids(bench, trunk.branches[size])
    train_steps(learner, constant_steps(segment, recipe, at.tokens), recipe, at, replay, tell)
    snapshot, branch = learner.snapshot(), at.copy()
    train_steps(learner, cooldown_steps(cooldown, recipe, branch.tokens), recipe, branch, replay, tell)
    domain, general = bench.measure()
    learner.restore(snapshot)
    if not np.isfinite([domain.loss, general.loss if general else 0.0]).all():
        raise FloatingPointError(f"validation loss is {domain.loss}")
    return {
        "tokens": branch.tokens, "loss": domain.loss, "loss_se": domain.standard_error,
        "loss_general": general.loss if general else None, "status": "ok", "reason": None,
    }  # fmt: skip


def _ids(bench: Bench, index: np.ndarray) -> list[Any]:
    return chunk_ids(bench.corpus, bench.pool.spans(index), bench.learner)


def describe(bench: Bench, regime: Regime, trunk: Trunk, size: int) -> dict[str, Any]:
    """What is known of a run before it is trained: what it sees, and how."""
    pool, index, model = bench.pool, trunk.of(size), bench.learner.facts
    x, length, bin_of = pool.x[index], pool.length[index], pool.bin_of(bench.bins)[index]
    shapes = {s: moments(on_scale(x, s), tuple(bench.plan["winsor"][s])) for s in ("nll", "ppl")}
    unique = np.unique(index, return_index=True)[1]
    per_bin, unique_per_bin = (
        np.bincount(bin_of[at], length[at], bench.bins.n).astype(np.float64) for at in (slice(None), unique)
    )
    return {
        "run_id": f"{regime.group}-{bench.plan['sizes'][size]}", "group": regime.group, "regime": regime.name,
        "seed": regime.seed, "tokens": int(length.sum()), "pool_tokens": trunk.pool_tokens[size],
        "unique_tokens": int(length[unique].sum()),
        "ppl_mean": shapes["ppl"].mean, "ppl_std": shapes["ppl"].std,
        "nll_mean": shapes["nll"].mean, "nll_std": shapes["nll"].std,
        "bin_tokens": per_bin.tolist(), "bin_unique_tokens": unique_per_bin.tolist(), "bins_hash": bench.bins.hash,
        "replay_share": bench.recipe.replay_share, "loss": None, "loss_se": None, "loss_general": None,
        "base_loss": bench.base.loss, "base_loss_general": bench.base_general.loss if bench.base_general else None,
        "model": model.model, "weights": model.weights, "proxy_of": bench.proxy_of, "n_params": model.n_params,
        "epochs": 1.0, "lr": bench.recipe.learning_rate,
        "schedule": json.dumps(asdict(bench.recipe), sort_keys=True), "status": "planned", "reason": None,
    }  # fmt: skip
