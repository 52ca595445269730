"""Engines by name; torch is imported only when one is loaded."""

from __future__ import annotations

from typing import Any

from pplscape.errors import UserError
from pplscape.training.ranks import world
from pplscape.training.schedule import Recipe

ENGINES = ("transformers", "ngram", "vllm", "fake")


def load_engine(name: str, model: str, *, train: bool = False, **options: Any) -> Any:
    """An `Engine` (a `Learner` with `train=True`, which only transformers and fake are). Options of transformers and
    vllm: revision, dtype, bos; of training besides: lora_rank, gradient_checkpointing; of ngram: revision, reference,
    order; the fake one has no use for them."""
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
    if name in ENGINES and train:
        raise UserError(f"Engine {name} scores but cannot be trained: use --engine transformers.")
    if name == "ngram":
        from pplscape.engines.ngram import NgramEngine

        return NgramEngine(
            model,
            reference=options.get("reference") or (),
            order=options.get("order"),
            revision=options.get("revision"),
        )
    if name == "vllm":
        from pplscape.engines.vllm import VllmEngine

        return VllmEngine(model, **options)
    raise UserError(f"Unknown engine '{name}'; choose one of {', '.join(ENGINES)}.")


def load_learner(name: str, model: str, recipe: Recipe, **options: Any) -> Any:
    """A `Learner` that trains what the recipe says, all weights or adapters; sharded under torchrun."""
    if name == "transformers" and world() > 1:
        from pplscape.engines.sharded import ShardedLearner

        return ShardedLearner(model, lora_rank=recipe.lora_rank, **options)
    return load_engine(name, model, train=True, lora_rank=recipe.lora_rank, **options)
