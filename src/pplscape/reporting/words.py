"""Numbers as people read them: units, intervals, true minus signs, no more digits than they deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOTHING = "–"
NATS = "nats/token"
GLUE = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_CONTROL = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127), "�")


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A fixed number of decimals with a typographic minus; `–` for None or a value that is not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, thousands separated."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    decimals = max(0, digits - 1 - exponent)
    return number(value, min(decimals, 8))


def tokens(value: float | None, unit: bool = True, digits: int = 3) -> str:
    """`1.25 M tokens`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    word = " tokens" if unit else ""
    for size, name in _UNITS:
        if abs(value) >= size * 0.9995:
            return f"{significant(value / size, digits)}{GLUE}{name}{word}"
    return f"{significant(value) if value % 1 else number(value, 0)}{word}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return NOTHING if value is None or not math.isfinite(value) else f"{number(100 * value, digits)}{GLUE}%"


def interval(low: float | None, high: float | None, digits: int = 3, sign: bool = False) -> str:
    """`[low, high]`, or empty when there is none."""
    if low is None or high is None:
        return ""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def with_interval(value: Mapping[str, Any] | None, key: str = "mean", digits: int = 3, sign: bool = False) -> str:
    """`value [low, high]` of a mapping that holds the three."""
    if value is None or value.get(key) is None:
        return NOTHING
    return f"{number(value[key], digits, sign)} {interval(value.get('low'), value.get('high'), digits, sign)}".strip()


def times(value: float | None) -> str:
    """A factor: `1.21×`."""
    return NOTHING if value is None or not math.isfinite(value) else f"{number(value, 2)}×"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 1:
        return "under 1 s"
    for least, size, unit, digits in ((2 * 86400, 86400, "days", 1), (3600, 3600, "h", 1), (120, 60, "min", 0)):
        if value >= least:
            return f"{number(value / size, digits)}{GLUE}{unit}"
    return f"{number(value, 0)}{GLUE}s"


def plural(count: int, noun: str) -> str:
    """`1 run`, `27 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Sequence[str], most: int = 4) -> str:
    """`a, b and c`; past `most` items `and n more`."""
    shown = list(items[:most])
    if len(items) > most:
        return ", ".join(shown) + f" and {len(items) - most} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else "nothing"


def visible(text: str) -> str:
    """Corpus text with control characters (which HTML forbids) replaced by U+FFFD."""
    return text.translate(_CONTROL).encode("utf-8", "replace").decode()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)
