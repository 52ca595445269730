"""Which pilots to run next, given those that ran: the trunks that tell most about the decision. Pure numpy.

The decision is whether some selection beats random at the main budget. Its question: the differences between the loss
of random and that of every regime that could be selected, at the budget and at the largest pilot, each weighted by how
often the law's refits call that selection the best. Trunks (a regime, all sizes, one seed) are added greedily by
V-optimality per token (`laws.information`); a few size grids are tried and the one that leaves the least variance is
kept. What is found is relative to one law: model choice stays the gate's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pplscape.design import SIZE_FACTORS, Fine, Regime, candidates, diagnose, most_shares, thinned, trunk_tokens
from pplscape.errors import UserError
from pplscape.laws.choose import Trial, choose
from pplscape.laws.fit import Fit, setting_of
from pplscape.laws.forms.base import Floats
from pplscape.laws.information import Knowledge, believed, derivatives, greedy, v_optimal
from pplscape.laws.law import Law, law_of
from pplscape.laws.read import proxy_words
from pplscape.laws.table import labels, noise_weights, seed_noise, size_classes
from pplscape.laws.uncertainty import Uncertainty, uncertainty
from pplscape.runs import Compositions, RunTable
from pplscape.statistics import Bins

DRAWS = 16
"""Draws of theta over which a design is averaged."""
REFITS = 200
SIZE_STEPS = (1.0, 2.0, 4.0)
"""Largest new pilots that are tried, as multiples of the largest so far. None is smaller: on published tables worth per
FLOP bought many small runs, and the law's misfit to them spoilt what it says of large ones (results/adaptive-design).
"""
SURE = 0.95
"""Confidence from which on the decision counts as settled."""
MISFIT = 4.0
"""A law that misses the runs by more than this times their seed noise settles nothing."""
BOUNDS_HELD = "17 of 20"
"""Bounds of level SURE that held in a simulated world that the law fits only roughly: world `dirty` of
experiments/results/adaptive_worlds.json (docs/results/adaptive-design.md)."""
LEAST_ERROR = 1e-12
SAME_PLACE, SAME_SHARES = 0.02, 0.02
"""A candidate within this share of the pool's spread, and this share of tokens in other bins, is a regime that ran."""


@dataclass(frozen=True)
class Menu:
    """What can be run and selected on a landscape: K regimes, the first of them random."""

    kinds: list[str]
    shares: list[Floats | None]
    whole: Compositions
    """[K] the regimes with the tokens of the whole pool each."""

    def at(self, tokens: float) -> Compositions:
        """The regimes at a size [K]."""
        share = tokens / float(self.whole.tokens[0])
        counts = ("tokens", "unique_tokens", "bin_tokens")
        columns = {k: v * share if k in counts else v for k, v in vars(self.whole).items() if v is not None}
        return Compositions(**columns)


def menu_of(facts: Mapping[str, Any], budget: int, n_params: float | None, seed: int) -> Menu:
    """Random and the candidates of a plan with the compositions they will have, from the content of landscape.json.

    Moments as those of subsets are taken: chunk-weighted, winsorised.
    """
    inside = facts["fine_bins"]
    fine = Fine(*(np.asarray(inside[k], float) for k in ("share", "mean", "variance")))
    bins = Bins.from_json(facts["bins"])
    coarse, depletion = bins.of_cells(fine.mean), budget / facts["tokens"]
    found = candidates(fine, coarse, most_shares(fine, depletion), seed, bins.n_levels)
    shares = np.stack([fine.share, *(thinned(s) for _, s in found)])
    chunks = shares / fine.share * np.asarray(inside["chunks"], float)
    chunks /= chunks.sum(1, keepdims=True)
    columns: dict[str, Floats] = {}
    for scale, taken in inside["winsorised"].items():
        mean, variance = (np.asarray(taken[k], float) for k in ("mean", "variance"))
        columns[f"{scale}_mean"] = chunks @ mean
        square = chunks @ (variance + mean**2)
        columns[f"{scale}_std"] = np.sqrt(np.maximum(square - columns[f"{scale}_mean"] ** 2, 1e-12))
    if n_params is not None:
        columns["n_params"] = np.full(len(shares), n_params)
    tokens = np.full(len(shares), float(facts["tokens"]))
    member = np.eye(bins.n)[coarse]
    whole = Compositions(tokens=tokens, unique_tokens=tokens, bin_tokens=shares @ member * tokens[:, None], **columns)
    return Menu(["random", *(kind for kind, _ in found)], [None, *(s for s in shares[1:])], whole)


@dataclass(frozen=True)
class Evidence:
    """A law of composition fitted to the runs so far, with its refits."""

    runs: RunTable
    fit: Fit
    refits: Uncertainty
    law: Law

    def losses(self, asked: Compositions) -> tuple[Floats, Floats]:
        """Predicted losses ([n], [B, n] by refit), nats/token."""
        data = self.fit.form.data(asked, self.fit.frame)
        draws, _ = self.fit.form.evaluate(self.refits.draws, data, self.fit.frame, jacobian=False)
        return np.exp(self.fit.log_loss(asked)), np.exp(draws)


def evidence_of(
    runs: RunTable, forms: Sequence[str] | None = None, scale: str | None = None, seed: int = 0
) -> Evidence:
    """The chosen law, or where it sees no composition the best one that does; UserError if none can be fitted."""
    choice = choose(runs, forms, scale)
    fitted = [t for t in choice.fitted if t.form.uses_composition]
    if not fitted:
        reasons = "; ".join(f"{t.spec}: {t.skipped}" for t in choice.trials if t.form.uses_composition)
        raise UserError(
            f"Adaptive planning needs a law of composition, and none can be fitted to these runs ({reasons}); "
            "plan without --adaptive first."
        )
    trial = next((t for t in fitted if t.spec == choice.chosen), None) or min(fitted, key=_error)
    assert trial.fit is not None
    refits = uncertainty(trial.fit, runs, REFITS, seed)
    return Evidence(runs, trial.fit, refits, law_of(trial.fit, runs, refits))


def _error(trial: Trial) -> float:
    assert trial.scores is not None
    return float(trial.scores["cv_mae"])


@dataclass(frozen=True)
class Decision:
    """Whether the best selection beats random at the budget: what is known, and what the plan would add."""

    form: str
    selections: int
    """How many there are to choose from."""
    gain: float
    """Predicted L_random - L_selection of the best, nats/token."""
    error: float
    """Its standard error now,"""
    error_after: float
    """and expected after the planned pilots."""
    sure: float
    """Confidence that a selection beats random or, where `gain` is not above 0, that none does."""
    settles: float
    """Chance that after the planned pilots `sure` exceeds SURE."""
    largest: float
    """No selection is better than random by more than this, nats/token, with confidence SURE if the law is right; if
    not, see BOUNDS_HELD."""
    noise: float
    """Noise of one run around the law, nats/token: a smaller gain is not worth looking for."""
    misfit: float | None
    """That noise over the seed noise of repeated regimes; None where nothing is repeated."""
    state: str
    """`settled`, `flat` or `open`."""

    @property
    def sentence(self) -> str:
        gain = (
            f"by the {self.form} law the best of {self.selections} selections is {abs(self.gain):.4f} nats/token "
            f"{'better' if self.gain > 0 else 'worse'} than random at the budget (se {self.error:.4f}; confidence "
            f"{self.sure:.0%}, the choice of the best allowed for)"
        )
        if self.state == "settled":
            return f"The decision is settled: {gain}. Further pilots are not likely to change it."
        if self.state == "flat":
            return (
                f"Flat: if the {self.form} law is right, more pilots will not find a difference larger than "
                f"{self.largest:.4f} nats/token, less than the noise of one run ({self.noise:.4f}). Use random. "
                f"(A {SURE:.0%} bound; where a law fitted only roughly, {BOUNDS_HELD} such bounds held in simulation.)"
            )
        if self.misfit is not None and self.misfit > MISFIT:
            return (
                f"Open: the {self.form} law misses these runs by {self.misfit:.1f} times their seed noise; nothing it "
                "says is sure."
            )
        return (
            f"Open: {gain}. These pilots are expected to bring the se to {self.error_after:.4f}; the chance that they "
            f"settle the decision is {self.settles:.0%}."
        )


@dataclass(frozen=True)
class Question:
    """Differences to random that decide, their weights, and the law's refits of the best of them."""

    lines: Floats
    """[S, m, p] derivatives of L_random - L_selection in coordinates of the basis."""
    weight: Floats
    """[m], sums to 1."""
    gains: Floats
    """[K] at the budget, nats/token, by the law;"""
    errors: Floats
    """[K] their standard errors: root mean square distance of the refits, which know the noise only roughly (t)."""
    luck: Floats
    """[B] how many standard errors the luckiest selection of each refit is ahead of what the law says of it."""
    allowed: NDArray[np.bool_]
    """[K] true where the law does not extrapolate in composition; random never."""


def question_of(evidence: Evidence, menu: Menu, budget: float, largest: float, theta: Floats) -> Question:
    """What is to be decided, at draws theta [S, p]."""
    here = menu.at(budget)
    allowed = ~evidence.law.extrapolates(menu.at(largest))
    allowed[0] = False
    if not allowed.any():
        allowed[1:] = True
    losses, draws = evidence.losses(here)
    best = np.where(allowed, draws, np.inf).argmin(1)
    share = np.bincount(best, minlength=len(losses)) / len(best)
    chosen = np.flatnonzero(share)
    sizes = sorted({float(budget), float(largest)})
    setting = setting_of(evidence.fit.form, evidence.runs, evidence.fit.delta)
    lines = []
    for tokens in sizes:
        log_loss, slope = derivatives(setting, theta, menu.at(tokens))
        slope = slope * np.exp(log_loss)[..., None]
        lines.append(slope[:, :1] - slope[:, chosen])
    gains = losses[0] - losses
    away = draws[:, :1] - draws - gains
    errors = np.maximum(np.sqrt(np.mean(away**2, axis=0)), LEAST_ERROR)
    luck = np.where(allowed, away / errors, -np.inf).max(1)
    weight = np.tile(share[chosen], len(sizes)) / len(sizes)
    return Question(np.concatenate(lines, axis=1), weight, gains, errors, luck, allowed)


def decide(evidence: Evidence, question: Question, ratio: float) -> Decision:
    """The decision now, and after pilots that leave `ratio` of the question's variance.

    The best of many selections looks better than it is. Confidence is therefore simultaneous: the gain must exceed what
    the luckiest selection of a refit has by chance, all in standard errors (max-t, Westfall and Young 1993).
    """
    gains, errors, allowed = question.gains, question.errors, question.allowed
    best = int(np.where(allowed, gains, -np.inf).argmax())
    gain, error, reach = float(gains[best]), float(errors[best]), float(np.quantile(question.luck, SURE))
    ahead = gain / error if gain > 0 else float((-gains / errors)[allowed].min())
    sure, after = float(np.mean(question.luck < ahead)), error * float(np.sqrt(ratio))
    moved = max(float(np.sqrt(error**2 - after**2)), LEAST_ERROR)
    settles = sum(float(stats.norm.cdf((side * gain - reach * after) / moved)) for side in (1, -1))
    largest = max(float((gains + reach * errors)[allowed].max()), 0.0)
    misfit = misfit_of(evidence)
    noise = evidence.refits.noise.total * float(np.median(evidence.runs.loss))
    state = "flat" if largest < noise else "settled" if sure > SURE else "open"
    if misfit is not None and misfit > MISFIT:
        state = "open"
    n, form = int(allowed.sum()), evidence.fit.form.spec
    return Decision(form, n, gain, error, after, sure, min(settles, 1.0), largest, noise, misfit, state)


def misfit_of(evidence: Evidence) -> float | None:
    """Noise around the law over the seed noise of repeated regimes; None where nothing is repeated."""
    seeds = seed_noise(evidence.runs)
    return evidence.refits.noise.total / seeds if seeds else None


@dataclass(frozen=True)
class Next:
    """The trunks to run next: indices in the menu, in the order they pay, at these sizes (tokens)."""

    chosen: list[int]
    sizes: list[int]
    decision: Decision


def next_trunks(
    evidence: Evidence, menu: Menu, budget: int, pilot_tokens: int, cooldown_share: float, least: int
) -> Next:
    """V-optimal trunks for `pilot_tokens`, no run above `budget` nor below `least` tokens. UserError if none fits.

    A composition may come again, unless the law misses its runs by MISFIT times their noise: such a law takes a repeat
    for news, although it would only be missed again. Then only those that did not run are planned, each once.
    """
    fit, runs = evidence.fit, evidence.runs
    setting, theta = setting_of(fit.form, runs, fit.delta), evidence.refits.draws[:DRAWS]
    _, jacobian = derivatives(setting, theta)
    known = Knowledge.of(
        believed(setting, fit.strength), jacobian, labels(runs, "group"), evidence.refits.noise, noise_weights(runs)
    )
    so_far = float(runs.tokens.max())
    question = question_of(evidence, menu, budget, so_far, theta)
    score, before = v_optimal(question.lines, question.weight), known.variance(question.lines) @ question.weight
    again = (misfit_of(evidence) or 0.0) <= MISFIT
    ran = {} if again else known_names(menu, runs)
    able = np.array([k for k in range(len(menu.kinds)) if k not in ran] or range(len(menu.kinds)))
    grids = size_grids(so_far, budget, least)
    tried = []
    for sizes in grids:
        trunks = np.stack([derivatives(setting, theta, menu.at(size))[1][:, able] for size in sizes], axis=-2)
        cost = float(trunk_tokens(sizes, cooldown_share))
        chosen, then = greedy(
            known, np.swapaxes(trunks, 0, 1), np.full(len(able), cost), float(pilot_tokens), score, again=again
        )
        if chosen:
            ratio = float(np.mean(then.variance(question.lines) @ question.weight / before))
            tried.append((ratio, able[chosen].tolist(), sizes))
    if not tried:
        need = trunk_tokens(grids[0], cooldown_share)
        raise UserError(
            f"{pilot_tokens:,} pilot tokens do not pay for one more trunk of {grids[0][-1]:,} tokens; "
            f"give --pilot-tokens {need:,} or more."
        )
    ratio, chosen, sizes = min(tried, key=lambda t: t[0])
    return Next(chosen, sizes, decide(evidence, question, ratio))


def size_grids(so_far: float, budget: int, least: int) -> list[list[int]]:
    """Doubling grids over 8x up to a multiple of `so_far`, smallest first; UserError if none is possible."""
    tops = sorted({min(int(so_far * step), budget) for step in SIZE_STEPS})
    grids = [[int(top * f) for f in SIZE_FACTORS] for top in tops]
    grids = [sizes for sizes in grids if sizes[0] >= least]
    if not grids:
        raise UserError(
            f"The smallest pilot of a grid up to {tops[-1]:,} tokens would have under {least:,} tokens (two optimiser "
            "steps); give a smaller --step-tokens."
        )
    return grids


def regimes_of(chosen: Sequence[int], menu: Menu, runs: RunTable) -> list[Regime]:
    """The trunks as regimes with seeds of their own; a composition that ran before keeps its name."""
    names = known_names(menu, runs)
    seed = 0 if runs.seed is None else int(runs.seed.max()) + 1
    used = set(labels(runs, "regime"))
    found = []
    for place, k in enumerate(chosen):
        if k not in names:
            names[k] = _free_name(menu.kinds[k], used)
            used.add(names[k])
        shares = menu.shares[k]
        kept = None if shares is None else tuple(float(v) for v in shares)
        assert menu.whole.nll_mean is not None
        assert menu.whole.nll_std is not None
        mean, std = float(menu.whole.nll_mean[k]), float(menu.whole.nll_std[k])
        found.append(Regime(names[k], menu.kinds[k], seed + place, kept, mean, std))
    return found


def _free_name(kind: str, used: set[str]) -> str:
    taken = [int(m[1]) for name in used if (m := re.fullmatch(rf"{kind}-(\d+)", name))]
    return f"{kind}-{max(taken, default=-1) + 1}"


def known_names(menu: Menu, runs: RunTable) -> dict[int, str]:
    """Which regimes of the menu ran before, by their composition: index -> name. Random is always `random`."""
    found = {0: "random"}
    if runs.nll_mean is None or runs.nll_std is None or runs.bin_tokens is None:
        return found
    whole, regimes = menu.whole, labels(runs, "regime")
    assert whole.nll_mean is not None
    assert whole.nll_std is not None
    assert whole.bin_tokens is not None
    shares = whole.bin_tokens / whole.tokens[:, None]
    for name in dict.fromkeys(regimes.tolist()):
        rows = (regimes == name) & (size_classes(runs.tokens) == size_classes(runs.tokens).max())
        if not rows.any() or name == "random":
            continue
        moved = np.abs(whole.nll_mean - runs.nll_mean[rows].mean()) + np.abs(whole.nll_std - runs.nll_std[rows].mean())
        bins = (runs.bin_tokens[rows] / runs.bin_tokens[rows].sum(1, keepdims=True)).mean(0)
        other = np.abs(shares - bins).sum(1) / 2
        near = np.flatnonzero((moved < SAME_PLACE * whole.nll_std[0]) & (other < SAME_SHARES))
        near = near[near > 0]
        if len(near):
            found.setdefault(int(near[moved[near].argmin()]), name)
    return found


def describe(found: Next, regimes: Sequence[Regime], runs: RunTable) -> dict[str, Any]:
    """`design` and `adaptive` of plan.json: diagnostics of all trunks, old and new; the decision, and whose it is."""
    groups = labels(runs, "group")
    first = [int(np.flatnonzero(groups == g)[-1]) for g in dict.fromkeys(groups.tolist())]
    assert runs.nll_mean is not None
    assert runs.nll_std is not None
    old = [Regime(str(groups[i]), "", 0, None, float(runs.nll_mean[i]), float(runs.nll_std[i])) for i in first]
    sizes = sorted({*found.sizes, int(runs.tokens.min()), int(runs.tokens.max())})
    design = diagnose([*old, *regimes], sizes) | {"runs": len(regimes) * len(found.sizes), "trunks": len(regimes)}
    sentence, trained = found.decision.sentence, runs.meta.get("trained")
    if trained and trained["proxy_of"]:
        sentence += f" {proxy_words(trained)} These trunks are for {trained['model']} too (`pilot --proxy`)."
    decision = asdict(found.decision) | {"sentence": sentence}
    return {"design": design, "adaptive": decision | {"earlier_trunks": len(first)}}
