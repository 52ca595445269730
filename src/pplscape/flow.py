"""run and demo: all stages in order, each in its own folder of OUT, skipped when nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pplscape.config import RunConfig, load_config, parse_config
from pplscape.cost import prepared_tokens
from pplscape.draw.budget import parse_budget
from pplscape.draw.mix import LEAST_DOCUMENTS
from pplscape.draw.strategies import BY_TEXT
from pplscape.errors import UserError
from pplscape.landscape_facts import FINER
from pplscape.manifest import read_json, read_manifest, write_atomic
from pplscape.stages.compare import compare
from pplscape.stages.evaluate import evaluate
from pplscape.stages.fit import fit
from pplscape.stages.landscape import landscape
from pplscape.stages.liken import liken
from pplscape.stages.locate import locate
from pplscape.stages.pilot import pilot
from pplscape.stages.plan import plan
from pplscape.stages.prepare import prepare
from pplscape.stages.probe import probe
from pplscape.stages.report import report
from pplscape.stages.sample import sample
from pplscape.stages.score import score
from pplscape.stages.select import select
from pplscape.stages.train import train
from pplscape.stages.tune import read_learning_rate, tune
from pplscape.text.read import Columns
from pplscape.training.schedule import Recipe

DEMO_MODEL = "demo"
DEMO_FILE_BYTES, DEMO_BYTES_PER_TOKEN = 30_000, 8
"""Small files, so that the demo's pool holds many documents; enough bytes for its tokens, duplicates removed."""
LAW_STRATEGIES = ("dos", "maxent", "allocate", "matched")
SCORES = {None: "scores", "likeness": "likened", "learnability": "probed"}
"""Folder of the scores that all later stages take, by the second axis."""
LEAST_PER_CELL = 8
"""Chunks in a cell of the pilots' finest bins, below which `auto` does without a second axis."""


def model_path(model: str) -> str:
    """A model id or folder; `demo` is the model embedded in the package."""
    return str(resources.files("pplscape") / "embedded" / "base-2.6m") if model == DEMO_MODEL else model


def run(
    config: Path | str | RunConfig, *, out: Path | str, overrides: Sequence[str] = (), overwrite: bool = False
) -> Path:
    """The whole flow for one configuration; returns the report's path. Run again after a kill: it resumes.

    Every finished stage is skipped if its inputs and configuration are unchanged.
    """
    chosen = config if isinstance(config, RunConfig) else load_config(config, overrides)
    flow = Flow(chosen, Path(out), overwrite)
    flow.landscape()
    flow.write_config()
    flow.law()
    flow.selection()
    flow.arms()
    return report(flow.out, out=flow.out / "report", overwrite=True) / "report.html"


class Flow:
    """One configuration and the folders of its stages."""

    def __init__(self, config: RunConfig, out: Path, overwrite: bool):
        self.config, self.out, self.overwrite = config, out, overwrite
        self.model = model_path(config.model)
        self.engine: Any = {"engine": config.engine, "revision": config.revision, "bos": config.bos}
        self.again: Any = {"overwrite": overwrite}

    def write_config(self) -> None:
        """Once the first stages have accepted it: the folder never shows a configuration that its results lack."""
        write_atomic(self.out / "config.json", (self.config.model_dump_json(indent=1) + "\n").encode())

    def landscape(self) -> None:
        c, out = self.config, self.out
        prepare(
            c.corpus, model=self.model, out=out / "prepared", heldout=c.heldout, eval=c.eval,
            chunk_tokens=c.chunk_tokens, min_tokens=c.min_tokens, valid=c.valid_tokens, test=c.test_tokens,
            columns=Columns(text=c.text_column, id=c.id_column),
            eval_columns=Columns(text=c.eval_column) if c.eval_column else None, near_duplicates=c.near_duplicates,
            sample=c.sample, limit_tokens=c.limit_tokens, max_row_bytes=c.max_row_bytes, seed=c.seed,
            revision=c.revision, **self.again,
        )  # fmt: skip
        score(
            out / "prepared", model=self.model, out=out / "scores", dtype=c.score_dtype, context=c.context,
            **self.engine, **self.again,
        )  # fmt: skip
        landscape(
            self.scores, budget=c.budget, out=out / "landscape", n_bins=c.bins, levels=c.levels if self.axis else 1,
            fewer=True, corpus=out / "prepared", **self.again,
        )  # fmt: skip
        _ = self.target  # before the pilots: what is wrong with it should not be found after them

    @cached_property
    def axis(self) -> str | None:
        """The second axis of the bins, None for none; `auto` takes likeness where a target text was given and the pool
        is large enough for it."""
        c = self.config
        if c.second_axis != "auto":
            return None if c.second_axis == "none" else c.second_axis
        chunks = read_manifest(self.out / "prepared")["counts"]["splits"]["pool"]["chunks"]
        return "likeness" if c.heldout and chunks >= LEAST_PER_CELL * FINER * c.bins * c.levels else None

    @cached_property
    def scores(self) -> Path:
        """What `score` wrote, or the same with the second axis."""
        c, out, scores = self.config, self.out / SCORES[self.axis], self.out / "scores"
        if self.axis == "likeness":
            liken(scores, corpus=self.out / "prepared", out=out, **self.again)
        if self.axis == "learnability":
            tokens = parse_budget(c.probe_tokens, prepared_tokens(self.out / "prepared"))
            probe(
                scores, model=self.model, corpus=self.out / "prepared", tokens=tokens, out=out, recipe=self.recipe,
                seed=c.seed, **self.engine, **self.again,
            )  # fmt: skip
        return out

    @cached_property
    def target(self) -> Path | None:
        """Scores of the target text with the axis of the bins; None where none was given."""
        c, out = self.config, self.out
        if not c.heldout:
            return None
        found = score(
            out / "prepared", model=self.model, out=out / "target", split="valid", dtype=c.score_dtype,
            context=c.context, **self.engine, **self.again,
        )  # fmt: skip
        documents = read_manifest(out / "prepared")["counts"]["splits"]["valid"]["documents"]
        if self.axis != "likeness" or documents < LEAST_DOCUMENTS:
            return found
        return locate(
            found, text=out / "prepared", scores=self.scores, corpus=out / "prepared", out=out / "located", **self.again
        )

    @cached_property
    def pilots(self) -> list[Path]:
        """runs.jsonl of every round. From the second on a round is planned by the law of the runs before it, and none
        follows once their decision is settled, or they show that nothing is to be gained."""
        c, found = self.config, list[Path]()
        n_params = read_manifest(self.out / "scores")["counts"]["facts"]["n_params"]
        for number in range(1, c.pilots.rounds + 1):
            end = "" if number == 1 else f"-{number}"
            planned = plan(
                self.out / "landscape", budget=c.budget, pilot_tokens=c.pilots.tokens // c.pilots.rounds,
                out=self.out / f"plan{end}", designed=c.pilots.designed, random_seeds=c.pilots.random_seeds,
                runs=found or None, recipe=self.recipe, n_params=n_params, seed=c.seed, **self.again,
            )  # fmt: skip
            decision = read_json(planned / "plan.json", "plan").get("adaptive")
            if decision and decision["state"] != "open":
                break
            ran = pilot(
                planned, model=self.model, scores=self.scores, corpus=self.out / "prepared",
                out=self.out / f"pilots{end}", general=self.general, executor=c.pilots.executor,
                workers=c.pilots.workers, seed=c.seed, **self.engine, **self.again,
            )  # fmt: skip
            found.append(ran / "runs.jsonl")
        return found

    def law(self) -> None:
        c, out = self.config, self.out
        fit(
            self.pilots, out=out / "law", forms=c.forms, bootstrap=c.bootstrap,
            landscape=out / "landscape" / "landscape.json", seed=c.seed, **self.again,
        )  # fmt: skip

    @cached_property
    def recipe(self) -> Recipe:
        """Of pilots and arms alike; with the learning rate found here, if the configuration leaves it open."""
        training = self.config.training
        if training.learning_rate != "auto":
            return training.recipe(training.learning_rate)
        folder = tune(
            self.out / "prepared", model=self.model, tokens=training.tune_tokens, out=self.out / "tune",
            recipe=training.recipe(Recipe.learning_rate), seed=self.config.seed, **self.engine, **self.again,
        )  # fmt: skip
        return training.recipe(read_learning_rate(folder))

    @cached_property
    def general(self) -> list[str]:
        """The user's general text, else text sampled from the base model."""
        if self.config.general:
            return self.config.general
        folder = sample(
            self.model, out=self.out / "general", tokens=self.config.general_tokens, length=self.config.chunk_tokens,
            **self.engine, **self.again,
        )  # fmt: skip
        return [str(folder / "general.jsonl")]

    def selection(self) -> None:
        select(
            self.scores, strategy=self.config.strategy, budget=self.config.budget, out=self.out / "selection",
            law=self.out / "law" / "law.json", runs=self.pilots, corpus=self.out / "prepared",
            model=self.model, max_epochs=self.config.max_epochs, resamples=self.config.resamples,
            toward=self.target, seed=self.config.seed, **self.again,
        )  # fmt: skip

    def _draw(self, strategy: str, seed: int) -> Path:
        """The chunks of one arm; no gate, and no text but for strategies that look at it."""
        law = self.out / "law" / "law.json" if strategy in LAW_STRATEGIES else None
        form = self.challenger[1] if strategy == self.challenger[0] else None
        return select(
            self.scores, strategy=strategy, budget=self.config.budget, law=law, form=form, seed=seed,
            corpus=self.out / "prepared" if strategy in BY_TEXT else None, model=self.model,
            max_epochs=self.config.max_epochs, toward=self.target if law else None,
            out=self.out / "draws" / f"{strategy}-{seed}", **self.again,
        )  # fmt: skip

    def arms(self) -> None:
        """Measure what the selection is worth: every strategy and random, paired by seed, on the test text."""
        evaluations = [self._evaluate(self.model, "base")]
        for strategy in self.strategies():
            for seed in range(self.config.seed, self.config.seed + self.config.arm_seeds):
                label = f"{strategy}-{seed}"
                trained = train(
                    self._draw(strategy, seed), model=self.model, out=self.out / "arms" / label,
                    corpus=self.out / "prepared", recipe=self.recipe, general=self.general,
                    seed=seed,
                    chunk_tokens=self.config.chunk_tokens, **self.engine, **self.again,
                )  # fmt: skip
                evaluations.append(self._evaluate(str(trained), label))
        compare(evaluations, out=self.out / "comparison", overwrite=True)  # cheap, and follows the arms

    @cached_property
    def challenger(self) -> tuple[str, str | None]:
        """(strategy, form) to measure against random: the law's choice, also where the gate did not let it pass, so
        that the advice is measured, too; without one, the selection's own strategy or the middle of the landscape.
        """
        chosen = self.chosen
        if chosen["candidate"]:
            return chosen["candidate"], chosen["law"]["form"]
        return (chosen["used"] if chosen["used"] != "random" else "mid"), None

    @cached_property
    def chosen(self) -> dict[str, Any]:
        return read_json(self.out / "selection" / "selection.json", "select")

    def strategies(self) -> list[str]:
        """Random, what was selected (the first rival: the verdict is about it), the challenger, baselines."""
        chosen = self.chosen
        first = [chosen["used"]] if chosen["used"] != chosen["candidate"] else []
        return list(dict.fromkeys(["random", *first, self.challenger[0], *self.config.baselines]))

    def _evaluate(self, model: str, label: str) -> Path:
        return evaluate(
            model, heldout=self.out / "prepared", out=self.out / "evaluations" / label, general=self.general,
            chunk_tokens=self.config.chunk_tokens, **self.engine, **self.again,
        )  # fmt: skip


def demo_config(quick: bool, limit_tokens: int | None = None) -> RunConfig:
    """The demo: the embedded model meets the Python sources and documentation of the running environment."""
    from pplscape.embedded.corpus import python_corpus

    tokens = limit_tokens or (240_000 if quick else 1_100_000)
    small = {
        "budget": "32k", "pilots": {"tokens": 150_000, "designed": 5, "random_seeds": 3}, "arm_seeds": 2, "bins": 4,
        "valid_tokens": 4_000, "test_tokens": 12_000, "general_tokens": 3_072, "bootstrap": 100,
        "training": {"warmup_tokens": 2048, "step_tokens": 1024},
    }  # fmt: skip
    full = {
        "budget": "128k", "pilots": {"tokens": 700_000, "designed": 7, "random_seeds": 3}, "arm_seeds": 3, "bins": 5,
        "valid_tokens": 16_000, "test_tokens": 40_000, "general_tokens": 6_144, "bootstrap": 200,
        "training": {"warmup_tokens": 4096, "step_tokens": 2048},
    }  # fmt: skip
    content: dict[str, Any] = {"model": DEMO_MODEL, "chunk_tokens": 256, "limit_tokens": tokens}
    content["corpus"] = python_corpus(max_bytes=DEMO_BYTES_PER_TOKEN * tokens, max_file_bytes=DEMO_FILE_BYTES)
    return parse_config(content | (small if quick else full), "the demo's configuration")


def demo(
    *, quick: bool = False, out: Path | str = "pplscape-demo", limit_tokens: int | None = None, overwrite: bool = False
) -> Path:
    """The whole flow on the embedded model and real text already on this machine; returns the report's path."""
    try:
        config = demo_config(quick, limit_tokens)
    except FileNotFoundError as error:
        raise UserError(
            f"The embedded model is missing from this installation ({error}); reinstall pplscape."
        ) from error
    return run(config, out=out, overwrite=overwrite)
