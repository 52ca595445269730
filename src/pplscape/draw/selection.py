"""A selection from end to end: scores, budget, law and pilots in; selection.json and the selected chunks out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pplscape.draw.auto import bins_of, candidate, entry_for, hedge_of, limits_of, tell, utility_of
from pplscape.draw.census import Census
from pplscape.draw.columns import check_axis
from pplscape.draw.describe import SCALES, Frame, Limits, Tally, facts, frame_of, samples, scaled, whole_pool
from pplscape.draw.documents import by_document
from pplscape.draw.gate import random_seeds
from pplscape.draw.mix import LEAST_DOCUMENTS, Located, target_mix
from pplscape.draw.options import Options
from pplscape.draw.outlook import Oracle, Outlook, budgets, look
from pplscape.draw.pool import Draw
from pplscape.draw.scores import Scores
from pplscape.draw.strategies import draw
from pplscape.draw.stream import Taken, carry_out, carry_out_whole
from pplscape.errors import UserError
from pplscape.runs import Compositions, RunTable
from pplscape.statistics import Bins, Floats

if TYPE_CHECKING:  # laws need scipy, half a second that a draw without a law need not wait for
    from pplscape.laws.law import Law

BINS_WITHOUT_LAW = 10
SAME_MIX = 1e-6
"""Difference in every bin's share up to which a target's mix is the pool's."""
ANOTHER_POOL = 0.05
"""Share of tokens in other bins than when the law was fitted above which we say so."""


@dataclass(frozen=True)
class Judge:
    """What the law and the pilots bring, if there are any."""

    law: Law | None
    form: str | None
    oracle: Oracle | None
    frame: Frame
    """What selection.json counts in: the law's bins and limits, else the pool's own."""
    has_bins: bool
    """The frame's bins are the law's, or were given."""
    n_params: float | None
    warnings: list[str]


@dataclass(frozen=True)
class Selection:
    """The scores, the budget in tokens and all that was asked; `out`: where the selected chunks are written."""

    scores: Scores
    census: Census
    budget: int
    seed: int
    options: Options
    judge: Judge
    out: Path | None = None
    documents: tuple[Scores, Census] | None = None
    """The same with whole documents as rows, where these are the unit of selection."""
    target: Located | None = None
    """Scored text of the target, whose mix an allocation is hedged towards; None: the pool's."""

    SCRATCH: ClassVar[str] = "documents"
    """Folder under `out` for what whole documents need while they are drawn."""

    def run(self, strategy: str) -> tuple[dict[str, Any], Taken]:
        """Content of selection.json and the draw it describes."""
        law, warnings = self.judge.law, list(self.judge.warnings)
        entry = law.alternative(self.judge.form) if law and self.judge.form else law
        wanted = strategy if strategy != "auto" else (candidate(entry) if entry else None) or self.without_law
        drawn = chosen = self.take(wanted)
        view = seen = self.outlook(wanted, drawn)
        gate = view.gate if view and self._has_gate(strategy, wanted) else None
        used = wanted
        if strategy == "auto" and law is None:
            warnings.append("Without a law nothing is known of what helps: auto is random. Pass --law.")
        if strategy == "auto" and wanted != self.without_law and not (gate and gate.passes):
            used, chosen = self.without_law, self.take(self.without_law)
            seen = self.outlook(used, chosen)
            warnings.append(f"The law's choice ({wanted}) was not taken: {gate.reason if gate else 'it is empty.'}")
        elif gate and gate.resamples and not gate.passes:
            warnings.append(f"The gain over random is not certain: {gate.reason}")
        if strategy == "auto" and used == "matched":
            warnings.append("No law decided this: it is random text in the target's mix.")
        told = chosen.draw.facts
        content = {
            "strategy": strategy,
            "used": used,
            "candidate": wanted if strategy == "auto" and wanted != self.without_law else None,
            "budget": self.budget,
            "unit": "chunk" if self.documents is None else "document",
            **facts(self.census, self.judge.frame, chosen.tally),
            "target": told.get("target"),
            "draw": {k: v for k, v in told.items() if k != "target"},
            "law": _of_law(law, entry) if law and entry else None,
            "predicted": seen.predicted if seen else None,
            "candidate_predicted": view.predicted if view and used != wanted else None,
            "gate": asdict(gate) if gate else None,
            "budget_curve": view.curve if view else None,
            "budget_curve_of": wanted if view else None,
            "samples": samples(chosen.sample, chosen.sample_times, self.judge.frame.bins, self.seed),
            "warnings": warnings
            + self.notes(chosen, used)
            + (_who_predicts(view) if used == wanted != "matched" else []),
        }
        return content, chosen

    def _has_gate(self, strategy: str, wanted: str) -> bool:
        """Random needs none; a strategy asked for by name has one only if there are pilots to judge by."""
        asked = strategy == "auto" or (self.judge.oracle is not None and self.judge.oracle.resampled is not None)
        return asked and wanted not in ("random", "full") and (strategy != "auto" or wanted != self.without_law)

    @cached_property
    def without_law(self) -> str:
        """What `auto` takes where no law has a choice, or the gate is shut: random text, in the target's mix if a
        target of enough documents is known. Not of whole documents: the mix is one of chunks."""
        if self.toward is None or self.documents is not None:
            return "random"
        pool = self.census.bin_tokens(self.judge.frame.bins) / self.census.total
        return "random" if np.allclose(self.toward, pool, rtol=0, atol=SAME_MIX) else "matched"

    def told(self, strategy: str, budget: int, grow: float = 1.0) -> Options:
        """What the law tells the strategy; `grow` says how many times smaller the pool is than the one it is asked
        about."""
        options = tell(strategy, round(budget * grow), self.options, self.judge.law, self.judge.form)
        if strategy == "matched" and self.judge.has_bins:
            options = replace(options, bins=self.judge.frame.bins, toward=self.toward)
        if options.utility is not None:
            utility = replace(options.utility, unit=options.utility.unit / grow)
            options = replace(options, hedge=self.hedge, toward=self.toward, utility=utility)
        return options

    @cached_property
    def hedge(self) -> float:
        """Of an allocation: as asked, or what the law's refits advise for this pool and budget."""
        if self.options.hedge is not None or self.judge.law is None:
            return self.options.hedge or 0.0
        entry = entry_for("allocate", self.judge.law, self.judge.form)
        unique = self.census.bin_tokens(bins_of(entry))
        return hedge_of(entry, utility_of(entry), unique, self.budget, self.options.max_epochs, self.toward)

    @cached_property
    def toward(self) -> Floats | None:
        """The target's share of every bin of the law or landscape, [K]; None where no target or no bins are known."""
        if self.target is None or not self.judge.has_bins:
            return None
        bins = self.judge.frame.bins
        return target_mix(self.target, bins, self.census.bin_tokens(bins))

    def take(self, strategy: str) -> Taken:
        """The strategy carried out on the files; what another one wrote is replaced."""
        options, frame = self.told(strategy, self.budget), self.judge.frame
        if self.documents is None or self.out is None:
            return carry_out(self.scores, self.census, strategy, self.budget, self.seed, options, frame, self.out)
        return carry_out_whole(
            self.scores, self.census, *self.documents, strategy, self.budget, self.seed, options, frame, self.out,
            self.out / self.SCRATCH,
        )  # fmt: skip

    def composition(self, tally: Tally) -> Compositions:
        return tally.composition(self.judge.frame, self.judge.has_bins, self.judge.n_params)

    def outlook(self, strategy: str, taken: Taken) -> Outlook | None:
        """What the law expects of this strategy here and at other budgets; None without a law."""
        oracle, judge = self.judge.oracle, self.judge
        if oracle is None or not taken.tally.chunks:
            return None
        if strategy in ("random", "full", self.without_law):
            oracle = replace(oracle, resampled=None)  # no gate decides them
        whole = whole_pool(self.census, judge.frame, judge.has_bins, judge.n_params)
        curve = self.curve(strategy, taken) if strategy != "full" else []
        spent = _spent(taken.draw, taken.tally, self.budget)
        return look(oracle, self.composition(taken.tally), spent, whole, curve)

    def curve(self, strategy: str, taken: Taken) -> list[tuple[Compositions, float]]:
        """The strategy drawn again at other budgets, each with the tokens random is given.

        It is drawn from the sample of the pool, and what is drawn scaled up again.
        """
        most = float(self.census.total)
        if strategy == "allocate":
            most *= self.options.max_epochs
        elif "band_tokens" in taken.draw.facts:
            most = max(0.95 * taken.draw.facts["band_tokens"], self.budget)
        pool = taken.sample
        units, unit_of = by_document(pool) if self.documents else (pool, np.arange(len(pool)))
        grow = self.census.total / pool.tokens
        found = []
        for budget in budgets(self.budget, int(most)):
            fewer = min(int(budget / grow), int(most / self.census.total * pool.tokens))
            told = replace(self.told(strategy, fewer, grow), forced=frozenset(), forbidden=frozenset(), contained=None)
            other = draw(strategy, units, fewer, self.seed, told)
            if other.times.any():
                tally = Tally.of(self.judge.frame, pool.rows(self.seed), other.times[unit_of])
                spent = scaled(self.composition(tally), [grow], copies=False)
                found.append((spent, grow * _spent(other, tally, fewer)))
        return found

    def _doubts_of_target(self, kept_to: bool) -> list[str]:
        """What the target could not tell of its mix, where a draw keeps to it or would have."""
        if self.target is None or not self.judge.has_bins or not kept_to:
            return []
        bins = self.judge.frame.bins
        found, documents = [], self.target.document.max() + 1
        if documents < LEAST_DOCUMENTS:
            found.append(
                f"The target has {documents} documents, too few to say where it lies: the pool's mix is kept to."
            )
        elif bins.levels and self.target.axis != bins.axis:
            found.append(
                f"The target's scores hold no {bins.axis}, so its mix is one of perplexity alone"
                + ("; give those of `pplscape locate`." if bins.axis == "likeness" else ".")
            )
        return found

    def notes(self, taken: Taken, used: str) -> list[str]:
        """Warnings about a draw of the strategy `used`, in words."""
        found, told = self._doubts_of_target(used in ("allocate", "matched", self.without_law)), taken.draw.facts
        lost = taken.rejected.total()
        if lost:
            found.append(f"{lost} scored chunks were left out: their score is not a number or they hold no token.")
        if told.get("feasible") is False:
            asked, target = told["asked"], told["target"]
            found.append(
                f"No subset of {self.budget} tokens has mean {asked['mean']:.4g} and spread {_word(asked['std'])}; "
                f"taken instead: mean {target['mean']:.4g}, spread {_word(target['std'])} ({asked['scale']})."
            )
        if told.get("unspent"):
            found.append(f"{told['unspent']} tokens were left unspent: only harmful bins could fill them.")
        elif not taken.tally.chunks:
            unit = "chunk" if self.documents is None else "document"
            found.append(f"The budget of {self.budget} tokens is less than one {unit}: nothing was selected.")
        if told.get("stopped"):
            found.append(f"Stopped {told['stopped']} tokens below the budget: the distance asked for was reached.")
        if self.documents is not None and told.get("target"):
            found.append("The target's mean and spread are those of whole documents' scores, not of their chunks.")
        return found


def _of_law(law: Law, entry: Law) -> dict[str, Any]:
    return {"form": entry.form, "scale": entry.scale, "chosen": law.form, "trained": law.trained}


def _who_predicts(view: Outlook | None) -> list[str]:
    """Said where the law that predicts losses is not the one that decided the selection."""
    if view is None or view.predicted["form"] == view.predicted["decider"]:
        return []
    told, decider = view.predicted["form"], view.predicted["decider"]
    whose = "resamples in which the law is chosen anew" if view.gate.resamples else f"the {decider} law"
    return [f"Losses are predicted by the chosen law ({told}), gains by {whose}; {decider} decided the selection."]


def _spent(drawn: Draw, tally: Tally, budget: int) -> float:
    """Tokens that random is given: as many, or the whole budget where some was left unspent on purpose."""
    return float(budget) if drawn.facts.get("unspent") else float(tally.tokens)


def _word(value: float | None) -> str:
    return "any" if value is None else f"{value:.4g}"


def edges_of(law: Law | None) -> tuple[float, ...]:
    """Edges of the law's bins, which the census must be told."""
    return bins_of(law).edges if law is not None and law.bins and law.bins["edges"] is not None else ()


def judge_of(
    scores: Scores, census: Census, law: Law | None, runs: RunTable | None, form: str | None = None,
    resamples: int = 200, seed: int = 0, bins: Bins | None = None,
) -> Judge:  # fmt: skip
    """Law and pilots, checked against each other and the scores (UserError where they do not belong together).

    `census`: of these scores, told the edges of the law's bins, or without a law of `bins`, if there are any.
    """
    if law is None and bins is not None:
        check_axis(bins, scores.axis)
        return Judge(None, form, None, frame_of(census, bins), True, None, [])
    if law is None:
        frame = frame_of(census, census.make_bins(BINS_WITHOUT_LAW))
        return Judge(None, form, None, frame, False, None, [])
    check_same_scores(law, scores.manifest)
    check_same_unit(law, census)
    law_bins = bins_of(law) if law.bins and law.bins["edges"] is not None else None
    if law_bins:
        check_axis(law_bins, scores.axis)
    bins = law_bins or census.make_bins(BINS_WITHOUT_LAW)
    limits: Limits = {s: found for s in SCALES if (found := limits_of(law, s)) is not None}
    warnings = []
    moved = float(np.abs(census.bin_tokens(bins) / census.total - np.asarray(bins.share)).sum() / 2)
    if moved > ANOTHER_POOL:
        warnings.append(f"The law was fitted on another pool: {moved:.0%} of the tokens lie in other bins here.")
    if runs is not None and law_bins is not None:
        runs = _with_bins(runs, law_bins)
    n_params = None if runs is None or runs.n_params is None else float(np.median(runs.n_params))
    frame, entry = frame_of(census, bins, limits), law.alternative(form) if form else law
    trusted = law if _can_ask(law, whole_pool(census, frame, law_bins is not None, n_params)) else entry
    oracle = oracle_of(trusted, entry, runs, resamples, seed)
    return Judge(law, form, oracle, frame, law_bins is not None, n_params, warnings)


def _can_ask(law: Law, asked: Compositions) -> bool:
    """Whether what is known here suffices for the law's form, and the form's code is there."""
    try:
        return not law.shape.missing(asked, law.frame)
    except UserError:
        return False


def check_same_scores(law: Law, manifest: Mapping[str, Any]) -> None:
    """UserError if the law was fitted on scores of another model, tokenizer or chunk length than the `manifest`'s."""
    made_with: Mapping[str, Any] = manifest.get("counts", {}).get("facts", {})
    for name, word in (("model", "model"), ("tokenizer", "tokenizer"), ("chunk_tokens", "chunk length")):
        there, here = getattr(law, name), made_with.get(name)
        if there is not None and here is not None and there != here:
            raise UserError(
                f"The law was fitted on scores with {word} {there}, these scores were made with {here}; "
                "nothing may be mixed: score again, or fit a law on pilots of these scores."
            )


def check_same_unit(law: Law, census: Census) -> None:
    """UserError if most chunks lie outside the range (winsor limits) of the pool that the law was fitted on."""
    limits = limits_of(law, "nll")
    if limits is None:
        return
    inside = (census.x >= limits[0]) & (census.x <= limits[1])
    if census.count_at[inside].sum() < census.n / 2:
        low, high = census.limits("nll")
        raise UserError(
            f"These scores run from {low:.3g} to {high:.3g}, those the law was fitted on from {limits[0]:.3g} to "
            f"{limits[1]:.3g} nats/token: another unit or another model's scores; score again, or fit another law."
        )


def _with_bins(runs: RunTable, bins: Bins) -> RunTable:
    if runs.bins_hash is not None and runs.bins_hash != bins.hash:
        raise UserError(f"The runs have bins {runs.bins_hash}, the law {bins.hash}: these are different landscapes.")
    if runs.bin_tokens is not None and runs.bin_share is None:
        return replace(runs, bin_share=np.asarray(bins.share), bin_levels=bins.n_levels)
    return runs


def oracle_of(trusted: Law, entry: Law, runs: RunTable | None, resamples: int, seed: int) -> Oracle:
    """Losses by the law `trusted`, beside those of the `entry` that decides the selection; in resamples the choice
    between that entry and the best law of D alone is made again."""

    def interval(asked: Compositions) -> tuple[Floats, Floats]:
        if not trusted.resamples:
            nothing = np.full(len(asked), np.nan)
            return nothing, nothing
        return trusted.predict_interval(asked)

    def redo(asked: Compositions) -> Floats:
        from pplscape.laws.again import losses_again

        assert runs is not None
        return losses_again(entry, runs, asked, resamples, seed)

    told = (trusted.form, None if entry is trusted else entry.predict, entry.form)
    if runs is None or resamples == 0 or not entry.resamples:
        return Oracle(trusted.predict, interval, None, 0, *told)
    return Oracle(trusted.predict, interval, redo, random_seeds(runs), *told)
