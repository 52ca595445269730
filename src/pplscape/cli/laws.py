"""Commands about laws: plan, pilot, transfer, fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pplscape.cli.configured import Config, Set
from pplscape.cli.dry import dry, model_cost
from pplscape.cli.options import (
    RECIPE,
    Address,
    Bos,
    Budget,
    DryRun,
    Dtype,
    Engine,
    Executor,
    General,
    Model,
    Out,
    Overwrite,
    Revision,
    Seed,
    Threads,
    Workers,
    pairs,
    with_recipe,
)
from pplscape.errors import UserError
from pplscape.training.schedule import Recipe

app = typer.Typer()


@app.command()
@with_recipe(*RECIPE)
def plan(
    landscape: Path,
    budget: Budget,
    pilot_tokens: Annotated[str, typer.Option(help="Domain tokens to spend on all pilots: 700k.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Only what to run next, given --runs.")] = False,
    runs: Annotated[list[Path] | None, typer.Option(help="Pilots that ran; repeat for several rounds.")] = None,
    designed: Annotated[int, typer.Option(help="Regimes besides random.")] = 9,
    random_seeds: Annotated[int, typer.Option(help="Seeds of the random regime.")] = 3,
    recipe: Recipe = Recipe(),
    n_params: Annotated[int | None, typer.Option(help="Parameters of the model, for the FLOPs.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Which pilots to run, and what they will cost."""
    if adaptive != bool(runs):
        raise UserError("--adaptive and --runs go together: the next pilots are chosen by those that ran.")
    if dry_run:
        return dry("plan", [landscape, *(runs or [])], out)
    from pplscape.draw.budget import parse_budget
    from pplscape.stages.plan import plan as stage
    from pplscape.stages.plan import summary

    path = stage(
        landscape, budget=budget, pilot_tokens=parse_budget(pilot_tokens, 0), out=out, designed=designed,
        random_seeds=random_seeds, recipe=recipe, n_params=n_params, runs=runs, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(summary(path))


@app.command()
def pilot(
    plan: Path,
    model: Model,
    scores: Annotated[Path, typer.Option(help="The scores folder.")],
    corpus: Annotated[Path, typer.Option(help="The prepared folder.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    heldout: Annotated[
        list[str] | None, typer.Option(help="Text to measure the loss on; default: the prepared valid text.")
    ] = None,
    general: General = None,
    engine: Engine = "transformers",
    revision: Revision = None,
    dtype: Dtype = "auto",
    bos: Bos = "auto",
    executor: Executor = "local",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="The model stands in for the one that made the scores (see `transfer`).")
    ] = False,
    regimes: Annotated[str | None, typer.Option(help="Only these of the plan, comma-separated.")] = None,
    repeats: Annotated[int, typer.Option(help="Seeds of every regime, at least.")] = 1,
    largest: Annotated[str | None, typer.Option(help="No size above so many tokens: 64k.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train the planned pilots and record what came out."""
    from pplscape.draw.budget import parse_budget
    from pplscape.flow import model_path
    from pplscape.stages.pilot import part_of, read_plan
    from pplscape.stages.pilot import pilot as stage

    part: dict[str, Any] = {
        "regimes": regimes.split(",") if regimes else None, "repeats": repeats,
        "largest": parse_budget(largest, 0) if largest else None,
    }  # fmt: skip
    if dry_run:
        tokens = part_of(read_plan(plan), **part)["cost"]["tokens"]
        return dry("pilot", [plan, scores, corpus], out, model_cost(model, tokens, True))
    stage(
        plan, model=model_path(model), scores=scores, corpus=corpus, out=out, heldout=heldout, general=general,
        engine=engine, revision=revision, dtype=dtype, bos=bos, executor=executor, workers=workers, threads=threads,
        address=address, proxy=proxy, **part, seed=seed, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def fit(
    runs: Annotated[list[Path], typer.Argument(help="Tables of training runs: CSV, JSONL or Parquet.")],
    out: Out,
    config: Config = None,
    overrides: Set = None,
    form: Annotated[str | None, typer.Option(help="Forms, comma-separated; your own: module:Class.")] = None,
    columns: Annotated[str | None, typer.Option(help="loss=COL,D=COL,mu=COL,sigma=COL,N=COL,bins=PREFIX*,...")] = None,
    bootstrap: int = 500,
    scale: Annotated[str | None, typer.Option(help="ppl or nll; default: each form's own.")] = None,
    landscape: Annotated[Path | None, typer.Option(help="landscape.json: bins, winsor limits, feasible set.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fit, compare and explain data scaling laws."""
    if dry_run:
        return dry("fit", runs, out)
    from pplscape.stages.fit import fit as stage

    path = stage(
        runs, out=out, forms=form.split(",") if form else None, columns=pairs(columns), bootstrap=bootstrap,
        scale=scale, landscape=landscape, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    typer.echo((path / "summary.md").read_text())


@app.command()
def transfer(
    proxy: Annotated[
        str,
        typer.Argument(help="Runs of the proxy: folders of `pilot --proxy`, or their runs.jsonl, comma-separated."),
    ],
    target: Annotated[
        str, typer.Argument(help="Runs of the model it stands in for, on some of the same regimes; several likewise.")
    ],
    out: Out,
    landscape: Annotated[Path | None, typer.Option(help="landscape.json: the bins' shares, for the laws.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """May pilots of a smaller model decide for the larger one?"""
    tables = [[Path(p) for p in given.split(",")] for given in (proxy, target)]
    if dry_run:
        return dry("transfer", [*tables[0], *tables[1]], out)
    from pplscape.stages.transfer import read_transfer
    from pplscape.stages.transfer import transfer as stage

    verdict = read_transfer(stage(*tables, out=out, landscape=landscape, seed=seed, overwrite=overwrite))["verdict"]
    typer.echo(" ".join(filter(None, [verdict["sentence"], verdict["settle"]])))
