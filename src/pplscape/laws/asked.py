"""What a user asks a law about: columns by name, or a table in a file, as compositions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.laws.read import KEYS, read_columns
from pplscape.runs import Compositions

LISTS = ("bin_tokens", "bin_unique_tokens")


def compositions_of(asked: Mapping[str, Any] | Path | str, scale: str | None) -> Compositions:
    """Compositions from columns under the keys of `--columns` or the names of runs.jsonl; single values are repeated.

    `mu` and `sigma` are on `scale`, the law's (ppl if it has none). Columns of a file that no law looks at are left
    out; an unknown name among given columns is a UserError, and so are columns of different lengths or no D.
    """
    given: Mapping[str, Any] = read_columns(Path(asked)) if isinstance(asked, (Path, str)) else asked
    keys = KEYS | {"mu": f"{scale or 'ppl'}_mean", "sigma": f"{scale or 'ppl'}_std"}
    names = {f.name for f in fields(Compositions)}
    found = {keys.get(key, key): value for key, value in given.items() if keys.get(key, key) in names}
    unknown = [key for key in given if keys.get(key, key) not in names]
    if unknown and isinstance(asked, Mapping):
        raise UserError(f"A law cannot be asked about {', '.join(unknown)}; it knows D, mu, sigma, N, U and bins.")
    if "tokens" not in found:
        raise UserError("A law is asked about sizes: give D, the domain tokens to train on.")
    return Compositions(**_arrays(found))


def _arrays(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Floats [n], or [n, K] for bins, of one length."""
    arrays = {}
    for name, value in columns.items():
        try:
            arrays[name] = (np.atleast_2d if name in LISTS else np.atleast_1d)(np.asarray(value, float))
        except (TypeError, ValueError) as error:
            raise UserError(f"Column {name} holds something that is not a number ({error}).") from error
    n = max(len(value) for value in arrays.values())
    odd = {name: len(value) for name, value in arrays.items() if len(value) not in (1, n)}
    if odd:
        raise UserError(f"The columns have different lengths: {odd} against {n}.")
    return {name: np.repeat(value, n, axis=0) if len(value) < n else value for name, value in arrays.items()}
