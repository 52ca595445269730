"""`--config FILE` and `--set key=value` of every stage: defaults from the configuration that `run` takes.

An option on the command line wins over --set, --set over the file, the file over the command's own default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pplscape.config import parse_part, read_yaml, with_overrides

NESTED = {
    "learning_rate": "training.learning_rate", "warmup_tokens": "training.warmup_tokens",
    "cooldown_share": "training.cooldown_share", "step_tokens": "training.step_tokens",
    "replay_share": "training.replay_share", "decay": "training.decay", "lora_rank": "training.lora_rank",
    "pilot_tokens": "pilots.tokens", "designed": "pilots.designed",
    "random_seeds": "pilots.random_seeds", "form": "forms",
}  # fmt: skip
"""Where an option stands in the configuration, if not at the top under its own name."""
OF_COMMAND: dict[str, dict[str, str | None]] = {
    "prepare": {"inputs": "corpus"},
    "score": {"dtype": "score_dtype"},
    "sample": {"tokens": "general_tokens"},
    "liken": {"corpus": None},
    "locate": {"corpus": None},
    "probe": {"corpus": None},
    "pilot": {"corpus": None, "heldout": None, "executor": "pilots.executor", "workers": "pilots.workers"},
    "landscape": {"corpus": None},
    "select": {"corpus": None, "form": None, "replay_share": None},
    "export": {"corpus": None},
    "train": {"corpus": None},
    "tune": {"corpus": None, "tokens": "training.tune_tokens"},
    "evaluate": {"heldout": None},
}
"""What differs by command; None: the configuration's key of that name means something else."""


def _configure(context: typer.Context, option: typer.CallbackParam, value: Any) -> Any:
    """Callback of eager options: whatever is read after them finds its default in the configuration."""
    given = context.meta.setdefault("pplscape.configured", {})
    given[option.name] = value
    path, overrides = given.get("config"), given.get("overrides") or []
    if path or overrides:
        content = read_yaml(path, overrides) if path else with_overrides({}, overrides)
        values = parse_part(content, str(path or "--set"))
        names = NESTED | OF_COMMAND.get(context.info_name or "", {})
        keys = {p.name: names.get(p.name or "", p.name) for p in context.command.params}
        context.default_map = {n: _as_typed(n, values[k]) for n, k in keys.items() if k and values.get(k) is not None}
    return value


def _as_typed(name: str | None, value: Any) -> Any:
    """As it would be typed on the command line."""
    if isinstance(value, list):
        return ",".join(value) if name == "form" else [str(v) for v in value]
    return str(value)


Config = Annotated[
    Path | None,
    typer.Option("--config", is_eager=True, callback=_configure, help="Defaults of the options, as `run` takes them."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", is_eager=True, callback=_configure, help="key=value over --config, e.g. training.step_tokens=8192."
    ),
]
