"""A run's folder as the report reads it: every stage's file, or None where the stage has not run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplscape.errors import UserError
from pplscape.manifest import MANIFEST

Facts = dict[str, Any]
STAGES = ("prepare", "score", "landscape", "plan", "pilot", "fit", "select", "train", "evaluate", "compare")
FOLDERS = {
    "prepare": "prepared",
    "score": "scores",
    "landscape": "landscape",
    "plan": "plan",
    "pilot": "pilots",
    "fit": "law",
    "select": "selection",
    "compare": "comparison",
}
"""Folder of each stage that has exactly one."""
_PLACEHOLDER = re.compile(r"'([^' ]*(?:<[A-Z-]+>|\*)[^' ]*)'")


@dataclass(frozen=True)
class RunFolder:
    """What a run has produced so far."""

    path: Path
    landscape: Facts | None = None
    plan: Facts | None = None
    runs: list[Facts] = field(default_factory=list)
    """Every line of runs.jsonl, failed runs included."""
    planned: int = 0
    """Tokens of the pilots that ran, by their plans: shared trunks counted once."""
    law: Facts | None = None
    selection: Facts | None = None
    comparison: Facts | None = None
    config: Facts | None = None
    """What `pplscape run` was told."""
    manifests: Mapping[str, Facts] = field(default_factory=dict)
    """Of every finished stage folder, by its path relative to the run."""

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """UserError when there is no such folder, it holds no stage, or a file is not what it should be."""
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; `pplscape report` takes the output folder of a run.")
        run = cls(
            path=path,
            landscape=_json(path / "landscape/landscape.json"),
            plan=_json(path / "plan/plan.json"),
            runs=[row for folder in _rounds(path, "pilots") for row in _jsonl(folder / "runs.jsonl")],
            planned=sum(int(plan["cost"]["tokens"]) for plan in _plans(path)),
            law=_json(path / "law/law.json"),
            selection=_json(path / "selection/selection.json"),
            comparison=_json(path / "comparison/comparison.json"),
            config=_json(path / "config.json"),
            manifests=_manifests(path),
        )
        if not run.manifests and run.landscape is None and not run.runs and run.law is None:
            known = ", ".join(FOLDERS.values())
            raise UserError(
                f"{path} holds no stage of a run (none of {known}); make one with `pplscape run` or `demo`."
            )
        return run

    @property
    def ok(self) -> list[Facts]:
        """Pilots that have a loss."""
        return [r for r in self.runs if r.get("status", "ok") == "ok" and r.get("loss") is not None]

    @property
    def failed(self) -> list[Facts]:
        return [r for r in self.runs if r.get("status", "ok") != "ok" or r.get("loss") is None]

    def manifest(self, stage: str) -> Facts | None:
        """The manifest of a stage that has one folder; None before it finished."""
        return self.manifests.get(FOLDERS[stage])

    def fact(self, name: str) -> Any:
        """A fact about model, tokenizer or chunks from the first stage that recorded it, or None."""
        for stage in ("score", "prepare", "pilot"):
            manifest = self.manifest(stage) or {}
            for place in (manifest.get("counts", {}).get("facts", {}), manifest.get("config", {})):
                if place.get(name) is not None:
                    return place[name]
        return (self.law or {}).get(name)

    @property
    def budget(self) -> int | None:
        """Tokens of the main run."""
        for facts in (self.selection, self.landscape, self.plan):
            if facts and facts.get("budget"):
                return int(facts["budget"])
        return None

    @property
    def next_stage(self) -> str:
        """The first stage on the way to a selection that has not run."""
        have = {"landscape": self.landscape, "plan": self.plan or self.runs, "pilot": self.runs, "fit": self.law}
        return next((stage for stage, found in have.items() if not found), "select")

    @property
    def commands(self) -> list[str]:
        """How to make all of this again: in one go where there is a configuration, and stage by stage."""
        whole = ["pplscape", "run", str(self.path / "config.json"), "--out", str(self.path)]
        return ([shlex.join(whole), ""] if self.config else []) + [self.command(s) for s in STAGES]

    def command(self, stage: str) -> str:
        """The command line that makes the output of `stage` in this folder."""
        return _PLACEHOLDER.sub(r"\1", shlex.join(["pplscape", *self._arguments(stage)]))

    def _arguments(self, stage: str) -> list[str]:
        at = {s: str(self.path / f) for s, f in FOLDERS.items()}
        configured = self.config or {}
        model = str(configured.get("model") or self.fact("model") or "<MODEL>")
        budget = str(configured.get("budget") or self.budget or "<TOKENS>")
        spent = (self.manifest("plan") or {}).get("config", {}).get("pilot_tokens", "<TOKENS>")
        arm, evaluation = str(self.path / "arms/<STRATEGY-SEED>"), str(self.path / "evaluations/<STRATEGY-SEED>")
        corpus = ["--corpus", at["prepare"]]
        runs = [str(folder / "runs.jsonl") for folder in _rounds(self.path, "pilots")]
        arguments = {
            "prepare": ["prepare", "<FILES>", "--model", model],
            "score": ["score", at["prepare"], "--model", model],
            "landscape": ["landscape", at["score"], "--budget", budget, *corpus],
            "plan": ["plan", at["landscape"], "--budget", budget, "--pilot-tokens", str(spent)],
            "pilot": ["pilot", at["plan"], "--model", model, "--scores", at["score"], *corpus],
            "fit": ["fit", *runs, "--landscape", f"{at['landscape']}/landscape.json"],
            "select": [
                "select",
                at["score"],
                "--budget",
                budget,
                "--law",
                f"{at['fit']}/law.json",
                *(part for one in runs for part in ("--runs", one)),
                *corpus,
            ],
            "train": ["train", at["select"], "--model", model, *corpus],
            "evaluate": ["evaluate", arm, "--heldout", at["prepare"]],
            "compare": ["compare", evaluation.replace("<STRATEGY-SEED>", "*")],
        }
        out = at.get(stage) or {"train": arm, "evaluate": evaluation}[stage]
        return [*arguments[stage], "--out", out]


def _rounds(path: Path, name: str) -> list[Path]:
    """The folders of all rounds of pilots: `name`, `name`-2, ..."""
    later = [p for p in path.glob(f"{name}-*") if p.name.removeprefix(f"{name}-").isdecimal()]
    return [path / name, *sorted(later, key=lambda p: int(p.name.rpartition("-")[2]))]


def _plans(path: Path) -> list[Facts]:
    """The plans of these rounds; the last one may have settled the question without pilots of its own."""
    names = [folder.name.replace("pilots", "plan", 1) for folder in _rounds(path, "pilots")]
    return [plan for plan in (_json(path / name / "plan.json") for name in names) if plan]


def _json(path: Path) -> Facts | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); make it again or delete it.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return value


def _jsonl(path: Path) -> list[Facts]:
    if not path.exists():
        return []
    rows = []
    for i, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {i} is not valid JSON ({error}).") from error
    return rows


def _manifests(path: Path) -> dict[str, Facts]:
    found = sorted([*path.glob(f"*/{MANIFEST}"), *path.glob(f"*/*/{MANIFEST}")])
    return {str(p.parent.relative_to(path)): facts for p in found if (facts := _json(p)) is not None}
