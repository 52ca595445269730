"""The strategies by name. A new one is one rule (see `draw/rule.py`) and one line here.

`auto` is not in the table: it chooses among these (see `draw/auto.py`).
"""

from __future__ import annotations

from pplscape.draw.allocate import Allocate
from pplscape.draw.budget import Wider
from pplscape.draw.bytext import Dsir, Unigram
from pplscape.draw.census import Census
from pplscape.draw.dos import Dos
from pplscape.draw.groups import in_groups
from pplscape.draw.learnable import Learnable
from pplscape.draw.matched import Matched
from pplscape.draw.maxent import MaxEnt
from pplscape.draw.options import Options
from pplscape.draw.ordered import Band, Mid, high, low
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import WIDTHS, Strategy, decide
from pplscape.draw.uniform import Full, Random, Stratified, Temperature
from pplscape.errors import UserError

STRATEGIES: dict[str, Strategy] = {
    "full": Full,
    "random": Random,
    "stratified": Stratified,
    "low": low,
    "mid": Mid,
    "high": high,
    "band": Band,
    "temperature": Temperature,
    "learnable": Learnable,
    "unigram": Unigram,
    "dsir": Dsir,
    "dos": Dos,
    "maxent": MaxEnt,
    "allocate": Allocate,
    "matched": Matched,
}
BY_TEXT = ("unigram", "dsir")
"""They rank chunks by keys that are made of the corpus' text (see `draw/textual.py`)."""
NESTED = (
    "full", "random", "stratified", "low", "mid", "high", "band", "temperature", "learnable", "unigram", "dsir", "dos",
)  # fmt: skip
"""Strategies that walk one order, whatever the budget."""


def strategy_of(name: str, census: Census, budget: int, options: Options) -> Strategy:
    """The strategy of this name; UserError for an unknown one or a budget above the pool."""
    if name not in STRATEGIES:
        raise UserError(f"Unknown strategy {name!r}; there are {', '.join(['auto', *STRATEGIES])}.")
    most = census.total * (options.max_epochs if name == "allocate" else 1)
    if budget > most:
        raise UserError(f"The budget of {budget} tokens is above the {census.total} tokens of the pool.")
    if options.nested and (name not in NESTED or options.quotas):
        what = "with quotas" if name in NESTED else f"of strategy {name}"
        raise UserError(
            f"Draws {what} at different budgets are not nested by themselves: draw the smaller one first, then pass it "
            "to the larger with --contains."
        )
    return in_groups(name, STRATEGIES[name]) if options.grouped else STRATEGIES[name]


def draw(name: str, pool: Pool, budget: int, seed: int, options: Options | None = None) -> Draw:
    """Draw a subset of at most `budget` tokens from a pool in memory; errors as in `strategy_of`."""
    options = options or Options()
    census = pool.census(options.bins.edges if options.bins else ())
    strategy = strategy_of(name, census, budget, options)
    for width in WIDTHS:
        try:
            return decide(strategy(census, budget, seed, options, width), pool, seed)
        except Wider:
            continue
    raise AssertionError("the widest stretch is the whole pool")
