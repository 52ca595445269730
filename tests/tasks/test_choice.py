"""Multiple choice and its paired comparison: known winners, closed forms, an independent test."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pplscape.engines.fake import FakeEngine
from pplscape.errors import UserError
from pplscape.stages.compare import compare
from pplscape.stages.evaluate import evaluate, read_answers
from pplscape.tasks.choice import answer_questions, read_questions
from pplscape.tasks.compared import compare_answers, mcnemar
from pplscape.tasks.harness import run_harness


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


ROWS = [
    {"id": "a", "question": "Who jumps over the dog?", "options": {"A": "the court", "B": "the quick fox"},
     "answer": "B"},
    {"id": "b", "question": "Who decided?", "context": "In 1998.", "options": ["court", "a dog of the lazy kind"],
     "answer": 0},
]  # fmt: skip


def test_the_likeliest_option_is_chosen(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Against sums of the same model's own log-probabilities over the joined text."""
    import torch
    import transformers

    from pplscape.engines.transformers import TransformersEngine

    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    questions = read_questions(_write(tmp_path / "q.jsonl", ROWS))
    assert [q.answer for q in questions] == [1, 0]
    assert questions[1].prompt == "In 1998.\nQuestion: Who decided?\nAnswer:"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for question, row in zip(questions, answer_questions(engine, questions), strict=True):
        expected = []
        for option in question.options:
            before = [engine.tokenizer.bos_token_id, *engine.encode([question.prompt])[0].tolist()]
            ids = engine.encode([f" {option}"])[0].tolist()
            with torch.no_grad():
                logp = model(torch.tensor([before + ids])).logits[0].double().log_softmax(-1)
            expected.append(-sum(logp[len(before) - 1 + i, t].item() for i, t in enumerate(ids)))
        np.testing.assert_allclose(row["nll"], expected, rtol=1e-4)
        assert row["chosen"] == int(np.argmin(expected))
        lengths = [len(o.encode()) for o in question.options]
        assert row["chosen_per_byte"] == int(np.argmin(np.array(expected) / lengths))
        assert row["acc"] == float(row["chosen"] == question.answer)
        assert row["cut"] == 0


def test_long_prompts_are_cut_on_the_left_and_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    from pplscape.engines.transformers import TransformersEngine

    engine = TransformersEngine(str(tiny_model_dir), dtype="float32")
    long = _write(tmp_path / "q.jsonl", [ROWS[1] | {"context": "court " * 400}])
    (row,) = answer_questions(engine, read_questions(long))
    questions = read_questions(long)
    total = len(engine.encode([questions[0].prompt])[0])
    longest = max(len(i) for i in engine.encode([f" {o}" for o in questions[0].options]))
    assert total - row["cut"] + longest + 1 == engine.facts.max_positions
    assert np.isfinite(row["nll"]).all()


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?"},
        {"question": "?", "options": ["a"], "answer": 0},
        {"question": 1, "options": ["a", "b"], "answer": 0},
        {"question": "?", "options": ["a", "b"], "answer": 2},
        {"question": "?", "options": {"A": "a", "B": "b"}, "answer": "C"},
    ],
)  # fmt: skip
def test_rows_that_are_no_questions(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Row 1 of .* is no question"):
        read_questions(_write(tmp_path / "q.jsonl", [ROWS[0], row]))


def test_an_empty_task(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no questions"):
        read_questions(_write(tmp_path / "q.jsonl", []))


def _answers(scores: list[int]) -> list[dict[str, Any]]:
    return [{"task": "t", "id": str(i), "acc": s} for i, s in enumerate(scores)]


def test_differences_are_paired_by_question_and_seed() -> None:
    arms = {
        ("base", 0): _answers([0, 0, 0, 1]),
        ("random", 0): _answers([0, 1, 0, 1]), ("random", 1): _answers([1, 1, 0, 0]),
        ("mid", 0): _answers([1, 1, 0, 1]), ("mid", 1): _answers([1, 1, 1, 1]),
    }  # fmt: skip
    found = {e["strategy"]: e for e in compare_answers(arms, "random")}
    assert found["base"]["mean"] == 0.25
    assert found["random"]["against_random"] is None
    mid = found["mid"]["against_random"]
    assert mid["mean"] == pytest.approx((1 + 2) / 8)
    by_question = np.array([0.5, 0.0, 0.5, 0.5])
    questions = stats.norm.ppf(0.95) * by_question.std(ddof=1) / 2
    seeds = stats.t.ppf(0.95, 1) * np.array([0.25, 0.5]).std(ddof=1) / np.sqrt(2)
    assert mid["high"] - mid["mean"] == pytest.approx(np.hypot(questions, seeds))
    assert found["mid"]["against_base"]["mean"] == pytest.approx(5 / 8)
    with pytest.raises(UserError, match="different questions"):
        compare_answers({("random", 0): _answers([1]), ("mid", 0): _answers([1, 0])}, "random")


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar([1, 1, 1, 1, 1, 0, 0]) == pytest.approx(2 * 0.5**5)
    assert mcnemar([1, -1, 0]) == 1.0
    assert mcnemar([0, 0]) == 1.0
    assert mcnemar([0.5, 1.0]) is None


def test_tasks_go_through_evaluate_and_compare(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    learned = FakeEngine(str(tiny_tokenizer_dir))
    for _ in range(20):
        learned.step(learned.encode(["Answer: the quick fox Answer: court"]), 1e-2)
    learned.save(tmp_path / "learned")
    tasks = [str(_write(tmp_path / "q.jsonl", ROWS))]
    (tmp_path / "h.txt").write_text("the quick brown fox")
    folders = [
        evaluate(str(model), heldout=tmp_path / "h.txt", out=tmp_path / name, engine="fake", tasks=tasks)
        for name, model in (("before", tiny_tokenizer_dir), ("after", tmp_path / "learned"))
    ]
    assert [r["acc"] for r in read_answers(folders[1])] == [1.0, 1.0]
    found = json.loads((compare(folders[:1], out=tmp_path / "c") / "comparison.json").read_text())
    assert {(t["task"], t["metric"], t["strategy"]) for t in found["tasks"]} == {
        ("q", "acc", "base"),
        ("q", "acc_norm", "base"),
    }


def test_the_harness_runs_under_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with the harness's interface: `simple_evaluate` with samples, `TaskManager`."""
    asked: dict[str, Any] = {}

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        asked.update(arguments)
        return {"samples": {"arc_easy": [{"doc_id": 3, "acc": 1.0, "acc_norm": 0.0, "resps": [], "target": "x"}]}}

    harness, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    harness.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    tasks.TaskManager = lambda include_path=None: SimpleNamespace(all_tasks=["arc_easy"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    rows = run_harness("some/model", ["arc_easy"], revision="abc", dtype="float32")
    assert rows == [{"task": "arc_easy", "id": "3", "acc": 1.0, "acc_norm": 0.0}]
    assert asked["model_args"] == {"pretrained": "some/model", "dtype": "float32", "revision": "abc"}
    assert asked["log_samples"] is True
    with pytest.raises(UserError, match="knows no task arc_esy"):
        run_harness("some/model", ["arc_esy"])


def test_without_the_harness_its_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'lm-eval\[hf\]'"):
        run_harness("some/model", ["arc_easy"])


@pytest.mark.skipif("PPLSCAPE_DATA" not in os.environ, reason="PPLSCAPE_DATA is not set: no benchmark questions here")
def test_the_medical_benchmarks_can_be_read_and_answered(tiny_tokenizer_dir: Path) -> None:
    folder = Path(os.environ["PPLSCAPE_DATA"]) / "med_benchmarks"
    counts = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        questions = read_questions(path)
        counts[path.name] = len(questions)
        rows = answer_questions(FakeEngine(str(tiny_tokenizer_dir)), questions[:20])
        assert all(len(r["nll"]) == len(q.options) for r, q in zip(rows, questions, strict=False))
    assert counts == {
        "medmcqa_dev.jsonl.gz": 4183, "medqa_us4_test.jsonl.gz": 1273, "mmlu_med_test.jsonl.gz": 1089,
        "pubmedqa_l.jsonl.gz": 1000,
    }  # fmt: skip
