"""Strategies that rank chunks by a key of their text (`keys`, made by `textual`): unigram and dsir.

The other strategies know scores alone. These are the baselines that need no model: they see the same census, the same
permanent uniforms and the same exact budgets, with the key in the place of log-perplexity.
"""

from __future__ import annotations

import numpy as np

from pplscape.draw.census import Census, take_census
from pplscape.draw.keys import ByKey
from pplscape.draw.options import Options
from pplscape.draw.ordered import Ordered, around
from pplscape.draw.pool import Pool
from pplscape.draw.rule import Mask, Times
from pplscape.draw.scores import Rows
from pplscape.draw.uniform import GumbelTop
from pplscape.errors import UserError
from pplscape.statistics import Floats


def _by_key(name: str, census: Census) -> ByKey:
    """The census' pool by its keys; UserError if no text was read."""
    by = ByKey.of(census.source)
    if by is None:
        raise UserError(f"Strategy {name} reads the text: pass --corpus, the prepared folder that was scored.")
    return by


class Unigram(Ordered):
    """The chunks whose token priors are most ordinary (Seo et al. 2509.18577): the smallest keys; see `prior`."""

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        self.by = _by_key("unigram", census)
        keyed = take_census(self.by)
        super().__init__("unigram", keyed, budget, seed, options, [(-1, -1), around(keyed, budget)])

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return super().sides(self.by.laid(rows))

    def key(self, near: Pool) -> Floats:
        return near.key


class Dsir(GumbelTop):
    """Importance resampling towards a target text (Xie et al. 2302.03169): without replacement with weights exp(key),
    the key being the log-importance weight; see `dsir`."""

    name = "dsir"

    def __init__(self, census: Census, budget: int, seed: int, options: Options, width: float):
        by = _by_key("dsir", census)
        self.budget, self.seed, self.nested = budget, seed, options.nested
        cells = take_census(by).cells("nll", (-np.inf, np.inf))
        self.low, self.high = self.stretch(by.low + cells.value * by.unit, cells, census.longest, width)

    def level(self, chunks: Rows | Pool) -> Floats:
        return chunks.key
