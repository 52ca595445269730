"""A planted world for the tests of second axes: two kinds of text that surprise the base alike, scored in parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pplscape.engines.fake import FakeEngine
from pplscape.stages.prepare import prepare
from pplscape.stages.score import score

WORDS = ["fox", "dog", "court", "patients", "treated", "loss", "twelve", "brown", "lazy", "mind", "mean", "return"]
Rows = list[dict[str, str]]


def documents(kind: str, texts: Sequence[str]) -> Rows:
    return [{"id": f"{kind}-{i}", "text": text} for i, text in enumerate(texts)]


def without_order(rng: np.random.Generator) -> list[str]:
    """What the base reads: all words, in no order."""
    return [" ".join(rng.permutation(WORDS)) for _ in range(30)]


def planted(folder: Path, tokenizer: Path, pool: Rows, held: Rows, read: list[str]) -> dict[str, Path]:
    """model (has read `read`), folder, prepared, scores; the held-out rows are measured on."""
    for name, content in (("pool", pool), ("held", held)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    base = FakeEngine(str(tokenizer))
    base.step(base.encode(read), 1e-3)
    base.save(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplscape.text.write.PART_BYTES", 30_000)
        prepared = prepare(
            [str(folder / "pool.jsonl")], heldout=[str(folder / "held.jsonl")], model=str(folder / "base"),
            out=folder / "prepared", chunk_tokens=64, min_tokens=16, valid=2000, test=2000, near_duplicates="keep",
            overlap_share=1.0,
        )  # fmt: skip
    scores = score(prepared, model=str(folder / "base"), engine="fake", out=folder / "scores")
    return {"model": folder / "base", "folder": folder, "prepared": prepared, "scores": scores}
