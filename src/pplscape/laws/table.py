"""What laws need to know of a table of runs: units of resampling, sizes, seed noise, constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pplscape.laws.forms.base import Floats, Frame
from pplscape.runs import RunTable

SIZE_GAP = 0.05
"""Pilots of one planned size differ by a few tokens: sizes whose ln D differ by less are one size."""

PER_RUN = ("schedule", "lr", "run_id", "pool_tokens")
"""What `RunTable.meta` holds as lists, one entry a run."""


def rows_of(runs: RunTable, rows: NDArray[np.intp]) -> RunTable:
    """Some of the runs, with what `meta` holds of each."""
    by_run = {k: [v[i] for i in rows] for k, v in runs.meta.items() if k in PER_RUN}
    return replace(runs.take(rows), meta={**runs.meta, **by_run})


def labels(runs: RunTable, kind: str) -> NDArray[np.str_]:
    """`group` (trunk) or `regime` of each run [n]; one stands in for the other, and without both a run is alone."""
    first, second = (runs.group, runs.regime) if kind == "group" else (runs.regime, runs.group)
    found = first if first is not None else second
    return np.arange(len(runs)).astype(str) if found is None else np.asarray(found).astype(str)


def left_out_units(runs: RunTable) -> NDArray[np.str_]:
    """What is left out together [n]: regimes, or trunks or single runs where there are fewer than three of those."""
    for kind in ("regime", "group"):
        found = labels(runs, kind)
        if len(set(found)) >= 3:
            return found
    return np.arange(len(runs)).astype(str)


def size_classes(tokens: Floats) -> NDArray[np.intp]:
    """Index [n] of each run's size, smallest first; sizes within SIZE_GAP of the next in ln D are one."""
    logs = np.log(tokens)
    order = np.argsort(logs, kind="stable")
    found = np.empty(len(tokens), np.intp)
    found[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > SIZE_GAP)])
    return found


def frame_of(runs: RunTable) -> Frame:
    """The constants a law keeps: largest pilot, base loss (median), the pool's bin shares."""
    base = None if runs.base_loss is None else float(np.nanmedian(runs.base_loss))
    share = runs.bin_share
    return Frame(
        unit=float(runs.tokens.max()),
        base_loss=base if base is not None and np.isfinite(base) else None,
        bin_share=None if share is None else tuple(float(s) for s in share),
        bin_levels=runs.bin_levels,
    )


def seed_noise(runs: RunTable) -> float | None:
    """Relative seed noise: standard deviation of ln L over trunks that repeat a regime at the same size, with the same
    model, unique tokens and share of domain text.

    What a cell's few tokens of difference explain is taken out with the mean slope of ln L on ln D. The `noise` column
    (nats) is used where nothing is repeated; None if there is neither.
    """
    groups, regimes, sizes = labels(runs, "group"), labels(runs, "regime"), size_classes(runs.tokens)
    log_loss, log_size = np.log(runs.loss), np.log(runs.tokens)
    if sizes.max() > 0:
        log_loss = log_loss - np.polyfit(log_size, log_loss, 1)[0] * (log_size - log_size.mean())
    squares, freedom = 0.0, 0
    others = [size_classes(v) for v in (runs.n_params, runs.unique_tokens) if v is not None]
    if runs.domain_share is not None:
        others.append(np.round(runs.domain_share * 100).astype(np.intp))
    cells = [np.unique(column, return_inverse=True)[1] for column in (regimes, sizes, *others)]
    _, members = np.unique(np.stack(cells), axis=1, return_inverse=True)
    for member in range(int(members.max()) + 1):
        cell = members.ravel() == member
        if len(set(groups[cell])) > 1:
            squares += float(np.var(log_loss[cell]) * cell.sum())
            freedom += int(cell.sum()) - 1
    if freedom:
        return float(np.sqrt(squares / freedom))
    return None if runs.noise is None else float(np.median(runs.noise / runs.loss))


def noise_weights(runs: RunTable) -> Floats:
    """Fit weights [n], 1 at the median relative noise: its square over the square of each run's, where the table states
    the noise."""
    if runs.noise is None:
        return np.ones(len(runs))
    relative = np.maximum(runs.noise, 1e-12) / runs.loss
    return (np.median(relative) / relative) ** 2
