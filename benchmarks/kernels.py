"""Why the engine multiplies with oneDNN, cuts its head into tiles and does not compile: each beside the other way.

    python benchmarks/kernels.py [--rounds 3] [--out benchmarks/results/kernels.json]

Products: torch.matmul (MKL in fp32) and the packed oneDNN product at the shapes of a 768-wide layer. Head: vocabulary
and cross-entropy of 512 positions of width 512, V columns, fp32, forward only: tiles as the engine cuts them, slices
of whole rows of the same 4 MiB and of 64 MiB, all logits at once, F.linear_cross_entropy. Forward: our engine, the
plain model and the plain model under torch.compile (dynamic shapes) on the same batches of two lengths; training:
forward and backward of the plain model with and without torch.compile. Contestants take turns; medians. Time to compile
is counted apart. One process, the threads it is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from pplscape.engines import load_engine
from pplscape.engines.likelihood import TILE_COLUMNS, tiled_nll
from pplscape.engines.packed import PackedLinear, packed_tiles
from pplscape.flow import model_path

OUT = Path(__file__).parent / "results" / "kernels.json"
SHAPES = ((40, 768, 2048), (512, 768, 2048), (2048, 768, 768))
"""Rows, inputs, outputs of a product."""
HEAD = (512, 512)
"""Positions and width."""
BATCHES = ((8, 256), (32, 48))
"""Rows and tokens of a batch."""

Work = Callable[[], Any]


def rounds(works: dict[str, Work], n: int) -> dict[str, float]:
    """Median seconds of each, taking turns, after one run that is not counted."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(n):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def products(n: int) -> list[dict[str, Any]]:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for rows, inputs, outputs in SHAPES:
            x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
            packed = PackedLinear(weight, None, dtype)
            repeats = max(1, 2**32 // (2 * rows * inputs * outputs))
            with torch.inference_mode():
                works = {
                    "torch.matmul": lambda x=x, w=weight.t(), r=repeats: [torch.matmul(x, w) for _ in range(r)],
                    "packed": lambda x=x, p=packed, r=repeats: [p(x) for _ in range(r)],
                }
                times = rounds(works, n)
            flops = 2 * rows * inputs * outputs * repeats
            found.append({"dtype": str(dtype).removeprefix("torch."), "rows": rows, "inputs": inputs,
                          "outputs": outputs, **{k: round(flops / t / 1e9, 1) for k, t in times.items()}})  # fmt: skip
    return found


def heads(n: int) -> list[dict[str, Any]]:
    """GFLOP/s of the product that the head is, cross-entropy and all else in its time."""
    found = []
    for vocabulary in (50_304, 151_936):
        positions, width = HEAD
        hidden, weight = torch.randn(positions, width), torch.randn(vocabulary, width) / width**0.5
        targets = torch.randint(vocabulary, (positions,))
        packed = packed_tiles(weight, None, torch.float32, TILE_COLUMNS["cpu"])
        plain = [lambda h, w=w: h @ w.t() for w in weight.split(TILE_COLUMNS["cpu"])]
        ways: dict[str, Work] = {
            "tiles": partial(tiled_nll, hidden, targets, packed),
            "tiles, torch.matmul": partial(tiled_nll, hidden, targets, plain),
        }
        for name, size in (("rows of 4 MiB", 2**22), ("rows of 64 MiB", 2**26), ("all at once", 2**40)):
            ways[name] = partial(_by_rows, hidden, targets, weight, max(1, size // (4 * vocabulary)))
        if hasattr(torch.nn.functional, "linear_cross_entropy"):
            ways["F.linear_cross_entropy"] = partial(
                torch.nn.functional.linear_cross_entropy, hidden, weight, targets, reduction="none"
            )
        with torch.inference_mode():
            times = rounds(ways, n)
        flops = 2 * positions * width * vocabulary
        found.append({"vocabulary": vocabulary, **{k: round(flops / t / 1e9, 1) for k, t in times.items()}})
    return found


def _by_rows(hidden: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, rows: int) -> None:
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        torch.nn.functional.cross_entropy(h @ weight.t(), t, reduction="none")


def compiled(network: Any, ids: list[torch.Tensor], backward: bool) -> tuple[Any, float]:
    """(the compiled network, seconds its first runs took)."""
    fast = torch.compile(network, dynamic=True)
    start = time.perf_counter()
    for batch in ids:
        passed(fast, batch, backward)
    return fast, time.perf_counter() - start


def passed(network: Any, ids: torch.Tensor, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    if backward:
        loss.backward()
        network.zero_grad()


def passes(n: int) -> list[dict[str, Any]]:
    model = model_path("demo")
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    engine = load_engine("transformers", model, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, network.config.vocab_size, shape, generator=generator) for shape in BATCHES]
    found = []
    for backward in (False, True):
        fast, seconds = compiled(network, ids, backward)
        for batch in ids:
            works: dict[str, Work] = {
                "plain": lambda b=batch, k=backward: passed(network, b, k),
                "compiled": lambda b=batch, f=fast, k=backward: passed(f, b, k),
            }
            if not backward:
                chunks = [row.numpy().astype(np.int32) for row in batch]
                works["pplscape"] = lambda c=chunks: engine.nll(c)
            rates = {k: round(batch.numel() / t) for k, t in rounds(works, n).items()}
            found.append({"what": "training" if backward else "forward", "rows": batch.shape[0],
                          "tokens": batch.shape[1], **rates, "compiling_s": round(seconds, 1)})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    told = parser.parse_args()
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": told.rounds}
    found = {**about, "products_gflops": products(told.rounds), "heads_gflops": heads(told.rounds)}
    found |= {"passes_tokens_per_s": passes(told.rounds)}
    told.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
