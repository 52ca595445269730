"""How far scores are from float32, by architecture and dtype, and how much a chunk's batch moves them.

Every figure is against the plain model: fp32 weights, eager attention, one sequence at a time, full logits, log-softmax
in float64 (`tests/engines/architectures.py`). Text: the biomedical files, cut into chunks of the embedded model's
tokens. Small models of every architecture have random weights whose logits spread like those of trained models; the
embedded model is trained.

1. the engine, each architecture and dtype
2. the embedded model: the engine in each dtype, and the ways to use 16 bits that the field argues about: 16-bit weights
   or autocast, 16-bit or fp32 head, cross-entropy in 16 bits (verl #6280)
3. the same chunks alone, in batches of other sizes, in reverse order

    PPLSCAPE_DATA=... python benchmarks/accuracy.py [MODEL...]

writes results/accuracy.json and docs/results/scoring-accuracy.md; given models only are measured again. The page names
those that were measured with other code than today's.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pplscape.engines.dtype import CHUNK_ERROR
from pplscape.engines.head import head_logits
from pplscape.engines.transformers import TransformersEngine
from pplscape.flow import DEMO_MODEL, model_path
from pplscape.manifest import library_versions

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "engines"))
from architectures import CONFIGURATIONS, Reference, build  # noqa: E402

JSON, PAGE = ROOT / "benchmarks/results/accuracy.json", ROOT / "docs/results/scoring-accuracy.md"
GUIDE, MARKS = ROOT / "docs/scoring.md", ("<!-- accuracy -->", "<!-- /accuracy -->")
DTYPES = ("float32", "float16", "bfloat16")
ENGINE = ROOT / "src" / "pplscape" / "engines"
EMBEDDED = "embedded"
Nlls = list[np.ndarray]


def texts_of(n: int) -> list[str]:
    """Documents of all biomedical files in turn."""
    data = os.environ.get("PPLSCAPE_DATA")
    if not data:
        raise SystemExit("Set PPLSCAPE_DATA to the folder with biomed/*.jsonl.gz.")
    with ExitStack() as stack:
        files = [stack.enter_context(gzip.open(p, "rt")) for p in sorted((Path(data) / "biomed").glob("*.jsonl.gz"))]
        return [json.loads(next(f))["text"] for f in islice(cycle(files), n)]


def cut(engine: TransformersEngine, n: int, tokens: int) -> list[np.ndarray]:
    """The beginnings of `n` documents, of four lengths up to `tokens`; shorter documents whole, from 24 tokens on."""
    ids = (i[: tokens * (4 - k % 4) // 4] for k, i in enumerate(engine.encode(texts_of(2 * n))))
    return list(islice((i for i in ids if len(i) >= 24), n))


def digits(value: Any) -> float:
    return float(f"{value:.3g}")


def errors(found: Nlls, reference: Nlls) -> dict[str, float]:
    """Differences in nats/token: of tokens, of chunks' means, and the share of a half by loss that changes."""
    tokens = np.concatenate(found).astype(np.float64) - np.concatenate(reference)
    ours, theirs = (np.array([x.mean(dtype=np.float64) for x in xs]) for xs in (found, reference))
    half = len(ours) // 2
    changed = half - len(set(np.argsort(ours)[:half]) & set(np.argsort(theirs)[:half]))
    return {
        "signed": digits(tokens.mean()), "absolute": digits(abs(tokens).mean()), "token_max": digits(abs(tokens).max()),
        "chunk": digits(abs(ours - theirs).mean()), "chunk_max": digits(abs(ours - theirs).max()),
        "half_changed": changed / half,
    }  # fmt: skip


def reference_of(folder: str, chunks: Sequence[np.ndarray], prefix: list[int]) -> Nlls:
    model = Reference(folder)
    return [model.nll([*prefix, *c.tolist()]) for c in chunks]


def batch_noise(engine: TransformersEngine, chunks: Sequence[np.ndarray]) -> dict[str, float]:
    """Largest difference of a token and of a chunk between any two ways of batching the same chunks."""
    batch = engine.batch_tokens
    ways = [engine.nll(chunks), engine.nll(chunks[::-1])[::-1], [engine.nll([c])[0] for c in chunks]]
    for engine.batch_tokens in (batch // 4, 4 * batch):
        ways.append(engine.nll(chunks))
    engine.batch_tokens = batch
    tokens = np.stack([np.concatenate(w).astype(np.float64) for w in ways])
    means = np.stack([[x.mean(dtype=np.float64) for x in w] for w in ways])
    return {"token_max": digits(np.ptp(tokens, 0).max()), "chunk_max": digits(np.ptp(means, 0).max())}


# ---- the ways to use 16 bits -------------------------------------------------------------------------------------


def plainly(model: Any, chunks: Sequence[np.ndarray], prefix: list[int], head: str) -> Nlls:
    """One sequence at a time; `head`: low, fp32, or low-ce (cross-entropy in the low precision, too)."""
    found = []
    for chunk in chunks:
        ids = torch.tensor([[*prefix, *chunk.tolist()]])
        hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0]
        if head == "fp32":
            with torch.autocast("cpu", enabled=False):
                logits = hidden.float() @ model.get_output_embeddings().weight.float().T
        else:
            logits = head_logits(model, hidden)
        if head == "low-ce":
            with torch.autocast("cpu", enabled=False):
                nll = -torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
        else:
            nll = torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="none")
        found.append(nll.float().numpy())
    return found


def ways_of_16_bits(
    folder: str, chunks: Sequence[np.ndarray], prefix: list[int], reference: Nlls
) -> list[dict[str, Any]]:
    rows = []
    for name in ("float16", "bfloat16"):
        dtype = getattr(torch, name)
        for weights in ("autocast", name):
            stored = torch.float32 if weights == "autocast" else dtype
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=stored).eval()
            for head in ("low-ce", "low", "fp32"):
                with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=weights == "autocast"):
                    found = plainly(model, chunks, prefix, head)
                row = {"dtype": name, "weights": "float32" if weights == "autocast" else name, "head": head}
                rows.append(row | errors(found, reference))
                print(rows[-1], flush=True)
    return rows


# ---- all together ------------------------------------------------------------------------------------------------


def code() -> str:
    """Fingerprint of what is measured."""
    names = ("base", "head", "lanes", "likelihood", "loading", "packed", "transformers")
    parts = [*(ENGINE / f"{n}.py" for n in names), ROOT / "tests" / "engines" / "architectures.py"]
    return hashlib.sha256(b"".join(f.read_bytes() for f in parts)).hexdigest()[:12]


def measure(name: str, folder: str, chunks: Sequence[np.ndarray], noisy: int) -> tuple[list[dict[str, Any]], Nlls]:
    rows, reference = [], reference_of(folder, chunks, TransformersEngine(folder).prefix)
    for dtype in DTYPES:
        engine = TransformersEngine(folder, dtype=dtype)
        row = {"model": name, "dtype": dtype, "code": code(), **errors(engine.nll(chunks), reference)}
        rows.append(row | {"batch": batch_noise(engine, chunks[:noisy])})
        print(rows[-1], flush=True)
    return rows, reference


def measured(models: Sequence[str], n_small: int, n_base: int, n_ways: int) -> dict[str, Any]:
    """The stored figures, those of some models measured again."""
    base = model_path(DEMO_MODEL)
    embedded = TransformersEngine(base, dtype="float32")
    small, chunks = cut(embedded, n_small, 128), cut(embedded, n_base, 256)
    rows, new = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(set(CONFIGURATIONS) & set(models)):
            rows += measure(name, build(name, Path(base), Path(folder) / name), small, n_small // 2)[0]
    if EMBEDDED in models:
        new["embedded"], reference = measure(EMBEDDED, base, chunks, n_ways)
        new["ways"] = ways_of_16_bits(base, chunks[:n_ways], embedded.prefix, reference[:n_ways])
        new["spread"] = digits(np.std([r.mean() for r in reference]))
        new["chunks"], new["ways_chunks"] = [len(chunks), sum(map(len, chunks))], n_ways
    found = (json.loads(JSON.read_text()) if JSON.exists() else {}) | new
    rows += [r for r in found.get("architectures", []) if r["model"] not in models]
    order = list(CONFIGURATIONS)
    found["architectures"] = sorted(rows, key=lambda r: (order.index(r["model"]), DTYPES.index(r["dtype"])))
    found.pop("note", None)
    found["small_chunks"] = [len(small), sum(map(len, small))]
    found["machine"] = {"cpu": processor(), "threads": torch.get_num_threads(), "versions": library_versions()}
    return found


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(rows: Sequence[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(show(r) for show in columns.values()) + " |" for r in rows)])


def exponent(*keys: str, sign: bool = False) -> Callable[[dict[str, Any]], str]:
    def show(row: dict[str, Any]) -> str:
        value: Any = row
        for key in keys:
            value = value[key]
        return f"{value:{'+' if sign else ''}.1e}"

    return show


ERRORS = {
    "signed": exponent("signed", sign=True), "absolute": exponent("absolute"), "token, max": exponent("token_max"),
    "chunk": exponent("chunk"), "chunk, max": exponent("chunk_max"),
}  # fmt: skip
HALF = {"half that changes": lambda r: f"{100 * r['half_changed']:.2f} %"}
BATCH = {
    "batch: token, max": exponent("batch", "token_max"),
    "batch: chunk, max": exponent("batch", "chunk_max"),
}
HEADS = {"low-ce": "16 bits, cross-entropy too", "low": "16 bits", "fp32": "float32"}


def earlier(found: dict[str, Any]) -> str:
    """A sentence that names the models measured with other code than today's."""
    models = {r["model"]: r.get("code") for r in [*found["embedded"], *found["architectures"]]}
    old = [name for name, with_code in models.items() if with_code != code()]
    return f"\nMeasured with earlier code: {'all' if len(old) == len(models) else ', '.join(old)}." if old else ""


def page(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {found['machine']['versions'][k]}" for k in ("torch", "transformers"))
    machine, (n_chunks, n_tokens), (n_small, small_tokens) = found["machine"], found["chunks"], found["small_chunks"]
    of = {name: [r for r in found["architectures"] if r["dtype"] == name] for name in DTYPES}
    worst = {name: max(r["chunk_max"] for r in rows) for name, rows in of.items()}
    model = {"model": lambda r: r["model"], "dtype": lambda r: r["dtype"]}
    ways = {"dtype": lambda r: r["dtype"], "weights": lambda r: r["weights"], "head": lambda r: HEADS[r["head"]]}
    trained = {r["dtype"]: r for r in found["embedded"]}
    allowed = [d for d in DTYPES if (trained[d]["chunk"] * trained[d]["chunk_max"]) ** 0.5 <= CHUNK_ERROR]
    note = f" {found['note']}" if "note" in found else ""
    return f"""# How far scores are from float32

Differences in nats/token from the plain model in fp32: eager attention, one sequence at a time, all logits, log-softmax
in float64. *signed*, *absolute*, *token, max*: of single tokens; *chunk*: absolute difference of a chunk's mean loss,
mean and largest; *half that changes*: of the half of the chunks with the lowest loss, the share that is another in this
dtype; *batch*: largest difference of the same token, and the same chunk's mean, between five ways of
batching.
Made by `benchmarks/accuracy.py`: {machine["cpu"]}, {machine["threads"]} thread(s), {versions}.
**Not run on a GPU**: none was at hand.{note}{earlier(found)}

## The embedded model, trained (2.6 M parameters, {n_chunks} chunks of biomedical text, {n_tokens:,} tokens)

Chunks' losses have a standard deviation of {found["spread"]:.2f} nats/token. The engine as `pplscape score` runs it:

{table(found["embedded"], {"dtype": lambda r: r["dtype"], **ERRORS, **HALF, **BATCH})}

`--dtype auto` takes a lower precision only if the root mean square of calibration chunks' errors is {CHUNK_ERROR:g}
nats/token or less (`pplscape.engines.dtype.CHUNK_ERROR`). It is at most the root of mean times largest; by that bound
{", ".join(allowed)} pass here.

## Ways to use 16 bits ({found["ways_chunks"]} of these chunks, one sequence at a time)

*weights float32* is autocast: matrices are multiplied in 16 bits, sums along the residual stream, norms and softmax are
kept in float32. On a CPU we do that, with a 16-bit head and a float32 cross-entropy; on CUDA weights have 16 bits, too.

{table(found["ways"], {**ways, **ERRORS})}

{reading(found["ways"])}

## Every architecture (random weights, {n_small} chunks, {small_tokens:,} tokens)

Random weights amplify rounding more than trained ones: these rows show that nothing is wrong, not what to expect.
Largest error of a chunk: {", ".join(f"{name} {value:.1e}" for name, value in worst.items())}.

{table(found["architectures"], {**model, **ERRORS, **BATCH})}
"""


def headline(found: dict[str, Any]) -> str:
    """The lines of docs/scoring.md between its two marks."""
    trained = {r["dtype"]: r for r in found["embedded"]}
    rows = []
    for name in DTYPES:
        of = [r for r in found["architectures"] if r["dtype"] == name]
        row = {
            "dtype": name,
            "token_max": max(r["token_max"] for r in of),
            "chunk_max": max(r["chunk_max"] for r in of),
        }
        rows.append(row | {"trained": trained[name]})
    columns = {
        "dtype": lambda r: r["dtype"],
        f"{len({r['model'] for r in found['architectures']})} random models: token, max": exponent("token_max"),
        "chunk, max": exponent("chunk_max"),
        "embedded model: token, mean": exponent("trained", "absolute"),
        "chunk, mean": exponent("trained", "chunk"),
        "chunk, largest": exponent("trained", "chunk_max"),
        "batch: chunk, max": exponent("trained", "batch", "chunk_max"),
    }
    return table(rows, columns)


def write_pages(found: dict[str, Any]) -> None:
    PAGE.write_text(page(found))
    head, rest = GUIDE.read_text().split(MARKS[0])
    GUIDE.write_text(f"{head}{MARKS[0]}\n{headline(found)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


def reading(ways: Sequence[dict[str, Any]]) -> str:
    """What the table of ways says, in words and its own numbers."""
    at = {(r["dtype"], r["weights"], r["head"]): r for r in ways}
    lines = []
    for name in ("float16", "bfloat16"):
        auto, native = at[name, "float32", "low"], at[name, name, "low"]
        ce, fp32 = at[name, "float32", "low-ce"], at[name, "float32", "fp32"]
        lines.append(
            f"* {name}: cross-entropy in 16 bits puts tokens off by {ce['absolute']:.1e} on average, in float32 by "
            f"{auto['absolute']:.1e}, with a float32 head by {fp32['absolute']:.1e}; of chunks {ce['chunk']:.1e}, "
            f"{auto['chunk']:.1e}, {fp32['chunk']:.1e}. 16-bit weights instead of autocast: {native['chunk']:.1e}."
        )
    ratio = at["bfloat16", "float32", "low"]["chunk"] / at["float16", "float32", "low"]["chunk"]
    lines.append(
        f"* float16 is {ratio:.0f} times as exact as bfloat16 for chunks, as its three more bits promise. So on a GPU, "
        "where both are equally fast, `auto` tries float16 first; on a CPU float16 is emulated and slow, and not tried."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*CONFIGURATIONS, EMBEDDED], help="architectures, or: embedded")
    parser.add_argument("--small", type=int, default=12, help="chunks for each architecture")
    parser.add_argument("--base", type=int, default=400, help="chunks for the embedded model")
    parser.add_argument("--ways", type=int, default=48, help="of these, for the ways to use 16 bits and to batch")
    parser.add_argument("--page", action="store_true", help="write the page from the stored figures")
    chosen = parser.parse_args()
    if not chosen.page:
        found = measured(chosen.models, chosen.small, chosen.base, chosen.ways)
        JSON.write_text(json.dumps(found, indent=1) + "\n")
    figures = json.loads(JSON.read_text())
    if {r["model"] for r in figures["architectures"]} == set(CONFIGURATIONS) and "embedded" in figures:
        write_pages(figures)
