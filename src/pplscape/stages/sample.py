"""sample: text written by the base model itself, the general text of those who have none.

The loss on samples of the base model is its own entropy, and its rise after training estimates KL(base || trained):
what the model forgot of everything it could write, in nats per token, without any data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pplscape.engines import load_engine
from pplscape.manifest import StageFolder

VERSION = 1


def sample(
    model: str, *, out: Path | str, tokens: int = 12_288, length: int = 256, engine: str = "transformers",
    revision: str | None = None, bos: str = "auto", seed: int = 0, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/general.jsonl (id, text): about `tokens` tokens of samples of `length` tokens, temperature 1."""
    writer = load_engine(engine, model, revision=revision, bos=bos)
    config = {**writer.facts.as_dict(), "tokens": tokens, "length": length}
    with StageFolder(
        Path(out), stage="sample", version=VERSION, config=config, inputs={}, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            texts: list[str] = writer.sample(max(1, tokens // length), length, seed)
            rows: list[dict[str, Any]] = [
                {"id": f"sample-{i:05d}", "text": t} for i, t in enumerate(texts) if t.strip()
            ]
            folder.write_text("general.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
            lost = {"empty": len(texts) - len(rows)} if len(rows) < len(texts) else {}
            folder.finish({"in": len(texts), "out": len(rows), "rejected": lost})
    return Path(out)
