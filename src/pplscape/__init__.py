"""pplscape: perplexity landscapes for continual pre-training.

Every stage of the command line is a function of the same name here, loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_STAGES = (
    "prepare", "score", "liken", "locate", "probe", "landscape", "plan", "pilot", "transfer", "fit", "select", "export",
    "tune", "train", "sample", "evaluate", "compare", "report",
)  # fmt: skip
_WHERE = {name: f"pplscape.stages.{name}" for name in _STAGES} | {"run": "pplscape.flow", "demo": "pplscape.flow"}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pplscape' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
