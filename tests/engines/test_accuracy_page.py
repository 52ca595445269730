"""The accuracy tables in the documentation are those that the benchmark wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks/accuracy.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_generated(benchmark: Any) -> None:
    figures = json.loads(benchmark.JSON.read_text())
    assert benchmark.PAGE.read_text() == benchmark.page(figures)
    first, last = benchmark.MARKS
    shown = benchmark.GUIDE.read_text().split(first)[1].split(last)[0].strip()
    assert shown == benchmark.headline(figures)


def test_every_architecture_and_dtype_was_measured_and_float32_is_exact(benchmark: Any) -> None:
    figures = json.loads(benchmark.JSON.read_text())
    rows = [*figures["architectures"], *figures["embedded"]]
    measured = {(r["model"], r["dtype"]) for r in rows}
    assert measured == {(m, d) for m in (*benchmark.CONFIGURATIONS, benchmark.EMBEDDED) for d in benchmark.DTYPES}
    assert max(r["token_max"] for r in rows if r["dtype"] == "float32") < 1e-4


def test_errors_by_hand(benchmark: Any) -> None:
    import numpy as np

    reference = [np.array([1.0, 3.0]), np.array([2.5])]
    found = [np.array([1.5, 3.5]), np.array([2.25])]
    assert benchmark.errors(found, reference) == {
        "signed": 0.25, "absolute": 0.417, "token_max": 0.5, "chunk": 0.375, "chunk_max": 0.5,
        "half_changed": 1.0,
    }  # fmt: skip
