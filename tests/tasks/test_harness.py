"""The real lm-evaluation-harness on a local task, offline, against our own multiple choice; paired by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pplscape.errors import UserError
from pplscape.stages.compare import compare
from pplscape.stages.evaluate import evaluate, read_answers
from pplscape.tasks.choice import answer_questions, read_questions
from pplscape.training.schedule import Recipe

QUESTIONS = 40


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with a task file of the harness, its questions beside it."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'lm-eval[hf]'")
    rng = np.random.default_rng(0)
    words = ["patients", "court", "fox", "dog", "loss", "twelve", "brown", "treated"]
    rows = [
        {
            "id": f"q{i}", "question": f"Which {rng.choice(words)} {rng.choice(words)}?", "answer": "ABC"[i % 3],
            "options": {n: " ".join(rng.choice(words, rng.integers(1, 4))) for n in "ABC"},
        }
        for i in range(QUESTIONS)
    ]  # fmt: skip
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "words.yaml").write_text(
        f"""task: words_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "q.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options.values()|list}}}}"
doc_to_target: "{{{{'ABC'.index(answer)}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
    )
    return folder


def test_a_local_task_of_the_harness_agrees_with_our_own_choice(
    task: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Same prompt, same options, no BOS (the harness puts none before this tokenizer's text): the same answers, for the
    base model and for one that was trained; and the paired difference between the two is that of our own answers."""
    import torch

    from pplscape.engines.learner import TransformersLearner

    learner = TransformersLearner(str(tiny_model_dir), dtype="float32")
    learner.reset()
    for _ in range(20):
        learner.step(learner.encode(["the quick brown fox, the brown dog, twelve patients treated"] * 4), 3e-3)
    learner.save(tmp_path / "trained")
    text = tmp_path / "h.txt"
    text.write_text("The court treated twelve patients. " * 20)
    questions = read_questions(task / "q.jsonl")
    own: dict[str, list[dict[str, Any]]] = {}
    for name, model in (("base", tiny_model_dir), ("trained", tmp_path / "trained")):
        found = read_answers(
            evaluate(
                str(model),
                heldout=text,
                out=tmp_path / f"e-{name}",
                dtype="float32",
                chunk_tokens=64,
                tasks=[str(task), "words_local"],
            )
        )
        own[name] = answer_questions(TransformersLearner(str(model), dtype="float32", bos="none"), questions)
        assert [r["id"] for r in found] == [str(i) for i in range(QUESTIONS)]
        assert {r["task"] for r in found} == {"words_local"}
        for key in ("acc", "acc_norm"):
            assert [r[key] for r in found] == [r[key] for r in own[name]]
    assert sum(a["chosen"] != b["chosen"] for a, b in zip(*own.values(), strict=True)) > 0
    assert torch.get_default_dtype() == torch.float32


def test_a_folder_of_task_files_needs_a_name(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match="name the tasks to run"):
        evaluate(str(tiny_tokenizer_dir), heldout=tmp_path, out=tmp_path / "e", engine="fake", tasks=[str(tmp_path)])


def test_answers_of_the_harness_are_compared_in_pairs(tmp_path: Path, task: Path, tiny_model_dir: Path) -> None:
    """Base against an arm trained by `train`: the entry of comparison.json is McNemar's test on those rows."""
    from pplscape.stages.train import train
    from pplscape.tasks.compared import mcnemar

    (tmp_path / "t.txt").write_text("the quick brown fox, the brown dog, twelve patients treated. " * 30)
    recipe = Recipe(learning_rate=3e-3, warmup_tokens=1, step_tokens=64)
    arm = train(tmp_path / "t.txt", model=str(tiny_model_dir), out=tmp_path / "arm", recipe=recipe, chunk_tokens=32)
    folders = [
        evaluate(
            str(m),
            heldout=tmp_path / "t.txt",
            out=tmp_path / f"e{i}",
            chunk_tokens=64,
            tasks=[str(task), "words_local"],
        )
        for i, m in enumerate((tiny_model_dir, arm))
    ]
    before, after = ([r["acc"] for r in read_answers(f)] for f in folders)
    entries = json.loads((compare(folders, out=tmp_path / "c") / "comparison.json").read_text())["tasks"]
    (entry,) = (e for e in entries if e["metric"] == "acc" and e["strategy"] != "base")
    difference = np.subtract(after, before)
    assert entry["against_base"]["mean"] == pytest.approx(difference.mean())
    assert entry["against_base"]["p"] == pytest.approx(mcnemar(difference))
    assert entry["questions"] == QUESTIONS
