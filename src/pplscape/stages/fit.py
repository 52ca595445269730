"""Stage `fit`: any table of training runs in; a fitted, compared, plotted and explained law out.

Writes law.json (`laws.law.Law`), summary.md, and plots as PNG and SVG. Works alone: a table with D and loss is enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.laws.build import build
from pplscape.laws.choose import Choice, make_forms
from pplscape.laws.law import Law
from pplscape.laws.read import read_runs
from pplscape.laws.table import labels
from pplscape.laws.words import summary
from pplscape.manifest import StageFolder
from pplscape.runs import RunTable
from pplscape.statistics import Bins

VERSION = 6

Tables = Path | str | Sequence[Path | str]
"""One table of runs, or several that are fitted together: files, or folders of `pplscape pilot`."""

__all__ = ["Tables", "fit", "load_runs", "read_runs", "tables_of"]


def fit(
    runs_path: Tables,
    *,
    out: Path | str,
    forms: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    bootstrap: int = 500,
    scale: str | None = None,
    landscape: Path | str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Fit, compare and explain laws on one table of runs or on several together; returns the output folder.

    `columns` maps keys to column names (see `laws.read`), `bootstrap` is the number of refits behind the intervals
    (0: none), `scale` (`ppl` or `nll`) replaces every form's own, `landscape` is a landscape.json: bins, winsor limits
    and the feasible set of the budget.
    """
    if scale not in (None, "ppl", "nll"):
        raise UserError(f"--scale must be ppl or nll, not {scale}.")
    tables = tables_of(runs_path)
    inputs: dict[str, Path | str] = {**tables}
    if landscape is not None:
        inputs["landscape"] = Path(landscape)
    make_forms(forms, scale)  # unknown names stop here, and a user's own are loaded for the stages that follow
    wanted = list(forms) if forms else None
    config = {"forms": wanted, "columns": dict(columns or {}), "bootstrap": bootstrap, "scale": scale}
    with StageFolder(
        Path(out), stage="fit", version=VERSION, config=config, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            facts = read_landscape(Path(landscape)) if landscape is not None else {}
            runs = load_runs(list(tables.values()), columns, scale, facts)
            law, choice = build(
                runs, forms, scale=scale, bootstrap=bootstrap, seed=seed, feasible=facts.get("feasible")
            )
            law = in_context(law, runs, facts)
            folder.write_json("law.json", law.to_json())
            folder.write_text("summary.md", summary(law, choice) + _plots(folder, law, choice, runs, facts))
            skipped = runs.meta["skipped"]
            folder.finish({"in": len(runs) + len(skipped), "out": len(runs), "rejected": {"skipped": len(skipped)}})
    return Path(out)


def tables_of(runs: Tables) -> dict[str, Path]:
    """Input name -> file of each table; UserError if one is missing."""
    given = [runs] if isinstance(runs, (Path, str)) else list(runs)
    paths = [Path(p) / "runs.jsonl" if Path(p).is_dir() else Path(p) for p in given]
    for path in paths:
        if not path.exists():
            raise UserError(f"There is no table of runs at {path}.")
    return {"runs" if i == 0 else f"runs {i + 1}": path for i, path in enumerate(paths)}


def load_runs(
    path: Tables,
    columns: Mapping[str, str] | None = None,
    scale: str | None = None,
    facts: Mapping[str, Any] | None = None,
    *,
    whole: bool = False,
) -> RunTable:
    """`read_runs` with the pool's bin shares: from a landscape's facts, else from the random runs, else equal bins."""
    runs = read_runs(path, columns, scale, whole=whole)
    if runs.bin_tokens is None:
        return runs
    bins = (facts or {}).get("bins")
    if bins is not None:
        if runs.bins_hash is not None and bins.get("hash") not in (None, runs.bins_hash):
            raise UserError(
                f"The runs were binned otherwise (bins_hash {runs.bins_hash}) than this landscape ({bins['hash']}); "
                "give the landscape the pilots were planned on."
            )
        if len(bins["share"]) == runs.bin_tokens.shape[1]:
            levels = Bins.from_json(bins).n_levels
            return replace(runs, bin_share=np.asarray(bins["share"], float), bin_levels=levels)
    return replace(runs, bin_share=guess_share(runs))


def guess_share(runs: RunTable) -> np.ndarray:
    """The pool's bin shares [K] when no landscape says: those of the random runs, else equal (bins are cut so)."""
    assert runs.bin_tokens is not None
    random = np.char.startswith(labels(runs, "regime"), "random")
    if random.any():
        tokens = runs.bin_tokens[random].sum(0)
        if (tokens > 0).all():
            return tokens / tokens.sum()
    runs.meta["warnings"].append("The pool's bin shares are unknown (no landscape, no random runs): taken as equal.")
    return np.full(runs.bin_tokens.shape[1], 1 / runs.bin_tokens.shape[1])


def in_context(law: Law, runs: RunTable, facts: Mapping[str, Any]) -> Law:
    """The law and its alternatives with what must not be mixed: bins, winsor limits, tokenizer, chunks, model."""
    bins = facts.get("bins")
    kept = None if bins is None else {k: bins[k] for k in ("edges", "levels", "axis", "share", "hash") if k in bins}
    if kept is None and runs.bin_share is not None:
        kept = {"edges": None, "share": runs.bin_share.tolist(), "hash": runs.bins_hash}
    scoring = facts.get("scoring", {})
    context: dict[str, Any] = {
        "bins": kept,
        "winsor": facts.get("winsor"),
        "tokenizer": scoring.get("tokenizer"),
        "chunk_tokens": scoring.get("chunk_tokens"),
        "model": scoring.get("model"),
        "trained": runs.meta.get("trained"),
    }
    return replace(law, **context, alternatives=[replace(other, **context) for other in law.alternatives])


def read_landscape(path: Path) -> dict[str, Any]:
    path = path / "landscape.json" if path.is_dir() else path
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"There is no landscape at {path}; `pplscape landscape` writes one.") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}).") from error
    if not isinstance(facts, dict) or "bins" not in facts:
        raise UserError(f"{path} is not a landscape.json: it has no bins.")
    return facts


def _plots(folder: StageFolder, law: Law, choice: Choice, runs: RunTable, facts: Mapping[str, Any]) -> str:
    """Write every figure as PNG and SVG; returns summary.md's list of them."""
    from pplscape.laws.plots import CAPTIONS, figures

    lines = ["", "## Figures", ""]
    for name, figure in figures(law, choice, runs, facts.get("feasible")):
        folder.write_bytes(f"{name}.png", figure.png())
        folder.write_bytes(f"{name}.svg", figure.svg_file())
        lines.append(f"- [{name}.png]({name}.png): {CAPTIONS[name]}")
    return "\n".join(lines) + "\n"
