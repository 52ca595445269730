"""Summaries as Markdown: what `analyse` puts between the markers of docs/results.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from .cells import SWEEP_SEEDS
from .costs import break_even

Summary = dict[str, Any]
MAIN = ("run", "oracle", "auto+likeness", "auto")
"""Arms whose gains are told by source, beside the best simple one."""


def interval_text(found: dict[str, Any] | None) -> str:
    if not found:
        return "–"
    return f"{found['mean']:+.4f} {ends_text(found['t']) if found['t'] else '(n = {})'.format(found['n'])}"


def ends_text(pair: Sequence[float] | None) -> str:
    return f"[{pair[0]:+.4f}, {pair[1]:+.4f}]" if pair else "–"


def p_text(p: float | None) -> str:
    """Three digits; what they cannot show is said to be below them."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def factor_text(found: dict[str, Any] | None) -> str:
    """A data-efficiency factor; points and ends beyond the measured sizes with their sign."""
    if not found:
        return "–"

    def told(value: dict[str, Any]) -> str:
        return f"{value['censored']}{value['factor']:.2f}"

    ends = found["interval"]
    return f"{told(found)} [{told(ends[0])}, {told(ends[1])}]" if ends else told(found)


def table_text(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _missing(summary: Summary) -> list[str]:
    return [m for m, n in summary["simple"].items() if n < SWEEP_SEEDS]


def arms_table(summary: Summary) -> str:
    """Arms by difference to random, which pairs arms of three seeds with the same seeds of random."""
    head = (
        "arm", "seeds", "test loss", "− random [t, 90 %]", "BCa, 90 %", "documents, 90 %", "Holm p", "DEF [90 %]",
        "clean", "general − random [t, 90 %]",
    )  # fmt: skip
    rows = []
    for name, a in sorted(
        summary["arms"].items(), key=lambda item: item[1]["random"]["mean"] if item[1]["random"] else 0.0
    ):
        gap = a["random"] or {}
        general = f"({a['loss_general']:.3f})" if name == "random" else interval_text(a["general"])
        rows.append(
            (
                f"{name}{_mark(name, summary)}", a["n"], f"{a['loss_test']:.4f}", interval_text(a["random"]),
                ends_text(gap.get("bca")), ends_text(gap.get("documents")), p_text(gap.get("holm")),
                factor_text(a.get("efficiency")), f"{a['share_clean']:.2f}", general,
            )
        )  # fmt: skip
    if summary["base"]:
        general = f"({summary['base_general']:.3f})"
        rows.append(("before training", "", f"{summary['base']:.4f}", *[""] * 6, general))
    return table_text(head, rows)


def _mark(name: str, summary: Summary) -> str:
    shut = summary["arms"][name]["as_random"]
    simple = f" (best simple{' so far' if _missing(summary) else ''})" if name == summary["best_simple"] else ""
    return simple + (f" (gate shut in {shut})" if shut else "")


def commits_text(summary: Summary) -> str:
    """Which code made the rows, and what connects it."""
    made = ", ".join(f"`{revision}` ({n})" for revision, n in summary["commits"]["rows"].items())
    again = "; ".join(
        f"`{r['method']}`, seed {r['seed']}, of `{r['of']}` again with `{r['revision']}`: {r['difference']:+.5f} nats"
        for r in summary["commits"]["again"]
    )
    after = ", ".join(f"`{revision}`" for revision in summary["commits"]["after"])
    newer = f" Newer than the last of these, so tied by nothing yet: {after}." if again and after else ""
    head = f"Commits in order (rows of this pool's arms and random's curve): {made}."
    return f"{head} Run again: {again or 'none'}.{newer}"


def missing_text(summary: Summary) -> str:
    """Cells of the plan that have no row; those of an experiment other than the arms by their number."""
    arms = [m for m in summary["missing"] if m["experiment"] == "primary"]
    told = [
        f"`{m['method']}`{'' if m['size'] == 1 else ' at {:g} D'.format(m['size'])} ({_range(m['seeds'])})"
        for m in arms
    ]
    others: dict[str, int] = defaultdict(int)
    for m in summary["missing"]:
        others[m["experiment"]] += len(m["seeds"])
    told += [f"{n} cells of {name}" for name, n in others.items() if name != "primary"]
    return f"{'; '.join(told)}." if told else "Nothing of the plan."


def _range(seeds: Sequence[int]) -> str:
    in_a_row = len(seeds) > 2 and len(seeds) == seeds[-1] - seeds[0] + 1
    told = f"{seeds[0]}-{seeds[-1]}" if in_a_row else ", ".join(map(str, seeds))
    return f"seed{'s' if len(seeds) > 1 else ''} {told}"


def _against(summary: Summary, key: str, reference: str) -> str:
    rows = [
        (arm, a[key]["n"], interval_text(a[key]), ends_text(a[key].get("documents")), p_text(a[key].get("holm")))
        for arm, a in sorted(summary["arms"].items(), key=lambda item: item[1][key]["mean"] if item[1][key] else 0.0)
        if a[key] and arm != "random"
    ]
    return table_text(("arm", "seeds", f"− {reference} [t, 90 %]", "documents, 90 %", "Holm p"), rows)


def against_oracle_table(summary: Summary) -> str:
    return _against(summary, "oracle", "oracle") if "oracle" in summary["arms"] else "Not run yet."


def against_simple_table(summary: Summary) -> str:
    """The arms against the best simple baseline, and which candidates it is the best of."""
    name, missing = summary["best_simple"], ", ".join(_missing(summary))
    if name is None:
        return f"No simple baseline has its {SWEEP_SEEDS} seeds at D yet ({missing})."
    there = ", ".join(m for m, n in summary["simple"].items() if n >= SWEEP_SEEDS)
    still = f"; not run yet: {missing}" if missing else ""
    return f"Candidates with {SWEEP_SEEDS} seeds: {there}{still}.\n\n{_against(summary, 'best_simple', name)}"


def sources_table(summary: Summary) -> str:
    """Differences by source of the test documents, with the documents' interval."""
    arms = summary["arms"]
    names = [n for n in dict.fromkeys((*MAIN, summary["best_simple"])) if n in arms]
    rows, head = [], None
    for key in ("random", "oracle"):
        for name in names:
            told = (arms[name][key] or {}).get("sources")
            if told:
                head = [f"{s.removeprefix('clean-')} ({v['n']})" for s, v in told.items()]
                rows.append(
                    (
                        f"{name} − {key}",
                        *(
                            f"{v['mean']:+.3f} [{v['documents'][0]:+.3f}, {v['documents'][1]:+.3f}]"
                            for v in told.values()
                        ),
                    )
                )
    return table_text(("difference", *head), rows) if head else "Not run yet."


def compositions_text(summary: Summary) -> str:
    """What random compositions reach, and the regret of every arm."""
    best = summary["compositions"]
    if not best:
        return "Not run yet."
    seeds = ", ".join(best["gains"])
    text = (
        f"Of {best['n']} random compositions of ten bins of perplexity {best['better_than_random']} are better than "
        f"random at the same seeds; their median gain is {best['median']:+.4f} nats/token. The one that is best on "
        f"valid ({best['best']}; seeds {seeds}) gains {best['gain']:+.4f} on test (largest of all on test "
        f"{best['largest_on_test']:+.4f}). An arm's gain is taken at the same seeds."
    )
    told = [(n, a["regret"]) for n, a in summary["arms"].items() if a.get("regret")]
    if not told:
        return f"{text} That is within three standard deviations of a seed: no regrets are given."
    rows = [
        (
            n,
            r["n"],
            f"{r['share']:+.0%}" + (f" [{r['interval'][0]:+.0%}, {r['interval'][1]:+.0%}]" if r["interval"] else ""),
        )
        for n, r in sorted(told, key=lambda item: item[1]["share"])
    ]
    return f"{text}\n\n{table_text(('arm', 'seeds', 'regret, share of that gain [t, 90 %]'), rows)}"


def falsified_text(summary: Summary) -> str:
    """Verdicts with the figures of F1, F2 and F4."""
    found = summary["falsified"]
    blocks = [f"**{name}.** {sentence}" for name, sentence in found["verdicts"].items()]
    if "F1" in found:
        rows = [(name, interval_text(p), p_text(p["holm"])) for name, p in found["F1"]["pairs"].items()]
        shapes = (f"{s} {m[0]:.3f}, {m[1]:.3f}" for s, m in found["F1"]["moments"].items())
        blocks += [
            table_text(("F1: pair of shapes", "difference of test loss [t, 90 %]", "Holm p"), rows),
            f"Mean and spread of log-perplexity that were reached: {'; '.join(shapes)}.",
        ]
    if "F2" in found:
        corners = (f"{x:.3f}, {s:.3f}" for x, s in found["F2"]["reached"].values())
        blocks.append(f"F2: mean and spread of log-perplexity that were reached: {'; '.join(corners)}.")
    if "F4" in found:
        rows = [(name.partition(":")[2], f"{loss:.4f}") for name, loss in found["F4"]["levels"].items()]
        blocks.append(table_text(("F4: mean at this quantile of the pool", "test loss"), rows))
    return "\n\n".join(blocks) or "Not run yet."


def replay_table(summary: Summary) -> str:
    """General and test loss with replay, minus those of the same draws without."""
    rows = [
        (
            name,
            r["test"]["n"],
            f"{r['tokens']:.1%}",
            interval_text(r["general"]),
            f"{r['loss_general']:.3f}",
            interval_text(r["test"]),
        )
        for name, r in sorted(summary["replay"].items())
    ]
    head = (
        "arm", "seeds", "replayed, share of D", "general − without [t, 90 %]", "general loss",
        "test − without [t, 90 %]",
    )  # fmt: skip
    return table_text(head, rows) if rows else "Not run yet."


def costs_table(summary: Summary) -> str:
    """Scoring and pilots in units of D, and the run that pays for them if its selection stays as good."""
    rows = []
    for name, c in summary["costs"].items():
        before, found = c["scoring"] + c["pilots"], summary["arms"][name].get("efficiency")
        pays = break_even(before, found["factor"]) if found else None
        rows.append(
            (
                name, f"{c['scoring']:.1f}", f"{c['pilots']:.1f}", f"{before:.1f}", factor_text(found),
                f"{pays:.0f} D" if pays else "never",
            )
        )  # fmt: skip
    head = ("arm", "scoring, D", "pilots, D", "before the run, D", "DEF [90 %]", "one run pays from")
    return table_text(head, rows) if rows else "Not run yet."


def failures_list(summary: Summary) -> str:
    return "\n".join(f"* {f['cell']}: {f['reason']}" for f in summary["failures"]) or "None so far."


SECTIONS: dict[str, Callable[[Summary], str]] = {
    "arms": arms_table, "commits": commits_text, "oracle": against_oracle_table, "simple": against_simple_table,
    "sources": sources_table, "compositions": compositions_text, "falsified": falsified_text, "costs": costs_table,
    "replay": replay_table, "failures": failures_list, "missing": missing_text,
}  # fmt: skip
"""Marker on the page -> what stands there."""
