"""evaluate: loss per document of a model on held-out domain text and on general text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplscape.engines import load_engine
from pplscape.engines.base import Engine
from pplscape.manifest import MANIFEST, StageFolder, fingerprint_input, read_manifest
from pplscape.text.prepared import Prepared
from pplscape.training.texts import HeldOut, heldout_from_files, heldout_of

VERSION = 2


def evaluate(
    model: str, *, heldout: Path | str, out: Path | str, general: Sequence[str] | None = None,
    engine: str = "transformers", dtype: str = "auto", chunk_tokens: int = 512, overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/eval.jsonl, one line a document: split (valid, test or general), n_tokens, n_bytes, nll_sum (nats).

    `heldout`: a prepared folder (its test split) or a text input. `model` may be the output folder of `train`.
    """
    trained = Path(model) / "model"
    facts = _arm(Path(model))
    options: Any = {} if engine == "fake" else {"dtype": dtype}
    scorer = load_engine(engine, str(trained if trained.exists() else model), **options)
    inputs: dict[str, Path | str] = {"heldout": Path(heldout)}
    inputs |= {"model": Path(model)} if Path(model).exists() else {}
    inputs |= {
        f"general {i}": fingerprint_input(Path(g)) if Path(g).exists() else g for i, g in enumerate(general or [])
    }
    with StageFolder(
        Path(out), stage="evaluate", version=VERSION, config={**scorer.facts.as_dict(), "arm": facts}, inputs=inputs,
        overwrite=overwrite,
    ) as folder:  # fmt: skip
        if not folder.finished:
            rows = [
                row
                for split, text in _heldout(Path(heldout), scorer, chunk_tokens)
                for row in _rows(scorer, text, split)
            ]
            rows += _rows(scorer, heldout_from_files(general, scorer, chunk_tokens), "general") if general else []
            folder.write_jsonl("eval.jsonl", rows)
            folder.finish({"in": len(rows), "out": len(rows), "rejected": {}, "facts": facts})
    return Path(out)


def _arm(model: Path) -> dict[str, Any]:
    """Strategy, seed and tokens of a trained model; a model that `train` did not write is the base."""
    if (model / MANIFEST).exists():
        return read_manifest(model)["counts"]["facts"]
    return {"strategy": "base", "seed": 0, "tokens": 0}


def _heldout(path: Path, engine: Engine, chunk_tokens: int) -> list[tuple[str, HeldOut]]:
    """Test text; of a prepared folder also the valid text, on which laws predict."""
    if (path / MANIFEST).exists():
        corpus = Prepared(path)
        corpus.check_tokenizer(engine.facts.tokenizer, engine.facts.model)
        return [(split, heldout_of(corpus, split, engine)) for split in ("valid", "test")]
    return [("test", heldout_from_files([str(path)], engine, chunk_tokens))]


def _rows(engine: Engine, text: HeldOut, split: str) -> list[dict[str, Any]]:
    measured = text.loss(engine)
    source = dict(zip(text.doc_id, text.source, strict=True))
    return [
        {
            "doc_id": d, "source": source[d], "split": split, "n_tokens": int(measured.n_tokens[i]),
            "n_bytes": int(measured.n_bytes[i]), "nll_sum": float(measured.nll_sum[i]),
        }
        for i, d in enumerate(measured.doc_id)
    ]  # fmt: skip


def read_evaluation(folder: Path) -> list[dict[str, Any]]:
    """The rows of eval.jsonl."""
    return [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
