"""The report as one self-contained HTML page: no network, no external file, corpus text always escaped."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pplscape.manifest import library_versions
from pplscape.reporting.folder import RunFolder
from pplscape.reporting.gallery import Gallery
from pplscape.reporting.verdict import verdict_of
from pplscape.reporting.words import listed, tokens, visible

MOST_NAMED = 4
"""Sources named in the title; more are counted."""


def render(run: RunFolder, out: Path, gallery: Gallery | None = None) -> str:
    """The page for `run` as it will be read at `out` (links are relative to it); figures are left in `gallery`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    gallery = gallery if gallery is not None else Gallery()
    environment = Environment(
        loader=PackageLoader("pplscape.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def asset(name: str) -> Markup:
        return Markup((resources.files("pplscape.reporting") / "templates" / name).read_text())

    return environment.get_template("report.html").render(asset=asset, **view_of(run, out, gallery))


def view_of(run: RunFolder, out: Path, gallery: Gallery) -> dict[str, Any]:
    """Everything the page shows, by section; a section whose stage has not run is None."""
    from pplscape.reporting import about_data, about_outcome, about_pilots, about_trust
    from pplscape.reporting.law_view import LawView

    law = LawView(run)
    return {
        "title": heading(run),
        "verdict": verdict_of(run),
        "landscape": about_data.landscape_view(run, gallery),
        "pilots": about_pilots.pilots_view(run, law, gallery),
        "trust": about_trust.trust_view(run, law, gallery),
        "selection": about_data.selection_view(run, gallery),
        "outcome": about_outcome.outcome_view(run, gallery),
        "costs": about_outcome.cost_view(run),
        "reproduce": about_outcome.reproduce_view(run, out),
        "commands": {stage: run.command(stage) for stage in ("landscape", "pilot", "fit", "select", "compare")},
        "next": run.command(run.next_stage),
        "version": library_versions().get("pplscape", ""),
    }


def heading(run: RunFolder) -> dict[str, str]:
    """Model, corpus and budget of the title."""
    configured = (run.config or {}).get("model")
    model = Path(str(configured or run.fact("model") or "the base model").rstrip("/"))
    name = f"{model.parent.name}/{model.name}" if model.name == "model" and model.parent.name else model.name
    landscape = run.landscape or {}
    sources = [str(s["source"]) for s in landscape.get("by_source", [])]
    few = landscape.get("n_sources", len(sources)) <= MOST_NAMED
    corpus = listed(sources, MOST_NAMED) if few else f"a corpus of {landscape['n_sources']:,} sources"
    return {
        "model": "the demo model" if configured == "demo" else visible(name),
        "corpus": visible(corpus) if sources else "the corpus",
        "budget": tokens(run.budget) if run.budget else "no budget yet",
    }
