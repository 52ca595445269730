"""Configurations of other programs: every number from the run, every path leads to the exported data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import World

from pplscape.engines import learner as engine
from pplscape.formats import trainers
from pplscape.formats.trainers import TrainingRun, configurations
from pplscape.stages.export import export
from pplscape.training.schedule import Recipe

RECIPE = Recipe(learning_rate=3e-4, warmup_tokens=40_960, cooldown_share=0.2, step_tokens=8192)
RUN = TrainingRun("org/Some-Model", 1_000_000, 512, RECIPE)


def test_steps_by_hand() -> None:
    assert (RUN.sequences, RUN.micro_batch, RUN.steps) == (16, 8, 123)  # 1,000,000 / 8,192 = 122.07
    assert (RUN.warmup_steps, RUN.decay_steps) == (5, 25)  # 24.6
    odd = TrainingRun("m", 1000, 512, Recipe(step_tokens=5632))
    assert (odd.sequences, odd.micro_batch, odd.steps) == (11, 1, 1)
    assert (odd.warmup_steps, odd.decay_steps) == (0, 1)
    assert TrainingRun("m", 1000, 4096, Recipe(step_tokens=1024)).sequences == 1


def test_the_optimiser_is_that_of_our_own_trainer() -> None:
    for name in ("WEIGHT_DECAY", "BETAS", "CLIP_NORM"):
        assert getattr(trainers, name) == getattr(engine, name)


def test_only_programs_that_can_read_the_data_get_a_configuration() -> None:
    names = {"llamafactory/dataset_info.json", "llamafactory/train.yaml", "axolotl.yaml"}
    assert set(configurations(RUN, ["jsonl"])) == names
    assert set(configurations(RUN, ["litdata", "mds"])) == {"litgpt.yaml"}
    assert set(configurations(RUN, ["hf", "megatron"])) == set()


@pytest.fixture(scope="module")
def exported(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(
        world.selection, corpus=world.prepared, formats=["parquet", "litdata"], model=str(world.tokenizer),
        out=tmp_path_factory.mktemp("e") / "out", recipe=RECIPE, sequence_length=64,
    )  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def test_paths_and_numbers(world: World, exported: Path) -> None:
    llama, axolotl = load(exported / "configs/llamafactory/train.yaml"), load(exported / "configs/axolotl.yaml")
    litgpt = load(exported / "configs/litgpt.yaml")
    entry = json.loads((exported / llama["dataset_dir"] / "dataset_info.json").read_text())[llama["dataset"]]
    assert (exported / llama["dataset_dir"] / entry["file_name"]).resolve() == exported / "parquet"
    (entry,) = axolotl["datasets"]
    assert [list(exported.glob(files)) for files in entry["data_files"]] == [list((exported / "parquet").iterdir())]
    assert (exported / entry["path"]).is_dir()
    assert (exported / litgpt["data"]["init_args"]["data_path"] / "index.json").exists()
    models = {llama["model_name_or_path"], axolotl["base_model"], litgpt["initial_checkpoint_dir"]}
    assert models == {str(world.tokenizer)}
    assert [llama["cutoff_len"], axolotl["sequence_len"], litgpt["train"]["max_seq_length"]] == [64] * 3
    assert llama["learning_rate"] == axolotl["learning_rate"] == litgpt["optimizer"]["init_args"]["lr"] == 3e-4
    assert litgpt["train"]["max_tokens"] == world.tokens
    assert litgpt["train"]["global_batch_size"] == 128
    for config, batch in ((llama, "per_device_train_batch_size"), (axolotl, "micro_batch_size")):
        assert config[batch] * config["gradient_accumulation_steps"] * 64 == 8192
