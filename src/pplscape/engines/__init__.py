"""Engines by name; torch is imported only when one is loaded."""

from __future__ import annotations

from typing import Any

from pplscape.errors import UserError
from pplscape.training.schedule import Recipe

ENGINES = ("transformers", "fake")


def load_engine(name: str, model: str, *, train: bool = False, **options: Any) -> Any:
    """An `Engine` (a `Learner` with `train=True`). Options of the transformers engine: revision, dtype, bos, and for
    training lora_rank and gradient_checkpointing; the fake one has no use for them."""
    if name == "fake":
        from pplscape.engines.fake import FakeEngine

        return FakeEngine(model)
    if name == "transformers":
        try:
            from pplscape.engines.learner import TransformersLearner
            from pplscape.engines.transformers import TransformersEngine
        except ModuleNotFoundError as error:
            raise UserError(f"Scoring needs {error.name}; install it with: pip install pplscape") from error
        return (TransformersLearner if train else TransformersEngine)(model, **options)
    raise UserError(f"Unknown engine '{name}'; choose one of {', '.join(ENGINES)}.")


def load_learner(name: str, model: str, recipe: Recipe, **options: Any) -> Any:
    """A `Learner` that trains what the recipe says: all weights, or adapters."""
    return load_engine(name, model, train=True, lora_rank=recipe.lora_rank, **options)
