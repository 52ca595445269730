"""Writes runs.csv next to itself: a simulated table of training runs, made up for the tutorial. No model was trained.

12 pilots (3 random seeds, 9 designed mixtures) of 4 sizes each. A pilot is described by the mean and spread of its
chunks' log-perplexity. The law is a bowl whose best mean is 5.0 and best spread 0.55 nats/token:

    L = 2.3 + 1.5 (D / 1M)^-0.3 exp(0.3 (mean - 5)^2 + 0.15 ln(spread / 0.55)^2) + noise

with noise of 0.004 nats (sd) a trunk and 0.004 a run. Deterministic: a test compares the file with this script.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZES = (125_000, 250_000, 500_000, 1_000_000)
BASE_LOSS = 5.6
DESIGN = ((4.2, 0.4), (4.5, 0.7), (4.6, 0.3), (4.9, 0.5), (5.0, 0.3), (5.1, 0.8), (5.4, 0.45), (5.6, 0.75), (5.8, 0.5))


def rows() -> list[str]:
    """The lines of runs.csv, header first."""
    rng = np.random.default_rng(20240601)
    regimes = [(f"random-{i}", 5.2, 1.0) for i in range(3)] + [(f"mix-{i}", *place) for i, place in enumerate(DESIGN)]
    lines = ["pilot,mixture,train_tokens,val_loss,loss_before,mean_logppl,sd_logppl"]
    for name, mean, spread in regimes:
        mean, spread = mean + 0.01 * rng.normal(), spread * np.exp(0.02 * rng.normal())
        trunk = 0.004 * rng.normal()
        for size in SIZES:
            bowl = 0.3 * (mean - 5) ** 2 + 0.15 * np.log(spread / 0.55) ** 2
            loss = 2.3 + 1.5 * (size / 1e6) ** -0.3 * np.exp(bowl) + trunk + 0.004 * rng.normal()
            mixture = "random" if name.startswith("random") else name
            lines.append(f"{name},{mixture},{size},{loss:.4f},{BASE_LOSS},{mean:.4f},{spread:.4f}")
    return lines


if __name__ == "__main__":
    Path(__file__).with_name("runs.csv").write_text("\n".join(rows()) + "\n")
