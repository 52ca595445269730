"""Options that several commands share, under one name with one meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from pplscape.errors import UserError
from pplscape.training.schedule import Recipe

Out = Annotated[Path, typer.Option("--out", help="Folder to write; an existing result of the same inputs is kept.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results of another configuration.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be read, computed and written; write nothing.")
]
Seed = Annotated[int, typer.Option("--seed")]
Model = Annotated[str, typer.Option("--model", help="Hugging Face id, local folder, or `demo` (embedded).")]
Revision = Annotated[str | None, typer.Option("--revision", help="Of a model on the hub.")]
Engine = Annotated[str, typer.Option("--engine", help="transformers, or for tests fake.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
Bos = Annotated[str, typer.Option("--bos", help="Token before every chunk: auto, none, bos or eos.")]
Budget = Annotated[str, typer.Option("--budget", help="Tokens: 2000000, 2e6, 2M or 10% of the pool.")]
General = Annotated[list[str] | None, typer.Option("--general", help="General text: shows forgetting.")]
Executor = Annotated[str, typer.Option("--executor", help="local or ray.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Default: local 1; on Ray all that find room.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads of each worker.")]
Address = Annotated[str | None, typer.Option("--address", help="Of a Ray cluster; default: Ray on this machine.")]
Corpus = Annotated[Path | None, typer.Option("--corpus", help="The prepared folder.")]
ChunkTokens = Annotated[int, typer.Option("--chunk-tokens", help="Of inputs that are not prepared yet.")]
MinTokens = Annotated[int, typer.Option("--min-tokens", help="Shorter remainders are rejected.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Read at most this many documents.")]
LimitTokens = Annotated[int | None, typer.Option("--limit-tokens", help="Read about this many tokens.")]


ReplayShare = Annotated[float, typer.Option("--replay-share", help="Share of trained tokens that is general text.")]
RECIPE = {
    "learning_rate": Annotated[float, typer.Option("--learning-rate", help="Peak.")],
    "warmup_tokens": Annotated[int, typer.Option("--warmup-tokens")],
    "cooldown_share": Annotated[
        float, typer.Option("--cooldown-share", help="Share of a run's tokens in its cooldown.")
    ],
    "step_tokens": Annotated[int, typer.Option("--step-tokens", help="Domain tokens per optimiser step.")],
    "replay_share": ReplayShare,
    "decay": Annotated[str, typer.Option("--decay", help="Shape of the cooldown: sqrt (1 - sqrt) or cosine.")],
    "lora_rank": Annotated[
        int, typer.Option("--lora-rank", help="Train adapters of this rank; 0 trains every weight.")
    ],
}
"""Options by the field of `Recipe` that they set."""


def with_recipe(*fields: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of these fields of `Recipe`, which it takes together as its parameter `recipe`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def taking_options(**given: Any) -> None:
            command(recipe=Recipe(**{name: given.pop(name) for name in fields}), **given)

        signature, keyword = inspect.signature(command, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        options = [inspect.Parameter(n, keyword, default=getattr(Recipe, n), annotation=RECIPE[n]) for n in fields]
        found: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            found += options if parameter.name == "recipe" else [parameter.replace(kind=keyword)]
        taking_options.__signature__ = signature.replace(parameters=found)  # type: ignore[attr-defined]
        taking_options.__annotations__ = {p.name: p.annotation for p in found} | {"return": None}
        return taking_options

    return decorate


def pairs(text: str | None) -> dict[str, str] | None:
    """`a=b,c=d` as a dictionary."""
    if text is None:
        return None
    found = dict(p.partition("=")[::2] for p in text.split(","))
    if not all(found.values()):
        raise UserError(f"Cannot read --columns '{text}'; write it as loss=COL,D=COL.")
    return found


def band_of(text: str | None) -> tuple[float, float] | None:
    """`LO,HI` as two quantiles."""
    if text is None:
        return None
    try:
        low, high = (float(v) for v in text.split(","))
    except ValueError:
        raise UserError(f"Cannot read --band '{text}'; write two quantiles, e.g. 0.2,0.8.") from None
    return low, high


def weights_of(text: str | None) -> tuple[float, float] | None:
    """`MU,S` as two weights."""
    if text is None:
        return None
    try:
        mu, s = (float(v) for v in text.split(","))
    except ValueError:
        raise UserError(f"Cannot read --dos-weights '{text}'; write two numbers, e.g. 1,0.5.") from None
    return mu, s


def quotas_of(given: list[str] | None) -> dict[str, float] | None:
    """`SOURCE=SHARE` each."""
    if not given:
        return None
    try:
        return {source: float(share) for source, _, share in (one.rpartition("=") for one in given)}
    except ValueError:
        raise UserError(f"Cannot read --quota {', '.join(given)}; write SOURCE=SHARE, e.g. abstracts=0.3.") from None


def rates_of(text: str) -> list[float]:
    """Comma-separated learning rates."""
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise UserError(f"Cannot read --rates '{text}'; write them as 3e-4,1e-3.") from None


def ids_of(path: Path | None) -> list[str]:
    """Document ids of a text file, one a line."""
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of document ids: {error}") from None
