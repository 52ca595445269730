"""Columns of score tables as arrays: log-perplexity, and the second axis that some tables hold beside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.statistics import Bins, Floats

PROBE, LIKENESS = "probe_nll_sum", "likeness"
AXES = {"learnability": PROBE, "likeness": LIKENESS}
"""Second axes of bins, and the column that holds each: `pplscape probe` adds the one, `pplscape liken` the other."""
MAKERS = {"learnability": "probe", "likeness": "liken"}


def axis_of(names: Iterable[str]) -> str | None:
    """The second axis among the columns of a score table; None without one."""
    held = set(names)
    return next((axis for axis, column in AXES.items() if column in held), None)


def axis_of_files(files: Iterable[Path]) -> str | None:
    """The second axis that all of these files hold; None where one of them does not, or is no Parquet file."""
    try:
        axes = {axis_of(pq.read_schema(file).names) for file in files}
    except (pa.ArrowInvalid, OSError):
        return None
    return axes.pop() if len(axes) == 1 else None


def check_axis(bins: Bins, axis: str | None) -> None:
    """UserError for bins that are cut by another second axis than the scores hold."""
    if bins.levels and axis != bins.axis:
        held = f"hold {axis}" if axis else "hold no second axis"
        raise UserError(
            f"These bins are cut by {bins.axis} too, the scores {held}: give those that `pplscape {MAKERS[bins.axis]}` "
            "wrote."
        )


def second(batch: pa.RecordBatch | pa.Table) -> Floats:
    """The second axis [n]; empty of scores without one.

    learnability = (nll_sum - probe_nll_sum) / n_tokens, nats per token; likeness as it is, nats per n-gram.
    """
    axis = axis_of(batch.schema.names)
    if axis is None:
        return np.empty(0)
    column = batch[AXES[axis]]
    values = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    values = values.astype(np.float64, copy=False)
    if axis == "likeness":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return log_perplexity(batch) - values / whole(batch, "n_tokens")


def whole(batch: pa.RecordBatch | pa.Table, name: str) -> NDArray[np.int64]:
    """A column of integers [n], nulls as 0."""
    column = batch[name]
    return (pc.fill_null(column, 0) if column.null_count else column).to_numpy().astype(np.int64, copy=False)


def log_perplexity(batch: pa.RecordBatch | pa.Table) -> Floats:
    """nll_sum / n_tokens [n]."""
    column = batch["nll_sum"]
    nll = np.asarray(column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy())
    n_tokens = batch["n_tokens"]
    n_tokens = (pc.fill_null(n_tokens, 0) if n_tokens.null_count else n_tokens).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return nll.astype(np.float64, copy=False) / n_tokens
