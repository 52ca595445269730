"""Commands for the whole flow: demo, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pplscape.cli.dry import dry, dry_flow
from pplscape.cli.options import DryRun, LimitTokens, Out, Overwrite

app = typer.Typer()


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller demo, under two minutes.")] = False,
    out: Out = Path("pplscape-demo"),
    limit_tokens: LimitTokens = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """The whole flow on an embedded model and real text already on this machine; needs no download."""
    from pplscape.flow import demo as run_demo
    from pplscape.flow import demo_config

    if dry_run:
        return dry_flow("demo", demo_config(quick, limit_tokens), out)
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
        return dry_flow("run", load_config(config, override or []), out)
    _end(run_flow(config, out=out, overrides=override or [], overwrite=overwrite), out)


def _end(report: Path, out: Path) -> None:
    from pplscape.reporting.terminal import summary

    typer.echo(summary(out))
    if advice := _advice(out):
        typer.echo(advice)
    typer.echo(f"Report: {report}")


def _advice(out: Path) -> str | None:
    """What to do when the measured choice of the law beat random, but the selection on disk is what the gate left."""
    from pplscape.flow import SCORES
    from pplscape.manifest import read_json

    chosen = read_json(out / "selection" / "selection.json", "select")
    compared = read_json(out / "comparison" / "comparison.json", "compare")
    measured = {s["strategy"]: s["difference"] for s in compared["strategies"] if s["difference"]}
    law, left = measured.get(chosen["candidate"]), measured.get(chosen["used"])
    if law is None or chosen["used"] == chosen["candidate"] or law["high"] is None or law["high"] >= 0:
        return None
    if left is not None and left["mean"] <= law["mean"]:
        return None
    scores = out / SCORES[read_json(out / "landscape" / "landscape.json", "landscape")["bins"].get("axis")]
    command = f"pplscape select {scores} --strategy {chosen['candidate']} --form {chosen['law']['form']}"
    command += f" --budget {chosen['budget']} --law {out / 'law' / 'law.json'} --corpus {out / 'prepared'}"
    if target := next((out / name for name in ("located", "target") if (out / name).exists()), None):
        command += f" --toward {target}"
    said = f"The gate left {chosen['used']}, but the law's choice was measured below random, and lower than it."
    return f"{said} To write it out:\n  {command} --out SUBSET"


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
        return dry("report", [run_dir], out)
    from pplscape.stages.report import report as stage

    typer.echo(f"Report: {stage(run_dir, out=out, overwrite=overwrite) / 'report.html'}")
