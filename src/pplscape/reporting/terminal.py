"""The end of every run on a terminal: the verdict and two small tables."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pplscape.reporting.about_data import measured_on_valid, prediction_rows, second_axis_words
from pplscape.reporting.about_outcome import strategy_rows
from pplscape.reporting.folder import Facts, RunFolder
from pplscape.reporting.verdict import Verdict, verdict_of

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {"worth it": "bold cyan", "inside the noise": "bold yellow", "not enough pilots": "bold magenta"}


def summary(run_dir: Path | str, *, width: int = 100, color: bool = False) -> str:
    """Verdict, what the law predicts and what was measured; plain text, or with ANSI colours."""
    from rich.console import Console
    from rich.markup import escape

    run = RunFolder.read(Path(run_dir))
    verdict = verdict_of(run)
    sink = io.StringIO()
    console = Console(file=sink, width=width, force_terminal=color, no_color=not color, highlight=False)
    style = STYLES.get(verdict.light or "", "bold")
    basis = "" if verdict.light is None else " (measured)" if verdict.measured else " (predicted)"
    console.print(f"[{style}]{escape(verdict.title)}[/]{basis}")
    console.print(escape(verdict.sentence))
    if verdict.noise:
        console.print(escape(verdict.noise))
    if fewer := second_axis_words(run.landscape or {}):
        console.print(escape(fewer.strip()))
    console.print(_predicted(run, verdict))
    if run.comparison:
        console.print(_measured(run.comparison))
    return sink.getvalue().rstrip() + "\n"


def _predicted(run: RunFolder, verdict: Verdict) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    selection = run.selection
    if selection:
        drawn = f"‘{selection['used']}’: {selection['n_chunks']:,} chunks, {selection['tokens']:,} tokens"
        table.add_row("selected", escape(drawn))
    for name, value in prediction_rows(run):
        table.add_row(name, escape(value))
    for name, value in measured_on_valid(run):
        table.add_row(name, escape(value))
    cost = verdict.numbers[-1]
    table.add_row("cost of scoring and pilots", escape(f"{cost.value} of the main run"))
    return table


def _measured(comparison: Facts) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("measured", "seeds", "nats/token (test)", "− random [90 %]", "bits/byte"):
        table.add_column(name, justify="left" if name in ("measured", "− random [90 %]") else "right")
    for row in strategy_rows(comparison):
        table.add_row(*(escape(cell) for cell in row[:5]))
    if comparison.get("base"):
        base = comparison["base"]
        table.add_row("before training", "", f"{base['loss']:.4f}", "", f"{base['bits_per_byte']:.4f}")
    return table
