"""From a law to a strategy and what it must be told: which form decides what, and its target or utilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pplscape.draw import hedge
from pplscape.draw.options import Options, Target
from pplscape.draw.program import Utility
from pplscape.errors import UserError
from pplscape.runs import Compositions
from pplscape.statistics import Bins, Floats, Scale

if TYPE_CHECKING:  # laws need scipy, half a second that a draw without a law need not wait for
    from pplscape.laws.law import Law

PAPER_FAMILY = ("paper", "extended")
MOMENT_FORMS = (*PAPER_FAMILY, "quadratic", "monotone")


def family(law: Law) -> str:
    """`utility` of `utility:power`."""
    return law.form.partition(":")[0]


def candidate(law: Law) -> str | None:
    """The strategy that serves this law's form best; None when composition does not matter to it (random)."""
    if family(law) == "utility":
        return "allocate"
    return "maxent" if target_of(law) else None


def challenger(law: Law) -> Law:
    """The entry that `auto` puts before the gate: the law of composition with the smallest cross-validation error, also
    where the choice fell on a simpler one, or on none. The gate, not the choice of law, guards against chance: in every
    resample it decides again whether composition matters.
    """
    errors = {c["form"]: c["cv_mae"] for c in law.choice if c.get("cv_mae") is not None}
    entries = [e for e in (law, *law.alternatives) if candidate(e) and e.form in errors]
    return min(entries, key=lambda e: errors[e.form]) if entries else law


def target_of(law: Law) -> Target | None:
    """Where a moment law wants the subset, on the law's scale; None if it has no such place.

    The optimum (mean, standard deviation) confined to where pilots were; for a monotone law the end of the pilots'
    range of means where the loss is lower, with the spread free.
    """
    if family(law) == "monotone" and law.region.get("mean"):
        low, high = law.region["mean"]
        return Target(high if law.params["a"] > 0 else low, None)
    mean, spread = law.optimum.get("mu"), law.optimum.get("sigma")
    if family(law) not in MOMENT_FORMS or mean is None or spread is None:
        return None
    return Target(float(mean), float(spread))


def entry_for(strategy: str, law: Law, form: str | None) -> Law:
    """The law, or the alternative in law.json, that decides `strategy`; UserError if there is none."""
    if form:
        return law.alternative(form)
    entries = (law, *law.alternatives)
    if strategy == "allocate":
        fitting = [e for e in entries if family(e) == "utility"]
    elif strategy == "dos":
        fitting = [e for e in entries if family(e) in PAPER_FAMILY and target_of(e)]
    else:
        fitting = [e for e in entries if target_of(e)]
    if not fitting:
        there = ", ".join(e.form for e in entries)
        need = "utility" if strategy == "allocate" else "paper-family" if strategy == "dos" else "moment"
        raise UserError(f"Strategy {strategy} needs a {need} law with an optimum; law.json has {there}.")
    return fitting[0]


def tell(strategy: str, budget: int, options: Options, law: Law | None, form: str | None) -> Options:
    """`options` completed by the law for this strategy and budget. A target given by the user stays."""
    if strategy == "allocate":
        if law is None:
            raise UserError("Strategy allocate needs a law with bin utilities: pass --law of a fit with form utility.")
        entry = entry_for(strategy, law, form)
        return replace(options, utility=utility_of(entry), bins=bins_of(entry))
    if strategy not in ("dos", "maxent"):
        return options
    if options.target is not None:
        judge = law.alternative(form) if law and form else law
        fits = judge is not None and judge.scale == options.scale and family(judge) in MOMENT_FORMS
        loss = loss_of(judge, budget) if judge and fits else None
        return replace(options, limits=limits_of(law, options.scale), loss=loss)
    if law is None:
        raise UserError(f"Strategy {strategy} needs a target: pass --law, or --target-mean and --target-std.")
    entry = entry_for(strategy, law, form)
    scale: Scale = "ppl" if entry.scale == "ppl" else "nll"
    target = target_of(entry)
    if target is None:
        raise UserError(f"The {entry.form} law has no optimum to aim at; pass --target-mean and --target-std.")
    return replace(options, scale=scale, target=target, limits=limits_of(entry, scale), loss=loss_of(entry, budget))


def limits_of(law: Law | None, scale: Scale) -> tuple[float, float] | None:
    """The winsor limits a law was fitted with."""
    if law is None or not law.winsor or scale not in law.winsor:
        return None
    low, high = law.winsor[scale]
    return float(low), float(high)


def bins_of(law: Law) -> Bins:
    """The bins a law was fitted on; UserError if it has none."""
    if not law.bins or law.bins["edges"] is None:
        raise UserError("law.json does not say where its bins are cut; fit again with --landscape.")
    return Bins.from_json(law.bins)


def utility_of(law: Law) -> Utility:
    """What decides an allocation, from a utility law's parameters."""
    saturating = "tau" in law.params
    share = law.frame.bin_share
    if family(law) != "utility" or share is None:
        raise UserError(f"Strategy allocate needs bin utilities; the law's form is {law.form}.")
    u = np.array([law.params[f"u_{b}"] for b in range(len(share))])
    return Utility(
        u, np.asarray(share), "saturating" if saturating else "power",
        law.params["tau" if saturating else "gamma"], law.frame.unit,
    )  # fmt: skip


def hedge_of(
    law: Law, utility: Utility, unique: Floats, budget: int, max_epochs: float, toward: Floats | None = None
) -> float:
    """The strength of the hedge that this law's refits ask for, the least if it has none; see `draw/hedge.py`.

    `unique` [K]: tokens that the pool holds in each bin; `toward` [K]: the target's mix, None where it is not known.
    """
    strengths = hedge.TO_POOL if toward is None else hedge.TO_TARGET
    if not law.resamples:
        return strengths[0]
    plans = [hedge.allocate(utility, unique, budget, t, max_epochs, toward=toward).tokens for t in strengths]
    tokens = np.array([unique * min(budget / unique.sum(), max_epochs), *plans])
    asked = Compositions(tokens.sum(1), bin_tokens=tokens, bin_unique_tokens=np.minimum(tokens, unique))
    losses = np.exp(law.draw_log_losses(asked))
    return hedge.choose(losses[:, :1] - losses[:, 1:], strengths)


def loss_of(law: Law, budget: int) -> Callable[[Floats, Floats], Floats]:
    """Predicted loss [n] at (mean [n], std [n]) for `budget` tokens; infinite where no pilot has been near."""

    def loss(mean: Floats, std: Floats) -> Floats:
        columns = {f"{law.scale}_mean": mean, f"{law.scale}_std": np.maximum(std, 1e-12)}
        asked = Compositions(tokens=np.full(len(mean), float(budget)), **columns)
        with np.errstate(all="ignore"):
            return np.where(law.extrapolates(asked), np.inf, law.predict(asked))

    return loss
