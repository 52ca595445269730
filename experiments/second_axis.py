"""What a second axis tells of a pool whose dirt is known: shares by origin in the better half of every bin.

    python experiments/second_axis.py SCORES... > docs/results/second-axis.md

SCORES: folders of `liken` or `probe` of one pool of experiments/evidence, whose chunks name their origin. No model, no
training: only which text each axis prefers among chunks of one perplexity (ten bins of equal tokens).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from pplscape.draw.pool import Pool
from pplscape.statistics import Floats, cut_levels, make_bins

BINS = 10


def auc(values: Floats, good: np.ndarray) -> float:
    """Probability that a good chunk has the larger value: Mann-Whitney's U."""
    rank = rankdata(values)
    n = int(good.sum())
    return float((rank[good].sum() - n * (n + 1) / 2) / (n * (len(good) - n)))


def rows_of(folder: Path) -> list[str]:
    """One table row: the better half by this folder's axis, within each bin of log-perplexity."""
    pool = Pool.read(folder)
    origin = np.array([n.split("-")[0] for n in pool.source_names])[pool.source]
    cut = cut_levels(make_bins(pool.x, pool.length, BINS), pool.x, pool.second, pool.length, 2, pool.axis or "")
    better = cut.of(pool.x, pool.second) % 2 == 1
    names = sorted(set(origin))

    def shares(mask: np.ndarray) -> list[str]:
        return [f"{pool.length[mask & (origin == n)].sum() / pool.length[mask].sum():.3f}" for n in names]

    every = np.ones(len(pool), bool)
    head = f"| axis | area, clean against dirt | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}"
    return [head, f"| (whole pool) | | {' | '.join(shares(every))} |",
            f"| {pool.axis} | {auc(pool.second, origin == 'clean'):.2f} | {' | '.join(shares(better))} |"]  # fmt: skip


def main(folders: list[str]) -> None:
    print("# The better half of every bin, by origin\n")
    print("`python experiments/second_axis.py SCORES...`: shares of tokens; *area*: of the ROC curve, 0.5 is chance.\n")
    for k, folder in enumerate(folders):
        print("\n".join(rows_of(Path(folder))[0 if k == 0 else 2 :]))


if __name__ == "__main__":
    main(sys.argv[1:])
