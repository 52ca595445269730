"""olmo_ladder: step 1 of the ladder (Bhagia et al., arXiv 2412.04403): 16 small runs predict a 13B model's loss."""

from __future__ import annotations

import json

import numpy as np
from published.rows import Row, columns, near, numbers, tables

from pplscape.laws.fit import LEAST_DELTA, Fit, fit_form
from pplscape.runs import Compositions, RunTable

TABLE = "olmo_ladder"
BATCH = {"190M": 128 * 4096, "370M": 192 * 4096, "760M": 320 * 4096, "1B": 384 * 4096}
"""Tokens a step. The file has steps only; these reproduce 20 N tokens at 1xC to 0.1 %."""
TARGET, TARGET_BATCH = "13B-5T", 8388608
AVERAGED = 5
"""Evaluations averaged at the end of a run (`--moving_avg 5`)."""
MMLU = {"stem": 0.215, "humanities": 0.335, "social_sciences": 0.219, "other": 0.231}
"""Weights of the four parts of MMLU."""
C4 = "eval/c4_en-validation/CrossEntropyLoss"
CLOSE = 1e-6
NOISE_RUN, NOISE_LAST = "1B-10xC", 10
NOISE_TASKS = {
    "Winogrande": "winogrande_val", "BoolQ": "boolq_val", "CommonsenseQA": "csqa_val", "OpenBookQA": "openbookqa_test",
    "ARC-Easy": "arc_easy_test", "ARC-Challenge": "arc_challenge_test", "MMLU": "mmlu_avg_test",
    "Social IQa": "socialiqa_val", "PIQA": "piqa_val", "HellaSwag": "hellaswag_val",
}  # fmt: skip


def keys(task: str) -> dict[str, float]:
    """Columns and weights behind a task of step1_main.csv."""
    if task == "c4":
        return {C4: 1.0}
    if task.startswith("mmlu"):
        return {f"eval/downstream_bpb/mmlu_{part}_test_rc_5shot_bpb": w for part, w in MMLU.items()}
    return {f"eval/downstream_bpb/{task.removesuffix('_5shot')}_rc_5shot_bpb": 1.0}


def metric(found: dict[str, list[str]], task: str) -> np.ndarray:
    wanted = keys(task)
    return sum(w * numbers(found, k) for k, w in wanted.items()) / sum(wanted.values())


def ladder(task: str, suffix: str = "") -> RunTable:
    """16 runs: four sizes at 1, 2, 5, 10 xC; `suffix` `-rerun` takes the repeated 1xC runs instead."""
    found = columns(tables() / TABLE / "ladder_runs.csv.gz")
    config = json.loads((tables() / TABLE / "final.json").read_text())
    run, step, value = np.array(found["run"]), numbers(found, "_step"), metric(found, task)
    n, d, loss = [], [], []
    for size, batch in BATCH.items():
        for length in ("1xC" + suffix, "2xC", "5xC", "10xC"):
            rows = np.flatnonzero(run == f"{size}-{length}")
            n.append(config["1.3B" if size == "1B" else size]["n"])
            d.append(step[rows[-1]] * batch)
            loss.append(value[rows[-AVERAGED:]].mean())
    return RunTable(tokens=np.array(d), n_params=np.array(n, float), loss=np.array(loss))


def target(task: str) -> tuple[Compositions, float]:
    """The 13B model and its value at the end, averaged like the ladder's."""
    found = columns(tables() / TABLE / "peteish13_eval_final.csv")
    config = json.loads((tables() / TABLE / "final.json").read_text())
    tokens = numbers(found, "_step")[-1] * TARGET_BATCH
    at = Compositions(tokens=np.array([tokens]), n_params=np.array([float(config[TARGET]["n"])]))
    return at, float(metric(found, task)[-AVERAGED:].mean())


def published(name: str) -> dict[str, dict[str, float]]:
    """A step1 file by task."""
    found = columns(tables() / TABLE / name)
    kept = ("Actual", "Pred", "Rel Error", "Fit Error")
    return {task: {k: float(found[k][i]) for k in kept} for i, task in enumerate(found["Task"])}


def fitted(task: str, suffix: str = "") -> Fit:
    return fit_form("chinchilla", ladder(task, suffix), delta=LEAST_DELTA)


def rows() -> list[Row]:
    found: list[Row] = []
    c4 = next(iter(published("step1_c4_main.csv").values()))
    for task, there in {"c4": c4, **published("step1_main.csv")}.items():
        found += _task(task, there)
    found += _noise()
    how = "needs the 7B model's annealed evaluations, which are not in the folder"
    found.append(Row(TABLE, "variance.csv: errors at 7B", None, None, None, how))
    how = "the ladder's file holds C4 loss and bits per byte only, no accuracies and no task cross-entropies"
    for name in (
        "step1_acc_main.csv",
        "step1_taskce_main.csv",
        "step2_*.csv",
        "chained_*.csv",
        "variance.csv accuracy",
    ):
        found.append(Row(TABLE, f"{name}: all figures", None, None, None, how))
    return found


def _noise() -> list[Row]:
    """Seed-like noise: the spread of the last evaluations of the 1B model at 10xC."""
    there = columns(tables() / TABLE / "variance.csv")
    found = columns(tables() / TABLE / "ladder_runs.csv.gz")
    last = np.flatnonzero(np.array(found["run"]) == NOISE_RUN)[-NOISE_LAST:]
    rows = []
    for i, name in enumerate(there["Task"]):
        value = metric(found, NOISE_TASKS[name])[last]
        for column, ours in (("Loss SD", value.std()), ("Loss Rel SD (CV)", value.std() / value.mean())):
            rows.append(near(TABLE, f"{name}: {column}", float(there[column][i]), ours, CLOSE))
    return rows


def _task(task: str, there: dict[str, float]) -> list[Row]:
    fit, table = fitted(task), ladder(task)
    at, actual = target(task)
    predicted, again = (float(np.exp(f.log_loss(at))[0]) for f in (fit, fitted(task, "-rerun")))
    fit_error = float(np.abs(np.exp(fit.log_loss(table)) / table.loss - 1).mean())
    how = f"with the repeated 1xC runs instead: {again:.4f}"
    return [
        near(TABLE, f"{task}: actual, 13B", there["Actual"], actual, CLOSE),
        near(TABLE, f"{task}: predicted, 13B", there["Pred"], predicted, CLOSE, how),
        near(TABLE, f"{task}: relative error", there["Rel Error"], predicted / actual - 1, 100 * CLOSE),
        near(TABLE, f"{task}: mean relative error on the ladder", there["Fit Error"], fit_error, 100 * CLOSE),
    ]
