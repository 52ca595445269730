"""docs/results/scaling.md is what the benchmark writes from its stored figures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "workers.py"


def test_the_page_is_generated() -> None:
    spec = importlib.util.spec_from_file_location("workers", SCRIPT)
    assert spec
    assert spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    found = json.loads(benchmark.RESULT.read_text())
    assert benchmark.PAGE.read_text() == benchmark.page(found)
    assert found["same_bytes"], "the page would say that the files differ"
