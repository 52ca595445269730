"""Accuracy of arms, and paired differences between two of them on the same questions. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from pplscape.errors import UserError
from pplscape.tasks.harness import METRICS

LEVEL = 0.9
Answers = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]
"""Rows of tasks.jsonl by arm (strategy, seed)."""


def compare_answers(answers: Answers, reference: str) -> list[dict[str, Any]]:
    """One entry per task, metric and strategy: mean, and the paired differences to `reference` and to `base`.

    UserError when arms answered different questions.
    """
    found: list[dict[str, Any]] = []
    strategies = list(dict.fromkeys(name for name, _ in answers))
    for task, metric in _measured(answers):
        scores = {arm: _scores(rows, task, metric) for arm, rows in answers.items()}
        questions = next(iter(scores.values())).keys()
        if any(s.keys() != questions for s in scores.values()):
            raise UserError(f"The arms answered different questions of {task}; evaluate all with the same --tasks.")
        table = {arm: np.array([s[q] for q in questions]) for arm, s in scores.items()}
        for strategy in strategies:
            arms = {seed: v for (name, seed), v in table.items() if name == strategy}
            entry = {"task": task, "metric": metric, "strategy": strategy, "questions": len(questions)}
            entry["mean"] = float(np.mean(list(arms.values())))
            for other in (reference, "base"):
                pairs = _pairs(arms, {seed: v for (name, seed), v in table.items() if name == other}, other)
                entry[f"against_{other}"] = _difference(pairs) if pairs and strategy != other else None
            found.append(entry)
    return found


def _measured(answers: Answers) -> list[tuple[str, str]]:
    rows = [row for arm in answers.values() for row in arm]
    return list(dict.fromkeys((r["task"], m) for r in rows for m in METRICS if m in r))


def _scores(rows: Sequence[Mapping[str, Any]], task: str, metric: str) -> dict[str, float]:
    return {r["id"]: float(r[metric]) for r in rows if r["task"] == task and metric in r}


def _pairs(arms: Mapping[int, Any], others: Mapping[int, Any], name: str) -> list[Any]:
    """[questions] differences, one a pair: by seed, or of every arm to the one base."""
    if name == "base":
        return [v - next(iter(others.values())) for v in arms.values()] if others else []
    return [v - others[seed] for seed, v in arms.items() if seed in others]


def _difference(pairs: Sequence[Any]) -> dict[str, Any]:
    """Mean difference and its 90 % interval.

    Its variance is that over questions plus, with several pairs, that over seeds; one pair of right-or-wrong answers
    gets the exact test of McNemar besides.
    """
    table = np.array(pairs)
    n_pairs, n = table.shape
    mean = float(table.mean())
    z = stats.norm.ppf((1 + LEVEL) / 2)
    half = z * table.mean(0).std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    if n_pairs > 1:
        seeds = stats.t.ppf((1 + LEVEL) / 2, n_pairs - 1) * table.mean(1).std(ddof=1) / np.sqrt(n_pairs)
        half = float(np.hypot(half, seeds))
    return {
        "mean": mean, "low": mean - float(half), "high": mean + float(half), "pairs": n_pairs,
        "p": mcnemar(table[0]) if n_pairs == 1 else None,
    }  # fmt: skip


def mcnemar(differences: Any) -> float | None:
    """Two-sided exact p of right-or-wrong differences (-1, 0, 1): a fair coin among the questions that changed.

    None for scores that are not right or wrong. (McNemar 1947, in its exact binomial form.)
    """
    values = np.asarray(differences)
    if not np.isin(values, (-1, 0, 1)).all():
        return None
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
