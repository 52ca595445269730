"""A published figure beside ours, and where the tables lie."""

from __future__ import annotations

import csv
import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError


@dataclass(frozen=True)
class Row:
    """One figure of a note."""

    table: str
    figure: str
    published: float | None
    ours: float | None
    agree: bool | None
    """Whether ours is what was published, by the rule in `how`; None where there is no rule or nothing of ours."""
    how: str = ""
    by: str = "pplscape"
    """Whose figure `ours` is: pplscape's, a form's, or a peer's run here."""

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def near(table: str, figure: str, published: float, ours: float, relative: float, how: str = "") -> Row:
    """A row that agrees within a relative tolerance, which is said."""
    agree = bool(abs(ours - published) <= relative * abs(published))
    rule = f"within {relative:.0e} relative"
    return Row(table, figure, float(published), float(ours), agree, f"{how}; {rule}" if how else rule)


def tables() -> Path:
    """The folder of law tables in PPLSCAPE_DATA; UserError if it is not set."""
    root = os.environ.get("PPLSCAPE_DATA")
    if not root:
        raise UserError("PPLSCAPE_DATA is not set: it names the folder that holds law_tables/.")
    return Path(root) / "law_tables"


def columns(path: Path) -> dict[str, list[str]]:
    """A CSV file, gzipped or not, by columns."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        rows = list(csv.DictReader(lines))
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbers(found: dict[str, list[str]], name: str) -> np.ndarray:
    return np.array([float(v) for v in found[name]])
