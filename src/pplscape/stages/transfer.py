"""transfer: pilots of a proxy beside pilots of the model it stands in for; may its choice be trusted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pplscape.errors import UserError
from pplscape.laws.choose import obstacle
from pplscape.laws.damage import without_first_damage
from pplscape.laws.fit import fit_form
from pplscape.laws.forms import get_form
from pplscape.laws.law import Law, law_of
from pplscape.laws.table import rows_of, size_classes
from pplscape.laws.uncertainty import uncertainty
from pplscape.manifest import StageFolder, read_json
from pplscape.proxy import TRUST, compare, laws_transferred
from pplscape.reporting.about_transfer import gains_figure, summary
from pplscape.runs import RunTable
from pplscape.stages.fit import Tables, load_runs, read_landscape, tables_of

VERSION = 3
REFITS = 60
"""Behind the hedge of both laws' allocations."""
APART = 0.3
"""Share of a regime's tokens in other bins, from which it is another regime; draws of few chunks differ by less."""


def transfer(
    proxy: Tables, target: Tables, *, out: Path | str, landscape: Path | str | None = None, seed: int = 0,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Write OUT/transfer.json, OUT/summary.md and OUT/gains.png, .svg.

    `proxy`, `target`: runs.jsonl of both models, or folders of `pilot`; one table each or several. `landscape`: the
    pool's bin shares, for the laws. UserError if the tables are not of two models on one landscape.
    """
    of_proxy, of_target = tables_of(proxy), tables_of(target)
    inputs: dict[str, Path | str] = {f"proxy {k}": v for k, v in of_proxy.items()}
    inputs |= {f"target {k}": v for k, v in of_target.items()}
    inputs |= {"landscape": Path(landscape)} if landscape is not None else {}
    with StageFolder(
        Path(out), stage="transfer", version=VERSION, config={}, inputs=inputs, seed=seed, overwrite=overwrite
    ) as folder:
        if not folder.finished:
            facts = read_landscape(Path(landscape)) if landscape is not None else {}
            tables = (list(t.values()) for t in (of_proxy, of_target))
            small, large = (once(load_runs(t, facts=facts, whole=True)) for t in tables)
            check(small, large)
            models = _model(small, "the proxy"), _model(large, "the target")
            laws, why = _laws(small, large, seed)
            content: dict[str, Any] = {"proxy": models[0], "target": models[1], "bins_hash": small.bins_hash}
            content |= compare(small, large, (models[0]["model"], models[1]["model"]), laws, seed) | {"no_laws": why}
            folder.write_json("transfer.json", content)
            folder.write_text("summary.md", summary(content))
            if content["sizes"]:
                drawing = gains_figure(content)
                folder.write_bytes("gains.png", drawing.png())
                folder.write_bytes("gains.svg", drawing.svg_file())
            folder.finish({"in": len(small) + len(large), "out": len(content["sizes"]), "rejected": {}})
    return Path(out)


def once(runs: RunTable) -> RunTable:
    """The runs without those of a trunk and size that a later table holds again; sizes are classed."""
    if runs.group is None:
        return runs
    keys = zip(runs.group.tolist(), size_classes(runs.tokens).tolist(), strict=True)
    last = np.sort(list({key: i for i, key in enumerate(keys)}.values()))
    return rows_of(runs, last)


def _model(runs: RunTable, word: str) -> dict[str, Any]:
    """Whose runs these are; a table that does not say is called by its role."""
    known = runs.meta["trained"] or {"model": word, "weights": None, "proxy_of": None}
    return {**known, "n_params": None if runs.n_params is None else float(np.median(runs.n_params))}


def check(proxy: RunTable, target: RunTable) -> None:
    """UserError if the runs are of one model, in the wrong order, or of regimes that are not the same."""
    mine, other = proxy.meta["trained"], target.meta["trained"]
    if mine and other and mine["weights"] == other["weights"]:
        raise UserError(f"Both tables are runs of {mine['model']}; give those of the proxy first, then the target's.")
    if mine and mine["proxy_of"] is None:
        raise UserError(
            f"{mine['model']} made the scores, so its runs are no proxy's: give the runs of `pilot --proxy` first."
        )
    if proxy.bins_hash and target.bins_hash and proxy.bins_hash != target.bins_hash:
        raise UserError(
            f"The regimes of the two tables are of different landscapes (bins {proxy.bins_hash}, {target.bins_hash}): "
            "run the same plan with both models."
        )
    schedules = [set(map(str, runs.meta.get("schedule", []))) for runs in (proxy, target)]
    if all(schedules) and schedules[0] != schedules[1]:
        raise UserError("The two models were trained by different recipes: run the same plan with both.")
    mine, other = composition(proxy), composition(target)
    for name in sorted(mine.keys() & other.keys()):
        apart = float(np.abs(mine[name] - other[name]).sum() / 2)
        if apart > APART:
            raise UserError(
                f"Regime {name} is not the same in the two tables ({apart:.0%} of its tokens lie in other bins), as "
                "where adaptive rounds were planned for each model: run the same plan with both."
            )


def composition(runs: RunTable) -> dict[str, np.ndarray]:
    """Shares [K] of the bins in all runs of each regime; none where the table does not say."""
    if runs.bin_tokens is None or runs.regime is None:
        return {}
    sums = {str(name): runs.bin_tokens[runs.regime == name].sum(0) for name in set(runs.regime.tolist())}
    return {name: tokens / tokens.sum() for name, tokens in sums.items()}


def _laws(proxy: RunTable, target: RunTable, seed: int) -> tuple[dict[str, Any] | None, str | None]:
    """(`laws_transferred` at the largest shared size, None), or (None, the reason why not)."""
    form = get_form("utility")
    proxy, target = (without_first_damage(runs)[0] for runs in (proxy, target))
    for runs, word in ((proxy, "proxy"), (target, "target")):
        reason = obstacle(form, runs)[0]
        if reason:
            return None, f"{word}: {reason}"
        if size_classes(runs.tokens).max() == 0:
            return None, f"{word}: all runs have one size"
    budget = float(min(proxy.tokens.max(), target.tokens.max()))
    pools = target.meta.get("pool_tokens")
    if not pools or any(p is None for p in pools):
        return None, "the tables do not say how large the pools were"
    pool = float(np.asarray(pools, float)[np.argmin(np.abs(target.tokens - budget))])
    if proxy.bin_share is None or target.bin_share is None or len(proxy.bin_share) != len(target.bin_share):
        return None, "the bins differ"
    shared = replace(proxy, bin_share=target.bin_share)
    laws = [_law(runs, seed) for runs in (shared, target)]
    return laws_transferred(laws[0], laws[1], np.asarray(target.bin_share) * pool, budget), None


def _law(runs: RunTable, seed: int) -> Law:
    fit = fit_form("utility", runs)
    return law_of(fit, runs, uncertainty(fit, runs, REFITS, seed))


def read_transfer(folder: Path) -> Mapping[str, Any]:
    """Content of transfer.json; UserError if there is none."""
    found: Mapping[str, Any] = read_json(folder / "transfer.json", f"transfer PROXY_RUNS TARGET_RUNS --out {folder}")
    return found


def may_stand_in(law: Law, facts: Mapping[str, Any], transfer: Path | None) -> str | None:
    """What to say of a law whose runs were a proxy's where the model of `facts` (of scores) is to be trained; None if
    they were that model's own, or nothing is known of them.

    UserError unless `transfer` has measured that the proxy may be trusted.
    """
    of = law.trained
    base = facts.get("weights")
    if of is None or (of["proxy_of"] is None and (base is None or of["weights"] == base)):
        return None
    proxy, model = of["model"], facts.get("model") or of["proxy_of"]
    if transfer is None:
        raise UserError(
            f"The law is of runs of {proxy}, not of {model}: measure whether its choice holds with `pplscape transfer "
            f"PROXY_RUNS TARGET_RUNS` and pass --transfer, or fit a law on pilots of {model}."
        )
    found = read_transfer(transfer)
    known = (found["proxy"]["weights"], found["target"]["weights"])
    if known[0] != of["weights"] or (base is not None and known[1] != base):
        raise UserError(
            f"{transfer} compares {found['proxy']['model']} with {found['target']['model']}; this law needs a "
            f"comparison of {proxy} with {model}."
        )
    if found["verdict"]["light"] != TRUST:
        raise UserError(
            f"The law of {proxy} may not decide for {model}: {found['verdict']['sentence']} Select at random "
            f"(--strategy random without --law), or fit a law on pilots of {model}."
        )
    return (
        f"The law is of {proxy}, a proxy: predicted losses and gains are those of {proxy}, not of {model}. "
        f"{found['verdict']['sentence']}"
    )
