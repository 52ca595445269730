"""The command line: one command a stage, thin over the Python functions of the same names.

Heavy imports happen inside the commands, so `--help` needs no torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pplscape import __version__
from pplscape.errors import UserError

app = typer.Typer(
    name="pplscape", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Perplexity landscapes for continual pre-training: which part of a corpus is worth training on.",
)  # fmt: skip

Out = Annotated[Path, typer.Option("--out", help="Folder to write; an existing result of the same inputs is kept.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of another configuration.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be read, computed and written; write nothing.")
]
Seed = Annotated[int, typer.Option("--seed")]
Model = Annotated[str, typer.Option("--model", help="Hugging Face id, local folder, or `demo` (embedded).")]
Engine = Annotated[str, typer.Option("--engine", help="transformers or fake.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
Budget = Annotated[str, typer.Option("--budget", help="Tokens: 2000000, 2e6, 2M or 10% of the pool.")]
General = Annotated[list[str] | None, typer.Option("--general", help="General text: shows forgetting.")]
Corpus = Annotated[Path | None, typer.Option("--corpus", help="The prepared folder.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pplscape {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _dry(stage: str, reads: Sequence[Any], out: Path, cost: str = "no training, seconds") -> None:
    typer.echo(f"dry run: {stage}\n  reads   {', '.join(str(r) for r in reads)}\n  writes  {out}\n  costs   {cost}")


def _model_cost(model: str, tokens: int, train: bool) -> str:
    from pplscape.cost import SCORE_FLOPS, TRAIN_FLOPS, count_parameters, estimate
    from pplscape.flow import model_path

    return str(estimate(tokens, count_parameters(model_path(model)), TRAIN_FLOPS if train else SCORE_FLOPS))


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller demo, under two minutes.")] = False,
    out: Out = Path("pplscape-demo"),
    limit_tokens: Annotated[int | None, typer.Option(help="Read about this many tokens of the corpus.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The whole flow on an embedded model and real text already on this machine; needs no download."""
    from pplscape.flow import demo as run_demo
    from pplscape.flow import demo_config

    if dry_run:
        return _dry_flow("demo", demo_config(quick, limit_tokens), out)
    _end(run_demo(quick=quick, out=out, limit_tokens=limit_tokens, overwrite=overwrite), out)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file; see recipes/.")],
    override: Annotated[list[str] | None, typer.Argument(help="Dotted overrides: pilots.tokens=1e6")] = None,
    out: Out = Path("pplscape-run"),
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The whole flow for your model and corpus."""
    from pplscape.config import load_config
    from pplscape.flow import run as run_flow

    if dry_run:
        return _dry_flow("run", load_config(config, override or []), out)
    _end(run_flow(config, out=out, overrides=override or [], overwrite=overwrite), out)


def _dry_flow(name: str, config: Any, out: Path) -> None:
    from pplscape.cost import count_parameters, flow_costs
    from pplscape.flow import model_path
    from pplscape.stages.prepare import survey
    from pplscape.text.inputs import resolve_inputs

    found = survey(resolve_inputs(config.corpus))
    pool = int(min(found["tokens"] * config.sample, config.limit_tokens or found["tokens"]))
    costs = flow_costs(config, pool, count_parameters(model_path(config.model)))
    lines = [f"{what}: {cost}" for what, cost in costs]
    total = sum(cost.seconds for _, cost in costs)
    _dry(
        name,
        [f"{found['files']} files, about {pool:,} tokens"],
        out,
        "\n          ".join([*lines, f"about {total:,.0f} s"]),
    )


def _end(report: Path, out: Path) -> None:
    from pplscape.reporting.terminal import summary

    typer.echo(summary(out))
    if advice := _advice(out):
        typer.echo(advice)
    typer.echo(f"Report: {report}")


def _advice(out: Path) -> str | None:
    """What to do when the measured choice of the law beat random, but the selection on disk is the gate's random."""
    from pplscape.manifest import read_json

    chosen = read_json(out / "selection" / "selection.json", "select")
    light = read_json(out / "comparison" / "comparison.json", "compare")["verdict"]["light"]
    if light != "worth it" or chosen["used"] != "random" or not chosen["candidate"]:
        return None
    command = f"pplscape select {out / 'scores'} --strategy {chosen['candidate']} --form {chosen['law']['form']}"
    command += f" --budget {chosen['budget']} --law {out / 'law' / 'law.json'} --corpus {out / 'prepared'}"
    return f"The gate advised random, but the measured choice was better. To write it out:\n  {command} --out SUBSET"


@app.command()
def prepare(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, URLs, hf:dataset.")],
    model: Model,
    out: Out,
    heldout: Annotated[
        list[str] | None, typer.Option(help="Valid and test text; default: split off the inputs.")
    ] = None,
    eval: Annotated[list[str] | None, typer.Option(help="Benchmark text to remove overlaps with.")] = None,
    text_column: Annotated[str, typer.Option(help="Dotted path of the text.")] = "text",
    id_column: Annotated[str, typer.Option(help="Dotted path of the id.")] = "id",
    chunk_tokens: int = 512,
    min_tokens: int = 64,
    valid_tokens: int = 50_000,
    test_tokens: int = 100_000,
    near_duplicates: Annotated[str, typer.Option(help="remove, keep, or the number to keep of each group.")] = "remove",
    sample: Annotated[float, typer.Option(help="Share of the documents to read, chosen by hash.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.")] = None,
    limit_tokens: Annotated[int | None, typer.Option(help="Read about this many tokens.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Read, split, chunk and clean a corpus."""
    from pplscape.flow import model_path
    from pplscape.stages.prepare import prepare as stage
    from pplscape.text.read import Columns

    stage(
        inputs, model=model_path(model), out=out, heldout=heldout, eval=eval,
        columns=Columns(text=text_column, id=id_column), chunk_tokens=chunk_tokens, min_tokens=min_tokens,
        valid=valid_tokens, test=test_tokens, near_duplicates=_keep(near_duplicates), sample=sample, limit=limit,
        limit_tokens=limit_tokens, seed=seed, overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip


def _keep(text: str) -> Any:
    return int(text) if text.isdigit() else text


@app.command()
def score(
    inputs: Annotated[list[str], typer.Argument(help="A prepared folder, or files, folders, globs, URLs.")],
    model: Model,
    out: Out,
    engine: Engine = "transformers",
    revision: str | None = None,
    dtype: Dtype = "auto",
    bos: Annotated[str, typer.Option(help="auto, none, bos or eos.")] = "auto",
    chunk_tokens: Annotated[int, typer.Option(help="Of inputs that are not prepared yet.")] = 512,
    min_tokens: Annotated[int, typer.Option(help="Of inputs that are not prepared yet.")] = 64,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Perplexity of every chunk under the base model."""
    from pplscape.cost import prepared_tokens
    from pplscape.flow import model_path

    if dry_run:
        tokens = prepared_tokens(Path(inputs[0])) or _input_tokens(inputs)
        return _dry("score", inputs, out, _model_cost(model, tokens, False))
    from pplscape.stages.score import score as stage

    stage(
        inputs, model=model_path(model), out=out, engine=engine, revision=revision, dtype=dtype, bos=bos,
        chunk_tokens=chunk_tokens, min_tokens=min_tokens, overwrite=overwrite,
    )  # fmt: skip


def _input_tokens(inputs: Sequence[str]) -> int:
    """Roughly how many tokens the inputs hold."""
    from pplscape.stages.prepare import survey
    from pplscape.text.inputs import resolve_inputs

    return int(survey(resolve_inputs(inputs))["tokens"])


@app.command()
def landscape(
    scores: Path,
    budget: Budget,
    out: Out,
    bins: int = 10,
    corpus: Corpus = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Mean, spread and shape of the pool's perplexity, and what a subset could reach."""
    if dry_run:
        return _dry("landscape", [scores], out)
    from pplscape.stages.landscape import landscape as stage

    path = stage(scores, budget=budget, out=out, n_bins=bins, corpus=corpus, overwrite=overwrite)
    typer.echo((path / "summary.md").read_text())


@app.command()
def plan(
    landscape: Path,
    budget: Budget,
    pilot_tokens: Annotated[str, typer.Option(help="Domain tokens to spend on all pilots: 700k.")],
    out: Out,
    designed: Annotated[int, typer.Option(help="Regimes besides random.")] = 9,
    random_seeds: Annotated[int, typer.Option(help="Seeds of the random regime.")] = 3,
    learning_rate: float = 1e-3,
    warmup_tokens: int = 8192,
    step_tokens: int = 4096,
    replay_share: float = 0.0,
    n_params: Annotated[int | None, typer.Option(help="Parameters of the model, for the FLOPs.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Which pilots to run, and what they will cost."""
    if dry_run:
        return _dry("plan", [landscape], out)
    from pplscape.draw.budget import parse_budget
    from pplscape.stages.plan import plan as stage
    from pplscape.stages.plan import summary
    from pplscape.training.schedule import Recipe

    recipe = Recipe(
        learning_rate=learning_rate, warmup_tokens=warmup_tokens, step_tokens=step_tokens, replay_share=replay_share
    )
    path = stage(
        landscape, budget=budget, pilot_tokens=parse_budget(pilot_tokens, 0), out=out, designed=designed,
        random_seeds=random_seeds, recipe=recipe, n_params=n_params, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(summary(path))


@app.command()
def pilot(
    plan: Path,
    model: Model,
    scores: Annotated[Path, typer.Option(help="The scores folder.")],
    corpus: Annotated[Path, typer.Option(help="The prepared folder.")],
    out: Out,
    general: General = None,
    engine: Engine = "transformers",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Train the planned pilots and record what came out."""
    from pplscape.cost import plan_tokens
    from pplscape.flow import model_path

    if dry_run:
        return _dry("pilot", [plan, scores, corpus], out, _model_cost(model, plan_tokens(plan), True))
    from pplscape.stages.pilot import pilot as stage

    stage(
        plan, model=model_path(model), scores=scores, corpus=corpus, out=out, general=general, engine=engine,
        dtype=dtype, seed=seed, overwrite=overwrite,
    )  # fmt: skip


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(help="Any table of training runs: CSV, JSONL or Parquet.")],
    out: Out,
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
        return _dry("fit", [runs], out)
    from pplscape.stages.fit import fit as stage

    path = stage(
        runs, out=out, forms=form.split(",") if form else None, columns=_pairs(columns), bootstrap=bootstrap,
        scale=scale, landscape=landscape, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    typer.echo((path / "summary.md").read_text())


def _pairs(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = dict(p.partition("=")[::2] for p in text.split(","))
    if not all(pairs.values()):
        raise UserError(f"Cannot read --columns '{text}'; write it as loss=COL,D=COL.")
    return pairs


@app.command()
def select(
    scores: Path,
    budget: Budget,
    out: Out,
    strategy: Annotated[
        str,
        typer.Option(help="auto, full, random, stratified, low, mid, high, band, temperature, dos, maxent, allocate."),
    ] = "auto",
    law: Annotated[Path | None, typer.Option(help="law.json")] = None,
    form: Annotated[str | None, typer.Option(help="Which of the law's forms; default: the chosen one.")] = None,
    runs: Annotated[Path | None, typer.Option(help="runs.jsonl, for the gate.")] = None,
    target_mean: float | None = None,
    target_std: float | None = None,
    scale: Annotated[Literal["ppl", "nll"], typer.Option(help="Scale of the targets.")] = "ppl",
    band: Annotated[str | None, typer.Option(help="LO,HI quantiles for strategy band.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="The prepared folder: writes subset/ in the input's format.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The subset to train on, exactly within the budget."""
    if dry_run:
        return _dry("select", [scores, *([law] if law else [])], out)
    from pplscape.stages.select import select as stage

    stage(
        scores, strategy=strategy, budget=budget, out=out, law=law, form=form, runs=runs, target_mean=target_mean,
        target_std=target_std, scale=scale, band=_band(band), corpus=corpus, seed=seed, overwrite=overwrite,
    )  # fmt: skip


def _band(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError:
        raise UserError(f"Cannot read --band '{text}'; write two quantiles, e.g. 0.2,0.8.") from None
    return low, high


@app.command()
def train(
    subset: Annotated[Path, typer.Argument(help="A selection folder (with --corpus) or any text input.")],
    model: Model,
    out: Out,
    corpus: Corpus = None,
    tokens: Annotated[int | None, typer.Option(help="Stop after this many tokens.")] = None,
    learning_rate: float = 1e-3,
    warmup_tokens: int = 8192,
    step_tokens: int = 4096,
    replay_share: float = 0.0,
    general: General = None,
    engine: Engine = "transformers",
    dtype: Dtype = "auto",
    chunk_tokens: int = 512,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Continual pre-training on a subset."""
    from pplscape.flow import model_path
    from pplscape.training.schedule import Recipe

    if dry_run:
        return _dry("train", [subset], out, _model_cost(model, tokens or _selected_tokens(subset), True))
    from pplscape.stages.train import train as stage

    recipe = Recipe(
        learning_rate=learning_rate, warmup_tokens=warmup_tokens, step_tokens=step_tokens, replay_share=replay_share
    )
    stage(
        subset, model=model_path(model), out=out, corpus=corpus, tokens=tokens, recipe=recipe, general=general,
        engine=engine, dtype=dtype, chunk_tokens=chunk_tokens, seed=seed, overwrite=overwrite,
    )  # fmt: skip


def _selected_tokens(subset: Path) -> int:
    import json

    found = subset / "selection.json"
    return int(json.loads(found.read_text())["tokens"]) if found.exists() else 0


@app.command()
def sample(
    model: Model,
    out: Out,
    tokens: int = 12_288,
    engine: Engine = "transformers",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Text written by the base model itself: general text for those who have none."""
    if dry_run:
        return _dry("sample", [model], out, _model_cost(model, tokens, False))
    from pplscape.flow import model_path
    from pplscape.stages.sample import sample as stage

    stage(model_path(model), out=out, tokens=tokens, engine=engine, seed=seed, overwrite=overwrite)


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Outputs of train, model folders or hub ids.")],
    heldout: Annotated[Path, typer.Option(help="The prepared folder (its test split) or a text input.")],
    out: Out,
    general: General = None,
    engine: Engine = "transformers",
    dtype: Dtype = "auto",
    chunk_tokens: int = 512,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Loss per document; with several models, one folder each under OUT."""
    if dry_run:
        return _dry("evaluate", [*models, heldout], out)
    from pplscape.flow import model_path
    from pplscape.stages.evaluate import evaluate as stage

    for model in models:
        where = out if len(models) == 1 else out / Path(model).name
        stage(
            model_path(model), heldout=heldout, out=where, general=general, engine=engine, dtype=dtype,
            chunk_tokens=chunk_tokens, overwrite=overwrite,
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
        return _dry("compare", evaluations, out)
    import json

    from pplscape.stages.compare import compare as stage

    path = stage(evaluations, out=out, overwrite=overwrite)
    typer.echo(json.loads((path / "comparison.json").read_text())["verdict"]["sentence"])


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run or demo.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: RUN_DIR/report.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """One self-contained HTML file of everything that was found."""
    out = out or run_dir / "report"
    if dry_run:
        return _dry("report", [run_dir], out)
    from pplscape.stages.report import report as stage

    typer.echo(f"Report: {stage(run_dir, out=out, overwrite=overwrite) / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: user errors end with exit code 2 and one sentence; warnings are one line each."""
    warnings.showwarning = _show_warning
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        print(f"pplscape: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
