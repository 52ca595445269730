"""Multiple choice: which of the given answers does the model find likeliest after the question?

A task is a JSONL file of rows `question`, `options` (a list, or an object of name -> text), `answer` (the right
option's name, or its place from 0) and optionally `context` and `id`. The prompt is

    [context + newline] Question: ...  newline  Answer:

and an option's log-likelihood that of its tokens after the prompt (a space before the option's text). Two choices are
recorded, as is usual: the largest sum, and the largest sum per byte of the option's text, which does not favour short
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.engines.base import Engine, Ids
from pplscape.errors import UserError
from pplscape.text.inputs import source_of
from pplscape.text.read import Broken, parse_line, read_lines


@dataclass(frozen=True)
class Question:
    task: str
    id: str
    prompt: str
    options: list[str]
    answer: int


def read_questions(path: Path | str) -> list[Question]:
    """The questions of one file. UserError naming the first row that is none."""
    task = source_of(str(path))
    found = [_question(task, number, row, path) for number, row in _rows(path)]
    if not found:
        raise UserError(f"{path} holds no questions; a task is a file of rows with question, options and answer.")
    return found


def _rows(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(str(path)):
        row = line if isinstance(line, Broken) else parse_line(line)
        if isinstance(row, Broken):
            raise UserError(f"Row {number} of {path} cannot be read ({row.reason}: {row.detail}).")
        yield number, row


def _question(task: str, number: int, row: dict[str, Any], path: Path | str) -> Question:
    options, answer = row.get("options"), row.get("answer")
    names: list[Any] = list(options) if isinstance(options, dict) else list(range(len(options or [])))
    texts = list(options.values()) if isinstance(options, dict) else list(options or [])
    if not isinstance(row.get("question"), str) or len(texts) < 2 or answer not in names:
        raise UserError(
            f"Row {number} of {path} is no question: it needs `question` (text), `options` (two or more, a list or an "
            "object) and `answer` (the right option's name, or its place from 0)."
        )
    context = f"{row['context']}\n" if row.get("context") else ""
    prompt = f"{context}Question: {row['question']}\nAnswer:"
    return Question(task, str(row.get("id", number)), prompt, [str(t) for t in texts], names.index(answer))


def answer_questions(engine: Engine, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """One row a question: task, id, answer, chosen, chosen_per_byte (places of options), acc and acc_norm (1 where that
    choice is right, the second per byte), nll (nats, one an option), cut (prompt tokens left out on the left because
    the model has too few positions)."""
    prompts = engine.encode([q.prompt for q in questions])
    texts = [f" {option}" for q in questions for option in q.options]
    owners = [i for i, q in enumerate(questions) for _ in q.options]
    options = engine.encode(texts)
    room = [_room(engine, [options[j] for j in group]) for group in _groups(owners, len(questions))]
    kept = [p[max(0, len(p) - r) :] for p, r in zip(prompts, room, strict=True)]
    values = engine.nll(options, [kept[i] for i in owners])
    sums = np.array([float(v.astype(np.float64).sum()) for v in values])
    n_bytes = np.array([len(t.encode()) - 1 for t in texts])
    rows, start = [], 0
    for question, prompt, rest in zip(questions, prompts, kept, strict=True):
        end = start + len(question.options)
        chosen, per_byte = int(np.argmin(sums[start:end])), int(np.argmin(sums[start:end] / n_bytes[start:end]))
        rows.append(
            {
                "task": question.task, "id": question.id, "answer": question.answer, "chosen": chosen,
                "chosen_per_byte": per_byte, "acc": float(chosen == question.answer),
                "acc_norm": float(per_byte == question.answer), "nll": sums[start:end].tolist(),
                "cut": len(prompt) - len(rest),
            }
        )  # fmt: skip
        start = end
    return rows


def _groups(owners: Sequence[int], n: int) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(n)]
    for j, owner in enumerate(owners):
        groups[owner].append(j)
    return groups


def _room(engine: Engine, options: Sequence[Ids]) -> int:
    """Prompt tokens that fit beside BOS and the longest option."""
    if engine.facts.max_positions is None:
        return 1 << 30
    return max(0, engine.facts.max_positions - max(len(o) for o in options) - 1)
