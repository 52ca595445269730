"""What a spawned process runs; it imports no torch, so that it starts at once."""

from __future__ import annotations

from pplscape.manifest import sha256_file
from pplscape.stages.score import score


def score_and_hash(prepared: str, model: str, out: str) -> str:
    """sha256 of the scores of the fake engine."""
    return sha256_file(score(prepared, model=model, engine="fake", out=out) / "part-00000.parquet")
