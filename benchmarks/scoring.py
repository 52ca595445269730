"""How fast scoring is, beside a loop, a padded script, lm-eval and Data-Juicer.

    python benchmarks/scoring.py make --models MODELS            # models and texts, not timed; needs PPLSCAPE_DATA
    python benchmarks/scoring.py run --models MODELS [CELL...]   # -> results/scoring.jsonl; resumes, --again replaces
    python benchmarks/scoring.py table                           # -> docs/results/scoring-speed.md

`run` needs lm-eval and py-data-juicer in its environment; what is not installed is left out and named. A cell is a
workload and a model. Contestants live in processes of their own and take turns: one run each to warm up and to choose
the batch size (peers: the faster of two, ours: none), then the rounds (--rounds; cells of a second or two need
more). All tokenise, all use the same
dtype and threads, all score the same tokens (checked); ratios are between medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "scoring.jsonl", HERE.parent / "docs" / "results" / "scoring-speed.md"
SOURCE = HERE.parent / "src" / "pplscape"
EMBEDDED = SOURCE / "embedded" / "base-2.6m"
REPETITIONS, WINDOW = 5, 512
TOKENS = {"short": 6_000, "mixed": 6_000, "long": 4_000}
MODELS = {"50k": (50_304, 512, 8), "152k": (151_936, 512, 8), "124m": (50_304, 768, 12)}
"""Vocabulary, width, layers: 51, 103 and 124 M parameters."""
PEERS = ("loop", "padded", "lm-eval", "data-juicer")
SCALES = {"": 1.0, "-152k": 0.5, "-2.6m": 6.0}
"""Text in multiples of TOKENS, by what a model costs; its name ends the file's, if it stands here."""
BATCHES = {"short": (16, 64), "mixed": (2, 6), "long": (2, 6)}
LOWER = ("pplscape bf16", "loop bf16", "padded bf16", "matmul bf16")
RATE = ("pplscape", "matmul", "pplscape bf16", "matmul bf16")
CELLS = {f"{w}-{m}": (w, m) for m, w in itertools.product(("50k", "152k", "2.6m"), TOKENS)} | {
    "rate-124m": ("mixed", "124m")
}


def make(folder: Path) -> None:
    """Models with random weights, and the texts of the three workloads."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    for name, (vocabulary, width, layers) in MODELS.items():
        if (folder / name).exists():
            continue
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3 // 64 * 64,
            num_hidden_layers=layers, num_attention_heads=width // 64, num_key_value_heads=width // 64,
            max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, texts in _workloads(tokenizer).items():
        for scale, factor in SCALES.items():
            taken, n = [], 0
            for text in texts:
                if n >= TOKENS[name] * factor:
                    break
                taken.append(text)
                n += len(tokenizer(text)["input_ids"])
            (folder / f"{name}{scale}.json").write_text(json.dumps(taken))
            lengths = [len(ids) for ids in tokenizer(taken)["input_ids"]]
            print(name, scale, len(taken), "texts", n, "tokens, median", statistics.median(lengths), max(lengths))


def _workloads(tokenizer: Any) -> dict[str, list[str]]:
    from pplscape.text.chunk import Chunker

    chunker = Chunker(tokenizer, WINDOW - 8, 1)  # stripping a chunk may cost or add a token

    def documents(name: str, every: int) -> list[str]:
        with gzip.open(Path(os.environ["PPLSCAPE_DATA"]) / "biomed" / f"{name}.jsonl.gz", "rt") as file:
            return [json.loads(line)["text"] for line in itertools.islice(file, 0, None, every)]

    def chunks(texts: list[str]) -> list[str]:
        cut = zip(texts, chunker.cut(texts), strict=True)
        return [t for text, found in cut for c in found if (t := text[c.char_start : c.char_end].strip())]

    sentences = [s for a in documents("abstracts", 40) for s in re.split(r"(?<=[.?!])\s+(?=[A-Z])", a)]
    mixed = [c for n in ("abstracts", "fulltext", "medquad", "textbooks") for c in chunks(documents(n, 40))]
    whole = [c for c in chunks(documents("fulltext", 40)) if len(tokenizer(c)["input_ids"]) >= WINDOW - 16]
    found = {"short": [s.strip() for s in sentences if 20 < len(s) < 240], "mixed": mixed, "long": whole}
    for texts in found.values():
        random.Random(0).shuffle(texts)
    return found


class Contestant:
    """A process that has loaded the model and waits for its turn."""

    def __init__(self, name: str, model: Path):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, HERE / "scoring_peers.py", name, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        """The next answer; {} of a process that has died."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def run(self, texts: Path, batch: int) -> dict[str, Any]:
        assert self.process.stdin
        print(batch, texts, file=self.process.stdin, flush=True)
        return {"batch": batch, **self.answer()}

    def tuned(self, texts: Path, batches: tuple[int, ...]) -> int:
        """The fastest batch size of one run each, after a run that is not counted."""
        self.run(texts, batches[0])
        return min(batches, key=lambda b: self.run(texts, b)["seconds"])


def run(folder: Path, cells: list[str], n_rounds: int, again: bool) -> None:
    done = set() if again else {r["cell"] for r in _rows()}
    todo = [c for c in cells if c not in done]
    for model, group in itertools.groupby(todo, key=lambda c: CELLS[c][1]):
        with _team(EMBEDDED if model == "2.6m" else folder / model, _names(model)) as team:
            for cell in group:
                rows = [*(r for r in _rows() if r["cell"] != cell), measure(folder, cell, team, n_rounds)]
                RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _names(model: str) -> Sequence[str]:
    if model == "124m":
        return RATE
    return ["pplscape", "pplscape, no BOS", *PEERS, *(() if model == "2.6m" else ("matmul", *LOWER))]


@contextlib.contextmanager
def _team(model: Path, names: Sequence[str]) -> Iterator[dict[str, Contestant]]:
    """The contestants with this model; those that cannot start are left out."""
    started = [Contestant(n, model) for n in names]
    try:
        yield {c.name: c for c in started if c.answer()}
    finally:
        for contestant in started:
            contestant.process.kill()
            contestant.process.wait()


def measure(folder: Path, cell: str, team: dict[str, Contestant], n_rounds: int) -> dict[str, Any]:
    workload, model = CELLS[cell]
    small = model == "2.6m"
    texts = folder / f"{workload}{f'-{model}' if f'-{model}' in SCALES else ''}.json"
    lower = workload == "mixed" and not small
    wanted = [n for n in _names(model) if n != "pplscape, no BOS" and (lower or not n.endswith("bf16"))]
    batches = tuple(4 * b for b in BATCHES[workload]) if small else BATCHES[workload]
    sizes = {}
    for name in (n for n in wanted if n in team):
        tuned = name.startswith(("padded", "lm-eval"))
        sizes[name] = team[name].tuned(texts, batches) if tuned else team[name].run(texts, 1)["batch"]
    rounds = [{n: team[n].run(texts, b) for n, b in sizes.items()} for _ in range(n_rounds)]
    expected = rounds[0]["pplscape"]["nll"]
    without_bos = team["pplscape, no BOS"].run(texts, 1)["nll"] if "data-juicer" in team else []
    found = {}
    for name in sizes:
        answers = [r[name] for r in rounds]
        found[name] = {
            "seconds": [round(a["seconds"], 4) for a in answers], "tokens": answers[0]["tokens"],
            "peak_mib": answers[-1]["peak_mib"], "batch": sizes[name], "padding": answers[0].get("padding"),
        }  # fmt: skip
        if name.startswith("matmul"):
            found[name]["seconds_per_token"] = [a["nll"][0] for a in answers]
            found[name]["flop_per_token"] = answers[0]["tokens"]
        else:
            same = without_bos if name == "data-juicer" else expected
            found[name]["error"] = _error(answers[0]["nll"], same, answers[0]["tokens"])
        print(cell, name, found[name], flush=True)
    return {
        "cell": cell, "missing": [n for n in wanted if n not in team], "texts": len(expected),
        "squares": _squares(texts), "shape": MODELS.get(model), "load": os.getloadavg()[0], "found": found,
        "code": code(), **_machine(),
    }  # fmt: skip


def _error(found: list[float], expected: list[float], tokens: int) -> float:
    """Mean absolute difference of the texts' NLL, nats per token."""
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / tokens


def _squares(texts: Path) -> int:
    """Sum of squared lengths, for the FLOPs of attention."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    return sum(len(ids) ** 2 for ids in tokenizer(json.loads(texts.read_text()))["input_ids"])


def code() -> str:
    """Fingerprint of what is measured."""
    parts = [SOURCE / "engines" / f"{n}.py" for n in ("base", "head", "lanes", "likelihood", "packed", "transformers")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in [*parts, SOURCE / "scoring.py"])).hexdigest()[:12]


def _machine() -> dict[str, Any]:
    import torch
    import transformers

    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else "", "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     **{n: _version(n) for n in ("lm_eval", "py-data-juicer")}},
    }  # fmt: skip


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("make", "run", "table"))
    parser.add_argument("cells", nargs="*", default=list(CELLS), metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=REPETITIONS)
    parser.add_argument("--again", action="store_true", help="measure cells anew that have a row")
    told = parser.parse_intermixed_args()
    if told.verb == "make":
        make(told.models)
    elif told.verb == "run":
        run(told.models, told.cells, told.rounds, told.again)
    else:
        from scoring_page import page

        PAGE.write_text(page(_rows(), code()))
        print(PAGE.read_text())


if __name__ == "__main__":
    main()
