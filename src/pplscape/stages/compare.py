"""compare: paired differences between evaluated arms, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.manifest import StageFolder, read_manifest
from pplscape.paired import REFERENCE, compare_arms, document_difference
from pplscape.stages.evaluate import read_answers, read_evaluation
from pplscape.tasks.compared import compare_answers

VERSION = 4


def compare(evaluations: Sequence[Path | str], *, out: Path | str, overwrite: bool = False) -> Path:
    """Write OUT/comparison.json from the output folders of `evaluate` (one of them may be the base model).

    UserError when the arms were not measured on the same documents.
    """
    folders = [Path(e) for e in evaluations]
    inputs: dict[str, Path | str] = {f"evaluation {i}": f for i, f in enumerate(folders)}
    with StageFolder(
        Path(out), stage="compare", version=VERSION, config={}, inputs=inputs, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            arms = _arms(folders)
            content = compare_arms(arms) | {"tasks": _tasks(folders, arms)}
            folder.write_json("comparison.json", content | {"forgetting": _forgetting(folders, arms)})
            folder.finish({"in": len(folders), "out": len(folders), "rejected": {}})
    return Path(out)


def _arms(folders: Sequence[Path]) -> list[dict[str, Any]]:
    arms, documents = [], None
    for folder in folders:
        rows = read_evaluation(folder)
        found = {(r["split"], r["doc_id"], r["n_tokens"]) for r in rows}
        if documents is not None and found != documents:
            raise UserError(
                f"{folder} was measured on other documents than {folders[0]}; evaluate both on the same text."
            )
        documents = found
        facts = read_manifest(folder)["counts"]["facts"]
        arms.append({**{k: facts[k] for k in ("strategy", "seed", "tokens")}, **losses(rows)})
    named = [(a["strategy"], a["seed"]) for a in arms]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"Two evaluations are of '{name[0]}' with seed {name[1]}; give every arm once.")
    return arms


def _tasks(folders: Sequence[Path], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answers = {(a["strategy"], a["seed"]): read_answers(f) for f, a in zip(folders, arms, strict=True)}
    return compare_answers(answers, REFERENCE) if any(answers.values()) else []


def _forgetting(folders: Sequence[Path], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """General loss of every strategy, mean over its seeds, before and after, with the interval over documents.

    Empty without general text or without the base model.
    """
    general = [{r["doc_id"]: r for r in read_evaluation(f) if r["split"] == "general"} for f in folders]
    base = next((g for g, a in zip(general, arms, strict=True) if a["strategy"] == "base"), None)
    if not base:
        return []
    tokens, before = (np.array([r[k] for r in base.values()], float) for k in ("n_tokens", "nll_sum"))
    found = []
    for name in dict.fromkeys(a["strategy"] for a in arms if a["strategy"] != "base"):
        sums = [[g[d]["nll_sum"] for d in base] for g, a in zip(general, arms, strict=True) if a["strategy"] == name]
        change = asdict(document_difference(before, np.mean(sums, axis=0), tokens))
        start = float(before.sum() / tokens.sum())
        found.append({"strategy": name, "before": start, "after": start + change["mean"], "change": change})
    return found


def losses(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Test loss (nats/token), bits/byte, valid and general loss (None without such text) of rows of eval.jsonl."""

    def total(split: str, key: str) -> float:
        return float(sum(r[key] for r in rows if r["split"] == split))

    def mean(split: str) -> float | None:
        tokens = total(split, "n_tokens")
        return total(split, "nll_sum") / tokens if tokens else None

    return {
        "loss": total("test", "nll_sum") / total("test", "n_tokens"),
        "bits_per_byte": total("test", "nll_sum") / np.log(2) / total("test", "n_bytes"),
        "loss_valid": mean("valid"),
        "loss_general": mean("general"),
    }
