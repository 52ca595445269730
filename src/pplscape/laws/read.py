"""Read any table of training runs - CSV, JSON lines or Parquet - into a RunTable, and say what is wrong with it."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pplscape.errors import UserError
from pplscape.laws.damage import without_first_damage
from pplscape.laws.forms.base import Floats
from pplscape.laws.suspect import suspicions
from pplscape.laws.table import PER_RUN, labels
from pplscape.runs import RunTable

Columns = dict[str, list[Any]]
KEYS = {
    "loss": "loss", "D": "tokens", "N": "n_params", "U": "unique_tokens", "L0": "base_loss", "r": "domain_share",
    "group": "group", "regime": "regime", "noise": "noise", "bins": "bin_tokens",
}  # fmt: skip
"""Keys of --columns and the names they have in runs.jsonl; `mu` and `sigma` go to the moments of the scale in use, and
`r` is the share of domain text as in the D-CPT law, 1 - replay_share."""
NUMBERS = (
    "tokens", "loss", "base_loss", "nll_mean", "nll_std", "ppl_mean", "ppl_std", "n_params", "unique_tokens", "noise",
    "replay_share", "domain_share", "seed",
)  # fmt: skip
LISTS = ("bin_tokens", "bin_unique_tokens")
TRAINED = ("model", "weights", "proxy_of")
"""What says whose losses the runs are; only runs.jsonl has them together."""
LEAST_RUNS = 4
MOST_RUNS = 2000
"""Beyond any published table: more rows are logged steps, not runs, and fitting costs the square of their number."""
POSITIVE = ("base_loss", "nll_mean", "ppl_mean", "nll_std", "ppl_std", "n_params", "unique_tokens", "noise")
"""Columns that laws take logarithms of, or divide by."""


def read_runs(
    path: Path | str | Sequence[Path | str], columns: Mapping[str, str] | None = None, scale: str | None = None,
    *, whole: bool = False,
) -> RunTable:  # fmt: skip
    """The runs of a table, or of several under each other (a later round of pilots).

    `columns` maps keys (`loss D mu sigma N U L0 r group regime noise bins=PREFIX*`, or names of runs.jsonl) to the
    table's columns, `mu` and `sigma` being on `scale` (default ppl).

    Failed runs and losses that are not finite are skipped; how many and which is in `meta["skipped"]`, what else is
    worth knowing in `meta["warnings"]`. So are runs of first damage (`laws.damage`), which laws cannot follow; `whole`
    keeps those, for comparisons of what was measured. UserError if the rest cannot be fitted.
    """
    paths = [path] if isinstance(path, (Path, str)) else path
    path, table = _read_all(paths)
    mapping = _mapping(columns or {}, scale or "ppl")
    found = _pick(table, mapping, path)
    trained = _one_model(found, path)
    keep, skipped = _usable(found, path)
    warnings = [_skipped_words(skipped)] if skipped else []
    if trained and trained["proxy_of"]:
        warnings.append(proxy_words(trained))
    _check_count(len(keep), path, warnings)
    arrays: dict[str, Any] = {}
    for name in (*NUMBERS, *LISTS):
        values = _numbers(name, [found[name][i] for i in keep] if name in found else None, path, warnings)
        if values is not None:
            arrays[name] = values
    for name in ("group", "regime"):
        if name in found:
            arrays[name] = _names(name, [found[name][i] for i in keep], warnings)
    meta: dict[str, Any] = {"skipped": skipped, "warnings": warnings, "path": str(path), "trained": trained}
    for name in PER_RUN:
        if name in found:
            meta[name] = [found[name][i] for i in keep]
    bins_hash = _one_hash([found["bins_hash"][i] for i in keep] if "bins_hash" in found else [], path)
    replay = arrays.pop("replay_share", None)
    if replay is not None:
        arrays.setdefault("domain_share", 1 - replay)
    arrays |= _shares_to_tokens(arrays, warnings)
    if "seed" in arrays:
        arrays["seed"] = arrays["seed"].astype(np.int64)
    runs = RunTable(**arrays, bins_hash=bins_hash, meta=meta)
    _check(runs, path)
    if not whole:
        runs, harmed = without_first_damage(runs)
        if harmed:
            skipped.extend(harmed)
            warnings.append(_skipped_words(harmed))
            _check_count(len(runs), path, warnings)
    warnings.extend(suspicions(runs))
    return runs


def _read_all(paths: Sequence[Path | str]) -> tuple[Path, Columns]:
    """(what to call the tables in messages, their rows under each other); what a table lacks is None there."""
    files = [Path(p) / "runs.jsonl" if Path(p).is_dir() else Path(p) for p in paths]
    tables = [read_columns(file) for file in files]
    rows = [len(next(iter(table.values()), [])) for table in tables]
    names = list(dict.fromkeys(name for table in tables for name in table))
    together = {k: [v for t, n in zip(tables, rows, strict=True) for v in t.get(k, [None] * n)] for k in names}
    return Path(" + ".join(str(file) for file in files)), together


def _shares_to_tokens(arrays: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """bin_tokens given as shares of D, times D."""
    bins = arrays.get("bin_tokens")
    if bins is None or (np.abs(bins.sum(1) - 1) > 0.05).any() or (arrays["tokens"] <= 2).any():
        return {}
    warnings.append("The bins sum to 1 in every run: they are read as shares of D.")
    return {"bin_tokens": bins / bins.sum(1, keepdims=True) * arrays["tokens"][:, None]}


def read_columns(path: Path) -> Columns:
    """The columns of a CSV, JSON lines or Parquet file as they are; UserError if it cannot be read."""
    if not path.exists():
        raise UserError(f"There is no table of runs at {path}.")
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            table: Columns = pq.read_table(path).to_pydict()
            return table
        text = path.read_text(encoding="utf-8-sig")
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    rows = _json_lines(text, path) if kind in (".jsonl", ".json", ".ndjson") else _csv_rows(text, path)
    if not rows:
        raise UserError(f"{path} holds no runs.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}).") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: every line must be an object, one run each.")
        rows.append(row)
    return rows


def _csv_rows(text: str, path: Path) -> list[dict[str, Any]]:
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    rows = []
    for number, row in enumerate(csv.DictReader(text.splitlines(), delimiter=delimiter), start=2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}: the number of fields differs from the header's.")
        rows.append({k.strip(): (v.strip() or None) for k, v in row.items()})
    return rows


def _mapping(columns: Mapping[str, str], scale: str) -> dict[str, str]:
    keys = KEYS | {"mu": f"{scale}_mean", "sigma": f"{scale}_std"}
    names = {*KEYS.values(), *NUMBERS, *LISTS}
    found = {}
    for key, column in columns.items():
        if key not in keys and key not in names:
            raise UserError(f"--columns does not know '{key}'; it takes {', '.join(keys)}.")
        found[keys.get(key, key)] = column
    return found


def _pick(table: Columns, mapping: Mapping[str, str], path: Path) -> Columns:
    """Columns under our names; UserError naming what is missing and what there is."""
    found: Columns = {}
    known = {*NUMBERS, *LISTS, *TRAINED, "group", "regime", "bins_hash", "pool_tokens"}
    known |= {"schedule", "lr", "run_id", "status", "reason"}
    for name in known:
        column = mapping.get(name, name)
        if column in table:
            found[name] = table[column]
        elif name == "bin_tokens" and name in mapping:
            found[name] = _prefixed(table, column, path)
        elif name in mapping:
            raise UserError(f"{path} has no column '{column}' (asked for as {name}); {_there_is(table)}")
    missing = [name for name in ("loss", "tokens") if name not in found]
    if missing:
        keys = {"loss": "loss", "tokens": "D"}
        asked = ", ".join(f"{keys[m]}=COLUMN" for m in missing)
        absent = " and no column ".join(missing)
        raise UserError(f"{path} has no column {absent}; {_there_is(table)} Map with --columns {asked}.")
    return found


def _there_is(table: Columns) -> str:
    return f"it has: {', '.join(table)}."


def _prefixed(table: Columns, pattern: str, path: Path) -> list[Any]:
    """Lists of tokens per bin from columns that match `PREFIX*`, in natural order."""
    names = [name for name in table if fnmatchcase(name, pattern)]
    if len(names) < 2:
        raise UserError(f"{path} has {len(names)} columns that match bins={pattern}, not 2 or more; {_there_is(table)}")
    names.sort(key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    return [None if None in row else list(row) for row in zip(*(table[n] for n in names), strict=True)]


def _usable(found: Columns, path: Path) -> tuple[list[int], list[dict[str, Any]]]:
    """(rows to keep, skipped rows with their reason): failed runs, loss or D missing or not finite, repeated rows."""
    n = len(found["loss"])
    names = found.get("run_id") or [f"row {i + 1}" for i in range(n)]
    status = found.get("status") or [None] * n
    keep: list[int] = []
    skipped = []
    seen: dict[str, int] = {}
    for i in range(n):
        reason = _why_not(found, i, status[i])
        content = json.dumps({k: v[i] for k, v in found.items()}, sort_keys=True, default=str)
        if reason is None and content in seen:
            reason = f"the same as {names[seen[content]]}"
        if reason is None:
            seen[content] = i
            keep.append(i)
        else:
            skipped.append({"run": str(names[i]), "reason": reason})
    ids = Counter(str(found["run_id"][i]) for i in keep if found["run_id"][i] is not None) if "run_id" in found else {}
    twice = sorted(name for name, times in ids.items() if times > 1)
    if twice:
        raise UserError(f"{path}: run_id {', '.join(twice[:5])} occurs more than once with different contents.")
    return keep, skipped


def _why_not(found: Columns, i: int, status: Any) -> str | None:
    if status == "failed":
        reason = found["reason"][i] if "reason" in found else None
        return f"failed: {reason}" if reason else "failed"
    loss = _float(found["loss"][i])
    if loss is None or not np.isfinite(loss):
        return f"loss is {found['loss'][i]}"
    size = found["tokens"][i]
    if size is None or not np.isfinite(_float(size) or 0.0):  # what is no number at all stops the reader later
        return f"D is {size}"
    return None


def _float(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _skipped_words(skipped: Sequence[Mapping[str, Any]]) -> str:
    listed = "; ".join(f"{s['run']} ({s['reason']})" for s in skipped[:10])
    more = f" and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    return f"{len(skipped)} run{'s' if len(skipped) != 1 else ''} left out: {listed}{more}."


def _numbers(name: str, values: list[Any] | None, path: Path, warnings: list[str]) -> Floats | None:
    """A column as floats [n] or [n, K]; None, with a warning, where some runs lack it."""
    if values is None or all(v is None for v in values):
        return None
    if name in LISTS:
        if any(not isinstance(v, list) for v in values if v is not None):
            raise UserError(f"{path}: {name} must be a list of numbers in every run, one a bin.")
        lengths = {len(v) for v in values if v is not None}
        if len(lengths) > 1:
            raise UserError(f"{path}: runs have different numbers of bins in {name} ({sorted(lengths)}).")
    absent = sum(v is None for v in values)
    if absent:
        warnings.append(f"{name} is missing in {absent} of {len(values)} runs and is not used.")
        return None
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: column {name} holds something that is not a number ({error}).") from error
    if not np.isfinite(found).all():
        warnings.append(f"{name} is not finite in some runs and is not used.")
        return None
    return found


def _names(name: str, values: Sequence[Any], warnings: list[str]) -> NDArray[np.str_] | None:
    """A column of names [n]; runs without one are each their own. None where no run has one."""
    absent = sum(v is None for v in values)
    if absent == len(values):
        return None
    if absent:
        warnings.append(f"{name} is missing in {absent} of {len(values)} runs: each of them counts as one of its own.")
    return np.array([f"(row {i + 1})" if v is None else str(v) for i, v in enumerate(values)])


def _one_hash(hashes: Sequence[Any], path: Path) -> str | None:
    different = sorted({str(h) for h in hashes if h is not None})
    if len(different) > 1:
        raise UserError(f"{path} mixes runs with different bins (bins_hash {', '.join(different)}); fit them apart.")
    return different[0] if different else None


def _one_model(found: Columns, path: Path) -> dict[str, str | None] | None:
    """Name, weights and `proxy_of` of the model that the runs are of; None where no row says. UserError for two."""
    if not all(name in found for name in TRAINED):
        return None
    rows = {w: (m, of) for m, w, of in zip(*(found[name] for name in TRAINED), strict=True) if w is not None}
    if len(rows) > 1:
        counted = Counter(w for w in found["weights"] if w is not None)
        each = ", ".join(f"{rows[w][0]} ({w}): {n} runs" for w, n in counted.items())
        raise UserError(
            f"{path} mixes runs of different models ({each}); a law predicts one model's losses: fit each apart, and "
            "see with `pplscape transfer` whether one may stand in for the other."
        )
    return next(({"model": m, "weights": w, "proxy_of": of} for w, (m, of) in rows.items()), None)


def proxy_words(trained: Mapping[str, str | None]) -> str:
    """What must be said wherever losses of a proxy are shown."""
    proxy, base = trained["model"], trained["proxy_of"]
    return (
        f"These runs are of {proxy}, a proxy: every loss, measured or predicted, is one of {proxy}, not of {base}; "
        f"whether what is best for it is best for {base} is measured by `pplscape transfer`."
    )


def _check_count(n: int, path: Path, skipped: Sequence[str]) -> None:
    if n < LEAST_RUNS:
        need = f"a law needs {LEAST_RUNS} or more, better 24 (8 trunks of 3 sizes)"
        raise UserError(" ".join([f"{path} has {n} usable runs; {need}.", *skipped]))
    if n > MOST_RUNS:
        raise UserError(
            f"{path} has {n:,} runs; laws are fitted to {MOST_RUNS:,} at most. If these are logged steps, keep the "
            "final loss of each run; else fit a sample."
        )


def _check(runs: RunTable, path: Path) -> None:
    """UserError for what no law can be fitted to, warnings for what a law should not be fitted to."""
    if (runs.loss <= 0).any():
        raise UserError(f"{path} has losses of 0 or below ({runs.loss.min():.4g}); they must be nats/token, above 0.")
    if (runs.tokens <= 0).any():
        raise UserError(f"{path} has runs of {runs.tokens.min():.4g} tokens; D must be above 0.")
    if runs.domain_share is not None and ((runs.domain_share < 0) | (runs.domain_share > 1)).any():
        raise UserError(f"{path} has shares of domain or replayed text outside 0 to 1.")
    if runs.bin_tokens is not None and ((runs.bin_tokens < 0).any() or (runs.bin_tokens.sum(1) <= 0).any()):
        raise UserError(f"{path} has runs with negative tokens in bins, or none in any.")
    for name in POSITIVE:
        values = getattr(runs, name)
        if values is not None and (values <= 0).any():
            raise UserError(
                f"{path}: {name} must be above 0; in {int((values <= 0).sum())} of {len(runs)} runs it is not."
            )
    warnings: list[str] = runs.meta["warnings"]
    if len(set(labels(runs, "regime"))) < LEAST_RUNS:
        warnings.append("Fewer than 4 regimes say nothing of composition; add pilots of other mean and spread.")
    if runs.domain_share is not None and np.ptp(runs.domain_share) > 1e-9:
        warnings.append("Runs with different replay shares are mixed; only the form dcpt can compare their losses.")
    schedules = {str(s) for s in runs.meta.get("schedule", [])}
    if len({bool(_recipe(s).get("lora_rank")) for s in schedules}) > 1:
        raise UserError(
            "Runs of adapters (LoRA) and of all weights are mixed; they follow different laws: fit each apart."
        )
    if len(schedules) > 1:
        warnings.append("Runs with different schedules are mixed; fit annealed and un-annealed losses apart.")
    if runs.base_loss is not None and np.ptp(runs.base_loss) > 0.01 * np.median(runs.base_loss):
        warnings.append("base_loss differs between runs; its median is used.")


def _recipe(schedule: str) -> dict[str, Any]:
    """The recipe a schedule names; {} for a user's own words."""
    try:
        found = json.loads(schedule)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
