"""Fixtures around the synthetic run: complete, changeable, and drawn without saving."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path

import pytest
from markupsafe import Markup
from synthetic_run import make_run

from pplscape.reporting.gallery import Gallery
from pplscape.reporting.style import Drawing


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; never changed by a test."""
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the complete run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def undrawn(monkeypatch):
    """No figure at all, for tests of the text."""
    monkeypatch.setattr(
        Gallery, "hang", lambda gallery, draw, width=0, name=None: Markup(f'<svg data-name="{name}"></svg>')
    )


@pytest.fixture
def sketched(monkeypatch):
    """Figures are drawn but not saved, which takes most of the time: an SVG is its tips as text."""

    def inline(drawing, class_=""):
        rows = [escape(t) for texts in drawing.tips.values() for t in texts]
        return f'<svg class="{class_}" data-name="{drawing.name}">' + "|".join(rows) + "</svg>"

    monkeypatch.setattr(Drawing, "inline", inline)
    monkeypatch.setattr(Drawing, "png", lambda drawing: b"png")
    monkeypatch.setattr(Drawing, "svg_file", lambda drawing: b"svg")
