"""What only simulation can tell about moment laws, intervals and allocation: the claims of docs/theory.md, measured.

edge       the published and the extended form on bowls with a known optimum inside the pilots: how often is the
           fitted optimum on the border, and what does going there cost?
valley     correlation of the optimum's ln mean and ln spread over resamples of a published law with a bowl
bootstrap  coverage of the plain cluster bootstrap with few trunks, beside the refits that pplscape uses
region     how often the joint 90 % region of the optimum holds the true one
choice     loss of the subset each law would choose, above the best: a world of bins, and a flat one

python experiments/theory_checks.py [--data-sets 40] [--only edge,...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pplscape.draw.program import Utility, solve
from pplscape.laws.fit import fit_form, fit_many, setting_of
from pplscape.laws.forms import get_form
from pplscape.laws.forms.plane import PlaneForm
from pplscape.laws.hull import Hull
from pplscape.laws.law import law_of
from pplscape.laws.optimum import arena_of, classify, optimum
from pplscape.laws.table import frame_of, labels, noise_weights
from pplscape.laws.uncertainty import uncertainty
from pplscape.runs import Compositions, RunTable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "laws"))
import worlds

SIZES = np.array([64_000.0, 181_000.0, 512_000.0])
NOISE = 0.005
Row = dict[str, Any]


def in_plane(mean: np.ndarray, std: np.ndarray, gap: Callable, seed: int, scale: str = "ppl") -> RunTable:
    """Trunks of three sizes at each (mean, std), L = 2.2 + 1.4 t^-0.3 gap(ln mean, ln std), half the noise shared."""
    rng = np.random.default_rng(seed)
    n = len(mean)
    m, s, tokens = np.repeat(mean, 3), np.repeat(std, 3), np.tile(SIZES, n)
    error = np.repeat(rng.normal(size=n), 3) + rng.normal(size=3 * n)
    loss = 2.2 + 1.4 * (tokens / SIZES[-1]) ** -0.3 * gap(np.log(m), np.log(s)) + NOISE * error / np.sqrt(2)
    group = np.repeat([f"t{i}" for i in range(n)], 3)
    return RunTable(tokens=tokens, loss=loss, group=group, regime=group, **{f"{scale}_mean": m, f"{scale}_std": s})


def grid(mean: float, std: float, width: float = 0.6, each: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """each x each pilots around (mean, std), `width` to either side in logs."""
    x, y = np.meshgrid(np.linspace(-width, width, each), np.linspace(-width, width, each))
    return mean * np.exp(x.ravel()), std * np.exp(y.ravel())


def params_of(form: PlaneForm, runs: RunTable) -> np.ndarray:
    return np.array(list(fit_form(form, runs).params.values()))


def edge(data_sets: int) -> list[Row]:
    """Axis-aligned bowls in (ln m, ln s) around three optima; regret in nats/token at the largest size."""
    rows = []
    for mean, std in ((8.0, 4.0), (60.0, 30.0), (150.0, 80.0)):

        def gap(x: Any, y: Any, at: Any = (np.log(mean), np.log(std))) -> Any:
            return np.exp(0.25 * (x - at[0]) ** 2 + 0.15 * (y - at[1]) ** 2)

        for spec in ("paper", "extended", "quadratic"):
            form = get_form(spec, "ppl")
            assert isinstance(form, PlaneForm)
            kinds, regrets = [], []
            for seed in range(data_sets):
                runs = in_plane(*grid(mean, std), gap, seed)
                arena = arena_of(form, runs)
                assert arena is not None
                kind, point = classify(form, params_of(form, runs)[None], arena)
                kinds.append(kind[0])
                regrets.append(1.4 * (gap(*form.logs(point)[0]) - 1))
            share = {k: kinds.count(k) / len(kinds) for k in dict.fromkeys(kinds)}
            rows.append({"optimum": f"({mean:g}, {std:g}), ln m ln s {np.log(mean) * np.log(std):.1f}", "form": spec,
                         "not interior": 1 - share.get("interior", 0.0), "regret, mean": float(np.mean(regrets)),
                         "regret, largest": float(np.max(regrets))})  # fmt: skip
    return rows


def published_bowl(m: float, s: float, a1: float, b1: float) -> np.ndarray:
    return np.array([2.2, 1.4 * 512_000**0.3, -a1 * s - b1 * m * np.log(s), a1, -b1 * m - a1 * s * np.log(m), b1, 0.3])


def valley(data_sets: int) -> list[Row]:
    """Published laws with a bowl, p = q, curvature of g such that the pilots feel it; correlation over resamples."""
    rows = []
    form = get_form("paper")
    assert isinstance(form, PlaneForm)
    for mean, std in ((10.0, 7.5), (60.0, 30.0), (150.0, 80.0)):
        params = published_bowl(mean, std, -0.3 / std, -0.3 / mean)
        runs = in_plane(*grid(mean, std, 0.4), lambda x, y: 1 + 0 * x, 0)
        params[1] *= np.exp(form.surface(params[None], np.log([[mean, std]]))[0][0, 0])
        true = np.exp(form.log_loss(params[None], runs, frame_of(runs)))[0]
        found = []
        for seed in range(max(data_sets // 8, 3)):
            noise = NOISE * np.random.default_rng(seed).normal(size=len(true))
            table = RunTable(**{**vars(runs), "loss": true + noise})
            fit = fit_form(form, table)
            draws = form.params(uncertainty(fit, table, 100, seed).draws, fit.frame)
            arena = arena_of(form, table)
            assert arena is not None
            at = optimum(form, np.array(list(fit.params.values())), fit.frame, arena, draws)
            found.append((at["correlation"] if at["correlation"] is not None else np.nan, at["shares"]["interior"]))
        p = q = 0.3
        product = np.log(mean) * np.log(std)
        bend = np.array([[q * np.log(std), p + q], [p + q, p * np.log(mean)]])
        axis = np.linalg.eigh(bend)[1][:, 0]
        rows.append({"optimum": f"({mean:g}, {std:g}), ln m ln s {product:.1f}",
                     "softest direction (ln m, ln s)": "({:.2f}, {:.2f})".format(*(axis * np.sign(axis[0]))),
                     "correlation, median": float(np.nanmedian([f[0] for f in found])),
                     "resamples interior": float(np.mean([f[1] for f in found]))})  # fmt: skip
    return rows


def bootstrap(data_sets: int) -> list[Row]:
    """90 % intervals of the true loss of every pilot: percentiles of whole trunks drawn with replacement, and ours."""
    rows = []
    for truth, spec, trunks in (
        ("flat", "d-only:anchored", 8),
        ("quadratic", "quadratic", 9),
        ("quadratic", "quadratic", 16),
    ):
        hits: dict[str, list[np.ndarray]] = {"cluster bootstrap": [], "refits": []}
        width: dict[str, list[np.ndarray]] = {"cluster bootstrap": [], "refits": []}
        spread = []
        for seed in range(data_sets):
            runs = worlds.table(truth, trunks=trunks, noise=NOISE, seed=seed)
            clean = worlds.true_loss(truth, runs, runs.bin_share)
            fit, setting = fit_form(spec, runs), setting_of(get_form(spec), runs)
            weight = times_drawn(runs, 100, seed) * noise_weights(runs)
            theta, _, _ = fit_many(
                setting, np.broadcast_to(np.log(runs.loss), weight.shape), weight, warm=fit.theta[None]
            )
            drawn = np.exp(fit.form.evaluate(theta, setting.data, setting.frame, jacobian=False)[0])
            law = law_of(fit, runs, uncertainty(fit, runs, 100, seed))
            ends = {
                "cluster bootstrap": np.quantile(drawn, [0.05, 0.95], axis=0),
                "refits": law.predict_interval(runs, 0.9, False),
            }
            spread.append(np.exp(fit.log_loss(runs)) - clean)
            for name, (low, high) in ends.items():
                hits[name].append((low <= clean) & (clean <= high))
                width[name].append(high - low)
        true_width = 2 * stats.norm.ppf(0.95) * np.std(spread, axis=0)
        for name in hits:
            by_point = np.mean(hits[name], axis=0)
            rows.append({"law": spec, "trunks": trunks, "method": name, "coverage": float(by_point.mean()),
                         "lowest": float(by_point.min()), "highest": float(by_point.max()),
                         "width / true width, median": float(np.median(np.median(width[name], axis=0) / true_width)),
                         "widest / true": float(np.max(np.mean(width[name], axis=0) / true_width))})  # fmt: skip
    return rows


def times_drawn(runs: RunTable, resamples: int, seed: int) -> np.ndarray:
    """[B, n] how often a bootstrap of whole trunks draws each run; at least two trunks in and one out."""
    trunks, members = np.unique(labels(runs, "group"), return_inverse=True)
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    while len(rows) < resamples:
        times = np.bincount(rng.integers(len(trunks), size=len(trunks)), minlength=len(trunks))
        if (times > 0).sum() >= 2 and (times == 0).any():
            rows.append(times[members].astype(float))
    return np.asarray(rows)


def region(data_sets: int) -> list[Row]:
    """Bowls of the quadratic form around (5.0, 0.55) nats/token; half the trunks, noise 0.005 nats."""
    rows = []
    form = get_form("quadratic", "nll")
    assert isinstance(form, PlaneForm)
    for each in (3, 4):
        hits, interiors = [], []
        for seed in range(data_sets):
            rng = np.random.default_rng(1000 + seed)
            mean, std = grid(5.0, 0.55, 0.2, each)
            std = np.exp(np.log(std) + np.log(std / 0.55) * 2 + 0.1 * rng.normal(size=len(std)))
            runs = in_plane(mean, std, lambda x, y: np.exp(0.3 * (np.exp(x) - 5) ** 2 + 0.05 * (y - np.log(0.55)) ** 2),
                            seed, "nll")  # fmt: skip
            fit = fit_form(form, runs)
            draws = form.params(uncertainty(fit, runs, 100, seed).draws, fit.frame)
            arena = arena_of(form, runs)
            assert arena is not None
            found = optimum(form, np.array(list(fit.params.values())), fit.frame, arena, draws)
            ring = Hull.of(np.array(found["region"]))
            hits.append(bool(ring.contains(np.array([[5.0, 0.55]]))[0]))
            interiors.append(found["shares"]["interior"])
        rows.append(
            {
                "trunks": each**2,
                "region holds the optimum": float(np.mean(hits)),
                "resamples interior": float(np.mean(interiors)),
            }
        )
    return rows


def choice(data_sets: int) -> list[Row]:
    """True loss of what a law would choose at the largest size, above the best of the candidates.

    Moment laws take the tilt of the pool with the lowest predicted loss among those within their pilots' hull; the
    utility law solves its program. `flat`: every bin is worth the same, so the pool's own mixture is best.
    """
    x = worlds.pool()
    means, spreads = np.meshgrid(np.linspace(4.2, 6.5, 24), np.linspace(0.25, 1.6, 12))
    weights = np.concatenate([np.exp(-0.5 * ((x - means.reshape(-1, 1)) / spreads.reshape(-1, 1)) ** 2) + 0.02,
                              np.ones((1, len(x)))])  # fmt: skip
    found: dict[tuple[str, str], list[float]] = {}
    for world in ("bins", "flat bins"):
        for seed in range(data_sets):
            runs, true = table_of(world, seed)
            tilts, share = worlds.compositions(x, weights, np.full(len(weights), worlds.LARGEST))
            losses = true(tilts, share)
            uniform = np.argmax(np.ptp(weights, axis=1) == 0)
            picks = {"random": losses[uniform]}
            for spec in ("paper", "extended", "quadratic"):
                fit = fit_form(spec, runs)
                law = law_of(fit, runs)
                predicted = np.where(law.extrapolates(tilts), np.inf, law.predict(tilts))
                picks[spec] = losses[predicted.argmin()]
            fit = fit_form("utility", runs)
            u = np.array([fit.params[f"u_{b}"] for b in range(len(share))])
            if (u > 0).any():
                plan = solve(
                    Utility(u, share, "saturating", fit.params["tau"], worlds.LARGEST), share * 1e9, worlds.LARGEST
                )
                bins = plan.tokens[None]
                picks["utility"] = true(Compositions(tokens=bins.sum(1), bin_tokens=bins), share)[0]
            best = min(
                losses.min(),
                true(Compositions(tokens=np.array([worlds.LARGEST]), bin_tokens=best_bins(world, share)), share)[0],
            )
            for name, loss in picks.items():
                found.setdefault((world, name), []).append(float(loss - best))
    return [
        {
            "world": world,
            "choice": name,
            "regret, mean": float(np.mean(v)),
            "regret, 90 %": float(np.quantile(v, 0.9)),
            "worse than random, mean": float(np.mean(v) - np.mean(found[world, "random"])),
        }
        for (world, name), v in found.items()
    ]


def true_worth(world: str, n: int) -> np.ndarray:
    centre = (np.arange(n) + 0.5) / n
    return (
        5.0 * (1.2 - 8 * (centre - 0.5) ** 2 * np.where(centre > 0.5, 1.2, 0.8)) if world == "bins" else np.full(n, 3.5)
    )


def table_of(world: str, seed: int) -> tuple[RunTable, Callable]:
    """24 trunks of three sizes in the world of `worlds.true_loss`'s utilities, or with all bins worth the same."""

    def true(c: Compositions, share: np.ndarray) -> np.ndarray:
        z = c.bin_tokens / (share * worlds.LARGEST)
        worth = true_worth(world, len(share))
        return 2.2 + (worlds.BASE_LOSS - 2.2) * (1 + (2 * (1 - np.exp(-z / 2))) @ (worth * share)) ** -0.35

    runs = worlds.table("utility", trunks=24, noise=0.0, seed=seed)
    rng = np.random.default_rng(seed)
    error = np.repeat(rng.normal(size=24), 3) + rng.normal(size=72)
    loss = true(runs, runs.bin_share) + NOISE * error / np.sqrt(2)
    return RunTable(**{**vars(runs), "loss": loss}), true


def best_bins(world: str, share: np.ndarray) -> np.ndarray:
    found = solve(
        Utility(true_worth(world, len(share)), share, "saturating", 2.0, worlds.LARGEST), share * 1e9, worlds.LARGEST
    )
    return found.tokens[None]


CHECKS = {f.__name__: f for f in (edge, valley, bootstrap, region, choice)}


def print_table(name: str, rows: list[Row], seconds: float) -> None:
    print(f"\n## {name} ({seconds:.0f} s)\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [f"{v:.0%}" if isinstance(v, float) and k in SHARES else f"{v:.4f}" if isinstance(v, float) else str(v)
                 for k, v in row.items()]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


SHARES = {"not interior", "resamples interior", "coverage", "lowest", "highest", "region holds the optimum"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=40)
    parser.add_argument("--only", default=",".join(CHECKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    print(f"{options.data_sets} data sets each, noise {NOISE} nats (half its variance shared by a trunk)")
    for name in options.only.split(","):
        start = time.process_time()
        found[name] = CHECKS[name](options.data_sets)
        print_table(name, found[name], time.process_time() - start)
    if options.json:
        content = {"data_sets": options.data_sets, "noise": NOISE, **found}
        options.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
