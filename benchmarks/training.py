"""Training: tokens per second beside the Trainer of transformers, both fed the same rows of token ids.

    python benchmarks/training.py                    # embedded model, 256-token rows, 4,096 tokens a step
    python benchmarks/training.py --rows short       # rows of mixed length, as the end of documents makes them

Same initial weights, order, precision (bfloat16 autocast over fp32 weights, or fp32), AdamW (fused), clipping, warm-up
and steps of the same size. Every contestant is repeated in turn; medians and their ratio go to results/training.jsonl,
and the same of CPU seconds (of all processes, loading the model included), which say more on a machine that others use.
The Trainer has logging, evaluation and saving off; its number of loader workers is the best of those tried.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler

from pplscape.engines.learner import BETAS, CLIP_NORM, WEIGHT_DECAY, TransformersLearner
from pplscape.flow import model_path
from pplscape.training.loop import Progressed, constant_steps, train_steps
from pplscape.training.schedule import Recipe

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
ROW_TOKENS, STEP_ROWS = 256, 16
RECIPE = Recipe(learning_rate=1e-3, warmup_tokens=1, step_tokens=ROW_TOKENS * STEP_ROWS)


def make_rows(kind: str, n: int, vocabulary: int) -> list[np.ndarray]:
    """Rows of token ids: all of full length, or every length down to 64."""
    rng = np.random.default_rng(0)
    lengths = np.full(n, ROW_TOKENS) if kind == "full" else rng.integers(64, ROW_TOKENS + 1, n)
    return [(np.cumsum(rng.integers(1, 40, length)) % vocabulary).astype(np.int32) for length in lengths]


def ours(model: str, rows: list[np.ndarray], dtype: str) -> tuple[float, list[float]]:
    """(seconds, loss of every step)."""
    learner = TransformersLearner(model, dtype=dtype)
    learner.reset()
    steps = [s for i in range(0, len(rows), STEP_ROWS) for s in constant_steps(rows[i : i + STEP_ROWS], WHOLE, 1)]
    started, at = time.perf_counter(), Progressed()
    train_steps(learner, steps, RECIPE, at)
    return time.perf_counter() - started, [s["loss"] for s in at.steps]


WHOLE = Recipe(learning_rate=1e-3, warmup_tokens=1, step_tokens=10**9)
"""One step for all rows it is given: both contestants then cut their steps alike."""


class Rows(Dataset):
    """BOS + chunk, padded on the right, padding masked: what our own rows are."""

    def __init__(self, rows: list[np.ndarray], bos: int):
        self.rows, self.bos = rows, bos

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"ids": [self.bos, *self.rows[i].tolist()]}


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(i["ids"]) for i in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    labels = torch.full((len(items), width), -100)
    mask = torch.zeros(len(items), width, dtype=torch.long)
    for row, item in enumerate(items):
        n = len(item["ids"])
        ids[row, :n] = torch.tensor(item["ids"])
        labels[row, 1:n] = ids[row, 1:n]
        mask[row, :n] = 1
    batch = {"input_ids": ids, "labels": labels}
    return batch if bool(mask.all()) else {**batch, "attention_mask": mask}


def trainer(model: str, rows: list[np.ndarray], workers: int, dtype: str) -> tuple[float, list[float]]:
    """The same by transformers.Trainer; losses are those it would log."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "train_loss" in logs:
                losses.append(logs["train_loss"])

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=STEP_ROWS, max_steps=len(rows) // STEP_ROWS, learning_rate=1e-3,
            lr_scheduler_type="constant", optim="adamw_torch_fused", adam_beta1=BETAS[0], adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP_NORM, bf16=dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
            dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0, remove_unused_columns=False,
        )  # fmt: skip
        run = InOrder(
            network, arguments, train_dataset=Rows(rows, network.config.bos_token_id), data_collator=collate,
            callbacks=[Losses()],
        )  # fmt: skip
        started = time.perf_counter()
        found = run.train()
        return time.perf_counter() - started, [found.training_loss]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", choices=("full", "short"), default="full")
    parser.add_argument("--model", default="demo", help="folder, or demo")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of products")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = model_path(options.model)
    vocabulary = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    rows = make_rows(options.rows, options.steps * STEP_ROWS, vocabulary)
    tokens = sum(len(r) for r in rows)
    contestants: dict[str, Callable[[], tuple[float, list[float]]]] = {
        "pplscape": lambda: ours(model, rows, options.dtype),
        "Trainer, 0 workers": lambda: trainer(model, rows, 0, options.dtype),
        "Trainer, 1 worker": lambda: trainer(model, rows, 1, options.dtype),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contestants}
    losses: dict[str, float] = {}
    for name, run in contestants.items():  # once unmeasured
        losses[name] = float(np.mean(run()[1]))
    for _ in range(options.repetitions):
        for name, run in contestants.items():
            before = sum(os.times()[:4])
            seconds[name].append(run()[0])
            cpu_seconds[name].append(sum(os.times()[:4]) - before)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    best = min(v for name, v in medians.items() if name != "pplscape")
    of_cpu = {name: statistics.median(s) for name, s in cpu_seconds.items()}
    best_cpu = min(v for name, v in of_cpu.items() if name != "pplscape")
    record = {
        "rows": options.rows, "model": options.model, "dtype": options.dtype, "tokens": tokens,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu", "load": round(os.getloadavg()[0], 2),
        "tokens_per_second": {name: round(tokens / v) for name, v in medians.items()},
        "seconds": {name: [round(x, 2) for x in s] for name, s in seconds.items()},
        "mean_loss": losses, "ratio": round(best / medians["pplscape"], 3),
        "cpu_seconds": {name: [round(x, 2) for x in s] for name, s in cpu_seconds.items()},
        "ratio_cpu": round(best_cpu / of_cpu["pplscape"], 3),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "a") as handle:
        handle.write(json.dumps(record) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
