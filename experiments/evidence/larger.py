"""F6: what the base model's perplexity chose, trained with a larger model of the same tokenizer.

PPLSCAPE_DATA=... python scripts/train_base_model.py --work FOLDER --size 10.4m --tokens 21M
PPLSCAPE_DATA=... python -m evidence larger OUT --model FOLDER/model     (from experiments/)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .bench import Bench
from .cells import CHOOSE_RATE, RATES, Cell, rates
from .runner import Store, run_cells
from .setting import Setting


class LargerBench(Bench):
    """Draws, bins and laws of the base model; trained and measured with `model`."""

    def __init__(self, setting: Setting, folder: Path, model: Path):
        super().__init__(replace(setting, model=str(model)), folder)
        self.base = Bench(setting, folder)

    def draw(self, cell: Cell) -> tuple[pa.Table, dict[str, Any]]:
        return self.base.draw(cell)

    @property
    def trained_with(self) -> list[Any]:
        return ["larger", self.setting.recipe["learning_rate"]]

    def set_rate(self, rate: float) -> None:
        self.setting = replace(self.setting, recipe={**self.setting.recipe, "learning_rate": rate})

    def run(self, cell: Cell, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        if cell.experiment == CHOOSE_RATE:
            self.set_rate(float(cell.method.partition(":")[2]))
        return super().run(cell, known) | {"learning_rate": self.setting.recipe["learning_rate"]}


def choose_rate(bench: LargerBench, store: Store, pool: str) -> float:
    """The learning rate with which random ends lowest on valid, at a quarter of D."""
    run_cells(rates(pool), bench.run, store)
    losses: dict[float, list[float]] = defaultdict(list)
    for r in store.rows():
        if r["experiment"] == CHOOSE_RATE and r["pool"] == pool and r["status"] == "ok":
            losses[r["learning_rate"]].append(r["loss_valid"])
    return min(RATES, key=lambda rate: float(np.mean(losses[rate])))
