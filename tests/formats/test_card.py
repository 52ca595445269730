"""The data card: a head that the hub reads, the run's own numbers, and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import World, selected_table

from pplscape.formats.card import Card
from pplscape.manifest import fingerprint_input, read_manifest
from pplscape.reporting import figures_selection
from pplscape.stages.export import export
from pplscape.text.prepared import Prepared

PNG = b"\x89PNG\r\n\x1a\n"


def test_head_and_numbers(world: World, tmp_path: Path) -> None:
    out = export(world.selection, corpus=world.prepared, formats=["jsonl", "hf"], out=tmp_path / "o")
    card, facts = (out / "README.md").read_text(), read_manifest(out)["counts"]
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "other"
    assert head["license_name"] == "inherits-from-the-sources"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "jsonl/*.jsonl"}]
    assert list(out.glob(head["configs"][0]["data_files"][0]["path"]))
    for shown in (
        f"{world.tokens:,} of {4 * world.tokens:,} tokens (25.0", f"{facts['rows']:,} rows", f"{facts['out']:,} chunks",
        facts["facts"]["text_sum"], fingerprint_input(world.selection), "not tokenised", "Only a test.",
        '`datasets.load_from_disk("hf")`', "| KL to the pool | 0.250",
    ):  # fmt: skip
        assert shown in card
    assert (out / "landscape.png").read_bytes().startswith(PNG)


def test_law_prediction_and_gate_are_told() -> None:
    found = {"loss": 3.21, "low": 3.2, "high": 3.25}
    selection: dict[str, Any] = {
        "strategy": "auto", "used": "maxent", "budget": 10, "tokens": 9, "unique_tokens": 8, "pool_tokens": 90,
        "law": {"form": "extended", "scale": "ppl"}, "kl_to_pool": 0.1, "warnings": [],
        "predicted": {"selection": found, "random": found, "gain": {"mean": 0.0123, "low": None, "high": None}},
        "gate": {"passes": False, "reason": "the gain is inside the noise"},
        "achieved": {s: {"mean": 1.0, "std": 2.0} for s in ("nll", "ppl")},
        "pool_moments": {s: {"mean": 3.0, "std": 4.0} for s in ("nll", "ppl")},
        "source_tokens": {f"s{i}": i for i in range(30)}, "pool_source_tokens": {f"s{i}": 2 * i for i in range(30)},
    }  # fmt: skip
    corpus = {"model": "org/base", "chunk_tokens": 512, "tokenizer_hash": "t" * 64}
    card = Card(selection, corpus, "org/base", ["mds"], 3, 4, "s" * 64, "1", "2").text()
    assert "| law | extended (ppl) |" in card
    assert "3.2100 [3.2000, 3.2500] nats/token" in card
    assert "| predicted gain over random | 0.0123 nats/token |" in card
    assert "not passed: the gain is inside the noise" in card
    assert "| perplexity, mean | 3.000 | 1.000 |" in card
    assert "| `s29` | 58 | 29 |" in card
    assert "| 10 others | 90 | 45 |" in card
    assert "configs:" not in card


def test_the_picture_counts_repeats(
    world: World, reselect: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Prepared(world.prepared).chunks("pool").to_pylist()
    first, second = ((c["doc_id"], c["chunk_index"]) for c in [c for c in chunks if c["chunk_index"] < 2][:2])
    table = selected_table(chunks, {first: 3, second: 1})
    nll = [2.5 if times == 3 else 99.0 for times in table["repeats"].to_pylist()]
    table = table.set_column(5, table.schema.field(5), pa.array(nll))
    landscape = tmp_path / "landscape.json"
    landscape.write_text(json.dumps({"histogram": {"edges": [2, 3, 4, 5], "counts": [[5, 5, 0], [1, 0, 9]]}}))
    seen: list[np.ndarray] = []
    real = figures_selection.selection_on_landscape

    def draw(histogram: Any, taken: np.ndarray) -> Any:
        seen.append(taken)
        return real(histogram, taken)

    monkeypatch.setattr(figures_selection, "selection_on_landscape", draw)
    out = export(reselect(table), corpus=world.prepared, out=tmp_path / "o", landscape=landscape)
    assert seen[0].tolist() == [3, 0, 1]
    assert (out / "landscape.png").read_bytes().startswith(PNG)
