"""The selection report: summary.md beside selection.json, to be read without the whole run's HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pplscape.reporting.words import (
    NATS,
    NOTHING,
    number,
    percent,
    plural,
    significant,
    table,
    tokens,
    visible,
    with_interval,
)
from pplscape.statistics import Bins

Facts = Mapping[str, Any]
MOST_SOURCES = 30
SAMPLE_CHARACTERS = 280


def summary(facts: Facts) -> str:
    """What was taken and left, what to expect of it, and samples of both; `facts`: selection.json."""
    parts = ["# Selection", _what(facts), *(f"> **Warning.** {_plain(w)}" for w in facts["warnings"])]
    parts += ["## What it is", table(("", "pool", "taken"), _moments(facts)), *_target(facts)]
    parts += ["## Taken and left, by bin of log-perplexity", table(_HEAD, _by_bin(facts))]
    parts += ["## Taken and left, by source", table(_HEAD, _by_source(facts))]
    if facts["predicted"]:
        parts += ["## What the law expects", *_expected(facts)]
    if facts["gate"]:
        passed = "passed" if facts["gate"]["passes"] else "not passed"
        parts += [f"Gate {passed}: {_plain(facts['gate']['reason'])}"]
    if facts["budget_curve"]:
        parts += [f"## At other budgets ({facts['budget_curve_of']})", table(_CURVE, _curve(facts))]
    if facts["samples"]:
        parts += ["## Samples", *_samples(facts)]
    return "\n\n".join(parts) + "\n"


_HEAD = ("", "tokens in the pool", "taken", "left", "share of the pool", "share of the selection")
_CURVE = ("tokens", f"selection ({NATS})", f"random ({NATS})", "gain")


def _what(facts: Facts) -> str:
    asked, used = facts["strategy"], facts["used"]
    how = f"`{used}`" if asked == used else f"`{used}`, chosen by `{asked}`"
    again = facts["tokens"] - facts["unique_tokens"]
    text = (
        f"{tokens(facts['tokens'])} of a budget of {tokens(facts['budget'])} "
        f"({facts['budget'] - facts['tokens']:,} short), {percent(facts['tokens'] / facts['pool_tokens'], 1)} of the "
        f"pool, in {plural(facts['n_chunks'], 'chunk')}. Strategy {how}; unit of selection: a {facts['unit']}."
    )
    if again:
        text += f" {tokens(again)} are repeats."
    if replay := facts.get("replay"):
        text += (
            f" Beside it {tokens(replay['tokens'])} of general text to replay, "
            f"{percent(replay['share'], 1)} of all that is to be trained."
        )
    return text


def _moments(facts: Facts) -> Iterator[tuple[str, ...]]:
    for scale, word in (("nll", "log-perplexity"), ("ppl", "perplexity")):
        for name, label in (("mean", "mean"), ("std", "standard deviation")):
            pool, taken = facts["pool_moments"][scale][name], facts["achieved"][scale][name]
            yield f"{word} of chunks, {label}", significant(pool, 4), significant(taken, 4)
    yield "chunks", f"{facts['pool_chunks']:,}", f"{facts['n_chunks']:,}"
    yield "KL to the pool, nats", "0", number(facts["kl_to_pool"])


def _target(facts: Facts) -> list[str]:
    draw, target = facts["draw"], facts["target"]
    found = []
    if target:
        std = NOTHING if target["std"] is None else significant(target["std"], 4)
        found.append(f"Target ({target['scale']}): mean {significant(target['mean'], 4)}, spread {std}.")
    if "duality_gap" in draw:
        mix = "the pool's mix" if draw.get("toward") is None else "the target text's mix"
        hedge = f", hedged with strength {draw['hedge']:g} towards {mix}" if draw.get("hedge") else ""
        found.append(f"Allocation{hedge}, solved to a relative duality gap of {draw['duality_gap']:.1e}.")
    elif draw.get("toward") is not None:
        found.append("Drawn in the target text's mix of bins, at random within a bin.")
    return [" ".join(found)] if found else []


def _share_row(name: str, pool: int, taken: int, unique: int | None, facts: Facts) -> tuple[str, ...]:
    left = NOTHING if unique is None else f"{pool - unique:,}"
    shares = percent(pool / facts["pool_tokens"], 1), percent(taken / facts["tokens"] if facts["tokens"] else None, 1)
    return (name, f"{pool:,}", f"{taken:,}", left, *shares)


def _by_bin(facts: Facts) -> Iterator[tuple[str, ...]]:
    edges = [None, *facts["bins"]["edges"], None]
    bins = Bins.from_json(facts["bins"])
    levels = bins.n_levels
    counted = (facts[name] for name in ("pool_bin_tokens", "bin_tokens", "unique_bin_tokens"))
    for b, (pool, taken, unique) in enumerate(zip(*counted, strict=True)):
        low, high = (NOTHING if e is None else number(e, 2) for e in edges[b // levels : b // levels + 2])
        name = f"{b + 1}: {low} to {high}" if low != NOTHING and high != NOTHING else (
            f"{b + 1}: below {high}" if high != NOTHING else f"{b + 1}: from {low}"
        )  # fmt: skip
        name += f", {bins.axis} {b % levels + 1} of {levels}" if levels > 1 else ""
        yield _share_row(name, pool, taken, unique, facts)


def _by_source(facts: Facts) -> Iterator[tuple[str, ...]]:
    pool, taken = facts["pool_source_tokens"], facts["source_tokens"]
    names, once = sorted(pool, key=lambda n: (-pool[n], n)), facts["tokens"] == facts["unique_tokens"]
    lines = [(_plain(name) or "(none)", [name]) for name in names[:MOST_SOURCES]]
    if rest := names[MOST_SOURCES:]:
        lines.append((f"{len(rest)} others", rest))
    for label, of in lines:
        has, gave = (sum(counts.get(n, 0) for n in of) for counts in (pool, taken))
        yield _share_row(label, has, gave, gave if once else None, facts)  # by source repeats are not told apart


def _expected(facts: Facts) -> list[str]:
    seen = facts["predicted"]
    gain, efficiency = seen["gain"], seen["efficiency"]
    rows = [
        ("predicted loss of the selection", f"{with_interval(seen['selection'], 'loss', 4)} {NATS}"),
        ("predicted loss of random", f"{with_interval(seen['random'], 'loss', 4)} {NATS}"),
        ("gain over random", f"{with_interval(gain, digits=4, sign=True)} {NATS}"),
    ]
    if efficiency:
        factor = with_interval(efficiency, "factor", 2)
        if efficiency["censored"]:
            factor += f" (or further {efficiency['censored']}: the end of what was looked at)"
        rows.append(("tokens random needs for the same loss", f"{factor} times"))
    decided, told = facts["law"]["form"], facts["law"]["chosen"]
    laws = f"Losses by the law {told}" + (f"; {decided} decided what to take." if decided != told else ".")
    of = facts["law"].get("trained")
    if of and of["proxy_of"]:
        laws += f" They are losses of {_plain(of['model'])}, a proxy, not of {_plain(of['proxy_of'])}."
    found = [laws, table(("", f"with {percent(seen['level'])} intervals"), rows)]
    if gain["low"] is not None and gain["low"] <= 0:
        found.append("> **Warning.** The gain is inside the noise: its interval holds 0.")
    return found


def _curve(facts: Facts) -> Iterator[tuple[str, ...]]:
    for point in facts["budget_curve"]:
        both = [point[name]["loss"] for name in ("random", "selection")]
        gain = None if None in both else both[0] - both[1]
        losses = (with_interval(point[name], "loss", 4) for name in ("selection", "random"))
        yield (tokens(point["tokens"], unit=False), *losses, number(gain, 4, True))


def _samples(facts: Facts) -> Iterator[str]:
    for b in range(len(facts["bin_tokens"])):
        for taken, word in ((True, "taken"), (False, "left")):
            here = [s for s in facts["samples"] if s["bin"] == b and s["taken"] == taken]
            if here:
                yield f"**Bin {b + 1}, {word}**"
                yield "\n".join(_sample(s) for s in here)


def _sample(sample: Facts) -> str:
    where = f"{_plain(sample['doc_id'])}#{sample['chunk_index']}, {_plain(sample['source'])}"
    text = " ".join((sample.get("text") or "").split())
    short = text[:SAMPLE_CHARACTERS] + (" …" if len(text) > SAMPLE_CHARACTERS else "")
    return f"- {number(sample['nll'], 2)} {NATS} ({where})" + (f": {_plain(short)}" if short else "")


_SPECIAL = {ord(c): f"\\{c}" for c in "\\`*_{}[]<>#|~!"} | {ord("&"): "&amp;", ord("\n"): " ", ord("\r"): " "}


def _plain(text: str) -> str:
    """Text from a corpus, so that neither Markdown nor HTML is made of it."""
    return visible(str(text)).translate(_SPECIAL)
