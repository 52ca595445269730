"""The data card of an export: README.md with the YAML head that the Hugging Face hub reads, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pplscape import __version__
from pplscape.reporting.words import NATS, number, percent, table, with_interval

Facts = Mapping[str, Any]
LICENCE = "inherits-from-the-sources"
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
         (1e8, "10M<n<100M"), (1e9, "100M<n<1B"))  # fmt: skip
"""Rows below, and what the hub calls so many."""
MOST_SOURCES = 20
HUB_GLOBS = {"parquet": "parquet/*.parquet", "jsonl": "jsonl/*.jsonl"}
HOW_TO_READ = {
    "parquet": '`datasets.load_dataset("parquet", data_files="parquet/*.parquet")`',
    "jsonl": '`datasets.load_dataset("json", data_files="jsonl/*.jsonl")`',
    "hf": '`datasets.load_from_disk("hf")`',
    "megatron": "`--data-args-path megatron/data-path.txt` (Megatron-LM), one sequence a chunk, a document a row",
    "mds": '`streaming.StreamingDataset(local="mds")`, one sample a chunk',
    "litdata": '`litdata.StreamingDataset("litdata", item_loader=TokensLoader(block_size))`',
}


@dataclass(frozen=True)
class Card:
    """All that a card tells."""

    selection: Facts
    """selection.json."""
    corpus: Facts
    """Facts of the prepared corpus: model, tokenizer, chunk length."""
    model: str
    formats: Sequence[str]
    rows: int
    chunks: int
    """Both with repeats."""
    selection_hash: str
    text_sum: str
    token_sum: str | None
    """None where nothing was tokenised."""
    replay_tokens: int = 0
    """General text that stands beside the selection; rows, chunks and sums hold it too."""

    def text(self) -> str:
        """README.md."""
        parts = [self._head(), f"# {self._title}", self._what(), "![The landscape and what was taken](landscape.png)"]
        parts += ["## How it was chosen", self._chosen(), "## Moments", self._moments()]
        parts += ["## Sources", self._sources(), "## How to read it", self._reading(), "## Licence", _LICENCE_WORDS]
        parts += ["## What identifies it", self._identity()]
        return "\n\n".join(parts) + "\n"

    @property
    def _title(self) -> str:
        return f"Continual pre-training subset, {self.selection['tokens']:,} tokens, chosen for {self.model}"

    def _head(self) -> str:
        head: dict[str, Any] = {
            "pretty_name": self._title, "license": "other", "license_name": LICENCE,
            "task_categories": ["text-generation"], "tags": ["pplscape", "data-selection", "continual-pre-training"],
            "size_categories": [next((name for most, name in SIZES if self.rows < most), "n>1B")],
        }  # fmt: skip
        if shown := next((f for f in HUB_GLOBS if f in self.formats), None):
            files = [{"split": "train", "path": HUB_GLOBS[shown]}]
            head["configs"] = [{"config_name": "default", "data_files": files}]
        return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"

    def _what(self) -> str:
        s, made_with = self.selection, self.corpus
        share = percent(s["tokens"] / s["pool_tokens"], 1)
        beside = (
            f" With them stand {self.replay_tokens:,} tokens of general text to replay, "
            f"{percent(self.replay_tokens / (self.replay_tokens + s['tokens']), 1)} of all (`replay` in the rows), "
            "which the counts of chunks and rows and the sums below include."
        )
        return (
            f"{s['tokens']:,} of {s['pool_tokens']:,} tokens ({share}) of a corpus, in {self.chunks:,} chunks of at "
            f"most {made_with['chunk_tokens']} tokens, counted by the tokenizer of `{made_with['model']}`. "
            f"{self.rows:,} rows: adjacent chunks of a document are one row. Chosen by pplscape {__version__} by the "
            "perplexity that this model gives every chunk." + (beside if self.replay_tokens else "")
        )

    def _chosen(self) -> str:
        s = self.selection
        rows = [("strategy", s["used"]), ("asked for", s["strategy"]), ("budget", f"{s['budget']:,} tokens"),
                ("taken", f"{s['tokens']:,} tokens, {s['unique_tokens']:,} unique")]  # fmt: skip
        if s.get("law"):
            rows.append(("law", f"{s['law']['form']} ({s['law']['scale']})"))
        predicted = s.get("predicted") or {}
        for key, label in (("selection", "predicted loss"), ("random", "predicted loss of random")):
            if key in predicted:
                by = f", by the {predicted['form']} law" if predicted.get("form") else ""
                rows.append((label, f"{with_interval(predicted[key], 'loss', 4)} {NATS}{by}"))
        if "gain" in predicted:
            rows.append(("predicted gain over random", f"{with_interval(predicted['gain'], digits=4)} {NATS}"))
        if gate := s.get("gate"):
            rows.append(("gate", ("passed: " if gate["passes"] else "not passed: ") + gate["reason"]))
        rows.append(("KL to the pool", f"{number(s['kl_to_pool'])} nats"))
        return table(("", ""), rows) + "".join(f"\n\n> {w}" for w in s.get("warnings", []))

    def _moments(self) -> str:
        rows = [
            (f"{'log-perplexity' if scale == 'nll' else 'perplexity'}, {word}",
             number(self.selection["pool_moments"][scale][name]), number(self.selection["achieved"][scale][name]))
            for scale in ("nll", "ppl") for name, word in (("mean", "mean"), ("std", "standard deviation"))
        ]  # fmt: skip
        return table(("of chunks, clipped to the pool's 0.5 % and 99.5 % quantiles", "pool", "selection"), rows)

    def _sources(self) -> str:
        taken, pool = self.selection["source_tokens"], self.selection["pool_source_tokens"]
        names = sorted(pool, key=lambda n: (-taken.get(n, 0), n))
        rows = [(f"`{n}`", f"{pool[n]:,}", f"{taken.get(n, 0):,}") for n in names[:MOST_SOURCES]]
        if rest := names[MOST_SOURCES:]:
            rows.append((f"{len(rest)} others", f"{sum(pool[n] for n in rest):,}",
                         f"{sum(taken.get(n, 0) for n in rest):,}"))  # fmt: skip
        return table(("source", "tokens in the pool", "tokens taken"), rows)

    def _reading(self) -> str:
        rows = [(f"`{name}/`", HOW_TO_READ[name]) for name in self.formats]
        return table(("folder", "reader"), rows) + _ORDER

    def _identity(self) -> str:
        rows = [("selection", self.selection_hash), ("texts of the chunks", self.text_sum),
                ("token ids of the chunks", self.token_sum or "not tokenised"),
                ("tokenizer", self.corpus["tokenizer_hash"])]  # fmt: skip
        return table(("", "hash"), [(name, f"`{value}`") for name, value in rows]) + _SUMS


_LICENCE_WORDS = """Not set: the text inherits the licences of its sources. Before you publish it, put the right
identifier under `license` at the top of this file (and remove `license_name`)."""
_ORDER = """

Every chunk stands once in the corpus' order, then those taken twice once more, and so on: let the trainer shuffle.
`cuts` says where the chunks of a row end; each was counted, scored and (in token formats) encoded alone. Encoding a
whole row can differ by a token or so at those places. No BOS or end-of-document tokens were added."""
_SUMS = """

The sums of texts and ids do not depend on order or sharding: `pplscape.formats.content.text_sum` and `token_sum` give
them again from what a reader returns. `shards.jsonl` has them shard by shard."""
