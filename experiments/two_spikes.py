"""How greedy distance-to-optimum degenerates into two spikes, and what the maximum-entropy draw does instead.

    pplscape demo --out DEMO
    python experiments/two_spikes.py DEMO/scores

Draws a tenth of the pool towards one target (the pool's mean, three quarters of its spread, log-perplexity) by both
strategies. Writes experiments/results/two_spikes.json, prints the table of docs/selection.md and draws
docs/images/two-spikes.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.draw.census import KL_BINS
from pplscape.draw.options import Options, Target
from pplscape.draw.pool import Pool
from pplscape.draw.strategies import draw
from pplscape.reporting.words import table
from pplscape.statistics import kl_to_pool, make_bins, moments

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = ROOT / "experiments/results/two_spikes.json", ROOT / "docs/images/two-spikes.png"
SHARE, NARROWER, NEAR, CELLS = 0.1, 0.75, 0.15, 120
STRATEGIES = ("random", "dos", "maxent")


def measure(pool: Pool) -> dict[str, Any]:
    """Facts and histograms of the three draws."""
    values = pool.values("nll")
    whole = moments(values, (-np.inf, np.inf))
    target = Target(whole.mean, NARROWER * whole.std)
    assert target.std is not None
    bins = make_bins(pool.x, pool.length, KL_BINS)
    edges = np.linspace(values.min(), values.max(), CELLS + 1)
    rows = []
    for name in STRATEGIES:
        times = draw(name, pool, int(SHARE * pool.tokens), 0, Options(scale="nll", target=target)).times
        taken = values[times > 0]
        away = np.minimum(np.abs(taken - target.mean - target.std), np.abs(taken - target.mean + target.std))
        rows.append(
            {
                "strategy": name, "chunks": len(taken), "tokens": int(pool.length @ times), "mean": taken.mean(),
                "std": taken.std(), "near_a_spike": float(np.mean(away < NEAR * whole.std)),
                "bins": int(np.count_nonzero(pool.bin_tokens(bins, times))),
                "kl": kl_to_pool(pool.x, pool.length, times), "counts": np.histogram(taken, edges)[0].tolist(),
            }
        )  # fmt: skip
    return {
        "chunks": len(pool), "tokens": pool.tokens, "mean": whole.mean, "std": whole.std, "target": vars(target),
        "edges": edges.round(4).tolist(), "counts": np.histogram(values, edges)[0].tolist(), "draws": rows,
    }  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """The table of docs/selection.md."""
    head = ("strategy", "mean", "standard deviation", "within 0.15 σ of a spike", "bins of 50 used", "KL to pool, nats")
    target = found["target"]
    rows = [("target", f"{target['mean']:.4f}", f"{target['std']:.4f}", "", "", "")]
    for r in found["draws"]:
        near = f"{100 * r['near_a_spike']:.1f} %"
        moments_of = f"{r['mean']:.4f}", f"{r['std']:.4f}"
        rows.append((f"`{r['strategy']}`", *moments_of, near, str(r["bins"]), f"{r['kl']:.3f}"))
    return table(head, rows)


def picture(found: dict[str, Any]) -> None:
    """docs/images/two-spikes.png: both draws over the pool, each as a share of its own chunks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    edges = np.asarray(found["edges"])
    pool = np.asarray(found["counts"]) / sum(found["counts"])
    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), sharey=False, layout="constrained")
    draws = {r["strategy"]: r for r in found["draws"]}
    for axes, name, title in zip(both, ("dos", "maxent"), ("greedy DOS", "maximum entropy"), strict=True):
        taken = np.asarray(draws[name]["counts"]) / sum(draws[name]["counts"])
        axes.stairs(pool, edges, fill=True, color="#c8ccd4", label="pool")
        axes.stairs(taken, edges, color="#b3401f" if name == "dos" else "#1f6fb3", lw=1.6, label=name)
        mean, std = found["target"]["mean"], found["target"]["std"]
        for at in (mean - std, mean + std):
            axes.axvline(at, color="#555", lw=0.8, ls=":")
        axes.set(title=f"{title}: KL {draws[name]['kl']:.2f} nats", xlabel="log-perplexity of a chunk, nats/token")
        axes.set_ylabel("share of chunks")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", type=Path, nargs="?", help="without: picture and table from the committed results")
    a = parser.parse_args()
    if a.scores:
        RESULTS.write_text(json.dumps(measure(Pool.read(a.scores)), indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    print(markdown(found))
    picture(found)


if __name__ == "__main__":
    main()
