"""The command line: one command a stage, thin over the Python functions of the same names.

Heavy imports happen inside the commands, so `--help` needs no torch.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from pplscape import __version__
from pplscape.cli import data, laws, outcome, whole
from pplscape.errors import UserError

app = typer.Typer(
    name="pplscape", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Perplexity landscapes for continual pre-training: which part of a corpus is worth training on.",
)  # fmt: skip

for group in (whole, data, laws, outcome):
    app.add_typer(group.app)


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
