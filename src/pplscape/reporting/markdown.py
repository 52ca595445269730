"""The run's results as Markdown tables, for a repository or a pull request."""

from __future__ import annotations

from pplscape.reporting.about_data import prediction_rows
from pplscape.reporting.about_outcome import FORGETTING, forgetting_rows, strategy_rows
from pplscape.reporting.folder import Facts, RunFolder
from pplscape.reporting.verdict import verdict_of
from pplscape.reporting.words import number, percent, seconds, table

ARMS = (
    "strategy",
    "seeds",
    "nats/token (test)",
    "− random [90 %]",
    "bits/byte",
    "− random [90 %]",
    "general loss − base",
)
LAWS = ("law", "cv error (nats/token)", "as a share of the gain", "Spearman", "top-1 regret (nats/token)", "")

PILOTS = ("trunk", "tokens", "mean log-ppl", "sd", "valid loss", "status")


def markdown(run: RunFolder) -> str:
    """Verdict, measured arms, laws, predictions, pilots and what each stage took; whatever the run has of them."""
    verdict = verdict_of(run)
    parts = [f"**{verdict.title}.** {verdict.sentence}"]
    if run.comparison:
        parts += [
            "## Measured at equal tokens, paired seeds",
            table(ARMS, [*strategy_rows(run.comparison), _base(run.comparison)]),
        ]
        if run.comparison.get("forgetting"):
            parts += [
                "## Forgetting: loss on general text, nats/token",
                table(FORGETTING, forgetting_rows(run.comparison)),
            ]
    if run.selection:
        parts += ["## Predicted (on the valid text)", table(("quantity", "value"), prediction_rows(run))]
    if run.law:
        parts += [
            "## Laws, by grouped cross-validation",
            table(LAWS, [_law_row(c, run.law) for c in run.law["choice"]]),
        ]
        parts += [run.law["verdict"]]
    if run.runs:
        parts += [
            "## Pilots",
            table(("regime", "tokens", "mean log-ppl", "sd", "valid loss", "status"), map(_run_row, run.runs)),
        ]
    parts += ["## Time", table(("stage", "seconds"), _times(run))]
    return "\n\n".join(parts) + "\n"


def _base(comparison: Facts) -> tuple[str, ...]:
    base = comparison["base"] or {}
    return ("before training", "", number(base.get("loss"), 4), "", number(base.get("bits_per_byte"), 4), "", "")


def _law_row(choice: Facts, law: Facts) -> tuple[str, ...]:
    chosen = " (chosen)" if choice["form"] == law["form"] else ""
    if choice.get("skipped"):
        return (choice["form"], "", "", "", "", f"skipped: {choice['skipped']}")
    return (
        choice["form"] + chosen, number(choice.get("cv_mae"), 4), percent(choice.get("mae_over_gain"), 1),
        number(choice.get("spearman"), 2), number(choice.get("top1_regret"), 4), "",
    )  # fmt: skip


def _run_row(run: Facts) -> tuple[str, ...]:
    status = run["status"] if run["status"] == "ok" else f"{run['status']}: {run['reason']}"
    return (
        run["group"], f"{run['tokens']:,}", number(run["nll_mean"]), number(run["nll_std"]),
        number(run["loss"], 4), status,
    )  # fmt: skip


def _times(run: RunFolder) -> list[tuple[str, str]]:
    """Seconds per stage, folders of one stage added up."""
    total: dict[str, float] = {}
    for manifest in run.manifests.values():
        total[manifest["stage"]] = total.get(manifest["stage"], 0.0) + manifest["run"]["seconds"]
    return [*((stage, seconds(took)) for stage, took in total.items()), ("all", seconds(sum(total.values())))]
