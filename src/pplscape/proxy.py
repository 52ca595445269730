"""Does what is best for a small model hold for a larger one? Runs of both on the same regimes; pure numpy.

Both models saw the same chunks in the same order, so their seed noise is correlated: what a lucky draw does for one it
does, in part, for the other. All that is said of the target's true losses allows for that (`true_losses`). Two noisy
rankings cannot agree perfectly even if the true ones do; how far they can is the `ceiling`.

Arrays of two rows are proxy first, target second; losses in nats/token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from pplscape.draw.auto import hedge_of, utility_of
from pplscape.draw.hedge import allocate
from pplscape.laws.law import Law
from pplscape.laws.table import labels, size_classes
from pplscape.runs import Compositions, RunTable
from pplscape.statistics import Floats

REFERENCE = "random"
LEVEL = 0.9
DRAWS = 4000
KEPT = 0.5
"""Share of the achievable gain over random that a transferred choice must keep."""
SURE = 0.9
"""Probability of keeping it from which the proxy is trusted; below 1 - SURE it is not."""
LEAST_REGIMES = 6
"""Fewer shared regimes say little of a ranking: with 5, one order in 120 is perfect by chance."""
LEAST_FREEDOM = 2
"""Degrees of freedom of the seed noise: three seeds of one regime."""
MOST_SEEDS = 20
"""More would be needed only for a difference that is not worth them."""
MOST_CORRELATION = 0.95
"""Of the two models' seed noise, which a few seeds estimate badly."""
LEAST_VARIANCE = 1e-300
"""Losses that are all equal have none."""
TRUST, DISTRUST, TOO_FEW = "trust", "do not trust", "too few runs to say"


@dataclass(frozen=True)
class Noise:
    """Seed noise of one run of each model at one size: covariance [2, 2] relative to the loss, and the degrees of
    freedom behind the model that has fewer."""

    covariance: Floats
    freedom: int

    def as_dict(self) -> dict[str, float]:
        """Relative standard deviations of one run, their correlation, degrees of freedom."""
        proxy, target = np.sqrt(self.covariance.diagonal())
        correlation = float(self.covariance[0, 1] / max(proxy * target, 1e-30))
        return {"proxy": float(proxy), "target": float(target), "correlation": correlation, "freedom": self.freedom}


@dataclass(frozen=True)
class Size:
    """What both models measured at one size, on the k regimes that they share."""

    tokens: float
    regimes: tuple[str, ...]
    loss: Floats
    """[2, k] means over seeds."""
    runs: Floats
    """[2, k] seeds."""
    paired: Floats
    """[k] seeds that both ran."""
    untried: tuple[str, ...]
    """Regimes that only the proxy ran at this size, its best first."""
    first: str
    """The regime that the proxy ranks first of all that it ran."""
    noise: Noise | None

    def variance(self, noise: Noise) -> tuple[Floats, Floats, Floats]:
        """Variance of the proxy's means, of the target's, and their covariance, each [k], from seed noise."""
        of_run = noise.covariance * np.outer(self.loss.mean(1), self.loss.mean(1))
        n_proxy, n_target = self.runs
        return of_run[0, 0] / n_proxy, of_run[1, 1] / n_target, of_run[0, 1] * self.paired / (n_proxy * n_target)


Cells = dict[tuple[str, int], dict[str, float]]
"""(regime, size) -> trunk -> loss"""


def cells_of(proxy: RunTable, target: RunTable) -> tuple[Cells, Cells, Floats]:
    """Losses by regime, size and trunk of both models, and the tokens of each size; sizes are classed together."""
    classes = size_classes(np.concatenate([proxy.tokens, target.tokens]))
    tokens = np.concatenate([proxy.tokens, target.tokens])
    found: list[Cells] = []
    for runs, of in ((proxy, classes[: len(proxy)]), (target, classes[len(proxy) :])):
        cells: Cells = {}
        for regime, size, trunk, loss in zip(labels(runs, "regime"), of, labels(runs, "group"), runs.loss, strict=True):
            cells.setdefault((str(regime), int(size)), {})[str(trunk)] = float(loss)
        found.append(cells)
    return found[0], found[1], np.array([tokens[classes == c].mean() for c in range(int(classes.max()) + 1)])


def sizes_of(proxy: Cells, target: Cells, tokens: Floats) -> list[Size]:
    """Every size at which two regimes or more are shared, smallest first."""
    found = []
    for c, d in enumerate(tokens.tolist()):
        ran = {r: float(np.mean(list(v.values()))) for (r, size), v in proxy.items() if size == c}
        regimes = tuple(r for r in ran if (r, c) in target)
        if len(regimes) < 2:
            continue
        both = [[cells[r, c] for r in regimes] for cells in (proxy, target)]
        order = sorted(ran, key=lambda r: ran[r])
        found.append(
            Size(
                d, regimes,
                np.array([[np.mean(list(cell.values())) for cell in cells] for cells in both]),
                np.array([[len(cell) for cell in cells] for cells in both], float),
                np.array([len(a.keys() & b.keys()) for a, b in zip(*both, strict=True)], float),
                tuple(r for r in order if r not in regimes), order[0],
                noise_of(proxy, target, c),
            )
        )  # fmt: skip
    return found


def noise_of(proxy: Cells, target: Cells, size: int) -> Noise | None:
    """Pooled over the regimes that were repeated at this size (it falls with the size); None where a model repeated
    none."""
    variances, freedoms = [], []
    for cells in (proxy, target):
        logs = [np.log(list(v.values())) for (_, c), v in cells.items() if c == size and len(v) > 1]
        if not logs:
            return None
        freedoms.append(sum(len(v) - 1 for v in logs))
        variances.append(sum(float(((v - v.mean()) ** 2).sum()) for v in logs) / freedoms[-1])
    products, degrees = 0.0, 0
    for key in proxy.keys() & target.keys():
        trunks = sorted(proxy[key].keys() & target[key].keys())
        if key[1] == size and len(trunks) > 1:
            a, b = (np.log([cells[key][t] for t in trunks]) for cells in (proxy, target))
            products += float(((a - a.mean()) * (b - b.mean())).sum())
            degrees += len(trunks) - 1
    most = MOST_CORRELATION * np.sqrt(variances[0] * variances[1])
    shared = float(np.clip(products / degrees if degrees else 0.0, 0.0, most))
    return Noise(np.array([[variances[0], shared], [shared, variances[1]]]), min(freedoms))


def spearman(a: Floats, b: Floats) -> Floats:
    """Rank correlation of each row of a with that of b [..., k]; ties get mean ranks; 0 where all of a row are tied,
    which ranks nothing."""
    ranks = [rankdata(v, axis=-1) for v in (a, b)]
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    squares = (x * x).sum(-1) * (y * y).sum(-1)
    return np.asarray((x * y).sum(-1) / np.sqrt(np.where(squares > 0, squares, np.inf)))


def spearman_interval(rho: float, k: int) -> tuple[float, float]:
    """(low, high) of level LEVEL for a rank correlation of k regimes: Fisher's z with variance
    (1 + rho^2 / 2) / (k - 3) (Bonett and Wright 2000). A perfect one counts as half a swap of neighbours less.

    Of six simulated normal regimes it holds 92-96 %; a bootstrap over regimes, which draws perfect samples too often,
    held 75-93 %, the less the higher the correlation.
    """
    if k < 4:
        return -1.0, 1.0
    most = 1 - 6 / (k * (k * k - 1))  # one swap costs twice as much
    z = np.arctanh(np.clip(rho, -most, most))
    away = norm.ppf((1 + LEVEL) / 2) * np.sqrt((1 + rho**2 / 2) / (k - 3))
    return float(min(rho, np.tanh(z - away))), float(max(rho, np.tanh(z + away)))


def ceiling(size: Size, noise: Noise) -> float:
    """Correlation expected of the measured means if the true losses of both models agreed perfectly.

    Spearman's attenuation (1904) with noise that may be correlated: (sd sd + cov of noise) / (measured sd sd), where a
    true variance is the measured one less that of the noise. Approximate for ranks.
    """
    measured, (proxy, target, shared) = size.loss.var(1, ddof=1), size.variance(noise)
    true = np.maximum(measured - [proxy.mean(), target.mean()], 0)
    if not measured.all():
        return 0.0
    return float(np.clip((np.sqrt(true.prod()) + shared.mean()) / np.sqrt(measured.prod()), 0, 1))


def agreement(size: Size) -> dict[str, Any]:
    """Rank agreement at one size, with an interval over regimes; pairs: share in the same order, ties count half."""
    rho, (proxy, target) = float(spearman(*size.loss)), size.loss
    low, high = spearman_interval(rho, len(size.regimes))
    one, other = np.triu_indices(len(size.regimes), 1)
    same = np.sign(proxy[one] - proxy[other]) * np.sign(target[one] - target[other])
    return {
        "spearman": {"mean": rho, "low": low, "high": high},
        "pairs": float((1 + same.mean()) / 2),
        "ceiling": ceiling(size, size.noise) if size.noise else None,
    }


def true_losses(size: Size, noise: Noise, seed: int) -> Floats:
    """Draws [DRAWS, k] of the target's true losses given what both models measured.

    Normal regimes around their mean, the variance by moments (empirical Bayes): the best of several noisy losses is
    drawn back as far as noise made it best. No agreement between the models is assumed; the proxy's losses tell only
    of the noise that both share. The noise's own variance is drawn too (scaled inverse chi-squared), so few seeds give
    intervals as wide as Student's.
    """
    rng = np.random.default_rng(seed)
    factor = noise.freedom / rng.chisquare(noise.freedom, (DRAWS, 1))
    proxy, target, shared = (factor * v for v in size.variance(noise))
    measured = size.loss.var(1, ddof=1)
    true_proxy = np.maximum(measured[0] - proxy.mean(1, keepdims=True), 0)
    true_target = np.maximum(measured[1] - target.mean(1, keepdims=True), 0)
    determinant = np.maximum((true_proxy + proxy) * (true_target + target) - shared**2, LEAST_VARIANCE)
    by_proxy = -true_target * shared / determinant
    by_target = true_target * (true_proxy + proxy) / determinant
    middle = size.loss.mean(1)
    off = size.loss - middle[:, None]
    mean = middle[1] + by_proxy * off[0] + by_target * off[1]
    return np.asarray(mean + np.sqrt(np.maximum(true_target * (1 - by_target), 0)) * rng.normal(size=mean.shape))


def transferred(size: Size, seed: int) -> dict[str, Any] | None:
    """What the regime that the proxy ranks first is worth to the target; None without random or known noise."""
    if REFERENCE not in size.regimes or size.noise is None:
        return None
    random, chosen = size.regimes.index(REFERENCE), int(size.loss[0].argmin())
    drawn = true_losses(size, size.noise, seed)
    gain, achievable = drawn[:, random] - drawn[:, chosen], drawn[:, random] - drawn.min(1)
    spare = gain - KEPT * achievable
    there = achievable > 0
    return {
        "choice": size.regimes[chosen],
        "best": size.regimes[int(size.loss[1].argmin())],
        "gain": _interval(gain),
        "achievable": _interval(achievable),
        "regret": _interval(achievable - gain),
        "share": _interval(gain[there] / achievable[there]) if there.any() else None,
        "measured": {
            "gain": float(size.loss[1, random] - size.loss[1, chosen]),
            "regret": float(size.loss[1, chosen] - size.loss[1].min()),
        },
        "keeps_half": float(np.mean((spare > 0) & (gain > 0))),
        "seeds_to_settle": _seeds_to_settle(size, chosen, spare),
    }


def _interval(values: Floats) -> dict[str, float]:
    low, middle, high = np.quantile(values, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return {"mean": float(middle), "low": float(low), "high": float(high)}


def _seeds_to_settle(size: Size, chosen: int, spare: Floats) -> int:
    """Seeds of the regimes in question at which the spare gain, if it is what it seems, would be told from 0."""
    now = float(size.runs[1, chosen])
    times = (1.2816 * spare.std() / max(abs(float(np.median(spare))), 1e-9)) ** 2  # normal quantile of SURE
    return int(max(np.ceil(now * min(times, 1e6)), now + 1))


def laws_transferred(proxy: Law, target: Law, unique: Floats, budget: float) -> dict[str, Any]:
    """What the target's utility law says of the proxy law's allocation of `budget` tokens.

    `unique` [K]: tokens of each bin in the pool. Both allocate as `select` would without a target text: hedged
    towards the pool's mix, where the law has refits.
    """
    laws = proxy, target
    told = [utility_of(law) for law in laws]
    plans = [
        allocate(u, unique, budget, hedge_of(law, u, unique, round(budget), 1.0)).tokens
        for law, u in zip(laws, told, strict=True)
    ]
    tokens = np.array([unique * budget / unique.sum(), *plans])
    asked = Compositions(tokens.sum(1), bin_tokens=tokens, bin_unique_tokens=np.minimum(tokens, unique))
    random, by_proxy, own = target.predict(asked)
    weight = told[1].share / np.sum(told[1].share)
    a, b = (u.u - weight @ u.u for u in told)
    spread = np.sqrt((weight @ a**2) * (weight @ b**2))
    return {
        "budget": float(budget),
        "utilities": {"proxy": told[0].u.tolist(), "target": told[1].u.tolist()},
        "correlation": float(weight @ (a * b) / spread) if spread > 0 else None,
        "gain": float(random - by_proxy),
        "achievable": float(random - own),
        "regret": float(by_proxy - own),
    }


def compare(
    proxy: RunTable, target: RunTable, names: tuple[str, str], laws: dict[str, Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Everything that the runs of both models say: sizes, noise and the verdict; `laws`: `laws_transferred`."""
    sizes = sizes_of(*cells_of(proxy, target))
    found = [_told(size, seed) for size in sizes]
    return {"level": LEVEL, "sizes": found, "laws": laws, "verdict": verdict(found, names, laws)}


def _told(size: Size, seed: int) -> dict[str, Any]:
    noise = size.noise
    rows = zip(size.regimes, *size.loss.tolist(), *size.runs.astype(int).tolist(), strict=True)
    return {
        "tokens": size.tokens,
        "regimes": [{"regime": r, "proxy": a, "target": b, "runs": [n, m]} for r, a, b, n, m in rows],
        "untried": list(size.untried),
        "first": size.first,
        "noise": noise and noise.as_dict(),
        "agreement": agreement(size),
        "choice": transferred(size, seed),
    }


def verdict(sizes: list[dict[str, Any]], names: tuple[str, str], laws: dict[str, Any] | None) -> dict[str, str | None]:
    """One of three lights, a sentence, and, where runs are too few, those that would settle it.

    Judged at the largest shared size. *Trust*: with probability SURE or more the proxy's first regime keeps more than
    KEPT of what the target's best gains over random, and the interval of Spearman's correlation lies above 0. *Do not
    trust*: with probability 1 - SURE or less, or the interval lies below 0. Anything else, or fewer than LEAST_REGIMES
    regimes or three seeds of one of them on each model, is too few. A target's law that predicts no gain for the proxy
    law's allocation takes trust back to too few.
    """
    proxy, target = names
    lacking = _lacking(sizes, names)
    if lacking:
        return {"light": TOO_FEW, "sentence": f"Too few runs to say whether {proxy} may stand in for {target}: "
                + lacking[0], "settle": lacking[1]}  # fmt: skip
    last = sizes[-1]
    found, rank = last["choice"], last["agreement"]["spearman"]
    at, choice = f"at {last['tokens']:,.0f} tokens", found["choice"]
    ranks = f"Spearman {rank['mean']:.2f}, {rank['low']:.2f} to {rank['high']:.2f}; seed noise allows " + (
        f"{last['agreement']['ceiling']:.2f}"
    )
    gain = f"{found['gain']['mean']:+.4f} nats/token over random, {found['gain']['low']:+.4f} to "
    gain += f"{found['gain']['high']:+.4f}, of {found['achievable']['mean']:.4f} achievable"
    kept = f"with {found['keeps_half']:.0%} probability it keeps over half of what {target} could gain"
    said = f"{at} {choice}, first for {proxy}, is worth {gain} to {target}; {kept} ({ranks})."
    if found["keeps_half"] <= 1 - SURE or rank["high"] < 0:
        sentence = f"Do not trust {proxy} in place of {target}: {said}"
        return {"light": DISTRUST, "sentence": sentence, "settle": None}
    if found["keeps_half"] >= SURE and rank["low"] > 0 and not (laws and laws["gain"] <= 0):
        return {"light": TRUST, "sentence": f"Trust {proxy} in place of {target}: {said}", "settle": None}
    if found["keeps_half"] >= SURE and rank["low"] <= 0:
        settle = f"More regimes on both models, {target}'s at {last['tokens']:,.0f} tokens{_named(last['untried'])}."
    elif found["keeps_half"] >= SURE:
        settle = f"More regimes and sizes on {target}, for a law of its own: what it has now predicts no gain."
    else:
        which = ", ".join(dict.fromkeys([choice, found["best"], REFERENCE]))
        settle = f"{found['seeds_to_settle']} seeds of {which} on both models {at} (`pilot --repeats`)."
        if found["seeds_to_settle"] > MOST_SEEDS:
            settle = f"Not so soon: more than {MOST_SEEDS} seeds of {which}. Better do without the proxy."
    return {"light": TOO_FEW, "sentence": f"Too few runs to say: {said}", "settle": settle}


def _lacking(sizes: list[dict[str, Any]], names: tuple[str, str]) -> tuple[str, str] | None:
    """(what is not there at all, the runs that would bring it); None if a verdict can be tried."""
    proxy, target = names
    if not sizes:
        return (
            "they share no size with two regimes or more.",
            f"Run the same plan with both: {REFERENCE} and {LEAST_REGIMES - 1} more.",
        )
    last = sizes[-1]
    ran, at = [r["regime"] for r in last["regimes"]], f"at {last['tokens']:,.0f} tokens"
    if REFERENCE not in ran:
        return "random was not run by both.", f"{REFERENCE} with three seeds on both models {at}."
    if last["noise"] is None or last["noise"]["freedom"] < LEAST_FREEDOM:
        return (
            "the seed noise is not known, because no regime has three seeds on both.",
            f"{REFERENCE} with three seeds on both models {at} (`pilot --repeats 3`).",
        )
    if len(ran) < LEAST_REGIMES:
        missing = f"{LEAST_REGIMES - len(ran)} more regimes on {target} {at}{_named(last['untried'])}."
        return f"{len(ran)} shared regimes {at}; a ranking needs {LEAST_REGIMES}.", missing
    if last["first"] not in ran:
        return f"{target} never ran {last['first']}, which {proxy} ranks first.", f"{last['first']} on {target} {at}."
    if last["first"] == REFERENCE:
        return (
            f"{proxy} ranks random first {at}, so there is no other choice to transfer.",
            "Other regimes on both models, if any is expected to beat random.",
        )
    return None


def _named(untried: list[str]) -> str:
    return f", first of all {', '.join(untried[:LEAST_REGIMES])}" if untried else ""
