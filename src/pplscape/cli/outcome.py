"""Commands from the law to the proof: select, export, tune, train, evaluate, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pplscape.cli.configured import Config, Set
from pplscape.cli.dry import dry, model_cost, selected_tokens
from pplscape.cli.options import (
    RECIPE,
    Address,
    Bos,
    Budget,
    ChunkTokens,
    Corpus,
    DryRun,
    Dtype,
    Engine,
    Executor,
    General,
    Model,
    Out,
    Overwrite,
    ReplayShare,
    Revision,
    Seed,
    band_of,
    ids_of,
    pairs,
    quotas_of,
    rates_of,
    weights_of,
    with_recipe,
)
from pplscape.training.schedule import Recipe

app = typer.Typer()


@app.command()
def select(
    scores: Path,
    budget: Budget,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="auto, full, random, stratified, low, mid, high, band, temperature, unigram, dsir, dos, maxent, "
            "allocate or matched."
        ),
    ] = "auto",
    law: Annotated[Path | None, typer.Option(help="law.json")] = None,
    form: Annotated[str | None, typer.Option(help="Which of the law's forms; default: the chosen one.")] = None,
    transfer: Annotated[
        Path | None, typer.Option(help="Output of `transfer`, which a law of a proxy's pilots needs.")
    ] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="Pilots, for the gate; repeat for several rounds.")] = None,
    columns: Annotated[str | None, typer.Option(help="Of the runs, as for `fit`.")] = None,
    target_mean: float | None = None,
    target_std: float | None = None,
    scale: Annotated[Literal["ppl", "nll"], typer.Option(help="Scale of the targets.")] = "ppl",
    band: Annotated[str | None, typer.Option(help="LO,HI quantiles for strategy band.")] = None,
    temperature: Annotated[float, typer.Option(help="Of strategy temperature.")] = 1.0,
    max_epochs: Annotated[float, typer.Option(help="Most repeats of a bin's tokens (allocate).")] = 1.0,
    hedge: Annotated[
        float | None,
        typer.Option(help="How much allocate keeps to a mix, 0: not; default: 0.4, with --toward 0.6, more in doubt."),
    ] = None,
    toward: Annotated[
        Path | None,
        typer.Option(help="Scores of a target text, whose mix that is, and that of matched; default: the pool's."),
    ] = None,
    landscape: Annotated[
        Path | None, typer.Option(help="landscape.json, whose bins matched takes where there is no law.")
    ] = None,
    dos_spread: Annotated[Literal["var", "std"], typer.Option(help="What dos compares with the target's.")] = "var",
    dos_weights: Annotated[str | None, typer.Option(help="MU,S of dos; default: both in standard errors.")] = None,
    dos_stop: Annotated[float | None, typer.Option(help="Distance to the target at which dos stops.")] = None,
    whole_documents: Annotated[bool, typer.Option("--whole-documents", help="Take documents whole or not.")] = False,
    nested: Annotated[bool, typer.Option("--nested", help="A larger budget holds what a smaller one took.")] = False,
    contains: Annotated[Path | None, typer.Option(help="An earlier selection to take again, then more.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="SOURCE=SHARE of the budget; repeat for more.")] = None,
    force: Annotated[Path | None, typer.Option(help="File of document ids to take whole, one a line.")] = None,
    forbid: Annotated[Path | None, typer.Option(help="File of document ids never to take, one a line.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Prepared general text, to draw replay/ from.")] = None,
    replay_share: ReplayShare = 0.0,
    export: Annotated[
        str | None, typer.Option(help="Formats of `export`, written to OUT/export; needs --corpus.")
    ] = None,
    executor: Executor = "local",
    workers: Annotated[int | None, typer.Option(help="Threads that read the scores; default: all cores.")] = None,
    address: Address = None,
    resamples: Annotated[int, typer.Option(help="How often the gate redoes the choice of the law; 0: no gate.")] = 200,
    corpus: Annotated[
        Path | None, typer.Option(help="The prepared folder: writes subset/ in the input's format.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer unigram (default: the corpus' model) or --export uses.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Text dsir draws towards; default: the valid split.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The subset to train on, exactly within the budget."""
    if dry_run:
        return dry("select", [scores, *([law] if law else [])], out)
    from pplscape.stages.select import select as stage

    if model:
        from pplscape.flow import model_path

        model = model_path(model)
    stage(
        scores, strategy=strategy, budget=budget, out=out, law=law, form=form, transfer=transfer, runs=runs,
        columns=pairs(columns),
        target_mean=target_mean, target_std=target_std, scale=scale, band=band_of(band), temperature=temperature,
        max_epochs=max_epochs, hedge=hedge, toward=toward, landscape=landscape,
        dos_spread=dos_spread, dos_weights=weights_of(dos_weights),
        dos_stop=dos_stop, whole_documents=whole_documents, nested=nested, contains=contains, quotas=quotas_of(quota),
        forced=ids_of(force), forbidden=ids_of(forbid), replay=replay, replay_share=replay_share,
        formats=export.split(",") if export else (), model=model, target=target or (), executor=executor,
        workers=workers, address=address, resamples=resamples, corpus=corpus, seed=seed, overwrite=overwrite,
    )  # fmt: skip


@app.command()
@with_recipe("learning_rate", "warmup_tokens", "cooldown_share", "step_tokens")
def export(
    selection: Annotated[Path, typer.Argument(help="The folder of `select`.")],
    corpus: Annotated[Path, typer.Option(help="The prepared folder it was drawn from.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    formats: Annotated[
        str, typer.Option("--format", help="Of parquet, jsonl, hf, megatron, mds, litdata; comma-separated.")
    ] = "parquet",
    model: Annotated[str | None, typer.Option(help="Whose tokenizer makes the ids of token formats.")] = None,
    revision: Revision = None,
    landscape: Annotated[Path | None, typer.Option(help="landscape.json, for the data card's picture.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Prepared general text, where the selection replays any.")] = None,
    recipe: Recipe = Recipe(),
    sequence_length: Annotated[int | None, typer.Option(help="Of the trainers; default: the chunk length.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The selection for training programs, with their configurations and a data card."""
    from pplscape.flow import model_path
    from pplscape.stages.export import export as stage

    stage(
        selection, corpus=corpus, out=out, formats=formats.split(","), model=model_path(model) if model else None,
        revision=revision, landscape=landscape, replay=replay, sequence_length=sequence_length,
        recipe=recipe, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip


@app.command()
@with_recipe("warmup_tokens", "cooldown_share", "step_tokens", "decay", "lora_rank")
def tune(
    corpus: Annotated[Path, typer.Argument(help="The prepared folder.")],
    model: Model,
    tokens: Annotated[str, typer.Option(help="Of every run: 100k.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    rates: Annotated[str, typer.Option(help="Learning rates to try, comma-separated.")] = "1e-4,3e-4,1e-3,3e-3",
    recipe: Recipe = Recipe(),
    engine: Engine = "transformers",
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The learning rate, by short runs on random chunks; once per model."""
    from pplscape.draw.budget import parse_budget
    from pplscape.flow import model_path

    wanted, each = rates_of(rates), parse_budget(tokens, 0)
    if dry_run:
        return dry("tune", [corpus], out, model_cost(model, len(wanted) * each, True))
    import json

    from pplscape.stages.tune import tune as stage

    path = stage(
        corpus, model=model_path(model), tokens=each, out=out, rates=wanted, recipe=recipe, engine=engine,
        revision=revision, dtype=dtype, bos=bos, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    found = json.loads((path / "tune.json").read_text())
    typer.echo(f"--learning-rate {found['learning_rate']:g}" + (f"  ({found['note']})" if found["note"] else ""))


@app.command()
@with_recipe(*RECIPE)
def train(
    subset: Annotated[Path, typer.Argument(help="A selection folder (with --corpus) or any text input.")],
    model: Model,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    corpus: Corpus = None,
    tokens: Annotated[int | None, typer.Option(help="Stop after this many tokens.")] = None,
    recipe: Recipe = Recipe(),
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations again: less memory, more time.")
    ] = False,
    tracker: Annotated[
        str, typer.Option(help="none, wandb, mlflow, trackio or tensorboard; train.jsonl is always written.")
    ] = "none",
    checkpoint_seconds: Annotated[float, typer.Option(help="Between checkpoints: what a kill costs at most.")] = 600,
    general: General = None,
    engine: Engine = "transformers",
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    chunk_tokens: ChunkTokens = 512,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Continual pre-training on a subset."""
    from pplscape.flow import model_path

    if dry_run:
        return dry("train", [subset], out, model_cost(model, tokens or selected_tokens(subset), True))
    from pplscape.stages.train import train as stage

    stage(
        subset, model=model_path(model), out=out, corpus=corpus, tokens=tokens, recipe=recipe, general=general,
        engine=engine, revision=revision, dtype=dtype, bos=bos, chunk_tokens=chunk_tokens, seed=seed,
        tracker=tracker, gradient_checkpointing=gradient_checkpointing, checkpoint_seconds=checkpoint_seconds,
        overwrite=overwrite,
    )  # fmt: skip


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Outputs of train, model folders or hub ids.")],
    heldout: Annotated[Path, typer.Option(help="The prepared folder (its test split) or a text input.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    general: General = None,
    engine: Engine = "transformers",
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    chunk_tokens: ChunkTokens = 512,
    tasks: Annotated[
        str | None,
        typer.Option(help="Files of questions (.jsonl), names of lm-eval tasks, a folder of its task files."),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Loss per document; with several models, one folder each under OUT."""
    if dry_run:
        return dry("evaluate", [*models, heldout], out)
    from pplscape.flow import model_path
    from pplscape.stages.evaluate import evaluate as stage

    for model in models:
        where = out if len(models) == 1 else out / Path(model).name
        stage(
            model_path(model), heldout=heldout, out=where, general=general, engine=engine, revision=revision,
            dtype=dtype, bos=bos, chunk_tokens=chunk_tokens,
            tasks=tasks.split(",") if tasks else (), overwrite=overwrite,
        )  # fmt: skip


@app.command()
def compare(
    evaluations: Annotated[list[Path], typer.Argument(help="Output folders of evaluate.")],
    out: Out,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Paired differences to random, with intervals, and the verdict."""
    if dry_run:
        return dry("compare", evaluations, out)
    import json

    from pplscape.stages.compare import compare as stage

    path = stage(evaluations, out=out, overwrite=overwrite)
    typer.echo(json.loads((path / "comparison.json").read_text())["verdict"]["sentence"])
