"""docs/results/scoring-speed.md from the lines of results/scoring.jsonl."""

from __future__ import annotations

from statistics import median
from typing import Any

GOALS = {
    "short": ("the loop", ("loop",), 2.5),
    "mixed": ("the best other", (), 1.2),
    "long": ("the best other", (), 1.0),
}
RATES = {"pplscape": ("matmul", 0.7), "pplscape bf16": ("matmul bf16", 0.5)}
HEAD = """# How fast scoring is

    python benchmarks/scoring.py make --models MODELS
    python benchmarks/scoring.py run --models MODELS
    python benchmarks/scoring.py table

{machine}

Texts in, one NLL per text out, tokenising included. Every contestant of a cell has a process of its own; they take
turns, medians over the rounds. All fp32 unless it says bf16, all with the same threads and the same tokens: *error* is
the mean difference of a text's NLL to ours in nats per token. The models have random weights and Llama's form with a
tied head: *50k* 51 M parameters with a vocabulary of 50,304, *152k* 103 M with 151,936 (both 512 wide, 8 layers),
*124m* 124 M (768 wide, 12 layers, vocabulary 50,304; ours against the matmul rate alone); text is tokenised by the
demo's tokenizer (4,096 tokens), so that targets use a part of the columns, which changes no cost. *2.6m* is the demo's
model. *short*: sentences of abstracts; *mixed*: abstracts, articles, question-answer pages and textbooks cut to 512
tokens; *long*: full chunks of articles. The peers `padded` and `lm-eval` get the faster of two batch sizes, chosen on
the same texts; ours is not tuned. Data-Juicer scores one document a forward pass and puts no BOS before it: its first
token is not scored, and its error is against our scores without BOS. *padding*: share of the positions that ours
computed. All cells were measured in one run of five rounds, none of them twice.
"""
CEILING = """
How near to the machine: {rates} So much faster than the loop can about anything be that multiplies the same matrices in
the same dtype; rates differ from round to round, so the number is not exact.
"""
TAIL = """
*of matmul*: FLOPs of all linear layers, causal attention and head over the time, against the product of the layers'
shapes (2,048 positions) in the same rounds and dtype, by `torch.matmul` (MKL in fp32) or by oneDNN on packed weights,
as ours are, whichever is faster for the shape.

Not run: CUDA{unrun}.
"""


def page(rows: list[dict[str, Any]], code: str) -> str:
    """`code`: fingerprint of today's scoring; cells measured with another are named."""
    cells = {r["cell"]: r for r in rows}
    last = next(reversed(cells.values()))
    versions = ", ".join(f"{n} {v}" for n, v in last["versions"].items() if v)
    machine = f"{last['cpu']}, {last['cores']} cores, {last['threads']} threads; {versions}."
    unrun = "".join(f", {w}-{m}" for m in ("50k", "152k", "2.6m") for w in GOALS if f"{w}-{m}" not in cells)
    parts = [
        HEAD.format(machine=machine),
        _goals(cells),
        CEILING.format(rates=_rates(cells)),
        _table(cells),
        _lower(cells),
    ]
    parts.append(TAIL.format(unrun=unrun))
    earlier = [name for name, cell in cells.items() if cell.get("code") != code]
    if earlier:
        codes = sorted({str(cells[name].get("code")) for name in earlier})
        parts.append(f"Measured with earlier code ({', '.join(codes)}; now {code}): {', '.join(earlier)}.\n")
    missing = sorted({m for c in cells.values() for m in c["missing"]})
    if missing:
        parts.append(f"Not run, because not installed or failing: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _seconds(cell: dict[str, Any], name: str) -> float:
    return median(cell["found"][name]["seconds"])


def _others(cell: dict[str, Any]) -> list[str]:
    return [n for n in ("loop", "padded", "lm-eval", "data-juicer") if n in cell["found"]]


def _goals(cells: dict[str, Any]) -> str:
    lines = [
        "| cell | texts | tokens | padding | goal | reached | rounds | their range | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        if name.startswith("rate"):
            lines += [_rate_goal(name, cell, ours, *RATES[ours]) for ours in RATES]
            continue
        words, against, goal = GOALS[name.split("-")[0]]
        peers = against or (min(_others(cell), key=lambda n: _seconds(cell, n)),)
        ratio = _seconds(cell, peers[0]) / _seconds(cell, "pplscape")
        each = [
            a / b for a, b in zip(cell["found"][peers[0]]["seconds"], cell["found"]["pplscape"]["seconds"], strict=True)
        ]
        met = "reached" if ratio >= goal else "**missed**"
        lines.append(
            f"| {name} | {_text(cell)} | {goal:g}x {words} ({peers[0]}) | {ratio:.2f}x | {len(each)} "
            f"| {min(each):.2f}-{max(each):.2f} | {met} |"
        )
    return "\n".join(lines) + "\n"


def _text(cell: dict[str, Any]) -> str:
    ours = cell["found"]["pplscape"]
    padding = f"{ours['padding']:.1%}" if "padding" in ours else ""
    return f"{cell['texts']:,} | {ours['tokens']:,} | {padding}"


def _rates(cells: dict[str, Any]) -> str:
    """How near a loop can come to: the most that anything could be faster than it at the product's rate."""
    told = []
    for name, cell in cells.items():
        if not {"loop", "matmul"} <= cell["found"].keys():
            continue
        share = {n: _share(cell, _seconds(cell, n), cell["found"][n]["tokens"], "matmul") for n in ("pplscape", "loop")}
        told.append(f"{name} {share['pplscape']:.0%} and {share['loop']:.0%} ({1 / share['loop']:.2f}x)")
    return f"share of the matrix product's rate that ours and the loop reach: {'; '.join(told)}."


def _rate_goal(name: str, cell: dict[str, Any], ours: str, peer: str, goal: float) -> str:
    seconds = cell["found"][ours]["seconds"]
    found = [_share(cell, s, cell["found"][ours]["tokens"], peer) for s in (median(seconds), *seconds)]
    met = "reached" if found[0] >= goal else "**missed**"
    span = f"{len(seconds)} | {min(found[1:]):.0%}-{max(found[1:]):.0%}"
    return f"| {name} | {_text(cell)} | {goal:.0%} of {peer} | {found[0]:.0%} | {span} | {met} |"


def _share(cell: dict[str, Any], seconds: float, tokens: int, peer: str) -> float:
    """FLOPs of all linear layers, causal attention and head over the time, against the matmul rate."""
    rate = cell["found"][peer]
    _, width, layers = cell["shape"]
    attention = 2 * layers * width * cell["squares"]  # q k and the mix, both over half of the square
    flops = rate["flop_per_token"] * tokens + attention
    return float(flops / seconds * median(rate["seconds_per_token"]) / rate["flop_per_token"])


def _table(cells: dict[str, Any]) -> str:
    lines = [
        "| cell | contestant | batch | seconds | tokens/s | ours is faster by | error | of matmul | peak RSS, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        for contestant, found in cell["found"].items():
            if contestant.startswith("matmul") or contestant.endswith("bf16"):
                continue
            lines.append(_line(name, cell, contestant, found, "pplscape", "matmul"))
    return "\n".join(lines) + "\n"


def _lower(cells: dict[str, Any]) -> str:
    lines = [
        "bf16 (whether it may be used is decided by `--dtype auto`, docs/results/scoring-accuracy.md):\n",
        "| cell | contestant | batch | seconds | tokens/s | ours is faster by | error | of matmul | peak RSS, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, cell in cells.items():
        if "pplscape bf16" not in cell["found"]:
            continue
        for contestant, found in cell["found"].items():
            if contestant.endswith("bf16") and not contestant.startswith("matmul"):
                lines.append(_line(name, cell, contestant, found, "pplscape bf16", "matmul bf16"))
        if not _others(cell):
            continue
        best = min(_others(cell), key=lambda n: _seconds(cell, n))
        ratio = _seconds(cell, best) / _seconds(cell, "pplscape bf16")
        notes.append(f"{name}: ours in bf16 is {ratio:.2f} times as fast as the best other in fp32 ({best}).")
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(name: str, cell: dict[str, Any], contestant: str, found: dict[str, Any], ours: str, rate: str) -> str:
    seconds = median(found["seconds"])
    share = ""
    if rate in cell["found"]:
        share = f"{_share(cell, seconds, found['tokens'], rate):.0%}"
    batch = found["batch"] if contestant.startswith(("padded", "lm-eval")) else ""
    faster = seconds / _seconds(cell, ours)
    return (
        f"| {name} | {contestant} | {batch} | {seconds:.2f} | {found['tokens'] / seconds:,.0f} | {faster:.2f} | "
        f"{found['error']:.1e} | {share} | {found['peak_mib']:,} |"
    )
