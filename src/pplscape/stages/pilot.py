"""pilot: train the planned trunks and branches, and record what came out, failures included."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.design import Regime, Trunk, draw_trunk
from pplscape.draw.pool import Pool
from pplscape.engines import load_learner
from pplscape.engines.base import Learner
from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_json, read_manifest
from pplscape.progress import Progress
from pplscape.statistics import Bins, moments, on_scale
from pplscape.text.inputs import identities
from pplscape.text.prepared import Prepared
from pplscape.training.checkpoint import Checkpoints
from pplscape.training.evaluate import TextLoss
from pplscape.training.loop import Progressed, Replay, Report, constant_steps, cooldown_steps, train_steps
from pplscape.training.schedule import Recipe
from pplscape.training.texts import chunk_ids, heldout_from_files, heldout_of, read_general

VERSION = 2
MEMBERSHIP_STREAM = 7_001
"""Seed offset of the uniforms that decide which sub-pools a chunk belongs to."""


def pilot(
    plan: Path | str, *, model: str, scores: Path | str, corpus: Path | str, out: Path | str,
    heldout: Sequence[str] | None = None, general: Sequence[str] | None = None, engine: str = "transformers",
    revision: str | None = None, dtype: str = "auto", bos: str = "auto", seed: int = 0, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/runs.jsonl (`schema.RUN_FIELDS`), one line a run. A finished trunk survives a kill.

    `corpus`: the prepared folder; `heldout`: input files to measure the loss on instead of its valid text; `general`:
    input files whose loss shows forgetting (and that replay draws from).
    """
    content = read_json(Path(plan) / "plan.json", f"plan LANDSCAPE --budget T --pilot-tokens N --out {plan}")
    recipe = Recipe(**content["recipe"])
    learner = load_learner(engine, model, recipe, dtype=dtype, revision=revision, bos=bos)
    check_scores(Path(scores), learner)
    inputs: dict[str, Path | str] = {"plan": Path(plan), "scores": Path(scores), "corpus": Path(corpus)}
    inputs |= identities("general", general) | identities("heldout", heldout)
    with StageFolder(
        Path(out), stage="pilot", version=VERSION, config=learner.facts.as_dict(), inputs=inputs, seed=seed,
        overwrite=overwrite,
    ) as folder:  # fmt: skip
        if not folder.finished:
            bench = Bench(content, learner, Path(scores), Prepared(Path(corpus)), heldout, general, seed)
            _run_all(bench, folder)
    return Path(out)


def check_scores(scores: Path, learner: Learner) -> None:
    """UserError if the scores are those of another base model or BOS policy: the law would mix two landscapes."""
    facts = read_manifest(scores)["counts"]["facts"]
    for name, words in (
        ("tokenizer", "another tokenizer"),
        ("weights", "other weights"),
        ("bos", "another BOS policy"),
    ):
        mine = getattr(learner.facts, name)
        if facts.get(name, mine) != mine:
            raise UserError(
                f"{scores} was scored with {words} ({facts['model']}: {facts[name]}) than {learner.facts.model} has "
                f"({mine}): give the model and --bos of `pplscape score`, or score again."
            )


class Bench:
    """Everything the trunks of one plan share."""

    def __init__(
        self,
        plan: dict[str, Any],
        learner: Learner,
        scores: Path,
        corpus: Prepared,
        heldout: Sequence[str] | None,
        general: Sequence[str] | None,
        seed: int,
    ):
        corpus.check_tokenizer(learner.facts.tokenizer, learner.facts.model)
        self.plan, self.learner, self.corpus, self.seed = plan, learner, corpus, seed
        self.recipe = Recipe(**plan["recipe"])
        self.pool = Pool.read(scores)
        self.bins = Bins(tuple(plan["bins"]["edges"]), tuple(plan["bins"]["share"]))
        self.fine_bin = Bins(tuple(plan["fine_bins"]["edges"]), tuple(plan["fine_bins"]["share"])).of(self.pool.x)
        chunk_tokens = corpus.facts["chunk_tokens"]
        self.valid = (
            heldout_from_files(heldout, learner, chunk_tokens) if heldout else heldout_of(corpus, "valid", learner)
        )
        self.general, self.replayed = read_general(general, learner, chunk_tokens, self.recipe)
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


def _run_all(bench: Bench, folder: StageFolder) -> None:
    regimes = [regime_of(r) for r in bench.plan["regimes"]]
    rows: list[dict[str, Any]] = []
    with Progress("pilot", bench.plan["cost"]["tokens"]) as progress:
        for regime in regimes:
            name = f"trunks/{regime.group}.jsonl"
            if not folder.has(name):
                checkpoints = Checkpoints(folder.partial / "checkpoints" / regime.group)
                folder.write_jsonl(name, run_trunk(bench, regime, checkpoints, progress))
                checkpoints.clear()
            rows += [json.loads(line) for line in (folder.path / name).read_text().splitlines()]
    shutil.rmtree(folder.partial / "checkpoints", ignore_errors=True)
    folder.write_jsonl("runs.jsonl", rows)
    failed = sum(r["status"] != "ok" for r in rows)
    folder.finish({"in": len(rows), "out": len(rows) - failed, "rejected": {"failed": failed} if failed else {}})


def regime_of(row: dict[str, Any]) -> Regime:
    """A regime from its entry in plan.json."""
    shares = tuple(row["shares"]) if row["shares"] is not None else None
    return Regime(row["name"], row["kind"], row["seed"], shares, row["target_mean"], row["target_std"])


def run_trunk(bench: Bench, regime: Regime, checkpoints: Checkpoints, progress: Progress) -> list[dict[str, Any]]:
    """One row per size. What fails is tried once more, from the last size that went well, unless it must fail again;
    then the sizes that are left are recorded as failed, with the reason."""
    try:
        return _sizes(bench, regime, checkpoints, progress)
    except (MemoryError, RuntimeError) as error:
        warnings.warn(f"Pilot {regime.group} failed ({error}); it is tried once more.", stacklevel=2)
    except FloatingPointError as error:  # the same numbers would come again
        return _rest_failed(bench, regime, checkpoints, error)
    try:
        return _sizes(bench, regime, checkpoints, progress)
    except (FloatingPointError, MemoryError, RuntimeError) as error:
        return _rest_failed(bench, regime, checkpoints, error)


def _sizes(bench: Bench, regime: Regime, checkpoints: Checkpoints, progress: Progress) -> list[dict[str, Any]]:
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
        measured = _train_size(bench, trunk, size, at, replay, progress.add)
        rows.append(describe(bench, regime, trunk, size) | measured)
        progressed = {"rows": rows, "tokens": at.tokens, "replay_tokens": at.replay_tokens}
        checkpoints.save(bench.learner, size + 1, {**progressed, "position": replay.position if replay else 0})
    return rows


def _rest_failed(bench: Bench, regime: Regime, checkpoints: Checkpoints, error: Exception) -> list[dict[str, Any]]:
    found = checkpoints.progress()
    rows = list(found["rows"]) if found else []
    trunk = bench.draw(regime)
    failed = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    sizes = range(len(rows), len(bench.plan["sizes"]))
    return rows + [describe(bench, regime, trunk, size) | failed for size in sizes]


def _train_size(
    bench: Bench, trunk: Trunk, size: int, at: Progressed, replay: Replay | None, report: Report
) -> dict[str, Any]:
    learner, recipe = bench.learner, bench.recipe
    segment, cooldown = _ids(bench, trunk.segments[size]), _ids(bench, trunk.branches[size])
    train_steps(learner, constant_steps(segment, recipe, at.tokens), recipe, at, replay, report)
    snapshot, branch = learner.snapshot(), at.copy()
    train_steps(learner, cooldown_steps(cooldown, recipe, branch.tokens), recipe, branch, replay, report)
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
    pool, index = bench.pool, trunk.of(size)
    x, length = pool.x[index], pool.length[index]
    shapes = {s: moments(on_scale(x, s), tuple(bench.plan["winsor"][s])) for s in ("nll", "ppl")}
    per_bin = bench.bins.tokens(x, length)
    unique = np.unique(index, return_index=True)[1]
    unique_per_bin = bench.bins.tokens(x[unique], length[unique])
    return {
        "run_id": f"{regime.group}-{bench.plan['sizes'][size]}", "group": regime.group, "regime": regime.name,
        "seed": regime.seed, "tokens": int(length.sum()), "pool_tokens": trunk.pool_tokens[size],
        "unique_tokens": int(length[unique].sum()),
        "ppl_mean": shapes["ppl"].mean, "ppl_std": shapes["ppl"].std,
        "nll_mean": shapes["nll"].mean, "nll_std": shapes["nll"].std,
        "bin_tokens": per_bin.tolist(), "bin_unique_tokens": unique_per_bin.tolist(), "bins_hash": bench.bins.hash,
        "replay_share": bench.recipe.replay_share, "loss": None, "loss_se": None, "loss_general": None,
        "base_loss": bench.base.loss, "base_loss_general": bench.base_general.loss if bench.base_general else None,
        "n_params": bench.learner.facts.n_params, "epochs": 1.0, "lr": bench.recipe.learning_rate,
        "schedule": json.dumps(asdict(bench.recipe), sort_keys=True), "status": "planned", "reason": None,
    }  # fmt: skip
