"""A small world: two input files of many scripts, prepared, and a selection with repeats and gaps."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pplscape.manifest import StageFolder
from pplscape.schema import SELECTED
from pplscape.stages.prepare import prepare
from pplscape.text.prepared import Prepared

WORDS = ["heart", "añejo", "日本語", "🙂🙃", "e\u0301tude", "straße", "\u200dzwj", "x = 1;\n", "קטן", "12.5"]


def text(i: int, words: int) -> str:
    chosen = random.Random(i)
    return f"Doc {i}: " + " ".join(f"{chosen.choice(WORDS)}{chosen.randrange(400)}" for _ in range(words))


@dataclass(frozen=True)
class World:
    """`texts`: the documents as they were put in; `repeats`: what was selected, by (doc_id, chunk_index)."""

    prepared: Path
    selection: Path
    texts: dict[str, str]
    repeats: dict[tuple[str, int], int]
    spans: dict[tuple[str, int], tuple[int, int]]
    tokenizer: Path

    def chunks(self) -> Counter[str]:
        """Selected chunk texts as often as they are selected, cut from the original texts."""
        found: Counter[str] = Counter()
        for key, times in self.repeats.items():
            start, end = self.spans[key]
            found[self.texts[key[0]][start:end]] += times
        return found

    def ids(self) -> Counter[tuple[int, ...]]:
        """Their token ids, each chunk encoded alone."""
        from transformers import AutoTokenizer

        encode = AutoTokenizer.from_pretrained(self.tokenizer)
        found: Counter[tuple[int, ...]] = Counter()
        for chunk, times in self.chunks().items():
            found[tuple(encode(chunk, add_special_tokens=False)["input_ids"])] += times
        return found

    @property
    def tokens(self) -> int:
        return sum(len(ids) * times for ids, times in self.ids().items())


def facts_of(tokens: int, **changes: Any) -> dict[str, Any]:
    """What selection.json holds of a selection of so many tokens."""
    moments = {s: {"mean": 4.0, "std": 1.0} for s in ("nll", "ppl")}
    return {
        "strategy": "auto", "used": "random", "budget": tokens, "tokens": tokens, "unique_tokens": tokens,
        "pool_tokens": 4 * tokens, "achieved": moments, "pool_moments": moments, "kl_to_pool": 0.25, "law": None,
        "predicted": None, "gate": None, "warnings": ["Only a test."], "source_tokens": {"a": tokens, "b": 0},
        "pool_source_tokens": {"a": 2 * tokens, "b": 2 * tokens}, "bin_tokens": [tokens, 0], "pool_bin_tokens": [1, 1],
        **changes,
    }  # fmt: skip


def write_selection(folder: Path, table: pa.Table, facts: dict[str, Any], replay: pa.Table | None = None) -> Path:
    """A selection folder; the rows in any order, in two parts."""
    with StageFolder(folder, stage="select", version=1, config={}, inputs={}) as stage:
        half = table.num_rows // 2
        for i, part in enumerate((table.slice(half), table.slice(0, half))):
            stage.write_table(f"selected/part-{i:05d}.parquet", part)
        if replay is not None:
            stage.write_table("replay/selected/part-00000.parquet", replay)
        stage.write_json("selection.json", facts)
        stage.finish({"in": table.num_rows, "out": table.num_rows, "rejected": {}})
    return folder


def selected_table(chunks: list[dict[str, Any]], repeats: dict[tuple[str, int], int]) -> pa.Table:
    taken = [
        {**c, "nll": 4.0 + c["chunk_index"] / 10, "repeats": repeats[c["doc_id"], c["chunk_index"]], "reason": "test"}
        for c in chunks
        if (c["doc_id"], c["chunk_index"]) in repeats
    ]
    random.Random(1).shuffle(taken)
    return pa.Table.from_pylist([{n: row[n] for n in SELECTED.names} for row in taken], SELECTED)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path) -> World:
    """About 40 documents in four parts; a third of the chunks is taken once, some twice or three times."""
    folder = tmp_path_factory.mktemp("world")
    texts = {f"doc#{i}": text(i, 8 + 37 * (i % 4)) for i in range(40)}
    lines = [json.dumps({"id": k, "text": t}).encode() + b"\n" for k, t in texts.items()]
    (folder / "a.jsonl").write_bytes(b"".join(lines[:25]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[25:])))
    (folder / "held.jsonl").write_text("".join(json.dumps({"text": text(900 + i, 40)}) + "\n" for i in range(4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplscape.text.write.PART_BYTES", 8_000)
        prepare(
            [str(folder / "a.jsonl"), str(folder / "b.jsonl.gz")], heldout=[str(folder / "held.jsonl")],
            model=str(tiny_tokenizer_dir), out=folder / "prepared", chunk_tokens=96, min_tokens=8,
        )  # fmt: skip
    prepared = Prepared(folder / "prepared")
    assert len(prepared.parts("pool")) >= 3
    chunks = prepared.chunks("pool").to_pylist()
    chosen = random.Random(0)
    times = {(c["doc_id"], c["chunk_index"]): chosen.choices([0, 1, 2, 3], [5, 4, 2, 1])[0] for c in chunks}
    repeats = {key: n for key, n in times.items() if n}
    tokens = sum(c["length"] * repeats.get((c["doc_id"], c["chunk_index"]), 0) for c in chunks)
    selection = write_selection(folder / "selection", selected_table(chunks, repeats), facts_of(tokens))
    spans = {(c["doc_id"], c["chunk_index"]): (c["char_start"], c["char_end"]) for c in chunks}
    return World(prepared.path, selection, texts, repeats, spans, tiny_tokenizer_dir)


@pytest.fixture
def reselect(world: World, tmp_path: Path) -> Callable[..., Path]:
    """Another selection of the same corpus: `table` instead of the world's, `facts` changed."""

    def make(table: pa.Table, **facts: Any) -> Path:
        tokens = sum(n * r for n, r in zip(table["length"].to_pylist(), table["repeats"].to_pylist(), strict=True))
        return write_selection(tmp_path / "other", table, facts_of(tokens) | facts)

    return make
