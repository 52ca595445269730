"""The real lm-evaluation-harness on a local file of questions, offline, beside our own multiple choice; two models.

    PPLSCAPE_DATA=... python experiments/check_harness.py --out DIR [--questions 400]

Base is the embedded model; the other one is it after 60 k tokens of biomedical abstracts. Both answer MMLU's medical
questions as a task of the harness (its model class, its BOS policy, its rows) and as a file of ours. Prints accuracies,
paired tests between the models, how often both ways choose alike, and versions. Finished stages are kept in DIR.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import pplscape as ps
from pplscape.flow import model_path
from pplscape.stages.evaluate import read_answers
from pplscape.training.schedule import Recipe

TASK = "mmlu_med_local"
YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options.values()|list}}}}"
doc_to_target: "{{{{(options.keys()|list).index(answer)}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=400)
    options = parser.parse_args()
    data, out = Path(os.environ["PPLSCAPE_DATA"]), options.out
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    file = out / "tasks" / "questions.jsonl"
    with gzip.open(data / "med_benchmarks" / "mmlu_med_test.jsonl.gz", "rt") as handle:
        file.write_text("".join(handle.readlines()[: options.questions]))
    (out / "tasks" / "task.yaml").write_text(YAML.format(task=TASK, file=file.resolve()))
    text = str(data / "biomed" / "abstracts.jsonl.gz")
    prepared = ps.prepare([text], model=model_path("demo"), out=out / "prepared", chunk_tokens=256, valid=4_000,
                          test=4_000, limit_tokens=120_000)  # fmt: skip
    scores = ps.score(prepared, model=model_path("demo"), out=out / "scores")
    chosen = ps.select(scores, strategy="random", budget="60k", out=out / "selection")
    arm = ps.train(chosen, model=model_path("demo"), corpus=prepared, out=out / "arm",
                   recipe=Recipe(warmup_tokens=4096, step_tokens=2048))  # fmt: skip
    tasks: Any = [str(out / "tasks"), TASK, str(file)]
    folders = [
        ps.evaluate(model, heldout=prepared, out=out / f"evaluation-{name}", tasks=tasks)
        for name, model in (("base", model_path("demo")), ("arm", str(arm)))
    ]
    report(folders, ps.compare(folders, out=out / "comparison", overwrite=True))


def report(folders: list[Path], comparison: Path) -> None:
    """Print everything that was found."""
    entries = json.loads((comparison / "comparison.json").read_text())["tasks"]
    print("| task | metric | base | trained | difference [90 %] | McNemar p |\n|---|---|---|---|---|---|")
    for base in (e for e in entries if e["strategy"] == "base"):
        arm = next(e for e in entries if (e["task"], e["metric"]) == (base["task"], base["metric"]) and e is not base)
        d = arm["against_base"]
        numbers = f"{base['mean']:.3f} | {arm['mean']:.3f} | {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        print(f"| {base['task']} ({base['questions']} questions) | {base['metric']} | {numbers} | {d['p']:.2f} |")
    for folder in folders:
        rows = read_answers(folder)
        harness, own = ([r for r in rows if (r["task"] == TASK) == h] for h in (True, False))
        alike = sum(a["acc"] == b["acc"] for a, b in zip(harness, own, strict=True))
        print(
            f"{folder.name}: right or wrong alike in {alike} of {len(own)} questions (harness without BOS, ours with)"
        )
    print({name: importlib.metadata.version(name) for name in ("lm_eval", "torch", "transformers", "datasets")})


if __name__ == "__main__":
    main()
