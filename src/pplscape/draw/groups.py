"""A draw in groups that share no chunk: forbidden and forced documents, an earlier selection, sources with a quota of
their own, the rest.

Every group has its own census, budget and rule of the same strategy. What whole chunks leave of the other groups'
budgets goes to the last one, so the whole is still short by less than one chunk. The chunks of the earlier selection
count towards the quotas of their sources, and dos and allocate go on from them as if they had drawn them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pplscape.draw.census import Census, take_census
from pplscape.draw.options import Before, Contained, Options
from pplscape.draw.permanent import hash_documents
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.rule import Mask, Rule, Strategy, Times
from pplscape.draw.scores import Rows, Source
from pplscape.errors import UserError
from pplscape.statistics import Floats, on_scale

T = TypeVar("T")
FORBIDDEN, FORCED, CONTAINED, REST = "forbidden", "forced", "contained", "rest"
FIRST = 3
"""The first group that a strategy draws from."""


@dataclass(frozen=True)
class Labels:
    """Which group a chunk belongs to."""

    names: tuple[str, ...]
    """forbidden, forced, contained, the sources with a quota, the rest."""
    listed: Mapping[str, NDArray[np.uint64]]
    """Document hashes of forbidden and forced, where there are any."""
    contained: Contained | None = None

    def of(self, rows: Rows) -> NDArray[np.int64]:
        """Group [n] of each chunk."""
        group = self.by_source(rows)
        if FORCED in self.listed:
            group[np.isin(rows.doc, self.listed[FORCED])] = 1
        if self.contained is not None:
            group[self.contained.of(rows.name) > 0] = 2
        if FORBIDDEN in self.listed:
            group[np.isin(rows.doc, self.listed[FORBIDDEN])] = 0
        return group

    def by_source(self, rows: Rows) -> NDArray[np.int64]:
        """Group [n] of each chunk but for lists."""
        by_source = {name: g for g, name in enumerate(self.names[:-1]) if g >= FIRST}
        return np.array([by_source.get(n, len(self.names) - 1) for n in rows.names], dtype=np.int64)[rows.source]


@dataclass(frozen=True)
class Part:
    """The chunks of one group, as a source of their own."""

    whole: Source
    labels: Labels
    group: int

    @property
    def longest(self) -> int:
        return self.whole.longest

    def numbers(self, unit: Any) -> Iterator[Rows]:
        for rows in self.whole.numbers(unit):
            yield rows.take(np.flatnonzero(self.labels.of(rows) == self.group))

    def map(self, task: Callable[..., T], *args: Any) -> Iterator[T]:
        return self.whole.map(lambda _, unit, *rest: task(self, unit, *rest), *args)


class Every(Rule):
    """All chunks of a group, or none."""

    def __init__(self, name: str, times: int):
        self.name, self.times = name, times

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return np.full(len(rows), self.times, dtype=np.int16), np.zeros(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        return Draw(np.zeros(len(near), dtype=np.int16), self.name)


class Again(Rule):
    """The chunks of an earlier selection, as often as it took them."""

    name = CONTAINED

    def __init__(self, contained: Contained):
        self.contained = contained

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        return self.contained.of(rows.name), np.zeros(len(rows), dtype=bool)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        return Draw(np.zeros(len(near), dtype=np.int16), self.name)


class Groups(Rule):
    """Each group by its rule; the last one gets what the others leave of their budgets."""

    def __init__(self, name: str, labels: Labels, rules: dict[int, Rule], budgets: dict[int, int]):
        self.name, self.labels, self.rules, self.budgets = name, labels, rules, budgets

    def _of(self, rows: Rows) -> Iterator[tuple[int, Rule, NDArray[np.intp]]]:
        group = self.labels.of(rows)
        for g, rule in self.rules.items():
            yield g, rule, np.flatnonzero(group == g)

    def sides(self, rows: Rows) -> tuple[Times, Mask]:
        times, near = np.zeros(len(rows), dtype=np.int16), np.zeros(len(rows), dtype=bool)
        for _, rule, at in self._of(rows):
            times[at], near[at] = rule.sides(rows.take(at))
        return times, near

    def totals(self, rows: Rows, times: Times) -> NDArray[np.int64]:
        """For each group the tokens taken, then what its rule must know."""
        found: list[Any] = []
        for _, rule, at in self._of(rows):
            found += [[int((rows.length[at] * times[at]).sum())], rule.totals(rows.take(at), times[at])]
        return np.concatenate(found)

    def settle(self, near: Pool, sure: NDArray[np.int64]) -> Draw:
        rows, times, left, facts = near.rows(0), np.zeros(len(near), dtype=np.int16), 0, {}
        none, last = rows.take(np.zeros(0, dtype=np.intp)), max(self.rules)
        for g, rule, at in self._of(rows):
            size = 1 + len(rule.totals(none, np.zeros(0, dtype=np.int16)))
            if g == last:
                rule.budget = self.budgets[g] + left
            settled = rule.settle(near.subset(at), sure[1:size])
            times[at] = settled.times
            tokens = int(sure[0]) + int((settled.times * near.length[at]).sum())
            left, sure = left + self.budgets[g] - tokens, sure[size:]
            facts[self.labels.names[g]] = {"budget": self.budgets[g], "tokens": tokens, **settled.facts}
        return Draw(times, self.name, {"groups": facts, "unspent": sum(f.get("unspent", 0) for f in facts.values())})

    def reasons(self, rows: Rows) -> pa.Array:
        found = np.full(len(rows), self.name, dtype=object)
        for _, rule, at in self._of(rows):
            inner = rule.reasons(rows.take(at))
            found[at] = rule.name if inner is None else inner.to_numpy(zero_copy_only=False)
        return pa.array(found, pa.string())


def in_groups(name: str, strategy: Strategy) -> Strategy:
    """`strategy` within the groups that the options ask for; UserError where they cannot be had."""

    def make(census: Census, budget: int, seed: int, options: Options, width: float) -> Rule:
        labels = _labels_of(census, options)
        held, again = (a.astype(int) for a in _sum(census.source.map(_tokens, labels)))
        budgets = _budgets_of(labels, held, again, budget, options)
        rules: dict[int, Rule] = {g: Every(labels.names[g], g) for g in (0, 1) if held[g]}
        before: dict[int, Before] = {}
        if options.contained is not None:
            rules[2] = Again(options.contained)
            before = _before(census, labels, options)
        for g, tokens in budgets.items():
            if g >= FIRST:
                if tokens > held[g] * (options.max_epochs if name == "allocate" else 1):
                    raise UserError(
                        f"{labels.names[g]} is to give {tokens} tokens but holds {held[g]}; lower its quota."
                    )
                part = take_census(Part(census.source, labels, g), options.bins.edges if options.bins else ())
                rules[g] = strategy(part, tokens, seed, replace(options, before=before.get(g)), width)
        return Groups(name, labels, rules, budgets)

    return make


def _labels_of(census: Census, options: Options) -> Labels:
    unknown = sorted(set(options.quotas) - set(census.source_tokens))
    if unknown:
        raise UserError(f"There is no source {unknown[0]!r}; the scores have {', '.join(census.source_tokens)}.")
    both = options.forbidden & options.forced
    if both:
        raise UserError(f"Document {min(both)!r} is both forced and forbidden.")
    listed = {}
    for name, ids in ((FORBIDDEN, options.forbidden), (FORCED, options.forced)):
        if ids:
            names = sorted(ids)
            listed[name] = hash_documents(names)
            missing = np.flatnonzero(~np.any(list(census.source.map(_seen, listed[name])), axis=0))
            if len(missing):
                first = names[missing[0]]
                raise UserError(f"{len(missing)} {name} documents are not in the pool, the first is {first!r}.")
    labels = Labels((FORBIDDEN, FORCED, CONTAINED, *options.quotas, REST), listed, options.contained)
    if options.contained is not None:
        lost = len(options.contained.names) - sum(census.source.map(_found, labels))
        if lost:
            raise UserError(
                f"{lost} chunks of the selection that is to be contained are not in this pool, or are forbidden: "
                "select from the scores it was drawn from."
            )
    return labels


def _seen(source: Source, unit: Any, wanted: NDArray[np.uint64]) -> Mask:
    seen = np.zeros(len(wanted), dtype=bool)
    for rows in source.numbers(unit):
        seen |= np.isin(wanted, rows.doc)
    return seen


def _found(source: Source, unit: Any, labels: Labels) -> int:
    return sum(int((labels.of(rows) == 2).sum()) for rows in source.numbers(unit))


def _tokens(source: Source, unit: Any, labels: Labels) -> Floats:
    """[2, G] tokens of each group, contained ones as often as they were taken, and contained ones by their source."""
    found = np.zeros((2, len(labels.names)))
    for rows in source.numbers(unit):
        group, length = labels.of(rows), rows.length
        if labels.contained is not None:
            at = np.flatnonzero(group == 2)
            length = length.copy()
            length[at] *= labels.contained.of(rows.name[at])
            found[1] += np.bincount(labels.by_source(rows)[at], weights=length[at], minlength=found.shape[1])
        found[0] += np.bincount(group, weights=length, minlength=found.shape[1])
    return found


def _before(census: Census, labels: Labels, options: Options) -> dict[int, Before]:
    """What is contained of each group that is drawn from."""
    limits = options.limits or census.limits(options.scale)
    sums = _sum(census.source.map(_contained_sums, labels, options, limits))
    return {
        g: Before(float(sums[g, 0]), float(sums[g, 1]), float(sums[g, 2]), sums[g, 3:])
        for g in range(FIRST, len(labels.names))
    }


def _contained_sums(source: Source, unit: Any, labels: Labels, options: Options, limits: tuple[float, float]) -> Floats:
    """[G, 3 + K] chunks, sums of values and squares, tokens by bin."""
    n_bins = options.bins.n if options.bins else 1
    found = np.zeros((len(labels.names), 3 + n_bins))
    for rows in source.numbers(unit):
        at = np.flatnonzero(labels.of(rows) == 2)
        if len(at) and labels.contained is not None:
            rows = rows.take(at)
            times, group = labels.contained.of(rows.name), labels.by_source(rows)
            value = np.clip(on_scale(rows.x, options.scale), *limits)
            for i, each in enumerate((np.ones(len(at)), value, value**2)):
                found[:, i] += np.bincount(group, weights=times * each, minlength=len(found))
            b = options.bins.of(rows.x, rows.second) if options.bins else np.zeros(len(at), dtype=np.int64)
            np.add.at(found, (group, 3 + b), times * rows.length)
    return found


def _sum(parts: Iterator[Floats]) -> Floats:
    return np.sum(list(parts), axis=0)


def _budgets_of(
    labels: Labels, held: NDArray[np.int64], again: NDArray[np.int64], budget: int, options: Options
) -> dict[int, int]:
    """Tokens of each group that holds any: forced and contained ones all of theirs, quotas a share of the budget."""
    if min(options.quotas.values(), default=0.0) < 0 or sum(options.quotas.values()) > 1 + 1e-9:
        raise UserError("Quotas are shares of the budget: none negative, together at most 1.")
    if held[1] > budget:
        raise UserError(f"The forced documents hold {held[1]} tokens, more than the budget of {budget}.")
    if held[1] + held[2] > budget:
        raise UserError(
            f"The selection that is to be contained{' and the forced documents' if held[1] else ''} hold "
            f"{held[1] + held[2]} tokens, more than the budget of {budget}."
        )
    budgets, left = {0: 0, 1: int(held[1]), 2: int(held[2])}, budget - int(held[1] + held[2])
    for g, share in enumerate(options.quotas.values(), start=FIRST):
        budgets[g] = min(max(int(share * budget) - int(again[g]), 0), left)
        left -= budgets[g]
    if held[-1]:
        budgets[len(held) - 1] = left
    return {g: tokens for g, tokens in budgets.items() if held[g]}
