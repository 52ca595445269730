"""The strategies by name. A new one is one function `(pool, budget, seed, options) -> Draw` and one line here.

`auto` is not in the table: it chooses among these (see `draw/auto.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from pplscape.draw import baselines
from pplscape.draw.allocate import allocate
from pplscape.draw.dos import dos
from pplscape.draw.maxent import maxent
from pplscape.draw.options import Options
from pplscape.draw.pool import Draw, Pool
from pplscape.errors import UserError

Strategy = Callable[[Pool, int, int, Options], Draw]

STRATEGIES: dict[str, Strategy] = {
    "full": baselines.full,
    "random": baselines.random,
    "stratified": baselines.stratified,
    "low": baselines.low,
    "mid": baselines.mid,
    "high": baselines.high,
    "band": baselines.band,
    "temperature": baselines.temperature,
    "dos": dos,
    "maxent": maxent,
    "allocate": allocate,
}


def draw(name: str, pool: Pool, budget: int, seed: int, options: Options | None = None) -> Draw:
    """Draw a subset of at most `budget` tokens; UserError for an unknown name or a budget above the pool."""
    if name not in STRATEGIES:
        raise UserError(f"Unknown strategy {name!r}; there are {', '.join(['auto', *STRATEGIES])}.")
    options = options or Options()
    most = pool.tokens * (options.max_epochs if name == "allocate" else 1)
    if budget > most:
        raise UserError(f"The budget of {budget} tokens is above the {pool.tokens} tokens of the pool.")
    return STRATEGIES[name](pool, budget, seed, options)
