"""What the sections about the corpus and the selection say: plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pplscape.reporting import figures
from pplscape.reporting.costs import costs_of
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.selection_summary import SAMPLE_CHARACTERS
from pplscape.reporting.style import FULL, HALF
from pplscape.reporting.verdict import advised, without_tokens
from pplscape.reporting.words import (
    NATS,
    listed,
    number,
    percent,
    plural,
    significant,
    tokens,
    visible,
    with_interval,
)  # fmt: skip

Facts = Mapping[str, Any]
REASONS = {
    "duplicate_chunk": "exact duplicate of an earlier chunk",
    "near_duplicate": "near-duplicate of another document",
    "overlap_heldout": "overlap with held-out text",
    "overlap_eval": "overlap with evaluation text",
    "short_remainder": "remainder of a document, too short",
    "not_finite": "the model gave no finite loss",
    "score_not_finite": "the model gave no finite loss",
}


def landscape_view(run: RunFolder, gallery: Gallery) -> dict[str, Any] | None:
    """Section 1; None without a landscape."""
    facts = run.landscape
    if facts is None:
        return None
    nll, ppl = facts["scale"]["nll"], facts["scale"]["ppl"]
    return {
        "sentence": (
            f"{plural(facts['n_chunks'], 'chunk')}, {tokens(facts['tokens'])}, "
            f"{significant(facts['n_bytes'] / 1e6)} MB of text. "
            f"The base model's loss on it is {number(facts['corpus_nll'])} {NATS} "
            f"(perplexity {significant(facts['corpus_ppl'])}, {number(facts['bits_per_byte'])} bits/byte); "
            f"the mean of the chunks' own perplexities is {significant(facts['mean_chunk_ppl'])}."
            + second_axis_words(facts)
        ),
        "moments": _moments(nll, ppl),
        "figure": gallery.hang(partial(figures.landscape_histogram, facts), FULL),
        "caption": _histogram_caption(facts),
        "bins": [_bin_view(row, facts) for row in facts["bins"]["by_bin"]],
        "has_samples": bool(facts.get("samples")),
        "sources": [
            (visible(s["source"]), f"{s['n_chunks']:,}", tokens(s["tokens"], unit=False), percent(s["share"], 1),
             number(s["nll"]), number(s["bits_per_byte"]))
            for s in facts["by_source"]
        ],
        "left_out": left_out(run),
    }  # fmt: skip


def second_axis_words(facts: Facts) -> str:
    """That levels of a second axis were asked for which it does not permit; empty otherwise."""
    fewer = facts.get("second_axis")
    return f" {fewer['sentence']}" if fewer else ""


def _moments(nll: Facts, ppl: Facts) -> list[tuple[str, str, str]]:
    """(name, on log-perplexity, on perplexity) of mean, spread and quantiles."""

    def row(name: str, *path: str) -> tuple[str, str, str]:
        found: list[Any] = [nll, ppl]
        for key in path:
            found = [f[key] for f in found]
        return name, significant(found[0], 4), significant(found[1], 4)

    return [
        row("mean", "mean"), row("spread", "std"), row("mean, unclipped", "raw", "mean"),
        row("spread, unclipped", "raw", "std"), row("1 % of chunks below", "quantiles", "0.01"),
        row("median", "quantiles", "0.5"), row("99 % of chunks below", "quantiles", "0.99"),
    ]  # fmt: skip


def _histogram_caption(facts: Facts) -> str:
    cells = facts["histogram"]
    bins = facts["bins"]["by_bin"]
    width = [b["high"] - b["low"] for b in bins]
    text = (
        f"Each of the {len(bins)} numbered bins holds about {percent(1 / len(bins))} of the tokens; "
        f"half of all chunks lie between {number(facts['scale']['nll']['quantiles']['0.25'], 2)} and "
        f"{number(facts['scale']['nll']['quantiles']['0.75'], 2)} {NATS}. "
        "To the left is what the model already predicts well, to the right what it predicts worst: "
        "new knowledge or noise. "
    )
    if width[-1] > 3 * float(np.median(width)):
        text += (
            f"The last bin is {significant(width[-1] / float(np.median(width)), 2)} times as wide as the median bin. "
        )
    outside = sum(cells["outside"].values())
    return text + (f"{plural(outside, 'chunk')} beyond the axis." if outside else "")


def _bin_view(row: Facts, facts: Facts) -> dict[str, Any]:
    samples = (facts.get("samples") or {}) and facts["samples"][row["bin"]]
    return {
        "number": row["bin"] + 1,
        "range": f"{number(row['low'], 2)} to {number(row['high'], 2)}",
        "ppl": f"{significant(float(np.exp(row['low'])))} to {significant(float(np.exp(row['high'])))}",
        "chunks": f"{row['n_chunks']:,}",
        "tokens": tokens(row["tokens"], unit=False),
        "share": percent(row["share"], 1),
        "samples": [
            {
                "source": visible(s["source"]),
                "ppl": significant(float(np.exp(s["nll"]))),
                "text": visible(s["text"]).strip(),
            }
            for s in samples
        ],
    }


def left_out(run: RunFolder) -> list[tuple[str, ...]]:
    """(stage, reason, documents, chunks, tokens) of everything that was rejected, from the stages' manifests."""
    copied = (run.landscape or {}).get("counts") or {}
    found = []
    for stage in ("prepare", "score", "landscape"):
        counts = (run.manifest(stage) or {}).get("counts") or copied.get(stage) or {}
        chunks = counts.get("rejected") or (counts.get("chunks") or {}).get("rejected") or {}
        columns = [(counts.get("documents") or {}).get("rejected") or {}, chunks]
        lost = (counts.get("tokens") or {}).get("rejected")
        columns.append(lost if isinstance(lost, Mapping) else {})
        for reason in sorted(set().union(*columns)):
            name = REASONS.get(reason, visible(str(reason)).replace("_", " "))
            found.append((stage, name, *(f"{c[reason]:,}" if reason in c else "" for c in columns)))
    return found


def selection_view(run: RunFolder, gallery: Gallery) -> dict[str, Any] | None:
    """Section 4; None without a selection."""
    facts = run.selection
    if facts is None:
        return None
    achieved, target = facts["achieved"], facts.get("target")
    asked = facts["strategy"]
    how = f"‘{facts['used']}’" if asked == facts["used"] else f"‘{facts['used']}’ (what ‘{asked}’ chose)"
    sentence = (
        f"Drawn by {how}: {plural(facts['n_chunks'], 'chunk')}, {tokens(facts['tokens'])} of a budget of "
        f"{tokens(facts['budget'])}. Mean log-perplexity {number(achieved['nll']['mean'])}, spread "
        f"{number(achieved['nll']['std'])} {NATS}; KL divergence to the pool {number(facts.get('kl_to_pool'))} nats."
    )
    if target:
        sentence += (
            f" Target on the {target['scale']} scale: mean {significant(target['mean'], 4)}, spread "
            f"{significant(target['std'], 4) if target.get('std') is not None else 'free'}; achieved "
            f"{significant(achieved[target['scale']]['mean'], 4)} and "
            f"{significant(achieved[target['scale']]['std'], 4)}."
        )
    flat = without_tokens(advised(facts))
    curve = None if flat else facts.get("budget_curve")
    return {
        "sentence": visible(sentence),
        "warnings": [visible(str(w)) for w in facts.get("warnings") or []],
        "bins": gallery.hang(partial(figures.bin_shares, facts), HALF),
        "bins_caption": _shift_caption(facts),
        "sources": gallery.hang(partial(figures.source_shares, facts), HALF)
        if len(facts["pool_source_tokens"]) > 1
        else None,
        "sources_caption": _source_caption(facts),
        "samples": [_sample_view(s) for s in facts.get("samples") or [] if s.get("text")],
        "curve_of": visible(str(facts.get("budget_curve_of") or facts["used"])),
        "curve": gallery.hang(partial(figures.budget_curve, facts), HALF) if curve else None,
        "calculator": _calculator(run, facts) if curve else None,
        "flat": flat,
    }


def _sample_view(sample: Facts) -> dict[str, str]:
    """A chunk that was taken, or left."""
    text = " ".join(visible(sample["text"]).split())
    return {
        "bin": str(sample["bin"] + 1),
        "word": "taken" if sample["taken"] else "left",
        "source": visible(sample["source"]),
        "ppl": significant(float(np.exp(sample["nll"]))),
        "text": text[:SAMPLE_CHARACTERS] + (" …" if len(text) > SAMPLE_CHARACTERS else ""),
    }


def _shift_caption(facts: Facts) -> str:
    pool, chosen = (np.asarray(facts[k], dtype=float) for k in ("pool_bin_tokens", "bin_tokens"))
    shift = chosen / max(chosen.sum(), 1) - pool / pool.sum()
    most, least = int(np.argmax(shift)), int(np.argmin(shift))
    if shift[most] < 0.005:
        return "The selection takes every bin in the pool's own proportion."
    return (
        f"Against the pool, bin {most + 1} gains most (from {percent(pool[most] / pool.sum(), 1)} to "
        f"{percent(chosen[most] / chosen.sum(), 1)} of tokens) and bin {least + 1} loses most (to "
        f"{percent(chosen[least] / chosen.sum(), 1)})."
    )


def _source_caption(facts: Facts) -> str:
    pool, chosen = facts["pool_source_tokens"], facts["source_tokens"]
    total, taken = sum(pool.values()), max(sum(chosen.values()), 1)
    shift = {s: chosen.get(s, 0) / taken - n / total for s, n in pool.items()}
    up = sorted((s for s in shift if shift[s] > 0.005), key=lambda s: -shift[s])
    down = sorted((s for s in shift if shift[s] < -0.005), key=lambda s: shift[s])
    if not up and not down:
        return "Every source keeps its share."
    return f"More of {visible(listed(up, 2))}; less of {visible(listed(down, 2))}."


def _calculator(run: RunFolder, facts: Facts) -> dict[str, Any]:
    """What the slider needs: the curve and the measured speed. All numbers in tokens, nats/token, seconds."""
    costs = costs_of(run)
    keep = ("loss", "low", "high")
    return {
        "curve": [
            {"tokens": p["tokens"]} | {k: {n: p[k].get(n) for n in keep} for k in ("selection", "random")}
            for p in facts["budget_curve"]
        ],
        "budget": facts["budget"],
        "overhead": costs.overhead,
        "seconds_per_token": costs.seconds_per_token,
    }


def prediction_rows(run: RunFolder) -> list[tuple[str, str]]:
    """The prediction in words: losses, gain and efficiency of what the law would choose."""
    predicted, selection = advised(run.selection), run.selection or {}
    name = selection.get("candidate") or selection.get("used")
    rows = []
    for key, label in (("selection", f"‘{name}’"), ("random", "random")):
        if found := predicted.get(key):
            rows.append((f"predicted loss, {label}", f"{with_interval(found, 'loss')} {NATS}"))
    if found := predicted.get("gain"):
        rows.append(("predicted gain over random", f"{with_interval(found, digits=4)} {NATS}"))
    if found := predicted.get("efficiency"):
        rows.append(("tokens random needs for it", f"{with_interval(found, 'factor', 2)} × as many"))
    return rows


def measured_on_valid(run: RunFolder) -> list[tuple[str, str]]:
    """What the arms reached on the text that the law predicts: the selection's strategy and random."""
    selection = run.selection or {}
    wanted = dict.fromkeys([selection.get("candidate") or selection.get("used"), "random"])
    rows = {s["strategy"]: s.get("loss_valid") for s in (run.comparison or {}).get("strategies", [])}
    found = [(name, rows[name]) for name in wanted if rows.get(name) is not None]
    return [(f"measured there, ‘{name}’", f"{number(value)} {NATS}") for name, value in found]
