"""What is known of a Hugging Face model before its weights are loaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from pplscape.errors import UserError
from pplscape.manifest import fingerprint, sha256_file


def cannot_load(what: str, model: str, error: Exception) -> str:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Cannot load the {what} of '{model}': {first_line} Give a Hugging Face id or a local folder with config.json."
    )


def load_model_config(model: str, revision: str | None = None) -> Any:
    """The configuration of a model (hub id or local folder). UserError if there is none."""
    try:
        return transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load("model", model, error)) from error


def n_parameters(config: Any) -> int:
    """Parameters of the model of a configuration, tied ones once; nothing is allocated. UserError if none fits it."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    except ValueError as error:
        raise UserError(f"{config.model_type} is not a causal language model: {str(error).splitlines()[0]}") from None


def weights_hash(model: str, config: Any) -> str | None:
    """What identifies the weights: see `EngineFacts.weights`."""
    files = sorted(Path(model).glob("*.safetensors"))
    if not files:
        return getattr(config, "_commit_hash", None)
    return fingerprint([_sha256(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files])[:16]


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Remembered: choosing a dtype makes several engines of one model."""
    return sha256_file(path)
