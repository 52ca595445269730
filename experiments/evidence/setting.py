"""What one domain's experiments hold fixed: a YAML file beside this module."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pplscape.flow import model_path
from pplscape.training.schedule import Recipe

HERE = Path(__file__).parent
DIRT = ("garbled", "boilerplate", "duplicate", "offdomain")


@dataclass(frozen=True)
class Setting:
    """Sizes in tokens, shares of the pool's tokens, paths below PPLSCAPE_DATA without suffix, or `made/...`."""

    domain: str
    model: str
    clean: list[str]
    sample: float
    boilerplate: str
    offdomain: list[str]
    chunk_tokens: int
    min_tokens: int
    pool_tokens: int
    valid_tokens: int
    test_tokens: int
    general_tokens: int
    budget: float
    bins: int
    recipe: dict[str, Any]
    pilots: dict[str, Any]
    levels: int = 3
    """Of likeness in every bin, for the arms that use it."""
    bootstrap: int = 500
    resamples: int = 200
    seed: int = 0
    engine: str = "transformers"
    dirt: list[str] = field(default_factory=lambda: list(DIRT))
    """What is injected, equal tokens of each; see `pools.Builder`."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """What was chosen on the valid text before any test run, for example the band."""

    @classmethod
    def read(cls, domain: str) -> Setting:
        """The setting of `domain`, from `<domain>.yaml`."""
        values = yaml.safe_load((HERE / f"{domain}.yaml").read_text())
        values["pilots"]["tokens"] = int(float(values["pilots"]["tokens"]))
        return cls(**values)

    @property
    def model_path(self) -> str:
        return model_path(self.model)

    @property
    def train_recipe(self) -> Recipe:
        return Recipe(**self.recipe)


def data(name: str) -> Path:
    """A file of the data folder, which only PPLSCAPE_DATA knows."""
    return Path(os.environ["PPLSCAPE_DATA"]) / f"{name}.jsonl.gz"
