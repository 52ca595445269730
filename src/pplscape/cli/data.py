"""Commands from text to landscape: prepare, score, liken, locate, probe, landscape, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pplscape.cli.configured import Config, Set
from pplscape.cli.dry import dry, input_tokens, model_cost
from pplscape.cli.options import (
    Address,
    Bos,
    Budget,
    ChunkTokens,
    Corpus,
    DryRun,
    Dtype,
    Engine,
    Executor,
    Limit,
    LimitTokens,
    MinTokens,
    Model,
    Out,
    Overwrite,
    Revision,
    Seed,
    Threads,
    Workers,
    with_recipe,
)
from pplscape.training.schedule import Recipe

app = typer.Typer()


@app.command()
def prepare(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, URLs, hf:dataset.")],
    model: Model,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    heldout: Annotated[
        list[str] | None, typer.Option(help="Valid and test text; default: split off the inputs.")
    ] = None,
    eval: Annotated[list[str] | None, typer.Option(help="Benchmark text to remove overlaps with.")] = None,
    text_column: Annotated[str, typer.Option(help="Dotted path of the text.")] = "text",
    id_column: Annotated[str, typer.Option(help="Dotted path of the id.")] = "id",
    eval_column: Annotated[str | None, typer.Option(help="Dotted path of the benchmarks' text.")] = None,
    revision: Revision = None,
    chunk_tokens: ChunkTokens = 512,
    min_tokens: MinTokens = 64,
    valid_tokens: int = 50_000,
    test_tokens: int = 100_000,
    near_duplicates: Annotated[str, typer.Option(help="remove, keep, or the number to keep of each group.")] = "remove",
    sample: Annotated[float, typer.Option(help="Share of the documents to read, chosen by hash.")] = 1.0,
    max_row_bytes: Annotated[int, typer.Option(help="Longer JSON lines and texts are rejected.")] = 256_000_000,
    limit: Limit = None,
    limit_tokens: LimitTokens = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Read, split, chunk and clean a corpus."""
    from pplscape.flow import model_path
    from pplscape.stages.prepare import prepare as stage
    from pplscape.text.read import Columns

    columns = Columns(text=text_column, id=id_column)
    eval_columns = Columns(text=eval_column) if eval_column else None
    stage(
        inputs, model=model_path(model), out=out, heldout=heldout, eval=eval, columns=columns,
        eval_columns=eval_columns, chunk_tokens=chunk_tokens, min_tokens=min_tokens, valid=valid_tokens,
        test=test_tokens, near_duplicates=_keep(near_duplicates), sample=sample, limit=limit,
        limit_tokens=limit_tokens, max_row_bytes=max_row_bytes, seed=seed, revision=revision, overwrite=overwrite,
        dry_run=dry_run,
    )  # fmt: skip


def _keep(text: str) -> Any:
    return int(text) if text.isdigit() else text


@app.command()
def score(
    inputs: Annotated[list[str], typer.Argument(help="A prepared folder, or files, folders, globs, URLs.")],
    model: Model,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    engine: Annotated[str, typer.Option(help="transformers, vllm or ngram; for tests fake.")] = "transformers",
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Text that engine ngram counts, or the ngram.parquet of other scores; default: the pool."),
    ] = None,
    order: Annotated[int | None, typer.Option(help="Longest n-gram of engine ngram; default 3, of the pool 1.")] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    context: Annotated[int, typer.Option(help="Tokens of left context before every chunk, not scored again.")] = 0,
    chunk_tokens: ChunkTokens = 512,
    min_tokens: MinTokens = 64,
    limit: Limit = None,
    limit_tokens: LimitTokens = None,
    executor: Executor = "local",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    rank: Annotated[int | None, typer.Option(help="Do one share only, from 0; the last rank finishes.")] = None,
    ranks: Annotated[int | None, typer.Option(help="Number of shares, the same for all ranks.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Perplexity of every chunk under the base model."""
    from pplscape.flow import model_path

    if dry_run:
        return dry("score", inputs, out, model_cost(model, input_tokens(inputs), False, ranks or workers or 1))
    from pplscape.stages.score import score as stage

    stage(
        inputs, model=model_path(model), out=out, engine=engine, revision=revision, dtype=dtype, bos=bos,
        context=context, chunk_tokens=chunk_tokens, min_tokens=min_tokens, limit=limit, limit_tokens=limit_tokens,
        reference=reference or (), order=order, executor=executor, workers=workers, threads=threads, address=address,
        rank=rank, ranks=ranks, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def liken(
    scores: Annotated[Path, typer.Argument(help="The folder of `score`.")],
    corpus: Annotated[Path, typer.Option(help="The prepared folder.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    target: Annotated[list[str] | None, typer.Option(help="Text files; default: the valid split.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Likeness: how much every chunk's words are a target text's; a column beside the scores, made without a model."""
    if dry_run:
        return dry("liken", [scores, corpus], out)
    from pplscape.stages.liken import liken as stage
    from pplscape.stages.liken import summary

    typer.echo(summary(stage(scores, corpus=corpus, out=out, target=target or (), overwrite=overwrite)))


@app.command()
def locate(
    target: Annotated[Path, typer.Argument(help="The folder of `score` for a target text (`--split valid`).")],
    text: Annotated[Path, typer.Option(help="The prepared folder that holds the target text.")],
    scores: Annotated[Path, typer.Option(help="The folder of `liken`: the pool's scores.")],
    corpus: Annotated[Path, typer.Option(help="The pool's prepared folder.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Where a target text lies on the landscape: its likeness beside its scores, for `select --toward`."""
    if dry_run:
        return dry("locate", [target, text, scores, corpus], out)
    from pplscape.stages.locate import locate as stage
    from pplscape.stages.locate import summary

    typer.echo(summary(stage(target, text=text, scores=scores, corpus=corpus, out=out, overwrite=overwrite)))


@app.command()
@with_recipe("learning_rate", "warmup_tokens", "cooldown_share", "step_tokens")
def probe(
    scores: Annotated[Path, typer.Argument(help="The folder of `score`.")],
    model: Model,
    corpus: Annotated[Path, typer.Option(help="The prepared folder.")],
    tokens: Annotated[str, typer.Option(help="That each of the two probes is trained on: 200k.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    recipe: Recipe = Recipe(),
    engine: Engine = "transformers",
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Learnability: what a short training on other documents teaches about each chunk; a column beside the scores."""
    from pplscape.cost import prepared_tokens
    from pplscape.draw.budget import parse_budget
    from pplscape.flow import model_path

    each = parse_budget(tokens, 0)
    scoring = model_cost(model, prepared_tokens(corpus), False)
    cost = f"two probes: {model_cost(model, 2 * each, True)}\n          scoring: {scoring}"
    if dry_run:
        return dry("probe", [scores, corpus], out, cost)
    typer.echo(cost, err=True)
    from pplscape.stages.probe import probe as stage
    from pplscape.stages.probe import summary

    path = stage(
        scores, model=model_path(model), corpus=corpus, tokens=each, out=out, recipe=recipe, engine=engine,
        revision=revision, dtype=dtype, bos=bos, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(summary(path))


@app.command()
def landscape(
    scores: Path,
    budget: Budget,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    bins: int = 10,
    levels: Annotated[
        int, typer.Option(help="Levels of likeness or learnability in every bin; needs scores of `liken` or `probe`.")
    ] = 1,
    corpus: Corpus = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Mean, spread and shape of the pool's perplexity, and what a subset could reach."""
    if dry_run:
        return dry("landscape", [scores], out)
    from pplscape.stages.landscape import landscape as stage

    path = stage(scores, budget=budget, out=out, n_bins=bins, levels=levels, corpus=corpus, overwrite=overwrite)
    typer.echo((path / "summary.md").read_text())


@app.command()
def sample(
    model: Model,
    out: Out,
    config: Config = None,
    overrides: Set = None,
    tokens: int = 12_288,
    engine: Engine = "transformers",
    revision: Revision = None,
    bos: Bos = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Text written by the base model itself: general text for those who have none."""
    if dry_run:
        return dry("sample", [model], out, model_cost(model, tokens, False))
    from pplscape.flow import model_path
    from pplscape.stages.sample import sample as stage

    stage(
        model_path(model), out=out, tokens=tokens, engine=engine, revision=revision, bos=bos, seed=seed,
        overwrite=overwrite,
    )  # fmt: skip
