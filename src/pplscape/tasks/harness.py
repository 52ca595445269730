"""Tasks of lm-evaluation-harness, by their own names, run by the harness itself; its per-sample results are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplscape.errors import UserError

METRICS = ("acc", "acc_norm", "exact_match", "f1", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""Of a sample's entries those that are scores."""


def run_harness(
    model: str, tasks: Sequence[str], *, revision: str | None = None, dtype: str = "auto", limit: int | None = None,
    include: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a sample: task, id, and the harness's scores of it. `include`: a folder of the user's own task files.

    UserError: the harness is not installed, or does not know a task.
    """
    try:
        import lm_eval
        import torch
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError:
        raise UserError(
            f"The tasks {', '.join(tasks)} need lm-evaluation-harness; install it with: pip install 'lm-eval[hf]', or "
            "give files of questions (.jsonl)."
        ) from None
    manager = TaskManager(include_path=str(include) if include else None)
    if unknown := [t for t in tasks if t not in manager.all_tasks]:
        raise UserError(f"lm-evaluation-harness knows no task {', '.join(unknown)}; list them with: lm-eval ls tasks")
    arguments = {"pretrained": model, "dtype": dtype} | ({"revision": revision} if revision else {})
    found = lm_eval.simple_evaluate(
        model="hf", model_args=arguments, tasks=list(tasks), limit=limit, log_samples=True, task_manager=manager,
        device="cuda" if torch.cuda.is_available() else "cpu",  # its own default is CUDA, there or not
    )  # fmt: skip
    return [_row(task, sample) for task, samples in found["samples"].items() for sample in samples]


def _row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    scores = {name: float(sample[name]) for name in METRICS if isinstance(sample.get(name), int | float)}
    return {"task": task, "id": str(sample["doc_id"]), **scores}
