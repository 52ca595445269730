"""A selection from end to end, in memory: pool, budget, law and pilots in; selection.json and a draw out. No files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pplscape.draw.auto import bins_of, candidate, limits_of, tell
from pplscape.draw.describe import SCALES, Limits, composition, facts, samples, scaled
from pplscape.draw.gate import random_seeds
from pplscape.draw.options import Options
from pplscape.draw.outlook import Oracle, Outlook, budgets, look
from pplscape.draw.pool import Draw, Pool
from pplscape.draw.strategies import draw
from pplscape.errors import UserError
from pplscape.laws.choose import resampled
from pplscape.laws.law import Law
from pplscape.runs import Compositions, RunTable
from pplscape.statistics import Bins, Floats, make_bins

BINS_WITHOUT_LAW = 10
ANOTHER_POOL = 0.05
"""Share of tokens in other bins than when the law was fitted above which we say so."""
GATE_RULE = "min"
"""In each resample the law with the smallest error on the pilots left out. With the one-standard-error rule of the full
data (probably too fond of simple laws where its standard error rests on a third of the pilots) the gate let 24 of 40
clear gains through instead of 29; neither rule let one of 60 flat worlds through (experiments/results)."""
CURVE_CHUNKS = 100_000
THINNING = 5_003
"""Seed of the uniforms that thin a large pool for the budget curve."""


@dataclass(frozen=True)
class Judge:
    """What the law and the pilots bring, if there are any."""

    law: Law | None
    form: str | None
    oracle: Oracle | None
    bins: Bins
    """What selection.json counts in: the law's bins, else ten of its own."""
    law_bins: Bins | None
    limits: Limits | None
    n_params: float | None
    warnings: list[str]


@dataclass(frozen=True)
class Selection:
    """The pool, the budget in tokens and all that was asked."""

    pool: Pool
    budget: int
    seed: int
    options: Options
    judge: Judge

    def run(self, strategy: str) -> tuple[dict[str, Any], Draw]:
        """Content of selection.json and the draw it describes."""
        law, warnings = self.judge.law, list(self.judge.warnings)
        entry = law.alternative(self.judge.form) if law and self.judge.form else law
        wanted = strategy if strategy != "auto" else (candidate(entry) if entry else None) or "random"
        drawn = chosen = self.draw(wanted, self.budget)
        view = seen = self.outlook(wanted, drawn)
        gate = view.gate if view and self._has_gate(strategy, wanted) else None
        used = wanted
        if strategy == "auto" and law is None:
            warnings.append("Without a law nothing is known of what helps: auto is random. Pass --law.")
        if strategy == "auto" and wanted != "random" and not (gate and gate.passes):
            used, chosen = "random", self.draw("random", self.budget)
            seen = self.outlook("random", chosen)
            warnings.append(f"The law's choice ({wanted}) was not taken: {gate.reason if gate else 'it is empty.'}")
        elif gate and gate.resamples and not gate.passes:
            warnings.append(f"The gain over random is not certain: {gate.reason}")
        found = facts(self.pool, chosen.times, self.judge.bins, self.judge.limits)
        content = {
            "strategy": strategy,
            "used": used,
            "candidate": wanted if strategy == "auto" and wanted != "random" else None,
            "budget": self.budget,
            **found,
            "target": chosen.facts.get("target"),
            "draw": {k: v for k, v in chosen.facts.items() if k != "target"},
            "law": {"form": entry.form, "scale": entry.scale, "chosen": law.form} if law and entry else None,
            "predicted": seen.predicted if seen else None,
            "candidate_predicted": view.predicted if view and used != wanted else None,
            "gate": asdict(gate) if gate else None,
            "budget_curve": view.curve if view else None,
            "budget_curve_of": wanted if view else None,
            "samples": samples(self.pool, chosen.times, self.judge.bins, self.seed),
            "warnings": warnings + self.notes(chosen),
        }
        return content, chosen

    def _has_gate(self, strategy: str, wanted: str) -> bool:
        """Random needs none; a strategy asked for by name has one only if there are pilots to judge by."""
        asked = strategy == "auto" or (self.judge.oracle is not None and self.judge.oracle.resampled is not None)
        return asked and wanted not in ("random", "full")

    def draw(self, strategy: str, budget: int, grow: float = 1.0) -> Draw:
        """One draw; `grow` says how many times smaller this pool is than the one the law is asked about."""
        options = tell(strategy, round(budget * grow), self.options, self.judge.law, self.judge.form)
        if options.utility is not None:
            options = replace(options, utility=replace(options.utility, unit=options.utility.unit / grow))
        return draw(strategy, self.pool, budget, self.seed, options)

    def composition(self, drawn: Draw) -> Compositions:
        return composition(self.pool, drawn.times, self.judge.law_bins, self.judge.limits, self.judge.n_params)

    def outlook(self, strategy: str, drawn: Draw) -> Outlook | None:
        """What the law expects of this strategy here and at other budgets; None without a law."""
        oracle = self.judge.oracle
        if oracle is None or not drawn.times.any():
            return None
        if strategy in ("random", "full"):
            oracle = replace(oracle, resampled=None)  # its gain over random is zero, whatever the law
        whole = self.composition(Draw(np.ones(len(self.pool), dtype=np.int16), ""))
        curve = self.curve(strategy, drawn) if strategy != "full" else []
        return look(oracle, self.composition(drawn), self._spent(drawn, self.budget), whole, curve)

    def _spent(self, drawn: Draw, budget: int) -> float:
        """Tokens that random is given: as many, or the whole budget where some was left unspent on purpose."""
        return float(budget) if drawn.facts.get("unspent") else float((drawn.times * self.pool.length).sum())

    def curve(self, strategy: str, drawn: Draw) -> list[tuple[Compositions, float]]:
        """The strategy drawn again at other budgets, each with the tokens random is given.

        A large pool is first thinned at random to CURVE_CHUNKS, and what is drawn from it scaled up again.
        """
        small, grow, most = self, 1.0, float(self.pool.tokens)
        if strategy == "allocate":
            most *= self.options.max_epochs
        elif "band_tokens" in drawn.facts:
            most = max(0.95 * drawn.facts["band_tokens"], self.budget)
        if len(self.pool) > CURVE_CHUNKS:
            pool = self.pool.subset(np.sort(self.pool.order(THINNING)[:CURVE_CHUNKS]))
            grow = self.pool.tokens / pool.tokens
            small = replace(self, pool=pool)
        found = []
        for budget in budgets(self.budget, int(most)):
            fewer = min(int(budget / grow), int(most / self.pool.tokens * small.pool.tokens))
            other = small.draw(strategy, fewer, grow)
            if other.times.any():
                spent = scaled(small.composition(other), [grow], copies=False)
                found.append((spent, grow * small._spent(other, fewer)))
        return found

    def notes(self, drawn: Draw) -> list[str]:
        """Warnings about a draw, in words."""
        found = []
        lost = len(self.pool.rejected)
        if lost:
            found.append(f"{lost} scored chunks were left out: their score is not a number or they hold no token.")
        if drawn.facts.get("feasible") is False:
            asked, target = drawn.facts["asked"], drawn.facts["target"]
            found.append(
                f"No subset of {self.budget} tokens has mean {asked['mean']:.4g} and spread {_word(asked['std'])}; "
                f"taken instead: mean {target['mean']:.4g}, spread {_word(target['std'])} ({asked['scale']})."
            )
        if drawn.facts.get("unspent"):
            found.append(f"{drawn.facts['unspent']} tokens were left unspent: only harmful bins could fill them.")
        elif not drawn.times.any():
            found.append(f"The budget of {self.budget} tokens is less than one chunk: nothing was selected.")
        return found


def _word(value: float | None) -> str:
    return "any" if value is None else f"{value:.4g}"


def judge_of(
    pool: Pool, law: Law | None, runs: RunTable | None, form: str | None = None, resamples: int = 200, seed: int = 0
) -> Judge:
    """Law and pilots, checked against each other and the scores (UserError where they do not belong together)."""
    if law is None:
        return Judge(None, form, None, make_bins(pool.x, pool.length, BINS_WITHOUT_LAW), None, None, None, [])
    check_same_scores(law, pool)
    law_bins = bins_of(law) if law.bins and law.bins["edges"] is not None else None
    bins = law_bins or make_bins(pool.x, pool.length, BINS_WITHOUT_LAW)
    limits: Limits = {s: found for s in SCALES if (found := limits_of(law, s)) is not None}
    warnings = []
    moved = float(np.abs(pool.bin_tokens(bins) / pool.tokens - np.asarray(bins.share)).sum() / 2)
    if moved > ANOTHER_POOL:
        warnings.append(f"The law was fitted on another pool: {moved:.0%} of the tokens lie in other bins here.")
    if runs is not None and law_bins is not None:
        runs = _with_bins(runs, law_bins)
    n_params = None if runs is None or runs.n_params is None else float(np.median(runs.n_params))
    seen = law.alternative(form) if form else law
    return Judge(law, form, oracle_of(seen, law, runs, resamples, seed), bins, law_bins, limits, n_params, warnings)


def check_same_scores(law: Law, pool: Pool) -> None:
    """UserError if the law was fitted on scores of another model, tokenizer or chunk length."""
    made_with: Mapping[str, Any] = pool.manifest.get("counts", {}).get("facts", {})
    for name, word in (("model", "model"), ("tokenizer", "tokenizer"), ("chunk_tokens", "chunk length")):
        there, here = getattr(law, name), made_with.get(name)
        if there is not None and here is not None and there != here:
            raise UserError(
                f"The law was fitted on scores with {word} {there}, these scores were made with {here}; "
                "nothing may be mixed: score again, or fit a law on pilots of these scores."
            )


def _with_bins(runs: RunTable, bins: Bins) -> RunTable:
    if runs.bins_hash is not None and runs.bins_hash != bins.hash:
        raise UserError(f"The runs have bins {runs.bins_hash}, the law {bins.hash}: these are different landscapes.")
    if runs.bin_tokens is not None and runs.bin_share is None:
        return replace(runs, bin_share=np.asarray(bins.share))
    return runs


def oracle_of(seen: Law, chosen: Law, runs: RunTable | None, resamples: int, seed: int) -> Oracle:
    """Predictions by `seen`; resampled choices among the forms that were tried when `chosen` was."""
    forms = [c["form"] for c in chosen.choice] or None

    def interval(asked: Compositions) -> tuple[Floats, Floats]:
        if not seen.resamples:
            nothing = np.full(len(asked), np.nan)
            return nothing, nothing
        return seen.predict_interval(asked)

    def redo(asked: Compositions) -> Floats:
        assert runs is not None
        return resampled(runs, forms, asked, resamples, seed, chosen.asked_scale, GATE_RULE).losses

    if runs is None or resamples == 0:
        return Oracle(seen.predict, interval, None, 0)
    return Oracle(seen.predict, interval, redo, random_seeds(runs))
