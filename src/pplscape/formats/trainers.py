"""Configurations of other training programs that point to an export: continual pre-training, ready to run.

Written for a shell in the export's folder, so that the folder can be moved. Learning rate, warm-up, cooldown and tokens
a step are those of the run's recipe; the optimiser's constants are those of our own trainer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pplscape.formats.content import Files
from pplscape.training.schedule import Recipe

WEIGHT_DECAY, BETAS, CLIP_NORM = 0.1, (0.9, 0.95), 1.0
"""As in `engines.learner`, which is not imported for them: it needs torch."""
MICRO_BATCH = 8
DATASET = "pplscape"


@dataclass(frozen=True)
class TrainingRun:
    """What to train, on how much, and how."""

    model: str
    """Hub id or local folder."""
    tokens: int
    """Selected tokens, repeats counted, and replayed ones."""
    sequence_length: int
    recipe: Recipe
    replay_tokens: int = 0

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.tokens / self.sequences / self.sequence_length))

    @property
    def whole(self) -> float:
        """Tokens trained for each selected one; a recipe counts selected tokens, as our own trainer does."""
        return self.tokens / (self.tokens - self.replay_tokens)

    @property
    def sequences(self) -> int:
        """Sequences a step: as many as hold the recipe's tokens a step, and what is replayed beside them."""
        return max(1, round(self.recipe.step_tokens * self.whole / self.sequence_length))

    @property
    def told(self) -> str:
        """The data in a few words."""
        beside = f" and {self.replay_tokens} replayed" if self.replay_tokens else ""
        return f"{self.tokens - self.replay_tokens} selected{beside} tokens, one epoch (repeats are in the data)"

    @property
    def micro_batch(self) -> int:
        """The largest divisor of the sequences a step that is at most MICRO_BATCH."""
        return max(b for b in range(1, MICRO_BATCH + 1) if self.sequences % b == 0)

    @property
    def warmup_steps(self) -> int:
        warmup = self.recipe.warmup_tokens * self.whole
        return min(self.steps - 1, round(warmup / self.sequences / self.sequence_length))

    @property
    def decay_steps(self) -> int:
        return min(self.steps - self.warmup_steps, max(1, round(self.steps * self.recipe.cooldown_share)))

    @property
    def is_local(self) -> bool:
        return Path(self.model).exists()

    @property
    def target(self) -> str:
        """The model's folder, absolute, or its hub id."""
        return str(Path(self.model).resolve()) if self.is_local else self.model

    @property
    def shared(self) -> dict[str, Any]:
        """What LLaMA-Factory and axolotl call by the names of transformers."""
        return {
            "gradient_accumulation_steps": self.sequences // self.micro_batch,
            "learning_rate": self.recipe.learning_rate,
            "lr_scheduler": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": self.decay_steps, "decay_type": "1-sqrt"},
            "warmup_steps": self.warmup_steps,
            "weight_decay": WEIGHT_DECAY,
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "max_grad_norm": CLIP_NORM,
        }


def _yaml(head: str, content: dict[str, Any]) -> bytes:
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return (comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode()


def llamafactory(run: TrainingRun, data: str) -> Files:
    """A dataset entry and a configuration for `llamafactory-cli train`; `data`: folder of Parquet or JSONL."""
    entry = {DATASET: {"file_name": f"../../{data}", "columns": {"prompt": "text"}}}
    shared = run.shared
    config = {
        "model_name_or_path": run.target, "stage": "pt", "do_train": True, "finetuning_type": "full",
        "dataset_dir": "configs/llamafactory", "dataset": DATASET, "cutoff_len": run.sequence_length, "packing": True,
        "per_device_train_batch_size": run.micro_batch, "lr_scheduler_type": shared.pop("lr_scheduler"), **shared,
        "num_train_epochs": 1.0, "bf16": True, "logging_steps": 1, "save_strategy": "epoch", "report_to": "none",
        "output_dir": "out/llamafactory",
    }  # fmt: skip
    head = (
        "In the folder of this export: llamafactory-cli train configs/llamafactory/train.yaml\n"
        f"{run.told}, one device. Adds an end token to each row."
    )
    return {
        "llamafactory/dataset_info.json": (json.dumps(entry, indent=2) + "\n").encode(),
        "llamafactory/train.yaml": _yaml(head, config),
    }


def axolotl(run: TrainingRun, data: str) -> Files:
    """A configuration for `axolotl train`; `data`: folder of Parquet or JSONL."""
    kind = "json" if data == "jsonl" else data
    # axolotl takes a folder that is called parquet for the name of a format, unless it is told the files as well.
    entry = {
        "path": data, "data_files": [f"{data}/part-*.{data}"], "ds_type": kind, "split": "train", "type": "completion",
        "field": "text",
    }  # fmt: skip
    config = {
        "base_model": run.target,
        "datasets": [entry],
        "sequence_len": run.sequence_length, "sample_packing": True, "pad_to_sequence_len": True, "val_set_size": 0.0,
        "dataset_prepared_path": "out/axolotl-prepared", "output_dir": "out/axolotl",
        "micro_batch_size": run.micro_batch, "num_epochs": 1, "optimizer": "adamw_torch_fused", **run.shared,
        "bf16": "auto", "logging_steps": 1,
    }  # fmt: skip
    head = f"In the folder of this export: axolotl train configs/axolotl.yaml\n{run.told}, one device."
    return {"axolotl.yaml": _yaml(head, config)}


def litgpt(run: TrainingRun, data: str) -> Files:
    """A configuration for `litgpt pretrain`; `data`: folder in LitData's format."""
    checkpoint = run.target if run.is_local else f"checkpoints/{run.model}"
    rate, recipe = run.recipe.learning_rate, run.recipe
    config = {
        "model_name": PurePosixPath(run.model).name, "initial_checkpoint_dir": checkpoint, "tokenizer_dir": checkpoint,
        "out_dir": "out/litgpt", "precision": "bf16-true",
        "data": {"class_path": "litgpt.data.LitData", "init_args": {"data_path": data, "num_workers": 1}},
        "train": {
            "global_batch_size": run.sequences, "micro_batch_size": run.micro_batch, "max_tokens": run.tokens,
            "max_seq_length": run.sequence_length, "lr_warmup_steps": run.warmup_steps, "min_lr": 0.0,
            "max_norm": CLIP_NORM,
        },
        "eval": {"interval": max(1, run.steps), "max_iters": 1},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": rate, "weight_decay": WEIGHT_DECAY, "betas": list(BETAS)},
        },
    }  # fmt: skip
    make = f"litgpt convert_to_litgpt {run.target}" if run.is_local else f"litgpt download {run.model}"
    head = (
        f"In the folder of this export: {make}\n"
        f"then: litgpt pretrain --config configs/litgpt.yaml\n{run.told}.\n"
        f"litgpt decays by a cosine to min_lr after its warm-up; the run's recipe cools down over the last "
        f"{recipe.cooldown_share:.0%}.\nThe validation loss it prints is on the training data."
    )
    return {"litgpt.yaml": _yaml(head, config)}


Config = Callable[[TrainingRun, str], Files]
READS: dict[Config, tuple[str, ...]] = {
    llamafactory: ("parquet", "jsonl"), axolotl: ("parquet", "jsonl"), litgpt: ("litdata",)
}  # fmt: skip
"""The formats that each program's configuration can point to, the best first."""


def configurations(run: TrainingRun, formats: list[str]) -> Files:
    """The configurations of all programs that can read one of the exported formats."""
    found: Files = {}
    for config, readable in READS.items():
        if data := next((f for f in readable if f in formats), None):
            found |= config(run, data)
    return found
